"""The museum's record: of the shipped model, and each run called what it is, by the rules as they are now; its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.machine import model_hash
from dpo_core.course import museum
from dpo_core.course.plots import use_style
from dpo_core.course.records import read_record
from dpo_core.metrics import History
from dpo_core.study.diagnose import LEARNING, MACHINERY

RECORD = read_record("museum")
TROUBLE = Path(__file__).resolve().parent.parent / "book" / "troubleshooting.md"


def test_every_disease_has_an_exhibit():
    faults = {name for name, rule in (MACHINERY | LEARNING).items() if not rule.note}
    assert faults == museum.EXHIBITS.keys() - {museum.HEALTHY, "harmless displacement"}


def test_the_record_is_of_the_shipped_model():
    assert RECORD["model"] == model_hash(), "run `python -m tools.records.museum`"


def test_the_record_is_whole():
    seeds = {name: sorted(runs) for name, runs in museum.recorded().items()}
    assert seeds.keys() == museum.EXHIBITS.keys()
    assert all(len(found) >= 3 for found in seeds.values())


@pytest.mark.parametrize("run", RECORD["runs"], ids=lambda run: f"{run['name']}-{run['seed']}")
def test_a_run_is_called_what_it_is(run):
    assert museum.verdict(History(run["history"])) == run["verdict"] == museum.expected(run["name"])


def test_before_the_first_step_only_what_is_there_is_found():
    machine_and_data = {*MACHINERY, "no end of text"}
    for run in RECORD["runs"]:
        known = set(run["setup"]) & machine_and_data
        assert known == ({run["name"]} & machine_and_data), run["name"]


def test_the_broken_run_has_the_better_held_out_loss():
    """What chapter 07 says of the two displacements, in every seed."""
    for seed in (0, 1, 2):
        early, late = (museum.case(f"{kind} displacement", seed).history.rows[-1] for kind in ("harmless", "harmful"))
        assert late["eval_loss"] < early["eval_loss"]
        assert late["eval_rewards/accuracies"] > 0.5
        assert late["samples/odd"] > 1 > early["samples/odd"]


def test_pairs_are_held_out_by_prompt_and_repeatable():
    training, held_out = museum.pairs(seed=5)
    assert (len(training), len(held_out)) == (museum.TRAINING, museum.HELD_OUT)
    assert not {p.prompt.lower().rstrip(".?") for p in training} & {p.prompt.lower().rstrip(".?") for p in held_out}
    museum.pairs.cache_clear()
    assert museum.pairs(seed=5)[0] == training


def test_compare_draws_each_run_in_each_panel():
    use_style()
    run = History([{"step": 0, "loss": 0.69, "kl/policy_ref": 0.0}, {"step": 9, "loss": 0.5, "kl/policy_ref": 1.0}])
    figure = museum.compare({"healthy": run, "sick": run}, ["loss", "kl/policy_ref"], "Two runs")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Training loss", "Distance from the reference"]
    assert [len(ax.get_lines()) for ax in figure.axes] == [3, 2]  # the loss has a level to compare with


def test_a_case_that_is_not_in_the_record_is_made(monkeypatch, tiny_model, encoding):
    class Trainer:
        pass

    trainer, run = Trainer(), History([{"step": 0, "loss": 0.69}])
    trainer.model, trainer.encoding = tiny_model, encoding
    monkeypatch.setattr(museum, "visit", lambda name, seed: museum.Visit(name, [], run, trainer))
    found = museum.case("healthy", seed=7)
    assert found.history is run
    assert [answer["prompt"] for answer in found.answers] == museum.PROMPTS[:4]


def test_the_confusion_matrix_counts_verdicts():
    sick = History([{"step": 0, "loss": 0.69}, {"step": 50, "loss": 9.3}])
    well = History([{"step": 0, "loss": 0.69}, {"step": 50, "loss": 0.6}])
    figure = museum.confusion({"healthy": {0: well, 1: sick}, "learning rate too high": {0: sick, 1: sick}})
    (ax,) = figure.axes
    assert {(text.get_position(), text.get_text()) for text in ax.texts} == {
        ((0, 0), "1"), ((1, 0), "1"), ((1, 1), "2"),
    }  # fmt: skip
    assert [label.get_text() for label in ax.get_xticklabels()] == ["healthy", "learning rate too high"]


def test_the_page_says_of_each_trouble_what_to_do_who_finds_it_and_where_it_is_shown():
    page = TROUBLE.read_text(encoding="utf-8")
    entries = re.findall(r"^(.+)\n: ((?:.+\n)+)", page, re.MULTILINE)
    assert len(entries) >= 38
    for symptom, text in entries:
        assert [word for word in re.findall(r"\*(.+?:)\*", text)] == ["Do:", "Found by:", "Shown in:"], symptom
