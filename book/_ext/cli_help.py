"""Sphinx directive ``cli-help``: the ``--help`` of every command, taken from the parser at build time."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

WIDTH = 88  # columns that fit the page


class CliHelp(SphinxDirective):
    """One section for each command of ``python -m dpo_core``, so that the page cannot drift from the code."""

    def run(self) -> list[nodes.Node]:
        from dpo_core.cli.flags import build_parser
        from dpo_core.config import DPOConfig
        from dpo_core.rl.config import RLConfig
        from dpo_core.rl.reward import RewardConfig

        parser = build_parser()
        for source in (build_parser, DPOConfig, RLConfig, RewardConfig):
            self.env.note_dependency(str(inspect.getsourcefile(source)))
        commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
        return [self._section(name, command) for name, command in commands.items()]

    def _section(self, name: str, command: argparse.ArgumentParser) -> nodes.section:
        command.prog = f"python -m dpo_core {name}"
        command.formatter_class = _fixed_width(command.formatter_class)
        section = nodes.section(ids=[f"cli-{name}"], names=[f"cli-{name}"])
        section += nodes.title("", "", nodes.literal(text=name))
        section += nodes.literal_block(text=command.format_help(), language="text")
        return section


def _fixed_width(formatter: Any) -> Any:
    """The same formatter at a width that does not depend on the terminal of the build."""
    return lambda prog: formatter(prog, width=WIDTH)


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("cli-help", CliHelp)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
