"""Runs of the pocket model that chapters 08 to 10 compare: what each of them spent in KL, and what it gained.

Every chapter has a module here with ``RUNS``, functions from a seed to a trainer by name. ``tools/records/sweep.py``
runs them all and keeps what ``follow`` measured; the notebooks read that with ``recorded`` and run a small part again.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from itertools import islice

import torch

from dpo_core.course.clusters import student_t
from dpo_core.course.records import read_record
from dpo_core.generate import generate
from dpo_core.lm.pretrain import language_model_loss
from dpo_core.lm.sft import Example, sft_documents
from dpo_core.metrics import History
from dpo_core.model import GPT
from dpo_core.pocket.corpus import dialogues
from dpo_core.pocket.judge import Features, PocketJudge
from dpo_core.pocket.world import questions
from dpo_core.study.evaluate import answer_kl
from dpo_core.tokenizer import load_tokenizer
from dpo_core.trainer import DPOTrainer

__all__ = [
    "HELD_OUT", "SEEDS", "SEEN", "STATIONS", "Run", "Station",
    "follow", "interval", "perplexity", "recorded", "sample_start", "start_rewards",
]  # fmt: skip

SEEDS = (0, 1, 2)
STATIONS = (5, 15, 30, 60)  # steps at which a run is measured
HELD_OUT = [q.text for q in questions(held_out=True)][::5][:48]  # topics that occur in no pair
SEEN = [q.text for q in questions(held_out=False)][::13][:32]  # topics of the pairs
LONGEST = 120  # tokens of a sample


Exhibits = dict[str, Callable[[int], DPOTrainer]]  # from a seed to a trainer, by name


@dataclass(frozen=True)
class Station:
    """What one answer a question, sampled at temperature 1, says of a model."""

    step: int
    kl: float  # from the reference, nats an answer, over both sets of questions
    rewards: list[float]  # the judge's, of the answers about held-out topics, in the order of HELD_OUT
    seen_rewards: list[float]  # about the topics of the pairs, in the order of SEEN
    words: list[int]  # lengths of the answers about held-out topics
    parsed: float  # share of those answers that the judge can read
    perplexity: float  # on dialogues as the model was pretrained on, held-out topics
    # Means over those answers; times a judge's weights they are its mean reward. Older records have none.
    features: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run's curves, and what was measured on its way."""

    name: str
    seed: int
    history: History
    stations: list[Station]

    def at(self, step: int) -> Station:
        """Find the station of a step.

        Args:
            step: one at which the run was measured.
        """
        return next(station for station in self.stations if station.step == step)


def follow(
    name: str, seed: int, trainer: DPOTrainer, stations: Sequence[int] = STATIONS, prompts: int | None = None
) -> Run:
    """Train a model, and measure it before the first step, at each station and in the end.

    Args:
        name: of the run.
        seed: that its trainer was made with.
        trainer: of the shipped model, before its first step; it logs at the stations, too.
        stations: steps.
        prompts: questions of each set that are asked; all if not given.
    """
    reference = copy.deepcopy(trainer.model).eval()
    seen: list[Station] = []

    def measure(trainer: DPOTrainer, step: int, row: dict[str, float]) -> None:
        if step in (0, *stations, trainer.config.steps):
            seen.append(_measure(trainer.model, reference, step, prompts) if step else _start(prompts))

    return Run(name, seed, trainer.train(progress=False, callbacks=[measure]), seen)


@lru_cache(maxsize=2)
def _start(prompts: int | None) -> Station:
    """Measure the shipped model, from which all runs start."""
    model = GPT.from_pretrained("pocket").eval()
    return _measure(model, model, 0, prompts)


def _measure(model: GPT, reference: GPT, step: int, prompts: int | None) -> Station:
    encoding, judge = load_tokenizer("pocket"), PocketJudge()
    asked = [*HELD_OUT[:prompts], *SEEN[:prompts]]
    answers = generate(model, encoding, asked, max_new_tokens=LONGEST, seed=0)
    kl = answer_kl(model, reference, encoding, answers).mean().item()
    rewards = [judge.score(answer.prompt, answer.text) for answer in answers]
    held_out = [judge.features(answer.prompt, answer.text) for answer in answers[: len(HELD_OUT[:prompts])]]
    return Station(
        step,
        round(kl, 4),
        rewards[: len(held_out)],
        rewards[len(held_out) :],
        [features.words for features in held_out],
        round(sum(features.parsed for features in held_out) / len(held_out), 4),
        round(perplexity(model), 4),
        {f.name: round(statistics.mean(getattr(answer, f.name) for answer in held_out), 4) for f in fields(Features)},
    )


@torch.no_grad()
def perplexity(model: GPT, count: int = 48) -> float:
    """Compute a model's perplexity on answers as in its pretraining, about held-out topics.

    It is e to the mean nats of a token.

    Args:
        model: of the pocket tier.
        count: answers.
    """
    examples = [Example(d.prompt, d.answer) for d in islice(dialogues(0, held_out=True), count)]
    total, tokens = language_model_loss(
        model, sft_documents(load_tokenizer("pocket"), examples, model.config.n_positions)
    )
    return math.exp(total.item() / tokens)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Average a few seeds' values, with the 95 % interval of the mean by Student's t.

    Args:
        values: two or more.
    Returns:
        Mean, lower and upper end.

    >>> interval([1.0, 2.0, 3.0])
    (2.0, -0.484..., 4.484...)
    """
    mean, half = statistics.mean(values), student_t(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def to_json(run: Run) -> dict[str, object]:
    """Convert a run for the record, its curves to four digits."""
    rows = [{key: float(f"{value:.4g}") for key, value in row.items()} for row in run.history.rows]
    return {"name": run.name, "seed": run.seed, "history": rows, "stations": [asdict(s) for s in run.stations]}


def from_json(entry: dict) -> Run:
    """Read a run that ``to_json`` converted."""
    stations = [Station(**station) for station in entry["stations"]]
    return Run(entry["name"], entry["seed"], History(entry["history"]), stations)


@lru_cache
def recorded(chapter: str) -> dict[tuple[str, int], Run]:
    """Read the record of a chapter's runs, by name and seed; ``python -m tools.records.sweep CHAPTER`` makes it.

    Args:
        chapter: as ``08``.
    """
    return {(run.name, run.seed): run for run in map(from_json, read_record(f"sweep_{chapter}")["runs"])}


def sample_start() -> list[list[float]]:
    """Sample the shipped model's answers to ``HELD_OUT`` and ``SEEN`` three times, and have the judge pay them.

    Returns:
        A list for each time, with a reward for each question.
    """
    model, encoding, judge = GPT.from_pretrained("pocket").eval(), load_tokenizer("pocket"), PocketJudge()
    every = [q.text for q in questions(held_out=True)]
    first = _start(None)
    rewards = [[*first.rewards, *first.seen_rewards]]
    for seed in (1, 2):
        answers = [
            a for asked in (every, SEEN) for a in generate(model, encoding, asked, max_new_tokens=LONGEST, seed=seed)
        ]
        paid = {answer.prompt: judge.score(answer.prompt, answer.text) for answer in answers}
        rewards.append([paid[prompt] for prompt in (*HELD_OUT, *SEEN)])
    return rewards


def start_rewards() -> list[float]:
    """Read what the shipped model earns before training, from the record.

    Returns:
        For each question of ``HELD_OUT`` and then ``SEEN`` the mean reward of three sampled answers.

    >>> len(start_rewards()) == len(HELD_OUT) + len(SEEN)
    True
    """
    return [statistics.mean(rewards) for rewards in zip(*read_record("start")["rewards"])]
