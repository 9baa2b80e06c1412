"""What the book says about its chapters: the line under each title, and the list of them on the landing page."""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tools.book_counts import MINUTES_AN_EXERCISE, NOTEBOOKS, Counts, count  # noqa: E402

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


def counted(numbers: list[str]) -> list[Counts]:
    """What is in the chapters with these numbers."""
    return [count(next(NOTEBOOKS.glob(f"{number}_*.ipynb"))) for number in numbers]


def reading(row: Counts) -> int:
    """Minutes for the text and the code of a chapter, by the rule of ``tools/book_counts.py``."""
    return row.minutes - MINUTES_AN_EXERCISE * row.exercises


def spoken(minutes: float) -> str:
    """A time in steps of five minutes, in hours from 100 minutes on in steps of a quarter.

    >>> spoken(23), spoken(164), spoken(480)
    ('25 minutes', '2 h 45 min', '8 h')
    """
    if minutes < 100:
        return f"{max(5, 5 * round(minutes / 5))} minutes"
    hours, quarters = divmod(round(minutes / 15), 4)
    return f"{hours} h" + (f" {15 * quarters} min" if quarters else "")


class TimesDirective(SphinxDirective):
    """``chapter-times``: a table with the minutes that each chapter takes by the rule, with and without exercises."""

    def run(self) -> list[nodes.Node]:
        lines = ["| chapter | minutes of text and code | exercises | minutes in all |", "|---|---|---|---|"]
        for chapter in chapters(ROOT):
            (row,) = counted([chapter.number])
            self.env.note_dependency(str(NOTEBOOKS / f"{row.chapter}.ipynb"))
            link = f"[{chapter.number}](../{chapter.page}.ipynb)"
            lines.append(f"| {link} | {reading(row)} | {row.exercises} | {row.minutes} |")
        parent = nodes.Element()
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), self.content_offset, parent)
        return parent.children


class TimeRole(SphinxRole):
    """``time``: how long the chapters with these numbers take; ``reading-time`` leaves out the exercises."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        rows = counted(self.text.split())
        total = sum(reading(row) if self.name == "reading-time" else row.minutes for row in rows)
        return [nodes.Text(spoken(total))], []


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
    app.add_directive("chapter-times", TimesDirective)
    app.add_role("time", TimeRole())
    app.add_role("reading-time", TimeRole())
    app.connect("doctree-resolved", write_lists)
    app.connect("html-page-context", add_head)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
