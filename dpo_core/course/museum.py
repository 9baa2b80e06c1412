"""The failure museum of chapter 07: small runs that are sick on purpose, each in one way.

Each exhibit is a function from a seed to a trainer; what differs from ``healthy`` is its disease.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dpo_core.config import DPOConfig
from dpo_core.course.plots import CARD, COLORS
from dpo_core.course.records import read_record
from dpo_core.data import encode_pair, same_prompt
from dpo_core.formats.pairs import PreferencePair
from dpo_core.generate import Generation, generate
from dpo_core.metrics import History
from dpo_core.model import GPT
from dpo_core.pocket.corpus import dialogues, preference_pairs
from dpo_core.pocket.judge import PocketJudge, RewardWeights
from dpo_core.pocket.world import questions
from dpo_core.runs.still import LN2
from dpo_core.study.diagnose import MACHINERY, ODD_PER_ANSWER, Finding, diagnose
from dpo_core.study.setup_check import check_setup
from dpo_core.study.watch import watch
from dpo_core.tokenizer import load_tokenizer
from dpo_core.trainer import DPOTrainer
from dpo_core.trainers import trainer_for

__all__ = [
    "EXHIBITS", "HEALTHY", "PROMPTS", "Case", "Visit",
    "case", "compare", "confusion", "expected", "pairs", "patients", "recorded", "score", "swap", "trainer", "verdict",
    "visit",
]  # fmt: skip

TRAINING, HELD_OUT = 400, 48  # pairs
LONGEST = 90  # tokens of a pair: short ones, so that a step takes a fraction of a second on a CPU
HEALTHY = "healthy"
PROMPTS = [q.text for q in questions(held_out=True)][::15][:16]  # sampled on the way; no pair is about their topics
WARD = 10  # who lies there is drawn from this


@lru_cache(maxsize=4)
def pairs(
    seed: int,
    training: int = TRAINING,
    held_out: int = HELD_OUT,
    weights: RewardWeights | None = None,
    longer_chosen: float | None = 0.5,
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Draw short pairs of the pocket world, rightly labelled: some to train on, and some with other prompts held out.

    Args:
        seed: of the drawing.
        training: how many, at most.
        held_out: how many.
        weights: of the judge who labels, the true ones if not given.
        longer_chosen: share of pairs in which the longer answer is the better one; as it comes if None.
    """
    encoding, judge = load_tokenizer("pocket"), PocketJudge(weights)
    drawn = preference_pairs(4 * training, seed, judge, longer_chosen=longer_chosen)
    short = [pair for pair in drawn if len(encode_pair(encoding, pair)) <= LONGEST]
    kept = short[-held_out:]
    asked = {same_prompt(pair.prompt) for pair in kept}
    return [pair for pair in short if same_prompt(pair.prompt) not in asked][:training], kept


def swap(pair: PreferencePair) -> PreferencePair:
    """Exchange the labels of a pair."""
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def trainer(
    seed: int, training: list[PreferencePair], held_out: list[PreferencePair], **settings: object
) -> DPOTrainer:
    """Make a trainer with the healthy settings, but for those given.

    It makes one pass at most, so that each pair is new when it is met.

    Args:
        seed: of the order.
        training: pairs to train on.
        held_out: pairs to validate on.
        settings: of ``DPOConfig``.
    """
    healthy = {"steps": 50, "learning_rate": 1e-4, "warmup_steps": 5, "eval_every": 25, "log_every": 5, "seed": seed}
    config = DPOConfig(**(healthy | settings))  # type: ignore[arg-type]
    model, encoding = GPT.from_pretrained("pocket"), load_tokenizer("pocket")
    return trainer_for(config.loss)(
        model, encoding, training[: config.steps * config.batch_size], config, val_pairs=held_out
    )


# The exhibits


def healthy(seed: int) -> DPOTrainer:
    return trainer(seed, *pairs(seed))


def too_high(seed: int) -> DPOTrainer:
    return trainer(seed, *pairs(seed), learning_rate=3e-3, steps=20, eval_every=20)


def too_low(seed: int) -> DPOTrainer:
    return trainer(seed, *pairs(seed), learning_rate=1e-6, steps=20, eval_every=20)


def swapped(seed: int) -> DPOTrainer:
    training, held_out = pairs(seed)
    return trainer(seed, [swap(pair) for pair in training], held_out)


def noisy(seed: int) -> DPOTrainer:
    rng = random.Random(seed)
    training, held_out = ([swap(p) if rng.random() < 0.4 else p for p in part] for part in pairs(seed))
    return trainer(seed, training, held_out)


def ten_pairs(seed: int) -> DPOTrainer:
    training, held_out = pairs(seed)
    shortest = sorted(training, key=lambda pair: len(pair.chosen + pair.rejected))[:10]
    return trainer(seed, shortest, held_out, batch_size=10, steps=200, eval_every=100, log_every=20)


