"""Address and version stand in pyproject.toml; all copies agree, and notebooks install the library they belong to."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import book_hooks
import nbformat
import publish
import pytest
from publish import ROOT, Published

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOMEWHERE = "https://github.com/someone/dpo-course"
FILES = ("pyproject.toml", "_config.yml", "CITATION.cff", "book/changelog.md")


def first_code(path: Path) -> str:
    return next(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")


def copies(root: Path) -> tuple[str, str]:
    """Address and version where they are no more than copies."""
    address = publish.IN_CONFIG.search((root / "_config.yml").read_text(encoding="utf-8"))
    version = publish.IN_CITATION.search((root / "CITATION.cff").read_text(encoding="utf-8"))
    return address[2], version[1]


def test_the_copies_agree_with_project():
    here = Published.read()
    assert copies(ROOT) == (here.address, here.version)
    assert publish.VERSION.fullmatch(here.version)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_first_cell_is_the_agreed_one(path):
    assert first_code(path) == Published.read().first_cell


def test_a_released_version_is_what_lies_here():
    """Else a notebook of the default branch would install the library of an older day."""
    here = Published.read()
    assert not here.outdated(), f"dpo_core has changed since {here.tag}; run: make release VERSION=NEXT.dev0"


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "book").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    for name in ("00.ipynb", "01.ipynb"):
        cells = [
            nbformat.v4.new_markdown_cell("# Title"),
            nbformat.v4.new_code_cell("before", metadata={"tags": ["x"]}),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / name)
    Published("", "0.1.0.dev0").write(tmp_path)
    return tmp_path


def contents(folder: Path) -> list[str]:
    return [p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*")) if p.is_file() and ".git/" not in str(p)]


def test_an_address_is_written_everywhere_and_taken_out_again(copy):
    before = contents(copy)
    publish.address(SOMEWHERE + ".git", copy)
    publish.address(SOMEWHERE, copy)  # a second time changes nothing
    assert Published.read(copy) == Published(SOMEWHERE, "0.1.0.dev0")
    assert copies(copy) == (SOMEWHERE, "0.1.0.dev0")
    for path in copy.glob("notebooks/*.ipynb"):
        assert f'"dpo-core[course] @ git+{SOMEWHERE}"\n' in first_code(path)  # no tag: there is none yet
    Published("", "0.1.0.dev0").write(copy)
    assert contents(copy) == before


def test_a_release_is_written_everywhere_and_names_its_tag(copy):
    publish.address(SOMEWHERE, copy)
    changelog = copy / "book" / "changelog.md"
    changelog.write_text("# Changelog\n\n## 1.2.3 (unreleased)\n\nNews.\n", encoding="utf-8")
    ids = [c.id for c in nbformat.read(copy / "notebooks" / "00.ipynb", as_version=4).cells]
    said = publish.release("1.2.3", copy)
    assert Published.read(copy) == Published(SOMEWHERE, "1.2.3")
    assert copies(copy) == (SOMEWHERE, "1.2.3")
    for path in copy.glob("notebooks/*.ipynb"):
        assert first_code(path) == Published(SOMEWHERE, "1.2.3").first_cell
        assert f'"dpo-core[course] @ git+{SOMEWHERE}@v1.2.3"\n' in first_code(path)
    cells = nbformat.read(copy / "notebooks" / "00.ipynb", as_version=4).cells
    assert [c.id for c in cells] == ids and cells[1].metadata == {"tags": ["x"]}
    assert "git tag v1.2.3" in said and "git push --atomic origin HEAD v1.2.3" in said
    assert f"## 1.2.3 ({date.today()})\n" in changelog.read_text(encoding="utf-8")
    publish.release("1.3.0.dev0", copy)
    assert "@v" not in first_code(copy / "notebooks" / "00.ipynb")


def test_what_was_released_is_not_released_again_with_another_library(copy):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", copy, "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], check=True
        )

    publish.address(SOMEWHERE, copy)
    (copy / "dpo_core").mkdir()
    module = copy / "dpo_core" / "__init__.py"
    module.write_text("first = True\n")
    git("init", "-q")
    publish.release("0.1.0", copy)
    assert not Published.read(copy).outdated(copy)
    git("add", ".")
    git("commit", "-qm", "Release 0.1.0")
    git("tag", "v0.1.0")
    assert not Published.read(copy).outdated(copy)
    module.write_text("first = False\n")
    assert Published.read(copy).outdated(copy)
    with pytest.raises(SystemExit, match="is there already, with another library"):
        publish.release("0.1.0", copy)
    publish.release("0.2.0.dev0", copy)
    assert not Published.read(copy).outdated(copy)


def test_contributors_are_shown_the_first_cells():
    page = (ROOT / "book" / "contributing.md").read_text(encoding="utf-8")
    shown = "\n".join(line.removeprefix("  ") for line in page.splitlines())
    for published in (Published("", "1.2.3.dev0"), Published("https://github.com/OWNER/REPO", "1.2.3")):
        assert published.first_cell in shown


@pytest.mark.parametrize(
    "published", [Published("", "1.2.3"), Published(SOMEWHERE, "1.2.3")], ids=["nowhere", "somewhere"]
)
def test_first_cell_is_short_and_says_what_it_does(published):
    says, *code = published.first_cell.splitlines()
    assert says.startswith("# ") and "library" in says and sum(map(bool, code)) < 5
    assert all(len(line) <= 88 for line in (says, *code) if "git+" not in line)
    assert bool(published.address) == ("http" in published.first_cell) != ("pip install -e ." in published.first_cell)


@pytest.mark.parametrize("bad", ["", "dpo-course", "http://github.com/a/b", "https://github.com/a", SOMEWHERE + "/x y"])
def test_what_is_no_address_is_refused(bad, copy):
    before = contents(copy)
    with pytest.raises(SystemExit, match="make address URL="):
        publish.address(bad, copy)
    assert contents(copy) == before


@pytest.mark.parametrize("bad", ["", "1.2", "v1.2.3", "1.2.3rc1", "1.2.3.dev", "1.2.3; rm"])
def test_what_is_no_version_is_refused(bad, copy):
    before = contents(copy)
    with pytest.raises(SystemExit, match="make release VERSION="):
        publish.release(bad, copy)
    assert contents(copy) == before


def test_a_release_that_nobody_could_install_is_refused(copy):
    with pytest.raises(SystemExit, match="make address URL="):
        publish.release("1.2.3", copy)


# What readers are told to install

TEXTS = [
    path
    for pattern in (
        "*.md",
        "*.toml",
        "*.cff",
        "book/**/*.md",
        "dpo_core/**/*.py",
        "dpo_core/**/*.md",
        "notebooks/*.ipynb",
    )
    for path in sorted(ROOT.glob(pattern))
]


def from_an_index(text: str) -> list[str]:
    """The ends of all ``pip install`` lines that name ``dpo-core`` without a repository."""
    named = re.findall(r"""pip3? install\b[^\n`]*?[\s"'](dpo[-_]core\b[^\n`]*)""", text)
    return [end for end in named if not re.match(r"dpo[-_]core(\[[\w,-]+\])? @ git\+", end)]


def test_no_text_takes_dpo_core_from_an_index():
    """There the name is not ours, so whoever takes it could be given anybody's code."""
    told = {path.name: from_an_index(path.read_text(encoding="utf-8")) for path in TEXTS}
    assert {name: ends for name, ends in told.items() if ends} == {}
    assert len(TEXTS) > 60


@pytest.mark.parametrize(
    "text, refused",
    [
        ("`pip install dpo-core`", True),
        ("pip install -U dpo_core", True),
        ('pip install "dpo-core[hf]"', True),
        ('"%pip install -q \\"dpo-core\\"\\n"', True),
        ('pip install "dpo-core[hf] @ git+https://github.com/a/b"', False),
        ('%pip install -q "dpo-core @ git+https://github.com/a/b@v1.2.3"', False),
        ("`pip install -e .`, then import dpo_core", False),
        ("pip install -r requirements.txt", False),
    ],
)
def test_what_takes_dpo_core_from_an_index_is_seen(text, refused):
    assert bool(from_an_index(text)) == refused


def test_the_extras_that_texts_name_are_there():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))
    named = {extra for path in TEXTS for extra in re.findall(r"dpo-core\[(\w+)\]", path.read_text(encoding="utf-8"))}
    assert "course" in extras and named <= extras


# The book's buttons


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
