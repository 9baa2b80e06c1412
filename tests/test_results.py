"""The figures in the text are those of the result files."""

import json
import re
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import measured  # noqa: E402
import page  # noqa: E402
import pocket_dpo  # noqa: E402
import pytest  # noqa: E402

from dpo_core.course.records import record_file  # noqa: E402
from dpo_core.pocket.judge import PocketJudge  # noqa: E402
from tools.records import sweep  # noqa: E402

RECORD = json.loads((ROOT / "benchmarks" / "results" / "pocket_dpo.json").read_text(encoding="utf-8"))


def test_the_readme_quotes_the_measured_result():
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert pocket_dpo.sentence(RECORD) in text


def test_the_landing_page_takes_its_figures_from_the_result_file():
    page = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    assert "```{measured}\n" in page and "```{measured-tiles}\n" in page and "```{before-after}" in page
    assert measured.sentence() == pocket_dpo.sentence(RECORD)
    gains = sorted(run["reward_gained"]["mean"] for run in RECORD["runs"])
    assert measured.span(f"{gains[0]:+.2f}", f"{gains[-1]:+.2f}") in measured.tiles()
    assert not re.search(r"\d\.\d\d", page), "a figure is typed in"


def test_the_landing_page_shows_stored_answers_and_what_the_judge_says():
    rows = measured.stored_answers()
    html = measured.comparison(2)
    assert len(rows) >= 2 and html.count("<figure>") == 2
    score = PocketJudge().score(rows[0].prompt, rows[0].after)
    assert escape(rows[0].after) in html and f"judge: {score:+.1f}".replace("-", "−") in html


def test_the_mean_over_the_seeds_is_a_gain():
    gains = [run["reward_gained"]["mean"] for run in RECORD["runs"]]
    assert len(gains) >= 3
    assert sum(gains) / len(gains) > 0


def test_the_page_of_measurements_is_what_its_script_makes_of_the_result_files():
    assert (ROOT / "book" / "benchmarks.md").read_text(encoding="utf-8") == page.text()


def test_the_readme_quotes_the_comparison_with_trl():
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert page.sentence() in text


@pytest.mark.parametrize("chapter", ["08", "09", "10"])
def test_a_sweep_keeps_the_runs_of_the_shipped_model_and_no_others(chapter, tmp_path):
    file = record_file(f"sweep_{chapter}")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert sweep.kept(file) == record["runs"] != [], f"run `python -m tools.records.sweep {chapter}`"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record | {"model": "of an older model"}), encoding="utf-8")
    assert sweep.kept(other) == sweep.kept(tmp_path / "missing.json") == []