def no_leash(seed: int) -> DPOTrainer:
    return trainer(seed, *pairs(seed), learning_rate=5e-4, beta=0.02, steps=40, eval_every=10)


def no_leash_yet(seed: int) -> DPOTrainer:
    run = no_leash(seed)
    run.config = replace(run.config, steps=10)  # the very same run, ended early
    return run


def never_ends(seed: int, max_length: int | None = 48) -> DPOTrainer:
    answers = (d for d in dialogues(seed, held_out=False) if d.style == "detailed" and d.question.kind == "topic")
    whole = [next(answers) for _ in range(TRAINING + HELD_OUT)]
    # A whole answer is better than its first sentence. But whole answers are longer than 48 tokens.
    found = [PreferencePair(d.prompt, d.answer, d.answer.split(". ")[0] + ".") for d in whole]
    return trainer(seed, found[:TRAINING], found[TRAINING:], max_length=max_length, steps=30, eval_every=30)


def dropout(seed: int) -> DPOTrainer:
    run = trainer(seed, *pairs(seed), steps=10, eval_every=10, log_every=2)
    for module in run.model.modules():
        if hasattr(module, "dropout"):
            setattr(module, "dropout", 0.1)  # noqa: B010
    object.__setattr__(run.model.config, "dropout", 0.1)
    run.model.train()
    run.check_start = lambda *_: None  # our trainer would refuse
    evaluate = run.evaluate

    def in_evaluation_mode() -> dict[str, float]:  # as trainers do that know of the two modes
        run.model.eval()
        found = evaluate()
        run.model.train()
        return found

    run.evaluate = in_evaluation_mode  # type: ignore[method-assign]
    return run


def frozen(seed: int) -> DPOTrainer:
    run = trainer(seed, *pairs(seed), steps=10, eval_every=10, log_every=2)
    run.optimizer = torch.optim.AdamW(copy.deepcopy(run.model).parameters())  # the optimiser of another model
    return run


def moving_reference(seed: int) -> DPOTrainer:
    run = trainer(seed, *pairs(seed), steps=20, eval_every=20, reference="live")
    run.reference_model = run.model  # a second name is not a second model
    return run


def half_precision(seed: int) -> DPOTrainer:
    run = trainer(seed, *pairs(seed), steps=20, eval_every=20)
    run.model.bfloat16()
    run.check_start = lambda *_: None  # our trainer would refuse
    return run


EXHIBITS: dict[str, Callable[..., DPOTrainer]] = {  # by the name that diagnose gives them
    HEALTHY: healthy,
    "frozen policy": frozen,
    "moving reference": moving_reference,
    "dropout on": dropout,
    "half-precision weights": half_precision,
    "learning rate too high": too_high,
    "learning rate too low": too_low,
    "swapped labels": swapped,
    "noisy labels": noisy,
    "memorised pairs": ten_pairs,
    "harmful displacement": no_leash,
    "harmless displacement": no_leash_yet,
    "no end of text": never_ends,
}


@dataclass(frozen=True)
class Visit:
    """An exhibit that was run."""

    name: str
    setup: list[Finding]  # before the first step
    history: History
    trainer: DPOTrainer


def visit(name: str, seed: int, **changes: object) -> Visit:
    """Check an exhibit and run it, with ``watch`` looking on.

    Args:
        name: one of ``EXHIBITS``.
        seed: of data and order.
        changes: to the exhibit, where it takes any.
    """
    run = EXHIBITS[name](seed, **changes)
    setup = check_setup(run)
    return Visit(name, setup, run.train(progress=False, callbacks=[watch(run, PROMPTS)]), run)


def expected(name: str) -> str:
    """Name what ``verdict`` should say of an exhibit."""
    return HEALTHY if name in (HEALTHY, "harmless displacement") else name


def verdict(history: History) -> str:
    """Name the first fault that ``diagnose`` finds, or ``healthy``; notes are no faults.

    >>> verdict(History([{"step": 0, "loss": 0.69}, {"step": 50, "loss": 9.3}]))
    'learning rate too high'
    """
    return next((finding.name for finding in diagnose(history) if not finding.note), HEALTHY)


def score(answers: Sequence[Generation]) -> float:
    """Average what the judge of the pocket world thinks of answers.

    >>> score([Generation("Paris is the capital of France.", [], True, "What is the capital of France?")]) > 0
    True
    """
    judge = PocketJudge()
    return sum(judge.score(answer.prompt, answer.text) for answer in answers) / len(answers)


@dataclass(frozen=True)
class Case:
    """What is kept of a run: its curves, and some of what its model writes in the end."""

    history: History
    answers: list[dict[str, str]]  # four, with ``prompt`` and ``text``


@lru_cache(maxsize=1)
def _record() -> dict[tuple[str, int], Case]:
    """Read the runs of ``tools/records/museum.py``, by name and seed."""
    runs = read_record("museum")["runs"]
    return {(run["name"], run["seed"]): Case(History(run["history"]), run["answers"]) for run in runs}


