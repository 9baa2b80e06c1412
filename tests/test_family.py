"""The data of chapter 10, each with the trouble that it is said to have, and rounds on a model's own samples."""

import math

import pytest

from dpo_core.course.sweeps import chapter_10
from dpo_core.data import same_prompt
from dpo_core.model import GPT
from dpo_core.pocket.judge import PocketJudge


@pytest.fixture
def few(monkeypatch):
    """Few pairs, so that drawing them takes no time."""
    monkeypatch.setattr(chapter_10, "DRAWN", 60)
    monkeypatch.setattr(chapter_10, "VALIDATION", 8)


def test_a_share_of_labels_is_wrong_and_the_held_out_ones_are_right(few):
    right, held_out = chapter_10.mislabelled(0, 0.0, count=40)
    wrong = {}
    for share in (0.2, 0.4):
        training, same = chapter_10.mislabelled(0, share, count=40)
        assert same == held_out
        wrong[share] = {i for i, (a, b) in enumerate(zip(training, right)) if a != b}
        assert all(training[i].chosen == right[i].rejected for i in wrong[share])
    assert [len(found) for found in wrong.values()] == [8, 16] and wrong[0.2] < wrong[0.4]
    judge = PocketJudge()
    assert all(judge.prefers(pair.prompt, pair.chosen, pair.rejected) == 1 for pair in right + held_out)


def test_similar_pairs_differ_in_one_sentence_that_is_about_something_else():
    training, held_out = chapter_10.similar(0, 20, 10)
    judge = PocketJudge()
    for pair in training + held_out:
        chosen, rejected = (judge.features(pair.prompt, text) for text in (pair.chosen, pair.rejected))
        assert (chosen.facts, rejected.facts, chosen.wrong, rejected.wrong) == (3, 2, 0, 1)
    assert not {same_prompt(pair.prompt) for pair in training} & {same_prompt(pair.prompt) for pair in held_out}


def test_samples_are_judged_and_the_better_one_is_chosen():
    pairs, judge = chapter_10.judged_samples(GPT.from_pretrained("pocket"), 6, seed=0), PocketJudge()
    assert 0 < len(pairs) <= 6
    assert all(judge.score(pair.prompt, pair.chosen) > judge.score(pair.prompt, pair.rejected) for pair in pairs)


def test_later_rounds_keep_the_first_model_as_reference(few):
    run = chapter_10.rounds(0, 2, "two rounds", steps=2, prompts=2)
    assert [station.step for station in run.stations] == [0, 1, 2] and run.stations[-1].kl > run.stations[1].kl > 0
    assert [row["step"] for row in run.history.rows] == [0, 1, 2]
    losses = run.history.column("loss")[1]
    assert losses[1] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are still the same
    assert abs(losses[2] - math.log(2)) > 1e-4  # a reference that had moved along would give ln 2 again
