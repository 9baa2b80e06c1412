"""Every chapter on a machine like Colab: other versions of the libraries, an installed course, a folder of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from compare_outputs import notebook_differences
from publish import ROOT, Published

# Of googlecolab/backend-info, August 2026; Python and torch are those of the tests (Colab: 3.13, and 2.11 for CUDA).
# No tiktoken: Colab's TPU image has none, so the first cell has to bring it.
COLAB = ["ipython==7.34.0", "ipywidgets==7.7.1", "anywidget==0.9.21"]
OTHERS = ["safetensors", "huggingface_hub", "tqdm", "regex", "matplotlib", "numpy", "ipykernel", "nbconvert"]
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
LAST = """\
import IPython, ipywidgets, torch, dpo_core
from dpo_core.course.widgets.pair_labeler import PairLabeler
print(IPython.__version__, ipywidgets.__version__, torch.__version__, dpo_core.__file__)"""

pytestmark = pytest.mark.skipif("COLAB_TEST" not in os.environ, reason="installs torch again; COLAB_TEST=1 runs it")


class Colab:
    """An environment of its own, and a folder outside the repository to work in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, folder / "colab"

    def run(self, *command: object) -> None:
        settings = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            list(map(str, command)), cwd=self.folder, env=kept | settings, capture_output=True, text=True
        )
        assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]

    def python(self, *arguments: object) -> None:
        self.run(self.environment / "bin" / "python", *arguments)

    def execute(self, notebook: nbformat.NotebookNode, name: str) -> Path:
        """Run a notebook in the folder and return the file with its outputs."""
        nbformat.write(notebook, self.folder / f"{name}.ipynb")
        self.python("-m", "nbconvert", "--to", "notebook", "--execute", "--output", f"{name}_done", f"{name}.ipynb")
        return self.folder / f"{name}_done.ipynb"

    def package(self) -> str:
        """A digest of the installed course, to see whether anybody writes into it."""
        (place,) = self.environment.glob("lib/python*/site-packages/dpo_core")
        digest = hashlib.sha256()
        for file in sorted(path for path in place.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            digest.update(str(file.relative_to(place)).encode() + file.read_bytes())
        return digest.hexdigest()


@pytest.fixture(scope="module")
def colab(tmp_path_factory) -> Colab:
    """The environment before the course is there, and a repository that has the course under a release's tag alone."""
    made = Colab(tmp_path_factory.mktemp("colab"))
    made.run(sys.executable, "-m", "venv", made.environment)
    made.python("-m", "pip", "install", "-q", f"torch=={torch.__version__.split('+')[0]}", *COLAB, *OTHERS)
    repo = made.folder / "repo"
    shutil.copytree(ROOT / "dpo_core", repo / "dpo_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repo)
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    commit = [*identity, "commit", "-qm", "A change"]
    for command in (["init", "-q"], ["add", "."], commit, ["tag", "v1.2.3"], ["rm", "-rq", "dpo_core"], commit):
        made.run("git", "-C", repo, *command)
    return made


@pytest.fixture(scope="module")
def installed(colab) -> Colab:
    """The environment after the first cell of a chapter has run; its last cell looked at what is there."""
    address = f"file://localhost{colab.folder / 'repo'}"  # older pips want a host
    first = nbformat.v4.new_code_cell(Published(address, "1.2.3").first_cell)
    notebook = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(LAST)])
    cells = nbformat.read(colab.execute(notebook, "first_cell"), as_version=4).cells
    assert "tier: pocket" in str(cells[0].outputs)
    colab.python("-c", "import tiktoken")
    shell, widgets, kept_torch, place = cells[-1].outputs[0]["text"].split()
    assert (shell, widgets, kept_torch) == ("7.34.0", "7.7.1", torch.__version__)
    assert Path(place).is_relative_to(colab.environment)
    return colab


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_runs_where_only_the_package_is_and_says_what_is_stored(installed, chapter):
    stored = ROOT / "notebooks" / f"{chapter}.ipynb"
    before = installed.package()
    executed = installed.execute(nbformat.read(stored, as_version=4), chapter)
    assert installed.package() == before, "the chapter writes into the installed package"
    sanitize = (ROOT / "tests" / "sanitize.cfg").read_text(encoding="utf-8")
    assert notebook_differences(stored, executed, sanitize) == []
