"""Run a program as if none but the book's packages were installed: ``python tests/book_packages_only.py PROGRAM ...``.

Whatever ``make test`` adds to the environment of ``make book`` cannot be imported then. Of a package that neither lock
file knows nothing is said, as other versions of Python may need one more.
"""

from __future__ import annotations

import re
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import entry_points, packages_distributions
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
    (program,) = entry_points(group="console_scripts", name=sys.argv[0])
    sys.exit(program.load()())