def case(name: str, seed: int = 0) -> Case:
    """Look a run up in the record; one that is not in it is made anew, which takes half a minute on a CPU.

    Args:
        name: one of ``EXHIBITS``.
        seed: 0, 1 or 2 are in the record.
    """
    if (name, seed) in _record():
        return _record()[name, seed]
    seen = visit(name, seed)
    answers = generate(seen.trainer.model, seen.trainer.encoding, PROMPTS, max_new_tokens=120, seed=0)
    return Case(seen.history, [{"prompt": answer.prompt, "text": answer.text} for answer in answers[:4]])


def recorded() -> dict[str, dict[int, History]]:
    """Read the curves of the recorded runs, by name and seed."""
    runs: dict[str, dict[int, History]] = {}
    for (name, seed), found in _record().items():
        runs.setdefault(name, {})[seed] = found.history
    return runs


def patients() -> dict[str, History]:
    """Choose three runs for the blind test, of a seed that the chapter shows nowhere else."""
    names = random.Random(WARD).sample([name for name in EXHIBITS if name not in MACHINERY], 3)
    return {letter: case(name, seed=2).history for letter, name in zip("ABC", names)}


# Panels: title, unit, and a level to compare with
METRICS: dict[str, tuple[str, str, float | None]] = {
    "loss": ("Training loss", "nats a pair", LN2),
    "eval_loss": ("Held-out loss", "nats a pair", LN2),
    "rewards/margins": ("Training margin", "β × nats", 0.0),
    "eval_rewards/margins": ("Held-out margin", "β × nats", 0.0),
    "rewards/accuracies": ("Training accuracy", "share of pairs", 0.5),
    "eval_rewards/accuracies": ("Held-out accuracy", "share of pairs", 0.5),
    "logps/chosen_delta": ("Chosen answers, training", "log-ratio, nats", 0.0),
    "eval_logps/chosen_delta": ("Chosen answers, held out", "log-ratio, nats", 0.0),
    "weights/changed": ("Weights that have changed", "share", None),
    "kl/policy_ref": ("Distance from the reference", "KL, nats an answer", None),
    "samples/length": ("Length of the samples", "tokens", None),
    "samples/ended": ("Samples that come to an end", "share", None),
    "eos/chosen": ("Where whole answers end", "probability of ending", None),
    "samples/odd": ("Odd tokens in the samples", "tokens an answer", ODD_PER_ANSWER),
}
LOOKS = (("neutral", ":", "o"), ("rejected", "-", "s"), ("chosen", "--", "^"), ("highlight", "-.", "D"))


def compare(runs: dict[str, History], metrics: list[str], title: str = "") -> Figure:
    """Draw a panel for each metric, with a line for each run.

    Args:
        runs: histories by label, the one to compare with first.
        metrics: of ``METRICS``.
        title: what is to be seen, in a few words.
    Returns:
        A figure, closed for pyplot, so that a notebook shows it once.
    """
    columns = min(3, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(10, 3.2 * rows), squeeze=False)
    for ax, metric in zip(axes.flat, metrics):
        name, unit, level = METRICS[metric]
        if level is not None:
            ax.axhline(level, color="#999999", linewidth=1)
        for (label, history), (color, style, marker) in zip(runs.items(), LOOKS):
            ax.plot(*history.column(metric), style, color=COLORS[color], label=label, marker=marker, markersize=4)
        ax.set(title=name, ylabel=unit)
    for ax in axes[-1]:
        ax.set_xlabel("optimiser step")
    for ax in axes.flat[len(metrics) :]:
        ax.remove()
    looks = axes[0][0].get_legend_handles_labels()
    figure.legend(*looks, loc="outside lower center", ncols=len(runs), fontsize=9, handlelength=3.5)
    figure.suptitle(title)
    plt.close(figure)
    return figure


def confusion(runs: dict[str, dict[int, History]], title: str = "") -> Figure:
    """Draw what ``diagnose`` calls each exhibit: a row an exhibit, a column a verdict, each field a number of runs."""
    columns = [HEALTHY, *(name for name in runs if name not in (HEALTHY, "harmless displacement"))]
    counts = [[sum(verdict(history) == c for history in found.values()) for c in columns] for found in runs.values()]
    figure, ax = plt.subplots(figsize=(9, 6.2))
    ax.imshow(counts, cmap=LinearSegmentedColormap.from_list("", [CARD, COLORS["chosen"]]), aspect="auto", vmin=0)
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            if count:
                ax.text(x, y, str(count), ha="center", va="center", color="white")
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    ax.set_yticks(range(len(runs)), list(runs))
    ax.set(title=title, xlabel="called by diagnose", ylabel="exhibit")
    ax.grid(False)
    plt.close(figure)
    return figure
