"""A chapter on a machine like Colab: other versions of the libraries, and dpo_core only once the first cell has run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import address
import nbformat
import pytest
import torch

# Of googlecolab/backend-info, August 2026; Python and torch are those of the tests (Colab: 3.13, and 2.11 for CUDA).
COLAB = ["ipywidgets==7.7.1", "tiktoken==0.14.0", "anywidget==0.9.21"]
OTHERS = ["safetensors", "huggingface_hub", "tqdm", "regex", "matplotlib", "numpy", "ipykernel", "nbconvert"]
CHAPTER = "05_the_loss_in_code"
LAST = """\
import ipywidgets, torch, dpo_core
from dpo_core.course.widgets.pair_labeler import PairLabeler
print(ipywidgets.__version__, torch.__version__, dpo_core.__file__)"""


@pytest.mark.skipif("COLAB_TEST" not in os.environ, reason="installs torch once more; set COLAB_TEST=1 to run it")
def test_the_first_cell_brings_the_course_and_a_chapter_runs(tmp_path):
    environment, repo = tmp_path / "colab", tmp_path / "repo"
    python = str(environment / "bin" / "python")

    def run(*command: object) -> str:
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
        assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run(sys.executable, "-m", "venv", environment)
    same_torch = f"torch=={torch.__version__.split('+')[0]}"
    run(python, "-m", "pip", "install", "-q", same_torch, *COLAB, *OTHERS)

    # The course as it is here, in a repository from which pip can take it.
    shutil.copytree(address.ROOT / "dpo_core", repo / "dpo_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(address.ROOT / name, repo)
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "The course"]):
        run("git", "-C", repo, *command)

    notebook = nbformat.read(address.ROOT / "notebooks" / f"{CHAPTER}.ipynb", as_version=4)
    next(cell for cell in notebook.cells if cell.cell_type == "code").source = address.first_cell(repo.as_uri())
    notebook.cells.append(nbformat.v4.new_code_cell(LAST))
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    run(python, "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "done", "chapter.ipynb")

    cells = [c for c in nbformat.read(tmp_path / "done.ipynb", as_version=4).cells if c.cell_type == "code"]
    assert "tier: pocket" in str(cells[0].outputs)
    widgets, kept_torch, place = cells[-1].outputs[0]["text"].split()
    assert (widgets, kept_torch) == ("7.7.1", torch.__version__)
    assert Path(place).is_relative_to(environment)
