"""The command line's flags, which refuse what makes no sense; ``dpo_core.cli`` has what the commands do."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from dpo_core.config import REFERENCES
from dpo_core.distributed import PARALLEL
from dpo_core.errors import InputError
from dpo_core.losses import LOSSES
from dpo_core.model import PUBLISHED
from dpo_core.precision import PRECISIONS

__all__ = ["build_parser"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")  # in one line, as every other mistake


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def _number(kind: type, what: str, fine: Callable[[Any], bool]) -> Callable[[str], Any]:
    """A converter that takes only what is fine."""

    def convert(text: str) -> Any:
        with suppress(ValueError):
            if fine(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {what}")

    return convert


COUNT = _number(int, "a whole number above 0", lambda value: value > 0)
SEED = _number(int, "a whole number from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63)
POSITIVE = _number(float, "a number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = _number(float, "a number of at least 0", lambda value: 0 <= value < math.inf)
SHARE = _number(float, "a share from 0 to 1", lambda value: 0 <= value <= 1)


def build_parser() -> argparse.ArgumentParser:
    """All commands with their flags."""
    parser = _Parser("python -m dpo_core", description="Train GPT-2 by DPO and see what changed.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="command")

    def command(name: str, text: str) -> Callable[..., argparse.Action]:
        return commands.add_parser(name, help=text, description=text, formatter_class=_Help).add_argument

    def model(add: Callable[..., argparse.Action]) -> None:
        names = f"pocket, {', '.join(PUBLISHED)}, or the folder of a model, an adapter or a training"
        add("--model", "--weights", default="pocket", metavar="MODEL", help=names)

    def lora(add: Callable[..., argparse.Action]) -> None:
        text = (
            "train an adapter (LoRA) of this rank, 8 if not said, and freeze the model; --lr is then 10 times as high"
        )
        add("--lora", type=COUNT, nargs="?", const=8, metavar="RANK", help=text)

    def next_token(add: Callable[..., argparse.Action], output: str, rate: float | None, rate_help: str) -> None:
        add("--output", type=Path, default=Path(output), help="folder of the model")
        add("--epochs", type=POSITIVE, default=1.0, help="passes over the data")
        add("--lr", type=POSITIVE, default=rate, help=rate_help)
        add("--batch-tokens", type=COUNT, default=2048, help="tokens per step; lower it if memory runs out")
        add("--seed", type=SEED, default=0, help="of weights and order")

    add = command("data", "Make, convert or check preference pairs; without a choice, sample the pocket world.")
    add("--interactive", action="store_true", help="type pairs in; each is added to --output at once")
    add("--from-model", metavar="MODEL", help="sample two answers to each prompt from it and have them judged")
    add("--convert", type=Path, metavar="FILE", help="read HH-RLHF, chat, TRL or plain pairs and write them plain")
    add("--check", type=Path, metavar="FILE", help="only say what training would keep, drop and note")
    add("--output", type=Path, default=Path("preference_data.jsonl"), help="the file to write")
    add("--force", action="store_true", help="replace what --output holds; pairs made by hand are added to it anyway")
    add("--pairs", type=COUNT, default=1500, help="how many; without a choice the first ten are the quick-start's")
    add("--prompts", type=Path, metavar="FILE", help="with --from-model: a text file, one prompt a line")
    add("--ask", action="store_true", help="with --from-model: you judge; each pair is added to --output at once")
    add("--noise", type=NOT_NEGATIVE, default=0.0, help="temperature of the judge's Bradley-Terry choice; 0: none")
    add("--longer-chosen", type=SHARE, default=0.5, help="share of sampled pairs whose chosen answer is longer")
    add("--tokenizer", default="pocket", help="with --check: pocket or gpt2")
    add("--max-length", type=COUNT, default=512, help="with --check: tokens of prompt and one answer")
    add("--seed", type=SEED, default=0, help="the same seed gives the same pairs")

    add = command("pretrain", "Train a new GPT on plain text, its documents apart by blank lines.")
    add("--data", type=Path, required=True, help="a UTF-8 text file")
    add("--tokenizer", default="pocket", help="pocket or gpt2")
    for flag, default in (("--layers", 4), ("--channels", 224), ("--heads", 7), ("--context", 512)):
        add(flag, type=COUNT, default=default, help="shape of the model")
    next_token(add, "checkpoints/pretrained", 1e-3, "peak learning rate")

    add = command("sft", "Fine-tune on good answers.")
    add("--data", type=Path, required=True, help="JSONL with prompt and completion, or pairs (chosen is taken)")
    model(add)
    lora(add)
    next_token(add, "checkpoints/sft", None, "peak learning rate; if not given, 3e-4 for pocket and 2e-5 for GPT-2")

    add = command("train", "Train by DPO on preference pairs.")
    add("--data", type=Path, required=True, help="JSONL with prompt, chosen, rejected, or as data --convert reads")
    model(add)
    lora(add)
    add("--output", type=Path, default=Path("dpo_checkpoints"), help="folder of the run")
    add("--steps", type=COUNT, default=200, help="optimiser steps")
    add("--beta", type=POSITIVE, default=0.1, help="weight of the KL term: higher stays closer to the start")
    add("--beta-schedule", type=POSITIVE, metavar="END", help="move beta in a straight line to this")
    add("--lr", type=POSITIVE, help="learning rate; if not given, 1e-4 for pocket and 1e-6 for GPT-2")
    add("--batch-size", type=COUNT, default=8, help="pairs per forward pass; lower it if memory runs out")
    add("--grad-accum", type=COUNT, default=1, help="forward passes per step")
    add("--loss", default="sigmoid", choices=LOSSES, help="sigmoid is DPO; the others are variants of it")
    add("--sft-weight", type=NOT_NEGATIVE, default=0.0, help="how much fine-tuning on the chosen answers is added")
    add("--label-smoothing", type=SHARE, default=0.0, help="share of labels taken to be wrong, below 0.5")
    add("--max-length", type=COUNT, help="tokens of prompt and one answer; the model's context if not given")
    add("--val", type=Path, metavar="FILE", help="validation pairs, instead of a share of --data")
    add("--val-share", type=SHARE, default=0.1, help="share of the prompts set aside for validation, below 1")
    add("--early-stopping", type=COUNT, metavar="N", help="stop N evaluations after the best, and keep that")
    add("--eval-every", type=COUNT, default=50, help="steps between evaluations")
    add("--save-every", type=COUNT, metavar="N", help="steps between checkpoints; if not given, only Ctrl-C writes one")
    add("--resume", action="store_true", help="go on from the last checkpoint in --output")
    reference = "log-probs: computed once, or each time by a copy of the model or, with --lora, its adapter off"
    add("--reference", default="cached", choices=REFERENCES, help=reference)
    add("--parallel", default="ddp", choices=PARALLEL, help="under torchrun: each process holds the model, or a part")
    add("--precision", default="auto", choices=PRECISIONS, help="of the computation")
    add("--seed", type=SEED, default=0, help="of the split and the order of the pairs")

    add = command("generate", "Answer prompts.")
    model(add)
    add("--prompt", action="append", required=True, help="may be given more than once")
    add("--compare", nargs="?", const="start", metavar="MODEL", help="first the answer of MODEL, or of the start model")
    add("--max-new-tokens", type=COUNT, default=160, help="longest answer")
    add("--temperature", type=NOT_NEGATIVE, default=0.7, help="0: always the likeliest token; 1: as trained")
    add("--top-k", type=COUNT, help="draw from the k likeliest tokens only")
    add("--top-p", type=SHARE, help="draw from the likeliest tokens that hold this share")
    add("--seed", type=SEED, default=0, help="of the sampling")

    add = command("evaluate", "Compare a model with another: reward accuracy, win rate, KL.")
    model(add)
    add("--reference", default="start", metavar="MODEL", help="what to compare with; start: where its training began")
    add("--data", type=Path, help="pairs to measure the accuracy of the implicit reward on")
    add("--beta", type=POSITIVE, default=0.1, help="the beta of the training")
    add("--questions", type=COUNT, help="held-out questions of the pocket world to ask, 2 or more; all if not given")
    add("--seed", type=SEED, default=0, help="of the sampling")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")

    add = command("pocket", "Rebuild the shipped pocket model from its world.")
    add("--output", type=Path, required=True, help="folder to write to")
    add("--seed", type=SEED, default=0, help="of everything")
    return parser
