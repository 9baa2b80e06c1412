"""The repository's address stands in pyproject.toml; its copies agree, and without one nothing points anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import address
import book_hooks
import nbformat
import pytest

NOTEBOOKS = sorted((address.ROOT / "notebooks").glob("*.ipynb"))
SOMEWHERE = "https://github.com/someone/dpo-course"


def first_code(path: Path) -> str:
    return next(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")


def test_config_agrees_with_project():
    assert address.config_address() == address.project_address()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_first_cell_is_the_agreed_one(path):
    assert first_code(path) == address.first_cell(address.project_address())


@pytest.fixture
def copy(tmp_path):
    for name in ("pyproject.toml", "_config.yml"):
        shutil.copy(address.ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell(address.first_cell(""))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "00.ipynb")
    address.write("", tmp_path)
    return tmp_path


def test_an_address_is_written_everywhere_and_taken_out_again(copy):
    files = sorted(p for p in copy.rglob("*") if p.is_file())
    before = [p.read_text(encoding="utf-8") for p in files]
    address.write(SOMEWHERE, copy)
    address.write(SOMEWHERE, copy)  # a second time changes nothing
    assert address.project_address(copy) == address.config_address(copy) == SOMEWHERE
    assert f"git+{SOMEWHERE}\n" in first_code(copy / "notebooks" / "00.ipynb")
    address.write("", copy)
    assert [p.read_text(encoding="utf-8") for p in files] == before


def test_contributors_are_shown_the_first_cell():
    page = (address.ROOT / "book" / "contributing.md").read_text(encoding="utf-8")
    shown = "\n".join(line.removeprefix("  ") for line in page.splitlines())
    assert address.first_cell("") in shown


def test_first_cell_is_short_and_says_what_is_missing():
    cell = address.first_cell("")
    assert sum(bool(line) for line in cell.splitlines()) < 5
    assert all(len(line) <= 88 for line in cell.splitlines())
    assert "pip install -e ." in cell and "http" not in cell


@pytest.mark.parametrize("bad", ["", "dpo-course", "http://github.com/a/b", "https://github.com/a", SOMEWHERE + "/x y"])
def test_what_is_no_address_is_refused(bad, monkeypatch):
    monkeypatch.setattr("sys.argv", ["address.py", bad])
    with pytest.raises(SystemExit, match="make address URL="):
        address.main()


def theme_options(url: str) -> dict:
    config = SimpleNamespace(
        html_theme_options={
            "repository_url": url,
            "repository_branch": "main",
            "launch_buttons": {"colab_url": "https://colab.research.google.com"},
        }
    )
    book_hooks.point_buttons(None, config)
    return config.html_theme_options


def test_without_an_address_the_book_has_no_buttons(monkeypatch):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    options = theme_options("")
    assert not any(options.get(name) for name in ("repository_url", "launch_buttons", *book_hooks.BUTTONS))


def test_on_github_the_buttons_point_to_the_running_repository(monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/dpo-course")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_EVENT_NAME", "pull_request")
    monkeypatch.setenv("GITHUB_REF_NAME", "12/merge")  # no branch that a button could open
    for written in ("", "https://github.com/upstream/dpo-course"):
        options = theme_options(written)
        assert options["repository_url"] == SOMEWHERE
        assert options["repository_branch"] == "main"
        assert all(options[name] for name in book_hooks.BUTTONS)
        assert bool(options["launch_buttons"]) == bool(written)  # Colab could install nothing without an address
