"""Sphinx directive ``explorer``: a live figure of the course's widgets in a page of text."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Explorer(SphinxDirective):
    """``{explorer} loss``, ``beta`` or ``run``, as a chapter's cell would show it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from dpo_core.course.records import record_file
        from dpo_core.course.widgets import embed, explorers, run_explorer

        kinds = {
            "loss": explorers.LossExplorer,
            "beta": explorers.BetaExplorer,
            "run": run_explorer.RunExplorer.stored,
        }
        if self.arguments[0] not in kinds:
            raise self.error(f"no explorer {self.arguments[0]!r}; there are {', '.join(kinds)}")
        modules = (explorers.__file__, run_explorer.__file__, str(record_file("run_record")))
        for file in (*modules, *embed.sources(f"{self.arguments[0]}_explorer")):
            self.env.note_dependency(str(file))
        return [nodes.raw("", kinds[self.arguments[0]]()._repr_html_(), format="html")]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("explorer", Explorer)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
