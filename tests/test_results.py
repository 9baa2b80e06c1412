"""The figures in the text are those of the result files."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import pocket_dpo  # noqa: E402

RECORD = json.loads((ROOT / "benchmarks" / "results" / "pocket_dpo.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["README.md", "book/intro.md"])
def test_pages_quote_the_measured_result(page):
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    assert pocket_dpo.sentence(RECORD) in text


def test_the_mean_over_the_seeds_is_a_gain():
    gains = [run["reward_gained"]["mean"] for run in RECORD["runs"]]
    assert len(gains) >= 3
    assert sum(gains) / len(gains) > 0
