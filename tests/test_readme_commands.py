"""The commands that the README, the book and the chapters show are ones that the program takes; none is run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from dpo_core.cli.flags import build_parser

ROOT = Path(__file__).resolve().parent.parent
SHOWN = re.compile(r"(python|torchrun [^`\n]*?) -m dpo_core (?P<arguments>[^`\n]+)")
STANDS_FOR = {"COMMAND": "data"}  # other placeholders stand for names of files and folders, and are such names


def texts() -> Iterator[tuple[Path, str]]:
    for page in (ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))):
        yield page, page.read_text(encoding="utf-8")
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(notebook, as_version=4).cells:
            yield notebook, cell.source


def commands() -> list[tuple[str, str]]:
    """Where each stands, and its arguments, of lines that go on after a backslash as of others."""
    return [
        (path.name, found["arguments"].strip())
        for path, text in texts()
        for found in SHOWN.finditer(re.sub(r"\\\n\s*", " ", text))
    ]


@pytest.mark.parametrize(("file", "arguments"), commands())
def test_a_command_on_a_page_is_one_that_the_program_takes(file, arguments):
    words = [STANDS_FOR.get(word, word) for word in shlex.split(arguments, comments=True)]
    try:
        assert build_parser().parse_args(words).command == words[0]
    except SystemExit as done:
        assert done.code == 0 and "--help" in words


def test_the_commands_are_found():
    """At least ten, in pages and chapters, and also those for several processes."""
    found = commands()
    assert len(found) >= 10
    assert {"README.md", "using.md", "00_quick_start.ipynb"} <= {file for file, _ in found}
    assert any("--parallel fsdp" in arguments for _, arguments in found)
