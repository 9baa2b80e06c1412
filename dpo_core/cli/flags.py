"""The command line's flags and the checks of their values; ``dpo_core.cli.commands`` has what the commands do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from dpo_core.config import WRONG_LABELS, DPOConfig
from dpo_core.errors import InputError
from dpo_core.formats.hf_layout import PUBLISHED
from dpo_core.formats.settings import COUNT, NOT_NEGATIVE, POSITIVE, SEED, SHARE, Kind, Setting
from dpo_core.methods.family import LOSSES, loss_name, own_settings
from dpo_core.rl.config import RLConfig
from dpo_core.rl.reward import RewardConfig
from dpo_core.study.report import REPORTS

__all__ = ["build_parser"]


class _Once(argparse._StoreAction):
    """Takes one value; a second would replace the first in silence."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = parser.given.setdefault(self.dest, [])
        given.append(" ".join([str(option_string), *([] if values is None or values is self.const else [f"{values}"])]))
        if option_string and len(given) > 1:
            parser.error(f"{' and '.join(given)}: only one can count; leave the other out")
        super().__call__(parser, namespace, values, option_string)


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.given: dict[str, list[str]] = {}  # the flags met so far, each with its value
        self.register("action", None, _Once)
        self.register("action", "store", _Once)

    def parse_known_args(self, *args: Any, **settings: Any) -> Any:
        self.given = {}
        return super().parse_known_args(*args, **settings)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")  # in one line, as every other mistake


