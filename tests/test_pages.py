"""What the prose pages point to exists, such as tests and sections; and troubleshooting knows what the library says."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
import torch
from test_bad_input import DATA, MODELS

from dpo_core.data import audit_pairs, split_by_prompt
from dpo_core.errors import InputError
from dpo_core.formats.pairs import load_pairs
from dpo_core.model import GPT, GPTConfig
from dpo_core.study.diagnose import LEARNING, MACHINERY, NUMBERS
from dpo_core.study.setup_check import SETUP
from dpo_core.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "book").glob("*.md"))
NOTEBOOK = r"\]\(\.\./notebooks/([\w-]+)(?:\.ipynb)?\)"


@pytest.mark.parametrize("name", sorted({*NUMBERS, *MACHINERY, *LEARNING, *SETUP}))
def test_troubleshooting_knows_every_finding(name):
    assert name in (ROOT / "book" / "troubleshooting.md").read_text(encoding="utf-8")


def known_lines(error, fault):
    """Whether troubleshooting has a row for each line of the message that tells the fault; … there is any text."""
    page = (ROOT / "book" / "troubleshooting.md").read_text(encoding="utf-8")
    seen = re.findall("`([^`]+)`", "\n".join(re.findall(r"^\| (.+?) \| ", page, re.MULTILINE)))
    row = re.compile("|".join(".+".join(map(re.escape, symptom.split("…"))) for symptom in seen))
    lines = [line for line in str(error.value).splitlines() if fault in line]
    return lines and all(map(row.search, lines))


@pytest.mark.parametrize(("content", "place", "fault", "remedy"), DATA.values(), ids=DATA)
def test_troubleshooting_knows_what_is_said_of_bad_data(tmp_path, content, place, fault, remedy):
    file = tmp_path / ("data.jsonl.gz" if "gz" in place else "data.jsonl")
    file.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    with pytest.raises(InputError) as error:
        split_by_prompt(audit_pairs(load_pairs(file), load_tokenizer("pocket"), 256).kept, 0.1, 0)
    assert known_lines(error, fault), str(error.value)


@pytest.mark.parametrize(("damage", "place", "fault", "remedy"), MODELS.values(), ids=MODELS)
def test_troubleshooting_knows_what_is_said_of_bad_models(tmp_path, damage, place, fault, remedy):
    torch.manual_seed(0)
    GPT(GPTConfig(load_tokenizer("pocket").n_vocab, 256, 16, 1, 2, tokenizer="pocket")).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as error:
        load_tokenizer(GPT.from_pretrained(tmp_path).config.tokenizer)
    assert known_lines(error, fault), str(error.value)


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
