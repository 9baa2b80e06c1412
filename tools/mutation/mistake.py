"""A planted mistake: its name, its places in the package or in a chapter's cells, and what has to notice it."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.mutation.operators import operated
from tools.mutation.syntax import Edit, NotFound, plant

__all__ = ["Mistake", "ROOT", "in_chapter", "mistake", "mutant", "read_module", "source_file"]

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Mistake:
    """What is changed, function by function.

    An address is ``dpo_core.losses:dpo_loss``, module and function. In a chapter it is
    ``notebooks/05_the_loss_in_code#loss-016:my_dpo_loss``, file, the cell's id, and a function in it or nothing.
    """

    name: str
    tests: tuple[str, ...]  # that have to mind, by name, the likeliest first: tests/test_NAME.py
    places: tuple[tuple[str, tuple[Edit, ...]], ...]

    def __str__(self) -> str:
        return self.name

    @property
    def modules(self) -> list[str]:
        """The modules or cells that are changed."""
        return list(dict.fromkeys(address.split(":")[0] for address, _ in self.places))

    def planted(self, module: str, read: Callable[[str], ast.Module]) -> ast.Module:
        """Make the changes in one module.

        Args:
            module: one of ``modules``.
            read: gives the syntax of a module.
        Raises:
            NotFound: a place is not there any more; the message names it.
        """
        tree = read(module)
        for address, edits in self.places:
            if address.split(":")[0] == module:
                try:
                    tree = plant(tree, address.split(":")[1], edits, closed=not in_chapter(module))
                except NotFound as error:
                    raise NotFound(f'"{self.name}" finds no place in {address}: {error}') from None
        return tree


def mistake(name: str, tests: str, *places: str | Edit) -> Mistake:
    """Write a mistake down: its name, the tests that have to mind, then an address with its edits, or several."""
    found: list[tuple[str, list[Edit]]] = []
    for part in places:
        if isinstance(part, str):
            found.append((part, []))
        else:
            found[-1][1].append(part)
    return Mistake(name, tuple(tests.split()), tuple((address, tuple(edits)) for address, edits in found))


def mutant(module: str, tests: Sequence[str], scope: str, operator: str, nth: int) -> Mistake:
    """The mistake that an operator makes, by the name of its place.

    >>> mutant("dpo_core.losses", [], "dpo_loss", "arithmetic", 2).name
    'dpo_core.losses:dpo_loss, arithmetic 2'
    """
    name = f"{module}:{scope}, {operator} {nth}"
    return Mistake(name, tuple(tests), ((f"{module}:{scope}", (operated(operator, nth),)),))


def in_chapter(module: str) -> bool:
    """Whether it is a cell of a chapter."""
    return module.startswith("notebooks/")


def source_file(module: str) -> Path:
    """Where a module of the package lies."""
    return ROOT / (module.replace(".", "/") + ".py")


def read_module(module: str) -> ast.Module:
    """The syntax of a module of the package, or of a cell.

    Raises:
        NotFound: there is no such module or cell.
    """
    if not in_chapter(module):
        if not source_file(module).is_file():
            raise NotFound(f"there is no module {module}")
        return ast.parse(source_file(module).read_text(encoding="utf-8"))
    name, cell = module.split("#")
    cells = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    if cell not in (known := {each["id"]: "".join(each["source"]) for each in cells}):
        raise NotFound(f"there is no cell {cell} in {name}")
    return ast.parse(known[cell])
