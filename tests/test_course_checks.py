"""The exercise checks: right answers pass, and each usual mistake is told from the others."""

from __future__ import annotations

import pytest
import torch

from dpo_core.course.checks import check, verdict
from dpo_core.course.exercises import EXERCISES
from dpo_core.errors import InputError
from dpo_core.tokenizer import boundary

MISTAKES = [(name, mistake) for name, exercise in EXERCISES.items() for mistake in exercise.mistakes]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_right_function_passes(name, capsys):
    check(name, EXERCISES[name].right)
    assert capsys.readouterr().out == f"{name}: right in all {len(EXERCISES[name].cases())} cases\n"


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_is_named(name, mistake):
    assert verdict(name, EXERCISES[name].mistakes[mistake]) == f"{name}: not yet: {mistake}"


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *arguments: None, "it returns nothing"),
        (lambda *arguments: 1 / 0, "it raises ZeroDivisionError"),
        (lambda *arguments: 3, "it returns a int, but a "),
    ],
)
def test_what_cannot_be_a_result_is_said(name, wrong, message):
    assert message in verdict(name, wrong)


def test_a_tuple_of_anything_is_told_from_the_answer():
    parts = [torch.tensor([1, 2]), torch.tensor(3.0), 4, None, "ab"]
    for part in parts:
        assert "in case 1 it returns (" in verdict("split_prompt", lambda *_, part=part: (part, part))
    right = EXERCISES["split_prompt"].right
    as_tensors = verdict("split_prompt", lambda *arguments: tuple(map(torch.tensor, right(*arguments))))
    assert as_tensors == "split_prompt: right in all 4 cases"


def test_a_wrong_shape_and_wrong_values_are_said():
    assert "shape (1, 1) instead of (1,)" in verdict("sequence_logps", lambda *_: torch.zeros(1, 1))
    right = EXERCISES["sequence_logps"].right
    assert "off by up to 0.5000 in case 1" in verdict("sequence_logps", lambda *arguments: right(*arguments) + 0.5)
    assert "in case 1 it returns ([], [])" in verdict("split_prompt", lambda *_: ([], []))


def test_no_white_space_is_added_at_the_seam():
    assert all(boundary(prompt, answer) == "" for _, prompt, answer in EXERCISES["split_prompt"].cases())


def test_the_readers_seed_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    check("sequence_logps", EXERCISES["sequence_logps"].right)
    assert torch.equal(torch.rand(3), expected)


def test_an_unknown_exercise_is_refused():
    with pytest.raises(InputError, match=r"no exercise 'sums'.*sequence_logps"):
        check("sums", sum)