@dataclass(frozen=True)
class _Read:
    """A converter that takes only what is of this kind."""

    kind: Kind

    @property
    def metavar(self) -> str:
        return "N" if self.kind.type is int else "X"

    def __call__(self, text: str) -> Any:
        with suppress(ValueError):
            if self.kind.takes(value := self.kind.type(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {self.kind.words}")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.type.metavar if isinstance(action.type, _Read) else action.dest.upper()

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Show all names, then the value once, as Python 3.13 does; not ``--learning-rate X, --lr X``."""
        metavar = self._get_default_metavar_for_optional(action)
        value = self._format_args(action, metavar) if action.nargs != 0 else ""
        return f"{', '.join(action.option_strings)} {value}".strip() or super()._format_action_invocation(action)


def _add_settings(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add a flag for each field: its name with dashes, the other names that it has, and its default."""
    group: Any = parser
    for found in fields(settings):
        told: Setting = found.metadata["setting"]
        if told.group:
            group = parser.add_argument_group(told.group)
        unset = f" (default: {told.unset})" if told.unset else ""
        shown = " (default: %(default)g)" if isinstance(found.default, float) else unset
        values: dict[str, Any] = {"choices": told.kind.choices} if told.kind.choices else {"type": _Read(told.kind)}
        values |= {"dest": found.name, "default": found.default, "metavar": told.metavar or None}
        group.add_argument(f"--{found.name.replace('_', '-')}", *told.flags, help=told.help + shown, **values)


def _family() -> str:
    """List the losses, each with its own settings; those that must be told how many labels are wrong say so."""

    def values(name: str) -> str:
        shown = [
            f"{setting} {value:g}" for setting, value in own_settings(name).items() if setting != "label_smoothing"
        ]
        return ", ".join(shown + ["needs --label-smoothing"] * (name in WRONG_LABELS))

    return "losses: " + "; ".join(f"{name} ({values(name)})" for name in LOSSES if name == loss_name(name))


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands and their flags."""
    parser = _Parser("python -m dpo_core", description="Train GPT-2 by DPO and see what changed.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="command")

    def command(name: str, text: str) -> Callable[..., argparse.Action]:
        return commands.add_parser(name, help=text, description=text, formatter_class=_Help).add_argument

    def model(add: Callable[..., argparse.Action]) -> None:
        names = (
            f"pocket, {', '.join(PUBLISHED)}, another GPT-2 of the Hub by its full id (owner/name), or the folder of a"
            " model, an adapter or a training"
        )
        add("--model", "--weights", default="pocket", metavar="MODEL", help=names)

    def lora(add: Callable[..., argparse.Action]) -> None:
        text = (
            "train an adapter (LoRA) of this rank, 8 if not said, and freeze the model; the usual rate is then tenfold"
        )
        add("--lora", type=_Read(COUNT), nargs="?", const=8, metavar="RANK", help=text)

    def next_token(add: Callable[..., argparse.Action], output: str, rate: float | None, rate_help: str) -> None:
        add("--output", type=Path, default=Path(output), help="folder of the model")
        add("--epochs", type=_Read(POSITIVE), default=1.0, help="passes over the data")
        add("--learning-rate", "--lr", type=_Read(POSITIVE), default=rate, help=rate_help)
        add("--batch-tokens", type=_Read(COUNT), default=2048, help="tokens per step; lower it if memory runs out")
        add("--seed", type=_Read(SEED), default=0, help="of weights and order")

    def resumable(add: Callable[..., argparse.Action]) -> None:
        text = "go on from the last checkpoint in --output; with auto, start if there is none"
        add("--resume", nargs="?", const=True, default=False, choices=["auto"], metavar="auto", help=text)

    several: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "FILE"}

    def named(add: Callable[..., argparse.Action]) -> None:
        text = "the field of the prompt, if it has no name that is known; may be given more than once, to be joined"
        add("--prompt-field", action="append", default=[], metavar="NAME", help=text)
        add("--chosen-field", default="", metavar="NAME", help="the field of the preferred, or the only, answer")
        add("--rejected-field", default="", metavar="NAME", help="the field of the other answer")

    add = command("data", "Make, convert or check preference pairs; without a choice, sample the pocket world.")
    add("--interactive", action="store_true", help="type pairs in; each is added to --output at once")
    add("--from-model", metavar="MODEL", help="sample two answers to each prompt from it and have them judged")
    add("--convert", **several, help="read pairs in any format that is known and write them plain")
    add("--check", **several, help="only say what training would keep, drop and note")
    named(add)
    add("--output", type=Path, default=Path("preference_data.jsonl"), help="the file to write")
    add("--force", action="store_true", help="replace what --output holds; pairs made by hand are added to it anyway")
    add(
        "--pairs",
        type=_Read(COUNT),
        default=1500,
        help="how many; without a choice the first ten are the quick-start's",
    )
    add("--prompts", type=Path, metavar="FILE", help="with --from-model: a text file, one prompt a line")
    add("--ask", action="store_true", help="with --from-model: you judge; each pair is added to --output at once")
    add(
        "--noise",
        type=_Read(NOT_NEGATIVE),
        default=0.0,
        help="temperature of the judge's Bradley-Terry choice; 0: none",
    )
    add("--longer-chosen", type=_Read(SHARE), default=0.5, help="share of sampled pairs whose chosen answer is longer")
    add("--tokenizer", default="pocket", help="with --check: pocket or gpt2")
    add("--max-length", type=_Read(COUNT), default=512, help="with --check: tokens of prompt and one answer")
    add("--seed", type=_Read(SEED), default=0, help="the same seed gives the same pairs")

    add = command("pretrain", "Train a new GPT on plain text, its documents apart by blank lines.")
    add("--data", type=Path, required=True, help="a UTF-8 text file")
    add("--tokenizer", default="pocket", help="pocket or gpt2")
    for flag, default in (("--layers", 4), ("--channels", 224), ("--heads", 7), ("--context", 512)):
        add(flag, type=_Read(COUNT), default=default, help="shape of the model")
    next_token(add, "checkpoints/pretrained", 1e-3, "peak learning rate")

    add = command("sft", "Fine-tune on good answers.")
    examples = "files of prompt and completion, instruction and output, messages or text, or pairs (chosen is taken)"
    add("--data", **several, required=True, help=examples)
    named(add)
    model(add)
    lora(add)
    next_token(add, "checkpoints/sft", None, "peak learning rate; if not given, 3e-4 for pocket and 2e-5 for GPT-2")

    add = command("train", "Train by DPO on preference pairs.")
    pairs = (
        "files of prompt, chosen, rejected: JSONL, JSON, CSV, TSV, Parquet or Arrow, also packed; hub:NAME fetches a"
        " data set of the Hugging Face Hub"
    )
    add("--data", **several, required=True, help=pairs)
    named(add)
    model(add)
    lora(add)
    add("--output", type=Path, default=Path("dpo_checkpoints"), help="folder of the run")
    add("--val", **several, help="validation pairs, instead of a share of --data")
    resumable(add)
    reports = "show the rows in tensorboard or wandb, too, which have to be installed; may be given more than once"
    add("--report-to", action="append", default=[], choices=[*REPORTS], help=reports)
    train = commands.choices["train"]
    train.usage, train.epilog = "python -m dpo_core train --data FILE [settings]", _family()
    _add_settings(train, DPOConfig)

    add = command("reward", "Train a reward model on preference pairs.")
    add("--data", **several, required=True, help=pairs)
    named(add)
    model(add)
    add("--output", type=Path, default=Path("reward_model"), help="folder of the reward model")
    reward = commands.choices["reward"]
    reward.usage = "python -m dpo_core reward --data FILE [settings]"
    _add_settings(reward, RewardConfig)

    add = command("rl", "Train on answers of the model's own, by the scores of a judge or a reward model.")
    model(add)
    lora(add)
    asked = "a text file, one prompt a line; if not given, the questions of the pocket world that are not held out"
    add("--prompts", type=Path, metavar="FILE", help=asked)
    scored = "judge, who knows the pocket world, or the folder of a reward model"
    add("--reward", default="judge", metavar="REWARD", help=scored)
    add("--output", type=Path, default=Path("rl_checkpoints"), help="folder of the run")
    resumable(add)
    rl = commands.choices["rl"]
    rl.usage = "python -m dpo_core rl [settings]"
    _add_settings(rl, RLConfig)

    add = command("generate", "Answer prompts.")
    model(add)
    add("--prompt", action="append", required=True, help="may be given more than once")
    add("--plain", action="store_true", help="ask a model that was trained on dialogues as the prompt stands")
    add("--compare", nargs="?", const="start", metavar="MODEL", help="first the answer of MODEL, or of the start model")
    add("--max-new-tokens", type=_Read(COUNT), default=160, help="longest answer")
    add("--temperature", type=_Read(NOT_NEGATIVE), default=0.7, help="0: always the likeliest token; 1: as trained")
    add("--top-k", type=_Read(COUNT), help="draw from the k likeliest tokens only")
    add("--top-p", type=_Read(SHARE), help="draw from the likeliest tokens that hold this share")
    add("--seed", type=_Read(SEED), default=0, help="of the sampling")

    add = command("evaluate", "Compare a model with another: reward accuracy, win rate, KL.")
    model(add)
    add("--reference", default="start", metavar="MODEL", help="what to compare with; start: where its training began")
    add("--data", **several, help="pairs to measure the accuracy of the implicit reward on")
    named(add)
    add("--beta", type=_Read(POSITIVE), default=0.1, help="the beta of the training")
    add(
        "--questions",
        type=_Read(COUNT),
        help="held-out questions of the pocket world to ask, 2 or more; all if not given",
    )
    add("--seed", type=_Read(SEED), default=0, help="of the sampling")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")

    add = command("diagnose", "Say what a training's curves tell: what is wrong, by which numbers, and what helps.")
    text = "a run's folder, its history.jsonl, or a trainer_state.json of TRL, LLaMA-Factory or axolotl, or its folder"
    add("log", type=Path, metavar="LOG", help=text)

    add = command("pocket", "Rebuild the shipped pocket model from its world.")
    add("--output", type=Path, required=True, help="folder to write to")
    add("--seed", type=_Read(SEED), default=0, help="of everything")
    return parser
