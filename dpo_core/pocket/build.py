"""The making of the shipped pocket model: vocabulary, training in two stages, samples, model card.

Run as ``python -m dpo_core pocket --output FOLDER``. The same seed and machine give the same files.
"""

from __future__ import annotations

import base64
import itertools
import json
import platform
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import regex
import tiktoken
import torch

from dpo_core.generate import generate
from dpo_core.kernels.device import best_device
from dpo_core.lm.pretrain import Document, LMConfig, language_model_loss, no_fp16, train_lm
from dpo_core.model import GPT, GPTConfig
from dpo_core.pocket.bpe import learn_bpe
from dpo_core.pocket.corpus import Dialogue, dialogues
from dpo_core.pocket.judge import PocketJudge
from dpo_core.tokenizer import WORD_PATTERN, boundary, read_encoding

__all__ = ["PocketRecipe", "build_pocket"]


SHARPNESS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0)  # tried in this order


@dataclass(frozen=True)
class PocketRecipe:
    """Everything that decides what the pocket model becomes."""

    seed: int = 0
    vocabulary_dialogues: int = 40_000  # text from which the vocabulary is learned
    school_dialogues: int = 600_000  # each is seen once
    habit_dialogues: int = 30_000  # as above, but in the shares of styles that the model shall answer in
    validation_dialogues: int = 1_000
    samples: int = 1_000  # answers drawn to measure how well formed they are
    wanted_parsed: float = 0.99  # share of answers that the judge has to parse
    vocab_size: int = 4096
    n_positions: int = 512
    n_embd: int = 224
    n_layer: int = 4
    n_head: int = 7
    school: LMConfig = field(
        default_factory=lambda: LMConfig(tokens_per_batch=4096, learning_rate=3e-3, optimizer="muon", precision="auto")
    )
    habits: LMConfig = field(default_factory=lambda: LMConfig(tokens_per_batch=4096, learning_rate=3e-4))


def dialogue_text(dialogue: Dialogue) -> str:
    """Join a dialogue's prompt and answer into the text to train on."""
    return dialogue.prompt + boundary(dialogue.prompt, dialogue.answer) + dialogue.answer


def learn_vocabulary(recipe: PocketRecipe) -> dict[bytes, int]:
    """Learn byte-pair ranks from the words of many dialogues; the last id is left to the end-of-text token.

    Args:
        recipe: how many dialogues, and how many tokens.
    """
    words: Counter[str] = Counter()
    for dialogue in itertools.islice(dialogues(0), recipe.vocabulary_dialogues):  # one vocabulary for all seeds
        words.update(regex.findall(WORD_PATTERN, dialogue_text(dialogue)))
    return learn_bpe(words, recipe.vocab_size - 1)


def documents(encoding: tiktoken.Encoding, seed: int, count: int, habits: bool) -> list[Document]:
    """Encode dialogues as token ids, each closed by the end-of-text token.

    Args:
        encoding: of the model.
        seed: of the dialogues.
        count: how many.
        habits: as in ``dialogues``.
    """
    return [
        Document([*encoding.encode_ordinary(dialogue_text(d)), encoding.eot_token])
        for d in itertools.islice(dialogues(seed, habits=habits), count)
    ]


