"""What the book says about its chapters: the line under each title, and the list of them on the landing page."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

LEVELS = {  # by chapter: how much it asks of a reader, 1 to 3, and of what kind
    "00": (1, "some Python"),
    "01": (2, "some PyTorch"),
    "02": (2, "some statistics"),
    "03": (3, "logarithms and derivatives"),
    "04": (1, "some Python"),
    "05": (2, "some PyTorch"),
    "06": (2, "some PyTorch"),
    "07": (2, "reading curves"),
    "08": (2, "reading curves"),
    "09": (3, "some statistics"),
    "10": (3, "derivatives"),
    "11": (3, "policy gradients help"),
    "12": (3, "tensors and hardware"),
    "13": (2, "some PyTorch"),
    "14": (3, "several processes"),
    "15": (2, "Hugging Face libraries"),
}
WORDS = {1: "gentle", 2: "moderate", 3: "demanding"}
TIME = re.compile(r"\b(?:about|takes?)\s+((?:about\s+)?(?:an hour(?: and a half)?|half an hour|[\w-]+\s+minutes))")
COLAB = "https://colab.research.google.com/github"


class Chapter(NamedTuple):
    """A notebook in the table of contents."""

    page: str
    part: str

    @property
    def number(self) -> str:
        return Path(self.page).name[:2]


class ChapterList(nodes.General, nodes.Element):
    """Stands where the list will be, until all titles are known."""


class ChapterListDirective(SphinxDirective):
    """``chapters``: every notebook of the table of contents by part, with its question and its time."""

    def run(self) -> list[nodes.Node]:
        return [ChapterList()]


def chapters(root: Path) -> list[Chapter]:
    """The notebooks in reading order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    listed = ((entry["file"], part["caption"]) for part in toc["parts"] for entry in part["chapters"])
    return [Chapter(page, part) for page, part in listed if page.startswith("notebooks/")]


def opening(doctree: nodes.document) -> str:
    """The text before the first subsection, up to and with the statement of time."""
    section = next(iter(doctree.findall(nodes.section)))
    paragraphs = [node.astext() for node in section.children if isinstance(node, nodes.paragraph)]
    return "\n".join(paragraphs)


def minutes(doctree: nodes.document) -> str:
    """The time that a chapter says it takes, in its words; nothing if it does not say."""
    found = TIME.search(opening(doctree))
    return re.sub(r"\s+", " ", found[1].removeprefix("about ")) if found else ""


def question(doctree: nodes.document) -> str:
    """The first sentence of a chapter, if it needs no formula."""
    section = next(iter(doctree.findall(nodes.section)))
    first = next((node for node in section.children if isinstance(node, nodes.paragraph)), None)
    if first is None:
        return ""
    text = "".join(child.astext() for child in first.children if not isinstance(child, nodes.strong)).strip()
    sentence = re.split(r"(?<=[.?!])\s", re.sub(r"\s+", " ", text))[0]
    return "" if "\\" in sentence else sentence


def write_lists(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put the list of chapters where a page asks for it."""
    for place in list(doctree.findall(ChapterList)):
        assert app.builder is not None
        parts: dict[str, list[str]] = {}
        for chapter in chapters(Path(app.srcdir)):
            tree = app.env.get_doctree(chapter.page)
            address = app.builder.get_relative_uri(page, chapter.page)
            title = escape(app.env.titles[chapter.page].astext())
            parts.setdefault(chapter.part, []).append(
                f'<li><a class="course-card" href="{address}" data-page="{chapter.page}">'
                f'<span class="course-number">{chapter.number}</span><strong>{title}</strong>'
                f"<span>{escape(question(tree))}</span><small>{escape(minutes(tree))}</small></a></li>"
            )
        html = "".join(
            f'<h3 class="course-part">{escape(part)}</h3><ol class="course-cards">{"".join(cards)}</ol>'
            for part, cards in parts.items()
        )
        place.replace_self(nodes.raw("", html, format="html"))


def head(app: Sphinx, page: str, context: dict[str, Any], doctree: nodes.document) -> str:
    """The line under a chapter's title: its place, time and level, and where it can be run."""
    chapter = next((c for c in chapters(Path(app.srcdir)) if c.page == page), None)
    if chapter is None:
        return ""
    level, needs = LEVELS[chapter.number]
    dots = "●" * level + "○" * (3 - level)
    facts = [f"Chapter {chapter.number} · {escape(chapter.part)}", escape(minutes(doctree))]
    facts += [f'<span aria-hidden="true">{dots}</span> {WORDS[level]}: {needs}']
    links = []
    options = app.config.html_theme_options
    repository = options.get("repository_url", "").removeprefix("https://github.com/")
    if options.get("launch_buttons") and "://" not in repository:
        branch = options.get("repository_branch", "main")
        links.append(f'<a class="course-run" href="{COLAB}/{repository}/blob/{branch}/{page}.ipynb">Open in Colab</a>')
    source = context["pathto"](f"_sources/{page}.ipynb", 1)
    links.append(f'<a class="course-run" href="{source}" download>Download the notebook</a>')
    said = "".join(f"<li>{text}</li>" for text in (*filter(None, facts), *links))
    return f'<ul class="course-head" aria-label="About this chapter">{said}</ul>'


def add_head(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Put the head under the title of a chapter."""
    if doctree is not None and (line := head(app, page, context, doctree)):
        context["body"] = context["body"].replace("</h1>", "</h1>\n" + line, 1)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(ChapterList)
    app.add_directive("chapters", ChapterListDirective)
    app.connect("doctree-resolved", write_lists)
    app.connect("html-page-context", add_head)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
