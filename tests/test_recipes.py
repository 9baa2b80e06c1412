"""The programs of the recipes page run as they stand there, each by itself, and print what the page says they print."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from compare_outputs import Tolerance, differences

import dpo_core
from dpo_core.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "recipes.md").read_text(encoding="utf-8")
FENCE = re.compile(r"```(\w+)\n(.*?)```\n", re.DOTALL)


def read(section: str) -> dict[str, str]:
    """What leads to a program, the program (python), how it is started (bash), its output (text), and tags."""
    lead, _ = section.split("```python\n")
    return {
        "lead": lead,
        "tags": "".join(re.findall("^% tags: (.*)$", section, re.MULTILINE)),
        **dict(FENCE.findall(section)),
    }


RECIPES = {
    title: read(text) for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}
SILENT = {
    "Your own pairs on GPT-2",
    "A tokenizer and a model of your own",
    "Rows to TensorBoard",
}  # no numbers to state


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    """What the page's first command writes."""
    (command,) = re.findall(r"^python -m dpo_core (data .+)$", PAGE, re.MULTILINE)
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    assert main([*command.split()[:-1], str(file)]) == 0
    return file


@pytest.fixture
def folder(tmp_path, pairs_file, monkeypatch):
    shutil.copy(pairs_file, tmp_path / "pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path, program: str) -> None:
    """Run a program as ``python recipe.py`` would, without the seconds that importing torch takes."""
    (folder / "recipe.py").write_text(program, encoding="utf-8")
    runpy.run_path(str(folder / "recipe.py"), run_name="__main__")


def agrees(found: str, title: str) -> list[str]:
    recipe = RECIPES[title]
    return differences(recipe.get("text", ""), found, Tolerance.of(recipe["tags"].split()))


def test_each_section_has_one_program_and_a_reason_for_it():
    assert len(RECIPES) == PAGE.count("```python") >= 11
    assert all(len(recipe["lead"].split()) > 10 for recipe in RECIPES.values())
    assert {title for title, recipe in RECIPES.items() if "text" not in recipe} == SILENT


@pytest.mark.parametrize("title", RECIPES)
def test_a_program_has_under_ten_lines_that_a_page_shows_whole(title):
    lines = [line for line in RECIPES[title]["python"].splitlines() if line.strip()]
    assert len(lines) < 10
    assert max(map(len, lines)) <= 88


@pytest.mark.parametrize("title", RECIPES)
def test_a_program_imports_from_the_package_what_it_exports(title):
    for module, names in re.findall(r"from (dpo_core\.\S+) import (.+)", RECIPES[title]["python"]):
        assert not set(names.split(", ")) & set(dpo_core.__all__), module


APART = {"Resume, or start", "Several GPUs", "Rows to TensorBoard"}  # each has a test of its own below


@pytest.mark.parametrize("title", [title for title in RECIPES if title not in APART])
def test_a_program_runs_and_prints_what_the_page_says(title, folder, capsys):
    run(folder, RECIPES[title]["python"].replace('"gpt2"', '"pocket"'))
    printed = capsys.readouterr().out
    if title in SILENT:
        assert re.search(r"^step     0 \| loss: 0\.693", printed, re.MULTILINE)
    else:
        assert agrees(printed, title) == []


def test_a_resumed_program_prints_the_rows_that_are_left_and_then_none(folder, capsys):
    title = "Resume, or start"
    program = RECIPES[title]["python"]
    interrupt = "lambda trainer, step, row: __import__('signal').raise_signal(2)"
    assert signal.SIGINT == 2
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1"):
        run(folder, program.replace('resume="auto"', f'resume="auto", callbacks=[{interrupt}]'))
    first = capsys.readouterr().out
    run(folder, program)
    second = capsys.readouterr().out
    assert len(first.splitlines()) == len(second.splitlines()) == 1
    assert agrees(first + second, title) == []
    run(folder, program)
    assert capsys.readouterr().out == ""


def test_several_processes_print_the_rows_of_one(folder):
    title = "Several GPUs"
    command = RECIPES[title]["bash"].split()
    (folder / command[-1]).write_text(RECIPES[title]["python"], encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", *command[1:]]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert agrees(done.stdout, title) == []
    assert RECIPES[title]["text"] == RECIPES["Resume, or start"]["text"]


def test_rows_come_to_tensorboard(folder, monkeypatch):
    """To a writer that stands in for TensorBoard's, which the course does not install."""
    told = []

    class SummaryWriter:
        def __init__(self, place, **settings):
            self.place = place

        def add_scalar(self, name, value, step):
            told.append((self.place, name, step))

        def flush(self):
            pass

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, module.__name__, module)
    run(folder, RECIPES["Rows to TensorBoard"]["python"])
    losses = [(place, step) for place, name, step in told if name == "loss"]
    assert losses == [(str(Path("run") / "tensorboard"), step) for step in range(5)]
