"""Sphinx directive ``explorer``: a live figure of the course's widgets in a page of text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Explorer(SphinxDirective):
    """``{explorer} run`` or ``loss``, as a chapter's cell would show it.

    Until a script has run, a summary stands there. That of the loss takes torch to compute; it is the content here.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        from dpo_core.course.records import record_file
        from dpo_core.course.widgets import embed, explorers, run_explorer

        figures = {
            "loss": lambda: embed.embed("loss_explorer", asdict(explorers.LossExplorer()), " ".join(self.content)),
            "run": lambda: run_explorer.RunExplorer.stored()._repr_html_(),
        }
        if self.arguments[0] not in figures:
            raise self.error(f"no explorer {self.arguments[0]!r}; there are {', '.join(figures)}")
        modules = (explorers.__file__, run_explorer.__file__, str(record_file("run_record")))
        for file in (*modules, *embed.sources(f"{self.arguments[0]}_explorer")):
            self.env.note_dependency(str(file))
        return [nodes.raw("", figures[self.arguments[0]](), format="html")]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("explorer", Explorer)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
