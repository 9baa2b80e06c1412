"""Write the repository's address where it is needed: ``python tools/address.py https://github.com/OWNER/REPO``.

``pyproject.toml`` is its home; ``_config.yml`` and the notebooks' first cells hold copies, which
``tests/test_address.py`` compares. An empty address takes it out again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")

FIRST_CELL = """\
from importlib.util import find_spec

if not find_spec("dpo_core"):
    {install}
from dpo_core.course import setup; setup()  # fmt: skip"""
INSTALL = "%pip install -q --no-deps git+{address}"
NO_ADDRESS = 'raise ImportError("dpo_core is missing: `pip install -e .` in the course\'s folder")'

IN_PROJECT = re.compile(r'\[project\.urls\]\nRepository = "(.*)"\n\n')
IN_CONFIG = re.compile(r'^(repository:\n  url: )"(.*)"', re.MULTILINE)


def first_cell(address: str) -> str:
    """The source of every notebook's first code cell."""
    return FIRST_CELL.format(install=INSTALL.format(address=address) if address else NO_ADDRESS)


def project_address(root: Path = ROOT) -> str:
    """The address in ``pyproject.toml``, or nothing."""
    found = IN_PROJECT.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    return found[1] if found else ""


def config_address(root: Path = ROOT) -> str:
    """The address in ``_config.yml``, or nothing."""
    found = IN_CONFIG.search((root / "_config.yml").read_text(encoding="utf-8"))
    if not found:
        raise SystemExit('_config.yml: no line `  url: "..."` under `repository:`; put it back')
    return found[2]


def write(address: str, root: Path = ROOT) -> None:
    """Put the address everywhere; an empty one takes it out."""
    project = root / "pyproject.toml"
    text = IN_PROJECT.sub("", project.read_text(encoding="utf-8"))
    section = f'[project.urls]\nRepository = "{address}"\n\n' if address else ""
    project.write_text(text.replace("[tool.", section + "[tool.", 1), encoding="utf-8")

    config = root / "_config.yml"
    config.write_text(IN_CONFIG.sub(rf'\1"{address}"', config.read_text(encoding="utf-8")), encoding="utf-8")

    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        next(cell for cell in notebook.cells if cell.cell_type == "code").source = first_cell(address)
        nbformat.write(notebook, path)


def main() -> None:
    address = sys.argv[1].strip().removesuffix("/").removesuffix(".git") if len(sys.argv) == 2 else ""
    if not ADDRESS.fullmatch(address):
        raise SystemExit(f"not an address: {address!r}; run: make address URL=https://github.com/OWNER/REPO")
    write(address)
    print(f"{address} written to pyproject.toml, _config.yml and the notebooks; `make test` compares them")


if __name__ == "__main__":
    main()
