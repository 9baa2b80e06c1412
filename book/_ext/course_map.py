"""The picture of the map: from text to an evaluated model, with the chapters at their boxes.

``course-map`` puts it on a page, where it takes the colours of the page, light or dark. ``python
book/_ext/course_map.py`` writes ``book/images/map.svg`` with the colours of the figures, for notebooks.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FILE = Path(__file__).resolve().parent.parent / "images" / "map.svg"
WIDTH, HEIGHT = 360, 476
CHIP = 11  # radius of a chapter's number

ALT = (
    "From top to bottom: pretraining on much text (chapter 01), supervised fine-tuning on good answers, preference data"
    " (chapters 02 and 04). From there two ways lead to a better model: RLHF with a reward model (chapter 02) and then"
    " reinforcement learning, or DPO with one loss (chapters 05, 06, 07, 08 and 10); chapter 03 leads from the first to"
    " the second. Both ways end at evaluation (chapter 09). Chapter 00 goes from preference data to evaluation by DPO."
)


class Box(NamedTuple):
    """A step: where it stands, what it is called, what happens there, and its chapters."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...]
    chapters: tuple[str, ...]
    kind: str = "plain"


BOXES = (
    Box(40, 6, 312, 66, "Pretraining", ("much text: guess the next token",), ("01",)),
    Box(40, 96, 312, 66, "Supervised fine-tuning (SFT)", ("good answers: imitate them",), ()),
    Box(40, 186, 312, 66, "Preference data", ("two answers: which is better?",), ("02", "04")),
    Box(40, 276, 138, 104, "RLHF", ("learn a score,", "then raise it"), ("02",), "other"),
    Box(214, 276, 138, 104, "DPO", ("one loss,", "on the pairs"), ("05", "06", "07", "08", "10"), "main"),
    Box(40, 404, 312, 66, "Evaluation", ("is it better, and at what price?",), ("09",)),
)
ARROWS = (
    ((196, 72), (196, 95)),
    ((196, 162), (196, 185)),
    ((109, 252), (109, 275)),
    ((283, 252), (283, 275)),
    ((109, 380), (109, 403)),
    ((283, 380), (283, 403)),
)
ON_PAGE = {
    "text": "var(--pst-color-text-base)",
    "muted": "var(--pst-color-text-muted)",
    "line": "var(--pst-color-text-muted)",
    "plain": "var(--course-card)",
    "other": "var(--course-warm)",
    "main": "var(--course-tint)",
    "chosen": "var(--course-chosen)",
    "rejected": "var(--course-rejected)",
    "on": "var(--pst-color-background)",
    "font": "var(--course-sans)",
}
IN_FILE = {
    "text": "#23272c",
    "muted": "#565c63",
    "line": "#565c63",
    "plain": "#ffffff",
    "other": "#fdf3ea",
    "main": "#eef5fa",
    "chosen": "#0072b2",
    "rejected": "#b84a00",
    "on": "#ffffff",
    "font": "'Source Sans 3', 'Segoe UI', system-ui, sans-serif",
}


def text(x: float, y: float, words: str, colour: str, size: float, more: str = "") -> str:
    """Words whose baseline is at y."""
    return f'<text x="{x}" y="{y}" font-size="{size}" style="fill:{colour}"{more}>{escape(words)}</text>'


def chip(x: float, y: float, number: str, colours: dict[str, str]) -> str:
    """A chapter's number on a disc."""
    label = text(x, y + 4.2, number, colours["on"], 12, ' font-weight="650" text-anchor="middle"')
    return f'<circle cx="{x}" cy="{y}" r="{CHIP}" style="fill:{colours["chosen"]}"/>{label}'


def arrow(start: tuple[int, int], end: tuple[int, int], colours: dict[str, str]) -> str:
    """A line with a head, straight down or to the right."""
    (x1, y1), (x2, y2) = start, end
    down = x1 == x2
    head = f"M{x2 - 4} {y2 - 7}h8l-4 7z" if down else f"M{x2 - 7} {y2 - 4}v8l7 -4z"
    shaft = f"M{x1} {y1}V{y2 - 6}" if down else f"M{x1} {y1}H{x2 - 6}"
    style = f"stroke:{colours['line']};stroke-width:1.5;fill:none"
    return f'<path d="{shaft}" style="{style}"/><path d="{head}" style="fill:{colours["line"]}"/>'


def drawn(box: Box, colours: dict[str, str]) -> str:
    """A box with its words; chapters stand to the right, or below the words of a narrow box."""
    edge = {"plain": colours["line"], "other": colours["rejected"], "main": colours["chosen"]}[box.kind]
    width = 1 if box.kind == "plain" else 2
    parts = [
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="9"'
        f' style="fill:{colours[box.kind]};stroke:{edge};stroke-width:{width}"/>',
        text(box.x + 12, box.y + 26, box.title, colours["text"], 16, ' font-weight="650"'),
    ]
    wide = box.width > 200
    lines = [(box.y + (48 if wide else 45) + 16 * i, line) for i, line in enumerate(box.lines)]
    parts += [text(box.x + 12, y, line, colours["muted"], 13.5 if wide else 12.5) for y, line in lines]
    for i, number in enumerate(box.chapters):
        if wide:
            x, y = box.x + box.width - 22 - 26 * (len(box.chapters) - 1 - i), box.y + box.height / 2
        else:
            x, y = box.x + 21 + 24 * i, box.y + box.height - 19
        parts.append(chip(x, y, number, colours))
    return "".join(parts)


def svg(colours: dict[str, str], background: str = "") -> str:
    """The picture.

    Args:
        colours: ``ON_PAGE`` or ``IN_FILE``.
        background: a colour for an opaque card, or none.
    """
    card = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="{background}"/>' if background else ""
    rail = (  # chapter 00 goes the whole way in small
        f'<path d="M40 219H17V437H33" style="stroke:{colours["chosen"]};stroke-width:2;fill:none"/>'
        f'<path d="M33 433v8l7 -4z" style="fill:{colours["chosen"]}"/>' + chip(17, 328, "00", colours)
    )
    between = arrow((179, 344), (213, 344), colours) + chip(196, 325, "03", colours)
    boxes, arrows = [drawn(box, colours) for box in BOXES], [arrow(*ends, colours) for ends in ARROWS]
    body = "".join([card, *boxes, *arrows, rail, between])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(ALT)}"'
        f' style="font-family:{colours["font"]}">{body}</svg>'
    )


class CourseMap(SphinxDirective):
    """``course-map``: the picture; with the option ``small`` for a page whose subject it is not."""

    option_spec: ClassVar[dict[str, Any]] = {"small": directives.flag}

    def run(self) -> list[nodes.Node]:
        size = " course-map-small" if "small" in self.options else ""
        return [nodes.raw("", f'<div class="course-map{size}">{svg(ON_PAGE)}</div>', format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("course-map", CourseMap)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    FILE.write_text(svg(IN_FILE, "#fafaf7") + "\n", encoding="utf-8")
    print(f"{FILE} written")
