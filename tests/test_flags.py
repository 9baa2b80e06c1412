"""No flag of the command line is dropped in silence."""

from __future__ import annotations

import pytest

from dpo_core.cli.flags import build_parser
from dpo_core.errors import InputError

TRAIN = ["train", "--data", "pairs.jsonl"]


@pytest.mark.parametrize(
    ("twice", "named"),
    {
        "--beta 1 --beta 2": "--beta 1.0 and --beta 2.0",
        "--beta 1 --beta 1": "--beta 1.0 and --beta 1.0",
        "--lr 1e-3 --steps 5 --learning-rate 2e-3": "--lr 0.001 and --learning-rate 0.002",
        "--loss ipo --loss dpo": "--loss ipo and --loss dpo",
        "--lora --lora 4": "--lora and --lora 4",
        "--resume auto --resume": "--resume auto and --resume",
        "--weights gpt2 --model pocket": "--weights gpt2 and --model pocket",
    }.items(),
)
def test_a_flag_with_a_value_is_given_once(twice, named):
    with pytest.raises(InputError, match=f"{named}: only one can count; leave the other out"):
        build_parser().parse_args([*TRAIN, *twice.split()])


def test_flags_that_collect_are_given_as_often_as_wanted():
    args = build_parser().parse_args(["generate", "--prompt", "a", "--prompt", "b"])
    assert args.prompt == ["a", "b"]
    assert build_parser().parse_args([*TRAIN, "--report-to", "wandb", "--report-to", "tensorboard"]).report_to


def test_a_parser_can_be_used_again():
    parser = build_parser()
    assert [parser.parse_args([*TRAIN, "--beta", beta]).beta for beta in ("1", "2")] == [1.0, 2.0]
