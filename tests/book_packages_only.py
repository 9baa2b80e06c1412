"""Run a module as if none but the book's packages were installed: ``python tests/book_packages_only.py MODULE ...``.

Whatever ``make test`` adds to the environment of ``make book`` cannot be imported then. Of a package that neither lock
file knows nothing is said, as other versions of Python may need one more.
"""

from __future__ import annotations

import re
import runpy
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BOOK, ALL = ROOT / "requirements-book-lock.txt", ROOT / "requirements-lock.txt"


def locked(file: Path) -> dict[str, str]:
    """The version of each package of a lock file, by its normalised name."""
    lines = (line.partition("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {normalised(name): version for name, _, version in lines}


def normalised(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Refusal(MetaPathFinder):
    """Refuses to import what only the lock file for everything has."""

    def __init__(self) -> None:
        added = locked(ALL).keys() - locked(BOOK).keys()
        found = packages_distributions().items()
        self.modules = {module for module, packages in found if {*map(normalised, packages)} <= added}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, Refusal())
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
