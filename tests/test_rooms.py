"""The rooms of dpo_core: no arrow points upwards, and what is imported is small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dpo_core

ROOT = Path(dpo_core.__file__).parent

# From below to above; what stands in one line may import each other.
LEVELS = [
    ["errors"],
    ["formats", "kernels", "losses"],
    ["tokenizer", "model", "metrics"],
    ["data", "generate"],
    ["logprobs", "methods"],
    ["config"],
    ["runs", "lm"],
    ["trainer"],
    ["trainers"],
    ["rl"],
    ["study"],
    ["pocket"],
    ["cli"],
    ["course"],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
PATH = ["tokenizer", "data", "model", "logprobs", "losses", "metrics", "config", "trainer"]


def place(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def arrows() -> list[tuple[str, str, int]]:
    """(file, imported module, line) of each import of ours, also of those inside functions."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        if file.name in ("__main__.py",) or file == ROOT / "__init__.py":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [
                (str(file.relative_to(ROOT)), name, node.lineno) for name in names if name.split(".")[0] == "dpo_core"
            ]
    return found


def test_every_module_has_its_level():
    ours = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    ours |= {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert ours == set(LEVEL)


def test_no_import_points_upwards():
    upwards = []
    for file, module, line in arrows():
        own = file.split("/")[0].removesuffix(".py")
        other = place(module)
        if not other or LEVEL[other] > LEVEL[own]:
            upwards.append(f"{file}:{line} imports {module}")
    assert upwards == []


def test_pocket_is_for_the_command_line_and_the_course_alone():
    assert {file.split("/")[0] for file, module, _ in arrows() if place(module) == "pocket"} == {
        "pocket",
        "cli",
        "course",
    }


def test_the_folder_holds_the_path_and_little_else():
    files = {path.stem for path in ROOT.glob("*.py")}
    assert files == {*PATH, "generate", "errors", "__init__", "__main__"}


def loaded(module: str) -> set[str]:
    code = f"import sys, {module}; print(*[name for name in sys.modules if name.startswith('dpo_core')])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_trainer_loads_what_a_plain_run_needs():
    rooms = {place(name) for name in loaded("dpo_core.trainer")} - {""}
    assert rooms == {*PATH, "generate", "errors", "formats", "kernels", "methods", "runs"}


@pytest.mark.parametrize("name", dpo_core.__all__)
def test_each_public_name_is_loaded_from_its_home_and_is_not_a_module(name):
    found = getattr(dpo_core, name)
    assert type(found).__name__ != "module" and name in dir(dpo_core)


def test_type_checkers_are_told_of_the_same_homes():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body for alias in node.names} | {"generate": "dpo_core.generate"}
    assert told == {name: f"dpo_core.{home}" for name, home in dpo_core._HOME.items()}


def test_an_unknown_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="module 'dpo_core' has no attribute 'train'"):
        dpo_core.train  # noqa: B018
