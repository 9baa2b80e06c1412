"""Print the built book into one PDF with a table of contents: ``python tools/pdf.py _build/html _build/book.pdf``.

All pages are put into one, in reading order, links between them become links within the file, and Chromium prints it.
"""

from __future__ import annotations

import posixpath
import shutil
import sys
from pathlib import Path
from urllib.parse import urldefrag

import yaml
from bs4 import BeautifulSoup
from bs4.element import Tag
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FOOTER = (
    '<div style="font: 8pt sans-serif; width: 100%; text-align: center; color: #666">'
    '<span class="pageNumber"></span> / <span class="totalPages"></span></div>'
)
STYLE = """
  body { padding: 0 !important; }
  article { break-before: page; }
  nav.print-contents li { list-style: none; }
  .bd-article { padding: 0 !important; overflow: visible !important; }
  details > summary { display: none !important; }
  pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
"""


def reading_order() -> list[str]:
    """Pages of the table of contents, without their endings."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]


def anchor(page: str, name: str = "") -> str:
    """One id per place of the whole book."""
    return "--".join([page.replace("/", "-"), name] if name else [page.replace("/", "-")])


def moved(article: Tag, page: str, pages: list[str]) -> Tag:
    """An article with ids of its own and links that fit the joined page, which lies beside the index."""
    article["id"] = anchor(page)
    for tag in article.select("[id]"):
        tag["id"] = anchor(page, str(tag["id"]))
    for useless in article.select("template, .headerlink, .course-run, button"):
        useless.decompose()
    for details in article.select("details"):
        details["open"] = ""
    for tag in article.select("[src]"):
        if "://" not in str(tag["src"]):
            tag["src"] = posixpath.normpath(posixpath.join(posixpath.dirname(page), str(tag["src"])))
    for link in article.select("a[href]"):
        address, name = urldefrag(str(link["href"]))
        if "://" in address or address.startswith("mailto:"):
            continue
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), address)) if address else f"{page}.html"
        if target.removesuffix(".html") in pages:
            link["href"] = "#" + anchor(target.removesuffix(".html"), name)
    return article


def join(folder: Path) -> str:
    """The whole book as one page of HTML."""
    pages = [page for page in reading_order() if (folder / f"{page}.html").exists()]
    shell = BeautifulSoup((folder / f"{pages[0]}.html").read_text(encoding="utf-8"), "html.parser")
    depth = "../" * pages[0].count("/")
    assert shell.html and shell.head and shell.body
    shell.html["data-theme"], shell.html["data-content_root"] = "light", ""
    for script in shell.head.select("script"):
        if not ("MathJax" in (script.string or "") or "mathjax" in str(script.get("src", ""))):
            script.decompose()  # the rest is for reading on a screen
    for tag in [*shell.head.select("[src]"), *shell.head.select("link[href]")]:
        name = "src" if tag.has_attr("src") else "href"
        tag[name] = str(tag[name]).removeprefix(depth)
    shell.head.append(BeautifulSoup(f"<style>{STYLE}</style>", "html.parser"))
    shell.body.clear()
    contents = BeautifulSoup('<nav class="print-contents"><h2>Contents</h2><ul></ul></nav>', "html.parser")
    for page in pages:
        soup = BeautifulSoup((folder / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
        article = soup.select_one("article.bd-article")
        assert article is not None and article.h1 is not None, f"{page}.html has no article"
        title = article.h1.get_text().rstrip("#¶")
        line = BeautifulSoup(f'<li><a href="#{anchor(page)}"></a></li>', "html.parser")
        assert line.a is not None and contents.ul is not None
        line.a.string = title
        contents.ul.append(line)
        shell.body.append(moved(article, page, pages))
    first = shell.body.find("article")
    assert isinstance(first, Tag)
    first.insert_after(contents)
    return str(shell)


def print_pdf(folder: Path, file: Path) -> None:
    """Join the pages and have Chromium print them."""
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        raise SystemExit("no Chromium on this machine: apt-get install chromium")
    joined = folder / "print.html"
    joined.write_text(join(folder), encoding="utf-8")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.set_default_timeout(300_000)
            page.goto(joined.resolve().as_uri())
            page.evaluate("() => { for (const image of document.images) image.loading = 'eager'; }")
            page.evaluate("() => Promise.all([...document.images].map(image => image.decode().catch(() => null)))")
            page.evaluate("() => window.MathJax?.startup?.promise")
            page.pdf(
                path=file,
                format="A4",
                margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
                print_background=True,
                outline=True,
                tagged=True,
            )
            browser.close()
    finally:
        joined.unlink()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python tools/pdf.py HTML_FOLDER FILE.pdf")
    print_pdf(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"written: {sys.argv[2]}")
