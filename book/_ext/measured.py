"""Parts of pages that come from result files and stored outputs when the book is built, so that they cannot drift."""

from __future__ import annotations

import json
import re
import sys
from html import escape, unescape
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent.parent
RESULT = ROOT / "benchmarks" / "results" / "pocket_dpo.json"
QUICK_START = ROOT / "notebooks" / "00_quick_start.ipynb"
ROW = re.compile(r"<tr><th scope='row'>(.*?)</th><td>(.*?)</td><td>(.*?)</td></tr>", re.DOTALL)


class Answers(NamedTuple):
    """A prompt of the quick start with what the model said before training and after."""

    prompt: str
    before: str
    after: str


def stored_answers(notebook: Path = QUICK_START) -> list[Answers]:
    """The rows of the table with answers before and after, as the quick start's last run left it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = (output.get("data", {}).get("text/html", "") for cell in cells for output in cell.get("outputs", []))
    for html in map("".join, outputs):
        if "<th>before</th>" in html:
            return [Answers(*map(unescape, row)) for row in ROW.findall(html)]
    raise ExtensionError(f"{notebook.name} holds no table of answers before and after: run it and store its outputs")


def sentence() -> str:
    """What was measured with the quick start's settings."""
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.append(str(ROOT / "benchmarks"))
    import pocket_dpo

    return pocket_dpo.sentence(json.loads(RESULT.read_text(encoding="utf-8")))


def tiles() -> str:
    """The three figures of the result that matter, each with its range over the seeds, as HTML."""
    runs = json.loads(RESULT.read_text(encoding="utf-8"))["runs"]
    told = {
        "reward gained, by a judge that knows the truth": ("{:+.2f}", [run["reward_gained"]["mean"] for run in runs]),
        "of answers win against the model before": ("{:.0%}", [run["win_rate"]["rate"] for run in runs]),
        "seconds of training on two CPU cores": ("{:.0f}", [run["train_seconds"] for run in runs]),
    }
    cells = "".join(
        f"<div><dt>{words}</dt><dd>{span(form.format(min(values)), form.format(max(values)))}</dd></div>"
        for words, (form, values) in told.items()
    )
    return f'<dl class="course-tiles">{cells}</dl>'


def span(low: str, high: str) -> str:
    """A range, or one number where both ends are written alike."""
    return (low if low == high else f"{low} to {high}").replace("-", "−")


def comparison(rows: int) -> str:
    """The first rows of the quick start's table as HTML, each answer with the judge's reward."""
    from dpo_core.pocket.judge import PocketJudge

    judge = PocketJudge()

    def answer(name: str, prompt: str, text: str) -> str:
        score = f"{judge.score(prompt, text):+.1f}".replace("-", "−")
        return f'<dt class="{name}">{name} <span>judge: {score}</span></dt><dd>{escape(text)}</dd>'

    told = "".join(
        f"<figure><figcaption>{escape(prompt)}</figcaption>"
        f"<dl>{answer('before', prompt, before)}{answer('after', prompt, after)}</dl></figure>"
        for prompt, before, after in stored_answers()[:rows]
    )
    return f'<div class="course-answers">{told}</div>'


class Measured(SphinxDirective):
    """``measured``: the sentence with the quick start's figures."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(RESULT))
        return [nodes.paragraph("", sentence())]


class Tiles(SphinxDirective):
    """``measured-tiles``: the quick start's figures, large."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(RESULT))
        return [nodes.raw("", tiles(), format="html")]


class BeforeAfter(SphinxDirective):
    """``before-after``: answers of the quick start, side by side; the argument says how many prompts."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(QUICK_START))
        return [nodes.raw("", comparison(directives.positive_int(self.arguments[0])), format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("measured", Measured)
    app.add_directive("measured-tiles", Tiles)
    app.add_directive("before-after", BeforeAfter)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
