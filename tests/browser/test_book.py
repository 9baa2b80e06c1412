"""The built book in a real browser: from disk and below a path of a server, light and dark, wide and narrow."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from bs4 import BeautifulSoup

from dpo_core.course.widgets.explorers import LossExplorer
from dpo_core.course.widgets.run_explorer import RunExplorer

pytestmark = pytest.mark.browser

HERE = Path(__file__).resolve().parent
AXE = (HERE / "vendor" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
LIMIT = 1_500_000  # bytes of a page on first load, as GitHub Pages sends them: text compressed
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
ALLOWED = {  # findings that are the theme's own: rule and what the element looks like
    "region": r"navbar-brand|skip-link|pst-|search|sidebar",
    "label-content-name-mismatch": r"search-button|theme-switch|btn",
}
INTRO = "book/intro.html"
DERIVING = "notebooks/03_deriving_dpo.html"


# Built once


def test_it_builds_without_a_warning(book):
    warnings = re.findall(r".*WARNING.*", book.log)
    assert (book.status, warnings) == (0, [])


def test_links_images_and_anchors_lead_somewhere(book):
    ids, wrong = {}, []

    def anchors(file: Path) -> set[str]:
        if file not in ids:
            soup = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
            ids[file] = {tag["id"] for tag in soup.find_all(id=True)} | {tag["name"] for tag in soup.select("a[name]")}
        return ids[file]

    for page in book.pages:
        here = book.folder / page
        soup = BeautifulSoup(here.read_text(encoding="utf-8"), "html.parser")
        for tag, name in [(t, n) for n in ("href", "src") for t in soup.find_all(attrs={n: True})]:
            address, anchor = urldefrag(urljoin(here.as_uri(), tag[name]))
            if urlparse(address).scheme != "file" or (tag.name == "link" and "search" in tag.get("rel", [])):
                continue
            target = Path(unquote(urlparse(address).path))
            if not target.is_file() or (anchor and target.suffix == ".html" and unquote(anchor) not in anchors(target)):
                wrong.append((page, tag[name]))
    assert wrong == []
    assert len(ids) > 10


def test_every_figure_says_what_is_to_be_seen(book):
    mute = []
    for page in book.pages:
        soup = BeautifulSoup((book.folder / page).read_text(encoding="utf-8"), "html.parser")
        images = soup.select("article img")
        mute += [(page, image["src"]) for image in images if len(image.get("alt", "")) < 15 or ".png" in image["alt"]]
    assert mute == []


def test_every_chapter_says_its_time_and_level(book):
    for page in book.pages:
        if page.startswith("notebooks/"):
            soup = BeautifulSoup((book.folder / page).read_text(encoding="utf-8"), "html.parser")
            head = soup.select_one("ul.course-head").get_text(" ")
            assert re.search(r"(minutes|hour)", head) and re.search(r"gentle|moderate|demanding", head), page
            folded = soup.select(".course-quiz .course-item details, .course-quiz .admonition.dropdown")
            assert len(folded) >= 3, page
            assert len(soup.select(".course-exercises .course-item, .course-exercises ol > li")) >= 3, page


# In the browser


WIDTHS = (1920, 1280, 1024, 390)  # pixels; the last is that at which the rest is looked at
BROKEN = """() => Promise.all([...document.images].map(
    image => (image.loading = "eager", image.decode().then(() => "", () => image.src))))"""
TOO_WIDE = """() => {
    const framed = (e) => e && (getComputedStyle(e).overflowX !== "visible" || framed(e.parentElement));
    return document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("body *")]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !framed(e.parentElement))
        .map(e => `${e.tagName}.${e.className} in ${e.parentElement.tagName}`).slice(0, 5);
}"""
SAMPLES = """() => {  // one element for each look that text has on the page, to be tested for contrast in place of all
    const ground = (e) => e ? `${getComputedStyle(e).backgroundColor}|${ground(e.parentElement)}` : "";
    const seen = new Set();
    for (const e of document.querySelectorAll("[data-sample]")) delete e.dataset.sample;
    for (const e of document.querySelectorAll("body *")) {
        const says = [...e.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.data.trim());
        if (!says || !e.checkVisibility() || e.closest("mjx-container > *")) continue;
        const look = getComputedStyle(e);
        const key = [look.color, look.fontSize, look.fontWeight, look.opacity, look.textShadow, ground(e)].join();
        if (!seen.has(key)) e.dataset.sample = "";
        seen.add(key);
    }
    return seen.size;
}"""
WITHOUT_GLYPHS = """() => {  // formulas and coloured code become boxes and text of the same size: 20,000 nodes fewer
    for (const frame of document.querySelectorAll("mjx-container")) {
        const box = document.createElement("span");
        box.style.cssText = `display: inline-block; width: ${frame.scrollWidth}px; height: ${frame.offsetHeight}px`;
        frame.replaceChildren(box);
    }
    for (const code of document.querySelectorAll(".highlight pre:not(:has(a))")) code.textContent = code.textContent;
}"""


INTERACTIVE = """() => {  // milliseconds until the page was built and no task of 50 ms and more was left
    return Math.max(performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd, window.lastLongTask);
}"""


@dataclass
class Seen:
    """What was found on one page."""

    troubles: list[str]
    weight: int
    interactive: float
    too_wide: list[str]
    broken: list[str]
    findings: list[str]


def findings(page, where: dict[str, list], options: dict) -> list[str]:
    """What axe-core objects to, less what is allowed."""
    options = {"resultTypes": ["violations"], "preload": False, **options}
    found = page.evaluate("what => axe.run(...what).then(r => r.violations)", [where, options])
    told = [(rule["id"], node["html"], node["failureSummary"]) for rule in found for node in rule["nodes"]]
    return [
        f"{rule}: {html[:160]} {why[:200]}"
        for rule, html, why in told
        if not (rule in ALLOWED and re.search(ALLOWED[rule], html))
    ]


def contrast(page, theme: str) -> list[str]:
    """Text that does not stand out enough from its ground in a theme."""
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    assert page.evaluate(SAMPLES) > 5
    rule = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
    return [f"{theme}: {it}" for it in findings(page, {"include": [["[data-sample]"]]}, rule)]


def compressed(file: Path, size: int) -> int:
    """Bytes over the wire; servers of static pages compress text."""
    is_text = file.suffix in (".html", ".css", ".js", ".svg")
    return len(gzip.compress(file.read_bytes(), 6)) if is_text else size


@pytest.fixture(scope="module")
def tour(book, site, opened) -> dict[str, Seen]:
    """Every page at 390 pixels, in both themes, below a path of a server, with the network off but for the book."""
    found = {}
    for path in book.pages:
        visit = opened(site, path, width=390)
        page = visit.page
        page.wait_for_load_state("networkidle")
        weight = sum(compressed(book.folder / name, size) for name, size in visit.weight.items())
        interactive = page.evaluate(INTERACTIVE)
        wide = []
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            wide += [f"at {width} pixels: {it}" for it in page.evaluate(TOO_WIDE)]
        wrong = [source for source in page.evaluate(BROKEN) if source]
        wrong += page.evaluate("() => [...document.querySelectorAll('mjx-merror')].map(e => e.textContent)")
        page.evaluate(AXE)
        objections = contrast(page, "light") + contrast(page, "dark")
        page.evaluate(WITHOUT_GLYPHS)
        rules = {"runOnly": {"type": "tag", "values": LEVELS}, "rules": {"color-contrast": {"enabled": False}}}
        objections += findings(page, {"include": [["html"]]}, rules)
        found[path] = Seen(visit.troubles, weight, interactive, wide, wrong, objections)
        page.context.close()
    return found


@pytest.mark.parametrize("what", ["troubles", "too_wide", "broken", "findings"])
def test_every_page_is_whole_accessible_and_narrow(tour, what):
    assert len(tour) >= 12
    problems = {path: found for path, seen in tour.items() if (found := getattr(seen, what))}
    assert problems == {}, json.dumps(problems, indent=1, ensure_ascii=False)


def test_no_page_is_heavy(tour):
    heaviest = max(tour, key=lambda path: tour[path].weight)
    slowest = max(tour, key=lambda path: tour[path].interactive)
    for name, path in (("heaviest", heaviest), ("slowest", slowest)):
        seconds = tour[path].interactive / 1000
        print(f"{name} of {len(tour)} pages: {path}, {tour[path].weight / 1e6:.2f} MB, usable after {seconds:.1f} s")
    assert tour[heaviest].weight > 300_000, "something was not counted"
    assert {path: seen.weight for path, seen in tour.items() if seen.weight > LIMIT} == {}


@pytest.mark.parametrize("page", [INTRO, DERIVING])
def test_a_page_is_whole_when_opened_from_disk(visit, book, page):
    soup = BeautifulSoup((book.folder / page).read_text(encoding="utf-8"), "html.parser")
    formulas = [tag for tag in soup.select("article .math") if not tag.find_parent("template")]
    page = visit(page).page
    drawn = page.locator("article .math").evaluate_all(
        "all => all.map(e => !!e.querySelector('mjx-container mjx-math'))"
    )
    assert drawn == [True] * len(formulas) and len(drawn) >= 3
    assert page.evaluate("document.fonts.check('1rem \"Source Serif\"')")


# What moves


def readings(page) -> list[float]:
    texts = page.locator("[data-dpo=loss_explorer] .dpo-readings dd").all_text_contents()
    return [float(text.split()[0].replace("−", "-")) for text in texts]


def expected(explorer: LossExplorer):
    values = explorer.values()
    return pytest.approx([*values.values(), explorer.beta * values["weight"]], abs=6e-4)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_landing_page_is_alive(visit, width):
    page = visit(INTRO, width=width).page
    assert readings(page) == expected(LossExplorer())
    slider = page.get_by_label("Log-ratio difference")
    slider.press("ArrowRight")
    assert readings(page) == expected(LossExplorer(h=0.5))
    picture = page.locator("[data-dpo=loss_explorer] svg").first
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    h = float(slider.input_value())
    assert h > 8 and readings(page) == expected(LossExplorer(h=h))


def test_a_run_is_stepped_through_by_keys_and_by_a_drag(visit):
    page, run = visit(INTRO).page, RunExplorer.stored()
    slider = page.get_by_label("Optimiser step")
    card = page.locator("[data-dpo=run_explorer]")
    picture = card.locator("svg").first

    def shown() -> tuple[list[float], list[str]]:
        numbers = card.locator("dl.dpo-readings dd").all_text_contents()
        texts = card.locator(".dpo-answer > div").all_text_contents()
        return [float(number.split()[0].replace("−", "-")) for number in numbers], texts

    def recorded(step: int) -> tuple:
        at = RunExplorer(run.record, step)
        return pytest.approx(list(at.values().values()), abs=6e-3), at.answers()

    assert shown() == recorded(0)
    slider.press("ArrowRight")
    assert int(slider.input_value()) == run.record["rows"][1]["step"] and shown() == recorded(2)
    slider.press("End")
    last = int(slider.input_value())
    assert last == run.record["rows"][-1]["step"] and shown() == recorded(last)
    assert shown()[1] != recorded(0)[1], "the answers stayed as they were"
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    step = int(slider.input_value())
    assert 0 < step < last and shown() == recorded(step)
    assert slider.get_attribute("aria-valuetext") == f"{step} of {last}"


def test_a_term_is_explained_beside_it(visit):
    page = visit(INTRO).page
    link = page.locator("article a[href$='#term-beta']").first
    tip = page.get_by_role("tooltip")
    assert not tip.is_visible()
    link.focus()
    tip.wait_for()
    assert "KL" in tip.inner_text() and link.get_attribute("aria-describedby") == "course-tip"
    page.keyboard.press("Escape")
    assert not tip.is_visible() and link.get_attribute("aria-describedby") is None
    link.hover()
    tip.wait_for()
    tip.hover()  # the box stays while the pointer is in it
    page.wait_for_timeout(400)
    assert tip.is_visible()
    page.mouse.move(5, 5)
    tip.wait_for(state="hidden")


def test_an_equation_is_shown_beside_its_number(visit):
    page = visit(DERIVING).page
    number = page.locator("article a:not(.headerlink)[href='#equation-eq-derive-bt']:visible").first
    number.hover()
    page.locator("#course-tip mjx-container mjx-math").wait_for()
    said = "mjx-container mjx-assistive-mml"
    equation = page.locator(f"#equation-eq-derive-bt {said}").first.text_content()
    assert page.locator(f"#course-tip {said}").text_content() in equation and "σ" in equation


def test_notes_and_ticks_stay_in_the_browser(visit):
    seen = visit("notebooks/00_quick_start.html")
    page = seen.page
    field = page.get_by_label("Your prediction number 1")
    field.fill("one half")
    page.get_by_label("I have read this chapter").check()
    page.reload()
    assert page.get_by_label("Your prediction number 1").input_value() == "one half"
    assert page.get_by_label("I have read this chapter").is_checked()
    read = page.locator(".bd-sidebar-primary a.course-read")
    assert read.count() == 1 and "Quick start" in read.text_content()
    assert page.context.cookies() == []
    page.get_by_label("I have read this chapter").uncheck()
    assert page.locator(".bd-sidebar-primary a.course-read").count() == 0


def test_solutions_and_answers_are_folded_until_asked_for(visit):
    page = visit(DERIVING).page
    for kind, name in (("exercises", "Solution"), ("quiz", "Answer")):
        box = page.locator(f".course-{kind} .course-item details").first
        assert box.locator("summary").inner_text().strip() == name
        assert box.get_attribute("open") is None
        box.locator("summary").press("Enter")
        assert box.get_attribute("open") is not None


def test_the_theme_is_switched_by_its_button(visit):
    page = visit(INTRO).page
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    for _ in range(3):
        page.get_by_role("button", name=re.compile("Color mode|theme", re.I)).first.click()
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate(background) != light


def test_search_finds(visit, site):
    page = visit("search.html?q=partition+function", site=site).page
    page.locator("#search-results li a").first.wait_for()
    assert "glossary" in " ".join(page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)"))


def test_text_stands_without_scripts(book, chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{book.folder.as_uri()}/{INTRO}")
    assert page.get_by_text("At a reward margin of 0 the loss is").is_visible()
    assert page.locator(".course-answers dd").first.is_visible()
    context.close()


def test_the_whole_book_is_printed(book, tmp_path):
    file = tmp_path / "book.pdf"
    command = [sys.executable, str(HERE.parent.parent / "tools" / "pdf.py"), str(book.folder), str(file)]
    subprocess.run(command, check=True, timeout=600)
    data = file.read_bytes()
    assert data.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", data)) > 5 * len(book.pages) // 2
