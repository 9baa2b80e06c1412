"""Write where the course lies, ``python tools/publish.py address URL``, and its version, ``... release X.Y.Z``.

``pyproject.toml`` is the home of both. ``_config.yml`` (address), ``CITATION.cff`` (version) and the notebooks' first
cells (both) hold copies, which ``tests/test_publish.py`` compares.

A release X.Y.Z is the tag vX.Y.Z, and its notebooks install that tag. Between two releases the version ends in .devN;
no tag belongs to it, and the notebooks install the default branch, of which they are a part. So a notebook that is
opened on Colab never meets the library of another time.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
VERSION = re.compile(r"\d+\.\d+\.\d+(\.dev\d+)?")

FIRST_CELL = """\
# {what}
from importlib.util import find_spec

if not find_spec("dpo_core"):
    {do}
from dpo_core.course import setup; setup()  # fmt: skip"""
NO_ADDRESS = 'raise ImportError("dpo_core is missing: `pip install -e .` in the course\'s folder")'

IN_PROJECT = re.compile(r'\[project\.urls\]\nRepository = "(.*)"\n\n')
VERSION_IN_PROJECT = re.compile(r'^version = "(.*)"$', re.MULTILINE)
IN_CONFIG = re.compile(r'^(repository:\n  url: )"(.*)"', re.MULTILINE)
IN_CITATION = re.compile(r"^version: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Published:
    """Where the course lies, or nothing, and which version of it this is."""

    address: str
    version: str

    @classmethod
    def read(cls, root: Path = ROOT) -> Published:
        """What ``pyproject.toml`` says."""
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
        address, version = IN_PROJECT.search(text), VERSION_IN_PROJECT.search(text)
        if not version:
            raise SystemExit('pyproject.toml: no line `version = "..."`; put it back')
        return cls(address[1] if address else "", version[1])

    @property
    def tag(self) -> str:
        """Git's name for this version, or nothing between two releases.

        >>> Published("", "1.2.3").tag, Published("", "1.3.0.dev0").tag
        ('v1.2.3', '')
        """
        return "" if ".dev" in self.version else f"v{self.version}"

    @property
    def requirement(self) -> str:
        """What pip is told; it fetches this version, and of other libraries only those that are missing.

        >>> Published("https://github.com/someone/dpo", "1.2.3").requirement
        'dpo-core[course] @ git+https://github.com/someone/dpo@v1.2.3'
        """
        return f"dpo-core[course] @ git+{self.address}" + (f"@{self.tag}" if self.tag else "")

    @property
    def first_cell(self) -> str:
        """The source of every notebook's first code cell."""
        if not self.address:
            return FIRST_CELL.format(what="Finds the course's library and says where this chapter runs.", do=NO_ADDRESS)
        release = f" (release {self.version})" if self.tag else ""
        return FIRST_CELL.format(
            what=f"If the course's library is missing, as on Colab, this installs it{release}.",
            do=f'%pip install -q "{self.requirement}"',
        )

    def write(self, root: Path = ROOT) -> None:
        """Put address and version everywhere; an empty address takes it out."""

        def change(name: str, place: re.Pattern[str], text: str) -> None:
            old = (root / name).read_text(encoding="utf-8")
            if not place.search(old):
                raise SystemExit(f"{name}: nothing like `{place.pattern}` is in it; put it back")
            (root / name).write_text(place.sub(text, old), encoding="utf-8")

        change("pyproject.toml", VERSION_IN_PROJECT, f'version = "{self.version}"')
        change("CITATION.cff", IN_CITATION, f"version: {self.version}")
        change("_config.yml", IN_CONFIG, rf'\1"{self.address}"')

        project = root / "pyproject.toml"
        text = IN_PROJECT.sub("", project.read_text(encoding="utf-8"))
        section = f'[project.urls]\nRepository = "{self.address}"\n\n' if self.address else ""
        project.write_text(text.replace("[tool.", section + "[tool.", 1), encoding="utf-8")

        for path in sorted((root / "notebooks").glob("*.ipynb")):
            notebook = nbformat.read(path, as_version=4)
            next(cell for cell in notebook.cells if cell.cell_type == "code").source = self.first_cell
            nbformat.write(notebook, path)

    def outdated(self, root: Path = ROOT) -> bool:
        """Whether the tag of this version is there and has another library than this folder."""

        def succeeds(*arguments: str) -> bool:
            return not subprocess.run(["git", "-C", str(root), *arguments], capture_output=True).returncode

        known = bool(self.tag) and succeeds("rev-parse", "--verify", f"refs/tags/{self.tag}")
        return known and not succeeds("diff", "--quiet", self.tag, "--", "dpo_core")


def address(url: str, root: Path = ROOT) -> str:
    """Write an address everywhere and say what comes next."""
    url = url.strip().removesuffix("/").removesuffix(".git")
    if not ADDRESS.fullmatch(url):
        raise SystemExit(f"not an address: {url!r}; run: make address URL=https://github.com/OWNER/REPO")
    replace(Published.read(root), address=url).write(root)
    return f"{url} written to pyproject.toml, _config.yml and the notebooks; `make test` compares them"


def release(version: str, root: Path = ROOT) -> str:
    """Write a version everywhere and say what comes next."""
    if not VERSION.fullmatch(version):
        raise SystemExit(f"not a version: {version!r}; run: make release VERSION=1.2.3 (or 1.3.0.dev0 after a release)")
    made = replace(Published.read(root), version=version)
    if made.tag and not made.address:
        raise SystemExit("nobody could install this release; first run: make address URL=https://github.com/OWNER/REPO")
    if made.outdated(root):
        raise SystemExit(f"{made.tag} is there already, with another library; release a later version")
    made.write(root)
    changelog = root / "book" / "changelog.md"
    text = changelog.read_text(encoding="utf-8")
    heading = f"## {version} (unreleased)\n"
    changelog.write_text(text.replace(heading, f"## {version} ({date.today()})\n"), encoding="utf-8")
    done = f"{version} written to pyproject.toml, CITATION.cff and the notebooks; `make test` compares them"
    if not made.tag:
        return f"{done}; then:\n  git commit -am 'Towards {version.partition('.dev')[0]}'"
    return f"""{done}; then:
  git commit -am 'Release {version}' && git tag {made.tag}
  git push --atomic origin HEAD {made.tag}
and at once, so that the default branch installs itself again: make release VERSION=NEXT.dev0"""


def main(command: str = "", value: str = "") -> None:
    commands = {"address": address, "release": release}
    if command not in commands:
        raise SystemExit(f"run: python tools/publish.py {{{','.join(commands)}}} VALUE")
    print(commands[command](value))


if __name__ == "__main__":
    main(*sys.argv[1:])