def build_pocket(recipe: PocketRecipe, folder: Path, progress: bool = True) -> dict:
    """Make vocabulary and model, sharpen and measure it, and write all of it to a folder.

    Args:
        recipe: what to build.
        folder: gets ``tokenizer.tiktoken`` and ``model/`` with weights, ``build.json`` and ``MODEL_CARD.md``.
    Returns:
        What ``build.json`` holds: recipe, machine, times, losses, share of parsed answers, samples.
    """
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    ranks = learn_vocabulary(recipe)
    lines = (
        f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda r: r[1])
    )
    (folder / "tokenizer.tiktoken").write_text("".join(lines), encoding="ascii")
    encoding = read_encoding("pocket", folder / "tokenizer.tiktoken")

    torch.manual_seed(recipe.seed)
    shape = {key: getattr(recipe, key) for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    model = GPT(GPTConfig(**shape, tokenizer="pocket"))
    model.to(best_device())
    record = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "school": _learn(model, encoding, recipe, habits=False, progress=progress),
        "habits": _learn(model, encoding, recipe, habits=True, progress=progress),
        "seconds": round(time.perf_counter() - started),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {model.device.type}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    return finish_pocket(model, encoding, recipe, record, folder / "model")


def _learn(model: GPT, encoding: tiktoken.Encoding, recipe: PocketRecipe, habits: bool, progress: bool) -> dict:
    """Train one stage, and say what to record of it; the fresh dialogues are of the stage's own mixture."""
    training, count = (recipe.habits, recipe.habit_dialogues) if habits else (recipe.school, recipe.school_dialogues)
    train = documents(encoding, recipe.seed + (11 if habits else 1), count, habits)
    losses = train_lm(model, train, training, progress)
    return {
        "tokens": sum(len(d.ids) for d in train),
        "steps": len(losses),
        "loss_last_100": sum(losses[-100:]) / len(losses[-100:]),
        "validation_loss": validation_loss(model, encoding, recipe, habits),
        "precision": no_fp16(training.precision, model.device),
    }


def finish_pocket(model: GPT, encoding: tiktoken.Encoding, recipe: PocketRecipe, record: dict, folder: Path) -> dict:
    """Sharpen a trained model as little as its sentences need, measure it, and write it with its card.

    A model this small leaves a little probability to every wrong word, and in a sentence of fifteen words that adds up.
    Scaling the final norm scales all logits, so that temperature 1 of the shipped model is a lower temperature of the
    trained one. Prompts for the choice and for the measurement are different ones.

    Args:
        model: trained; changed in place.
        encoding: of the model.
        recipe: of the model.
        record: of the training.
        folder: gets the model, its record and its card.
    Returns:
        The record with what was measured.
    """
    norm = {name: tensor.clone() for name, tensor in model.ln_f.state_dict().items()}
    for sharpness in SHARPNESS:
        model.ln_f.load_state_dict({name: tensor * sharpness for name, tensor in norm.items()})
        parsed, _, _ = sample_quality(model, encoding, recipe, recipe.seed + 3)
        if parsed >= recipe.wanted_parsed:
            break
    model.save_pretrained(folder)
    parsed, ended, samples = sample_quality(model, encoding, recipe, recipe.seed + 4)
    record = record | {
        "sharpness": sharpness,
        "validation_loss_sharpened": validation_loss(model, encoding, recipe, habits=True),
        "parsed_share": parsed,
        "ended_share": ended,
        "samples": samples[:12],
    }
    (folder / "build.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(_card(record), encoding="utf-8")
    return record


@torch.no_grad()
def validation_loss(model: GPT, encoding: tiktoken.Encoding, recipe: PocketRecipe, habits: bool) -> float:
    """Compute the loss of fresh dialogues, in nats per token.

    Args:
        model: to measure.
        encoding: of the model.
        recipe: how many dialogues, and their seed.
        habits: as in ``dialogues``.
    """
    held_back = documents(encoding, recipe.seed + 2, recipe.validation_dialogues, habits)
    sums = [language_model_loss(model, held_back[i : i + 50]) for i in range(0, len(held_back), 50)]
    return float(sum(loss for loss, _ in sums)) / sum(count for _, count in sums)


def sample_quality(
    model: GPT, encoding: tiktoken.Encoding, recipe: PocketRecipe, seed: int
) -> tuple[float, float, list[dict[str, str]]]:
    """Sample answers at temperature 1, and measure how well formed they are.

    Args:
        model: who answers.
        encoding: of the model.
        recipe: how many answers, and the seed of the sampling.
        seed: of the questions.
    Returns:
        The share that the judge can parse, the share that ended by itself, and the texts.
    """
    asked = [d.prompt for d in itertools.islice(dialogues(seed, habits=True), recipe.samples)]
    answers = generate(model, encoding, asked, max_new_tokens=200, seed=recipe.seed)
    judge = PocketJudge()
    parsed = sum(judge.features(a.prompt, a.text).parsed for a in answers) / len(answers)
    texts = [{"prompt": a.prompt, "answer": a.text} for a in answers]
    return parsed, sum(a.ended for a in answers) / len(answers), texts


def _card(record: dict) -> str:
    recipe, school, habits = record["recipe"], record["school"], record["habits"]
    samples = "\n\n".join(f"> **{s['prompt']}**\n>\n> " + s["answer"].replace("\n", "\n> ") for s in record["samples"])
    return f"""# Model card: pocket

A GPT in GPT-2's architecture for the course *DPO from Scratch*. It answers questions about a small closed world in
mixed styles, good and bad on purpose, so that preference training has something to choose. It is a teaching object:
it knows nothing outside `dpo_core/pocket/knowledge/`, and it repeats that in any style, the wrong and rude ones too.

| | |
|---|---|
| shape | {recipe["n_layer"]} layers, {recipe["n_embd"]} channels, {recipe["n_head"]} heads, \
{recipe["n_positions"]} positions, {recipe["vocab_size"]} tokens: {record["parameters"]:,} parameters |
| school | {recipe["school_dialogues"]:,} dialogues of `dpo_core.pocket.corpus`, seed {recipe["seed"] + 1}, \
{school["tokens"]:,} tokens, each seen once; Muon for the matrices, AdamW for the rest, \
{school["steps"]:,} steps of up to {recipe["school"]["tokens_per_batch"]} tokens, \
peak learning rate {recipe["school"]["learning_rate"]}, cosine to zero, {school["precision"]} |
| habits | {recipe["habit_dialogues"]:,} more, seed {recipe["seed"] + 11}, in other shares of the styles: fewer good \
answers, more rude, rambling and run-together ones; {habits["tokens"]:,} tokens, each seen once; AdamW, \
{habits["steps"]:,} steps, peak learning rate {recipe["habits"]["learning_rate"]}, {habits["precision"]} |
| loss | after school {school["loss_last_100"]:.3f} nats per token over the last 100 steps, \
{school["validation_loss"]:.3f} on {recipe["validation_dialogues"]:,} fresh dialogues in the same shares; \
after the habits {habits["loss_last_100"]:.3f} and {habits["validation_loss"]:.3f}, in theirs |
| sharpened | logits times {record["sharpness"]}, so that sentences come out whole at temperature 1; \
{record["validation_loss_sharpened"]:.3f} nats per token then |
| samples | of {recipe["samples"]:,} answers at temperature 1, {record["ended_share"]:.1%} end by themselves \
and {record["parsed_share"]:.1%} are parsed by the judge (nine words in ten in known sentences) |
| made on | {record["machine"]}; Python {record["versions"]["python"]}, torch {record["versions"]["torch"]}; \
{record["seconds"]:,} seconds |
| rebuild | `python -m dpo_core pocket --output FOLDER` |
| licence | MIT, text and weights |

## Limits

English only; no knowledge but the world's; no memory of earlier turns; no safety training before DPO, though the
careless answers hold no instructions. Positions beyond about 200 were hardly trained.

## Samples

The first answers drawn, unselected.

{samples}
"""
