"""``make book`` needs a part of the environment only, without torch, and the pages are then what they are with it."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from book_packages_only import ALL, BOOK, ROOT, Refusal, locked, normalised
from stand_ins import PACKAGES

from dpo_core.course.widgets.explorers import LossExplorer


def test_the_book_installs_a_part_of_what_the_tests_install():
    book, everything = BOOK.read_text("utf-8").splitlines(), ALL.read_text("utf-8").splitlines()
    assert set(book[1:]) < set(everything[1:]), "run `make lock`"
    assert "jupyter-book" in locked(BOOK)


def test_no_stand_in_hides_a_package_that_the_build_itself_uses():
    book = locked(BOOK)
    assert {normalised(name) for name in PACKAGES} & {*book} == set()
    assert {normalised(name) for name in PACKAGES} <= {*locked(ALL)}


def test_what_the_book_does_not_install_cannot_be_imported_here():
    assert {"torch", "numpy", "matplotlib", "pytest"} <= Refusal().modules
    assert Refusal().modules & {"sphinx", "docutils", "myst_nb", "yaml", "dpo_core"} == set()


def rendered(folder: Path, python: Sequence[str], extensions: Sequence[str]) -> str:
    """The text of the API page and of the command line's, as Sphinx makes it of the code."""
    found = re.findall(r"^\.\. automodule:: .*\n   :members:\n", (ROOT / "book" / "api.md").read_text("utf-8"), re.M)
    (folder / "index.rst").write_text("Pages\n=====\n\n" + "\n".join([*found, ".. cli-help::\n"]), encoding="utf-8")
    options = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["sphinx"]["config"]
    settings = {name: value for name, value in options.items() if name.startswith(("autodoc_", "napoleon_"))}
    settings["extensions"] = ",".join(["sphinx.ext.autodoc", "sphinx.ext.napoleon", "cli_help", *extensions])
    flags = [f"-D{name}={int(value) if isinstance(value, bool) else value}" for name, value in settings.items()]
    paths = os.pathsep.join(map(str, (ROOT / "book" / "_ext", ROOT)))
    target = folder / "text"
    command = [sys.executable, *python, "sphinx", "-q", "-W", "-C", *flags, "-b", "text", str(folder), str(target)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (target / "index.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_pages_made_of_code_are_without_torch_what_they_are_with_it(tmp_path):
    folders = tmp_path / "without", tmp_path / "with"
    for folder in folders:
        folder.mkdir()
    without = rendered(folders[0], [str(ROOT / "tests" / "book_packages_only.py")], ["stand_ins"]).splitlines()
    complete = rendered(folders[1], ["-m"], []).splitlines()
    unlike = [theirs for ours, theirs in zip(without, complete, strict=True) if ours != theirs]
    # traitlets hides the arguments of its subclasses; without it they are seen
    assert not [line for line in unlike if not re.search(r"\.Arena\(\*args: \S+, \*\*kwargs: \S+\)$", line)]
    assert any(line.endswith("model.GPT(config: GPTConfig)") for line in without)
    assert "   usage: python -m dpo_core train --data FILE [settings]" in without


def test_what_the_landing_page_says_of_the_loss_at_first_is_what_it_is_there():
    page = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    assert "```{explorer} loss\nAt a reward margin of 0 the loss is log 2 and its weight in the gradient one half.\n" in page
    assert LossExplorer().values() == {"margin": 0, "loss": round(math.log(2), 4), "weight": 0.5}
