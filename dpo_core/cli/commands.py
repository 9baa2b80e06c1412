"""The commands, each a function of its parsed arguments (``dpo_core.cli.flags``).

What a user can put right ends in one message and exit status 2.
``torchrun --nproc-per-node 2 -m dpo_core train ...`` trains in several processes.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dpo_core.cli.diagnosis import run_diagnose
from dpo_core.cli.flags import build_parser
from dpo_core.cli.keyboard import KEYS, ask_which, pocket_pairs, sampled_pairs, typed_pairs
from dpo_core.cli.loading import (
    audit_of,
    open_model,
    open_to_train,
    read_files,
    read_text,
    recorded,
    tell,
    undo,
    writable_file,
)
from dpo_core.cli.reinforcement import run_reward, run_rl
from dpo_core.config import DPOConfig, default_learning_rate
from dpo_core.data import EncodedPair, audit_pairs, same_prompt
from dpo_core.errors import InputError, printable
from dpo_core.formats.hf_layout import on_hub
from dpo_core.formats.pairs import Loaded, PreferencePair, add_pair, load_labels, load_pairs, save_pairs
from dpo_core.generate import Generation, generate
from dpo_core.kernels.device import best_device
from dpo_core.kernels.precision import choose
from dpo_core.lm.pretrain import Document, LMConfig, text_documents, train_lm
from dpo_core.lm.sft import load_examples, sft_documents
from dpo_core.logprobs import reference_logps
from dpo_core.methods.lora import adapters
from dpo_core.model import GPT, GPTConfig
from dpo_core.rl.config import RLConfig
from dpo_core.rl.reward import RewardConfig
from dpo_core.runs.checkpoint import list_checkpoints, save_trained, writable_folder, write_json
from dpo_core.runs.exits import BROKEN_PIPE, discard, lasting_output, say
from dpo_core.runs.processes import launched, print_error, process_group, rank
from dpo_core.study.evaluate import wilson_interval
from dpo_core.study.report import REPORTS
from dpo_core.study.setup_check import first_token_tells
from dpo_core.tokenizer import HUMAN, form_of, in_form, load_tokenizer
from dpo_core.trainers import KTOTrainer, trainer_for

__all__ = ["main"]

# What helps when the GPU's memory is full, by command.
SMALLER = {
    "train": "lower --batch-size (with --grad-accum raised alike the result is the same)",
    "sft": "lower --batch-tokens",
    "pretrain": "lower --batch-tokens",
    "reward": "lower --batch-size",
    "rl": "lower --batch-size (the result is the same), or --prompts-per-step",
}

TRAININGS = ("train", "sft", "pretrain", "reward", "rl", "pocket")  # what they write is worth more than what they print


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process if None.
    Returns:
        0, or 2 after a mistake that the user can put right, or 130 after Ctrl-C, or 141 if the reader of the output
        went away: a training goes on then, and every other command ends; 1 if it could not be written otherwise.

    >>> main(["train", "--data", "pairs.jsonl", "--steps", "none"])
    2
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no character is worth a crash on a terminal that lacks it
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # a row is seen when it is logged
    try:
        args = build_parser().parse_args(argv)
        if launched() and args.command != "train":
            raise InputError(f"only train runs in several processes; start {args.command} without torchrun")
        if args.command not in TRAININGS:
            COMMANDS[args.command](args)
            return 0
        with lasting_output() as output, process_group():
            COMMANDS[args.command](args)
        return output.status
    except BrokenPipeError:
        discard(sys.stdout)
        return BROKEN_PIPE
    except InputError as error:
        message = in_flags(str(error))
    except (OSError, SafetensorError) as error:  # a disk that is full
        message = str(error)
    except torch.OutOfMemoryError:
        remedy = SMALLER.get(args.command, "take a smaller model or fewer prompts")
        message = f"the GPU's memory is full; {remedy}"
    except KeyboardInterrupt as stop:
        if rank() == 0:
            say(in_flags(str(stop)) or "stopped")
        return 130
    print_error(message)
    return 2


def in_flags(message: str) -> str:
    """Say in the command line's words what the library said in its own.

    >>> in_flags("lower batch_size, or choose another output folder; train(resume=True) goes on from there")
    'lower --batch-size, or choose another --output; --resume goes on from there'
    """
    named = ["prompt_field", "chosen_field", "rejected_field"]
    every = (found.name for config in (DPOConfig, RewardConfig, RLConfig) for found in fields(config))
    settings = "|".join([*named, *(name for name in every if "_" in name)])
    message = re.sub(rf"\b({settings})\b", lambda name: f"--{name[0].replace('_', '-')}", message)
    return message.replace("another output folder", "another --output").replace("train(resume=True)", "--resume")


def _start_of(model: GPT, flag: str) -> str:
    """Find the name of the model that the training of this one began from."""
    if model.source == "pocket" or on_hub(model.source):
        raise InputError(f"{model.source} was not trained here; name what to compare with: {flag} MODEL")
    start = recorded(model).get("start")
    if start and isinstance(start, str):
        return start
    record = Path(model.source).absolute().parent / "config.json"
    raise InputError(f"{model.source}: {record} does not say what the training began from; name it: {flag} MODEL")


# Preference pairs


def _data(args: argparse.Namespace) -> None:
    if sum(map(bool, (args.interactive, args.from_model, args.convert, args.check))) > 1:
        raise InputError("choose one of --interactive, --from-model, --convert and --check")
    if (args.ask or args.prompts) and not args.from_model:
        raise InputError("--ask and --prompts go with --from-model MODEL, whose answers are judged")
    if args.check:
        audit = audit_of(read_files(load_labels, args, args.check), load_tokenizer(args.tokenizer), args.max_length)
        print(audit.report())
        if told := first_token_tells(audit.kept):
            print(f"noted: {told}")
        return
    if args.output.suffix == ".gz":
        raise InputError(f"{args.output}: pairs are written unpacked; leave .gz out of the name")
    writable_file(args.output)
    by_hand = args.interactive or args.ask
    found = args.output.exists() and args.output.stat().st_size
    if found and not by_hand and not args.force:
        raise InputError(f"{args.output}: is there already; choose another --output, or replace it with --force")
    pairs = load_pairs(args.output) if by_hand and found else []
    if by_hand:
        print(f"{len(pairs)} pairs are in {args.output}; each that you make is added at once; {KEYS}.")
    if args.convert:
        found_pairs = read_files(load_pairs, args, args.convert)
        tell(found_pairs)
        made: Iterable[PreferencePair | None] = found_pairs
    elif args.interactive or args.from_model:
        made = typed_pairs() if args.interactive else _answered_pairs(args)
    else:
        made = pocket_pairs(args.pairs, args.seed, args.noise, args.longer_chosen)
    old = len(pairs)
    for pair in made:
        if pair is None:
            undo(args.output, pairs, old)
            continue
        pairs.append(pair)
        if by_hand:
            add_pair(args.output, pair)
            print("Saved.")
    if not pairs:
        raise InputError("no pair came of it, and nothing was written")
    if not by_hand:
        save_pairs(args.output, pairs)
    print(f"{len(pairs)} pairs in {args.output}")


def _answered_pairs(args: argparse.Namespace) -> Iterator[PreferencePair]:
    from dpo_core.pocket.corpus import dialogues
    from dpo_core.pocket.judge import PocketJudge

    judge, rng = PocketJudge(), random.Random(args.seed)
    if args.prompts:
        prompts = [line for line in read_text(args.prompts).splitlines() if line.strip()][: args.pairs]
    else:
        prompts = [dialogue.prompt for dialogue in islice(dialogues(args.seed, held_out=False), args.pairs)]
    if unknown := [] if args.ask else [prompt for prompt in prompts if not judge.knows(prompt)]:
        raise InputError(f"{args.prompts}: the pocket judge knows nothing about {unknown[0]!r}; judge yourself: --ask")

    def prefers(first: Generation, second: Generation) -> int:
        return judge.prefers(plain[first.prompt], first.text, second.text, args.noise, rng)

    model = open_model(args.from_model)
    asked = [in_form(prompt, recorded(model).get("form")) for prompt in prompts]
    plain = dict(zip(asked, prompts))  # as the judge knows them
    return sampled_pairs(model, asked, ask_which if args.ask else prefers, args.seed)


# Training


def _pretrain(args: argparse.Namespace) -> None:
    encoding = load_tokenizer(args.tokenizer)
    shape = (args.context, args.channels, args.layers, args.heads)
    config = GPTConfig(encoding.n_vocab, *shape, tokenizer=args.tokenizer)
    documents = text_documents(encoding, read_text(args.data), args.context)
    torch.manual_seed(args.seed)
    _train_lm(args, GPT(config).to(best_device()), documents, args.learning_rate)


def _sft(args: argparse.Namespace) -> None:
    examples = read_files(load_examples, args, args.data)
    tell(examples)
    model = open_to_train(args)
    learning_rate = args.learning_rate or default_learning_rate(model, small=3e-4, published=2e-5)
    encoding, context = load_tokenizer(model.config.tokenizer), model.config.n_positions
    documents = sft_documents(encoding, examples, context)
    if cut := sum(document.ids[-1] != encoding.eot_token for document in documents):
        print(f"{cut} of {len(documents)} examples were cut at {context} tokens, the model's context")
    if lost := sum(len(document.ids) <= document.start for document in documents):
        print(f"{lost} of {len(documents)} examples have no room for an answer and are left out")
    _train_lm(args, model, documents, learning_rate, form_of([example.prompt for example in examples]))


def _train_lm(
    args: argparse.Namespace, model: GPT, documents: list[Document], learning_rate: float, form: str = "plain"
) -> None:
    start, out = Path(model.origin).resolve(), args.output.resolve()
    if start == out / "adapter" or (adapters(model) and start == out):
        raise InputError(f"{args.output} holds the model that training starts from; choose another --output")
    if (out / "final").is_dir() or list_checkpoints(out):
        raise InputError(f"{args.output} holds a training by DPO; choose another --output")
    writable_folder(args.output)
    config, began = LMConfig(args.epochs, args.batch_tokens, learning_rate, seed=args.seed), model.origin
    losses = train_lm(model, documents, config)
    save_trained(model, args.output, args.output / "adapter", {"start": began, "form": form})
    print(f"{len(losses)} steps, loss {losses[0]:.3f} to {losses[-1]:.3f} nats a token; saved in {args.output}")


def _train(args: argparse.Namespace) -> None:
    config = DPOConfig(**{setting.name: getattr(args, setting.name) for setting in fields(DPOConfig)})
    kind = trainer_for(config.loss)
    load = load_labels if kind is KTOTrainer else load_pairs
    pairs: Any = read_files(load, args, args.data)
    val_pairs: Any = read_files(load, args, args.val) if args.val else None
    callbacks = [REPORTS[name](args.output) for name in dict.fromkeys(args.report_to)]
    model = open_to_train(args)
    trainer = kind(model, load_tokenizer(model.config.tokenizer), pairs, config, args.output, val_pairs)
    print(trainer.audit.report())
    if trainer.val_audit:
        print(f"validation: {trainer.val_audit.report()}")
        training, validation = (
            {same_prompt(e.pair.prompt) for e in encoded} for encoded in (trainer.training, trainer.validation)
        )
        print(f"validation: {len(training & validation)} of {len(validation)} prompts are in the training pairs, too")
    if model.device.type == "cuda" and config.precision == "float32":
        print(f"computing in float32; --precision auto would take {choose('auto', model.device)}, which is faster here")
    trainer.train(resume=args.resume, callbacks=callbacks)
    row = trainer.history.kept_row(config.patience, config.metric_for_best_model)
    if row:
        print(_held_out(row, trainer.validation))
    kept = f", the weights of step {row['step']:.0f}" if config.patience else ""
    print(f"saved in {args.output / 'final'}{kept}")


def _held_out(row: dict[str, float], held_out: Sequence[EncodedPair]) -> str:
    """Say what the weights that were kept come to on pairs, or on labelled answers."""
    if "eval_rewards/accuracies" in row:
        accuracy, count = row["eval_rewards/accuracies"], len(held_out)
        low, high = wilson_interval(accuracy * count, count)
        return f"held-out reward accuracy {accuracy:.3f} [{low:.3f}, {high:.3f}] on {count} pairs"
    sides = (("desirable", "chosen"), ("undesirable", "rejected"))
    rewards = [
        f"{row[f'eval_rewards/{side}']:+.4f} on {sum(bool(getattr(e, side)) for e in held_out)} {kind} answers"
        for kind, side in sides
        if f"eval_rewards/{side}" in row
    ]
    return f"held-out rewards {', '.join(rewards)}"


def _pocket(args: argparse.Namespace) -> None:
    from dpo_core.pocket.build import PocketRecipe, build_pocket

    record = build_pocket(PocketRecipe(seed=args.seed), writable_folder(args.output))
    print(f"validation loss {record['validation_loss']:.3f}, parsed {record['parsed_share']:.3f}; in {args.output}")


# Use


def _generate(args: argparse.Namespace) -> None:
    models = [open_model(args.model)]
    if args.compare:
        models.insert(0, open_model(_start_of(models[0], "--compare") if args.compare == "start" else args.compare))
    settings = {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    form = "plain" if args.plain else recorded(models[-1]).get("form")  # one for all, as answers are compared
    prompts = [in_form(prompt, form) for prompt in args.prompt]
    if form == "dialogue":
        print(f"{models[-1].source} was trained on dialogues, and is asked in one; with --plain it is not")
        settings["stop"] = [HUMAN]
    answers = [generate(model, load_tokenizer(model.config.tokenizer), prompts, **settings) for model in models]
    for prompt, *row in zip(prompts, *answers):
        print(printable(prompt.lstrip("\n") if form == "dialogue" else prompt))
        for model, answer in zip(models, row):
            print(printable(f"--- {model.source}\n{answer.text.strip()}"))
        print()


def _evaluate(args: argparse.Namespace) -> None:
    pairs = read_files(load_pairs, args, args.data) if args.data else Loaded()
    if args.json:
        writable_file(args.json)
    policy = open_model(args.model)
    reference = open_model(_start_of(policy, "--reference") if args.reference == "start" else args.reference)
    if policy.config.tokenizer != reference.config.tokenizer:
        raise InputError(f"{policy.source} and {reference.source} have different tokenizers; compare like with like")
    if policy.config.tokenizer != "pocket" and not pairs:
        raise InputError("only the pocket world has a judge; give pairs to measure the reward accuracy on: --data FILE")
    figures = _reward_accuracy(args, pairs, policy, reference) if pairs else {}
    if policy.config.tokenizer == "pocket":
        from dpo_core.pocket.exam import examine
        from dpo_core.pocket.world import questions

        prompts = [question.text for question in questions(held_out=True)]
        random.Random(args.seed).shuffle(prompts)
        exam = examine(policy, reference, prompts[: args.questions], args.seed)
        print(exam)
        figures |= asdict(exam)
    if args.json:
        write_json(args.json, figures)


def _reward_accuracy(
    args: argparse.Namespace, pairs: list[PreferencePair], policy: GPT, reference: GPT
) -> dict[str, object]:
    length = min(policy.config.n_positions, reference.config.n_positions)
    audit = audit_pairs(pairs, load_tokenizer(policy.config.tokenizer), length)
    print(audit.report())
    kept = audit.kept
    logps = [reference_logps(model, kept, progress=True) for model in (policy, reference)]
    margins = args.beta * (logps[0] - logps[1]) @ torch.tensor([1.0, -1.0], device="cpu")  # (pairs,)
    right, count, margin = int((margins > 0).sum()), len(kept), float(margins.mean())
    low, high = wilson_interval(right, count)
    print(f"reward accuracy {right / count:.3f} [{low:.3f}, {high:.3f}] on {count} pairs, margin {margin:+.3f}")
    return {"reward_accuracy": right / count, "reward_accuracy_interval": [low, high], "reward_margin": margin}


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "data": _data,
    "pretrain": _pretrain,
    "sft": _sft,
    "train": _train,
    "reward": run_reward,
    "rl": run_rl,
    "generate": _generate,
    "evaluate": _evaluate,
    "diagnose": run_diagnose,
    "pocket": _pocket,
}
