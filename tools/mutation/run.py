"""Run tests and chapters with a mistake planted, in processes of their own; no file of the checkout is touched."""

from __future__ import annotations

import ast
import json
import marshal
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.mutation.mistake import ROOT, Mistake, in_chapter, read_module, source_file

__all__ = ["chapter_failure", "check_hook", "first_failure", "planted_in"]

HOOK = ROOT / "tools" / "mutation" / "hook"
SECONDS = 900  # that a run may take: a mistake that makes it endless is noticed, too


@contextmanager
def planted_in(mistake: Mistake | None, chapter: str = "") -> Iterator[Path]:
    """Write a folder with the changed code of modules and, if one is named, the notebook of a chapter.

    Args:
        mistake: what is planted; nothing if none is given.
        chapter: such as ``notebooks/05_the_loss_in_code``; its cells are changed if the mistake is in them.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        for module in mistake.modules if mistake else []:
            if mistake and not in_chapter(module):
                code = compile(mistake.planted(module, read_module), str(source_file(module)), "exec")
                (folder / module).write_bytes(marshal.dumps(code))
        if chapter:
            notebook = json.loads((ROOT / f"{chapter}.ipynb").read_text(encoding="utf-8"))
            for cell in code_cells(notebook):
                module = f"{chapter}#{cell['id']}"
                if mistake and module in mistake.modules:
                    cell["source"] = ast.unparse(mistake.planted(module, read_module))
            (folder / f"{Path(chapter).name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        yield folder


def code_cells(notebook: dict) -> list[dict]:
    """The cells that nbval counts."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout with the code of a folder in place of its own, also in what it starts itself."""
    places = [*map(str, (HOOK, ROOT, ROOT / "tools")), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PLANTED": str(folder), "PYTHONPATH": os.pathsep.join(places)}
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | settings | quiet, capture_output=True, text=True,
        timeout=SECONDS,
    )  # fmt: skip


def check_hook() -> None:
    """See that planted code is run at all, before anything is concluded from tests that pass."""
    with TemporaryDirectory() as name:
        (Path(name) / "dpo_core.errors").write_bytes(marshal.dumps(compile("raise SystemExit(7)", "planted", "exec")))
        if (code := python(Path(name), "-c", "import dpo_core.errors").returncode) != 7:
            raise SystemExit(f"planted code is not run (exit status {code}); is another sitecustomize.py in the way?")


def first_failure(mistake: Mistake | None, tests: Sequence[str]) -> str:
    """Find the first test that minds a mistake.

    Args:
        mistake: what is planted.
        tests: what pytest takes, one after another: files, single tests, or modules with examples.
    Returns:
        pytest's name of it, or nothing.
    """
    with planted_in(mistake) as folder:
        for test in tests:
            try:
                done = python(folder, "-m", "pytest", *QUIET, "-m", "not slow and not browser", test)
            except subprocess.TimeoutExpired:
                return f"{test}, which takes more than {SECONDS} s"
            if found := re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE):
                return found[1]
            if done.returncode:
                return f"{test}, which cannot be imported" if mistake else _stop(test, done)
    return ""


QUIET = ("-x", "-q", "-p", "no:cacheprovider", "--assert=plain")  # pytest would rewrite a module whose examples it runs
NBVAL = ("--nbval", "--nbval-current-env", "--nbval-cell-timeout=600", "-p", "compare_outputs")


def chapter_failure(mistake: Mistake | None, chapter: str) -> str:
    """Run a chapter under nbval, whose outputs are compared as ``make test`` compares them.

    Returns:
        The first cell that fails and why, or nothing.
    """
    with planted_in(mistake, chapter) as folder:
        file = folder / f"{Path(chapter).name}.ipynb"
        cells = code_cells(json.loads(file.read_text(encoding="utf-8")))
        sanitize = f"--nbval-sanitize-with={ROOT / 'tests' / 'sanitize.cfg'}"
        try:
            done = python(folder, "-m", "pytest", *QUIET, *NBVAL, sanitize, f"--rootdir={folder}", str(file))
        except subprocess.TimeoutExpired:
            return f"takes more than {SECONDS} s"
    if not done.returncode:
        return ""
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    if not (found := re.search(r"^FAILED .*Cell (\d+)", text, re.MULTILINE)):
        return _stop(chapter, done)
    reasons = (rf"^Cell {found[1]}, (.+)$", r"^(\w+(?:Error|Exception): .+)$")
    reason = next(filter(None, (re.search(each, text, re.MULTILINE) for each in reasons)), None)
    return f"{cells[int(found[1])]['id']}: {reason[1] if reason else 'it does not run'}"[:300]


def _stop(what: str, done: subprocess.CompletedProcess[str]) -> str:
    raise SystemExit(f"pytest could not run {what}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
