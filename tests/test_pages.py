"""What the prose pages point to exists: findings, tests, and sections of chapters."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from dpo_core.diagnose import LEARNING, MACHINERY
from dpo_core.preflight import SETUP

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "book").glob("*.md"))
NOTEBOOK = r"\]\(\.\./notebooks/([\w-]+)(?:\.ipynb)?\)"


@pytest.mark.parametrize("name", sorted({*MACHINERY, *LEARNING, *SETUP}))
def test_troubleshooting_knows_every_finding(name):
    assert name in (ROOT / "book" / "troubleshooting.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page):
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    for words, file in re.findall(r'the test "([^"]+)" in `(tests/test_\w+\.py)`', text):
        name = re.sub(r"\W+", "_", words.lower().replace("'", ""))
        assert f"def test_{name}(" in (ROOT / file).read_text(encoding="utf-8"), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sections_that_a_page_names_exist(page):
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    for name, numbers in re.findall(NOTEBOOK + r",? sections? (\d+(?:(?:,| and) \d+)*)", text):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        headings = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        for number in re.findall(r"\d+", numbers):
            assert re.search(rf"^## {number}\. ", headings, re.MULTILINE), f"{name} has no section {number}"
