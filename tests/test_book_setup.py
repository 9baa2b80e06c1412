"""``make book`` needs a part of the environment only, without torch, and the pages are then what they are with it."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from book_packages_only import ALL, BOOK, ROOT, Refusal, locked, normalised
from stand_ins import PACKAGES

from dpo_core.course.widgets.explorers import LossExplorer

WITHOUT_TORCH = [sys.executable, str(ROOT / "tests" / "book_packages_only.py"), "sphinx-build"]
WITH_TORCH = [sys.executable, "-m", "sphinx"]


def test_the_book_installs_a_part_of_what_the_tests_install():
    (_, *book), (_, *everything) = (file.read_text(encoding="utf-8").splitlines() for file in (BOOK, ALL))
    assert {*book} < {*everything}, "run `make lock`"
    assert "jupyter-book" in locked(BOOK)


def test_no_stand_in_hides_a_package_that_the_build_itself_uses():
    hidden = {normalised(name) for name in PACKAGES}
    assert hidden <= locked(ALL).keys()
    assert not hidden & locked(BOOK).keys()


def test_what_the_book_does_not_install_is_refused_and_nothing_else():
    refused = Refusal().modules
    assert {"torch", "numpy", "matplotlib", "anywidget", "pytest"} <= refused
    assert not refused & {"sphinx", "docutils", "myst_nb", "yaml", "dpo_core"}


def rendered(program: list[str], folder: Path, *extensions: str) -> list[str]:
    """The lines of the API page and of the command line's, as Sphinx makes them of the code."""
    modules = re.findall(r"^\.\. automodule::.*\n   :members:\n", (ROOT / "book" / "api.md").read_text("utf-8"), re.M)
    folder.mkdir()
    (folder / "index.rst").write_text("\n".join(["Pages\n=====\n", *modules, ".. cli-help::\n"]), encoding="utf-8")
    options = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]
    settings = {name: value for name, value in options.items() if name.startswith(("autodoc_", "napoleon_"))}
    settings["extensions"] = ",".join(["sphinx.ext.autodoc", "sphinx.ext.napoleon", "cli_help", *extensions])
    flags = [f"-D{name}={int(value) if isinstance(value, bool) else value}" for name, value in settings.items()]
    command = [*program, "-q", "-W", "-C", *flags, "-b", "text", str(folder), str(folder / "text")]
    paths = os.pathsep.join(map(str, (ROOT / "book" / "_ext", ROOT)))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (folder / "text" / "index.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
def test_pages_made_of_code_say_without_torch_what_they_say_with_it(tmp_path):
    without = rendered(WITHOUT_TORCH, tmp_path / "without", "stand_ins")
    complete = rendered(WITH_TORCH, tmp_path / "with")
    unlike = [line for line, other in zip(complete, without, strict=True) if line != other]
    # traitlets hides the arguments of the one class that inherits from it; of a stand-in's heir they are seen
    assert not [line for line in unlike if not re.search(r"\.Arena\(\*args: \S+, \*\*kwargs: \S+\)$", line)]
    assert any(line.endswith("model.GPT(config: GPTConfig)") for line in without)
    assert "   usage: python -m dpo_core train --data FILE [settings]" in without


def test_the_landing_page_says_where_the_loss_explorer_stands_at_first():
    page = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    said = "At a reward margin of 0 the loss is log 2 and its weight in the gradient one half."
    assert f"```{{explorer}} loss\n{said}\n```" in page
    assert LossExplorer().values() == {"margin": 0, "loss": round(math.log(2), 4), "weight": 0.5}
