"""The commands of reinforcement learning: train a reward model, and train a policy by it or by the judge."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from dpo_core.cli.loading import open_model, open_to_train, read_files, read_text, recorded
from dpo_core.config import DPOConfig
from dpo_core.data import audit_pairs, split_by_prompt
from dpo_core.errors import InputError
from dpo_core.formats.pairs import load_pairs
from dpo_core.kernels.device import best_device
from dpo_core.model import write_tokenizer
from dpo_core.rl.config import RLConfig
from dpo_core.rl.reward import RewardConfig, RewardModel, scorer, train_reward
from dpo_core.rl.trainer import RLTrainer, Score
from dpo_core.runs.checkpoint import list_checkpoints, writable_folder, write_json
from dpo_core.runs.checks import check_model
from dpo_core.study.evaluate import wilson_interval
from dpo_core.tokenizer import form_of, in_form, load_tokenizer

__all__ = ["run_reward", "run_rl"]


def run_reward(args: argparse.Namespace) -> None:
    """Train a reward model and say how it ranks held-out pairs."""
    config = RewardConfig(**{found.name: getattr(args, found.name) for found in fields(RewardConfig)})
    pairs = read_files(load_pairs, args, args.data)
    gpt = open_model(args.model)
    encoding, start, out = load_tokenizer(gpt.config.tokenizer), gpt.origin, args.output
    check_model(gpt, encoding, DPOConfig())
    if Path(start).resolve() == out.resolve():
        raise InputError(f"{out} holds the model that training starts from; choose another --output")
    if (out / "final").is_dir() or list_checkpoints(out):
        raise InputError(f"{out} holds a training; choose another --output")
    audit = audit_pairs(pairs, encoding, gpt.config.n_positions)
    print(audit.report())
    training, validation = split_by_prompt(audit.kept, config.val_share, config.seed)
    writable_folder(out)
    model = RewardModel(gpt)
    history = train_reward(model, training, config, validation, progress=True)
    model.save_pretrained(out)
    form = form_of([e.pair.prompt for e in training])
    write_json(out / "training.json", {"start": start, "form": form})
    write_tokenizer(gpt.config, out, form)
    history.to_jsonl(out / "history.jsonl")
    row = history.rows[-1]
    print(f"loss {history.rows[0]['loss']:.3f} to {row['loss']:.3f} nats a pair")
    if validation:
        accuracy, count = row["eval_accuracy"], len(validation)
        low, high = wilson_interval(round(accuracy * count), count)
        print(f"held-out accuracy {accuracy:.3f} [{low:.3f}, {high:.3f}] on {count} pairs")
    print(f"saved in {out}")


def run_rl(args: argparse.Namespace) -> None:
    """Train a policy on answers of its own."""
    config = RLConfig(**{found.name: getattr(args, found.name) for found in fields(RLConfig)})
    prompts = _prompts(args.prompts)
    if args.reward == "judge":
        _check_known(prompts, args.prompts)
    model = open_to_train(args)
    encoding = load_tokenizer(model.config.tokenizer)
    form = recorded(model).get("form")
    asked = [in_form(prompt, form) for prompt in prompts]
    if args.reward == "judge":
        score = _judge_score(dict(zip(asked, prompts)))
    else:
        score = scorer(RewardModel.from_pretrained(args.reward).to(best_device()), encoding)
    trainer = RLTrainer(model, encoding, asked, score, config, args.output)
    print(f"{len(prompts)} prompts, scored by {args.reward}")
    history = trainer.train(resume=args.resume)
    first, last = history.rows[0]["objective/scores"], history.rows[-1]["objective/scores"]
    print(f"mean score {first:+.3f} at first, {last:+.3f} at last, KL {history.rows[-1]['objective/kl']:.3f} nats")
    print(f"saved in {args.output / 'final'}")


def _prompts(file: Path | None) -> list[str]:
    from dpo_core.pocket.world import questions

    if file is None:
        return [question.text for question in questions(held_out=False)]
    prompts = list(dict.fromkeys(line for line in read_text(file).splitlines() if line.strip()))
    if not prompts:
        raise InputError(f"{file}: no prompt there; write one a line")
    return prompts


def _check_known(prompts: Sequence[str], file: Path | None) -> None:
    from dpo_core.pocket.judge import PocketJudge

    if unknown := [prompt for prompt in prompts if not PocketJudge().knows(prompt)]:
        raise InputError(f"{file}: the pocket judge knows nothing about {unknown[0]!r}; give a reward model: --reward")


def _judge_score(plain: dict[str, str]) -> Score:
    """Score by the pocket judge, who knows the questions as they are asked plainly."""
    from dpo_core.pocket.judge import PocketJudge

    judge = PocketJudge()
    return lambda prompts, answers: [judge.score(plain[p], answer) for p, answer in zip(prompts, answers)]
