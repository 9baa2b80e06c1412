"""The terms of labelling by hand: two answers to choose from, verdicts on them, and what these come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_core.cli.keyboard import answer_twice
from dpo_core.formats.pairs import load_pairs
from dpo_core.model import GPT
from dpo_core.study.evaluate import wilson_interval

__all__ = [
    "OTHER", "VERDICTS", "Agreement", "Comparison", "Verdict", "agreement", "file_comparisons", "labelled",
    "sampled_comparisons",
]  # fmt: skip

VERDICTS = ("left", "right", "tie", "skip")
OTHER = {"first": "second", "second": "first"}


@dataclass(frozen=True)
class Comparison:
    """A prompt and two answers to choose from."""

    prompt: str
    first: str
    second: str
    source: str = ""  # where it is from, for the record; never shown


def file_comparisons(path: str | Path) -> list[Comparison]:
    """Read the pairs of a file to judge them anew; which answer the file prefers is not shown.

    Args:
        path: what ``load_pairs`` reads.
    Returns:
        One comparison a pair: the chosen answer first, as the sides are drawn later.
    Raises:
        InputError: as ``load_pairs``.

    >>> from importlib.resources import files
    >>> file_comparisons(str(files("dpo_core.pocket") / "guide_pairs.jsonl"))[1].prompt
    'What is the capital of France?'
    """
    return [Comparison(pair.prompt, pair.chosen, pair.rejected, pair.source) for pair in load_pairs(path)]


def sampled_comparisons(model: GPT, prompts: Sequence[str], seed: int) -> list[Comparison]:
    """Sample two answers of a model to each prompt at temperature 1; a prompt with the same answer twice is left out.

    Args:
        model: who answers.
        prompts: what is asked.
        seed: of the sampling.

    >>> found = sampled_comparisons(GPT.from_pretrained("pocket"), ["Why is the sky blue?"], seed=0)
    >>> found[0].source
    'samples of pocket, seed 0'
    """
    source = f"samples of {model.source or 'a model'}, seed {seed}"
    return [Comparison(a.prompt, a.text, b.text, source) for a, b in answer_twice(model, prompts, seed)]


@dataclass(frozen=True)
class Verdict:
    """One decision of a labeller."""

    pair: int  # index among the session's comparisons
    second_pass: bool
    left: str  # which answer stood on the left, "first" or "second"
    verdict: str  # one of VERDICTS
    at: str  # UTC

    @property
    def preferred(self) -> str:
        """``first``, ``second``, ``tie`` or ``skip``: the verdict without the sides."""
        sides = {"left": self.left, "right": OTHER.get(self.left, "")}
        return sides.get(self.verdict, self.verdict)


@dataclass(frozen=True)
class Agreement:
    """How often the second verdict was the first one's, with the 95 % Wilson interval.

    ``kappa`` is Cohen's (1960): the share of the way from what two passes with these habits (so many left, right and
    ties) would agree on by chance to full agreement. Sides are those of the first pass, which were drawn, so a kappa
    of 0 is what a coin reaches. It is None where chance alone already agrees on everything.
    """

    n: int  # pairs judged twice, skips left out
    agreed: int
    low: float
    high: float
    kappa: float | None

    @property
    def share(self) -> float:
        """The share of pairs with the same verdict twice."""
        return self.agreed / self.n

    def __str__(self) -> str:
        kappa = "not defined" if self.kappa is None else f"{self.kappa:.2f}"
        return (
            f"the same verdict twice on {self.agreed} of {self.n} pairs:"
            f" {self.share:.2f} [{self.low:.2f}, {self.high:.2f}], kappa {kappa}"
        )


def agreement(verdicts: Sequence[Verdict]) -> Agreement | None:
    """Measure how often the second pass agrees with the first; None before any pair was judged twice.

    Args:
        verdicts: of both passes.

    >>> both = [Verdict(0, second, left, "left", "") for second, left in ((False, "first"), (True, "second"))]
    >>> print(agreement(both))  # always the left one, and the sides are exchanged
    the same verdict twice on 0 of 1 pairs: 0.00 [0.00, 0.79], kappa 0.00
    """
    first = {verdict.pair: verdict for verdict in verdicts if not verdict.second_pass}
    twice = [(first[v.pair], v) for v in verdicts if v.second_pass and v.pair in first]
    judged = [(a, b) for a, b in twice if "skip" not in (a.verdict, b.verdict)]
    if not judged:
        return None
    n, agreed = len(judged), sum(a.preferred == b.preferred for a, b in judged)
    # In terms of the first pass's sides; the second pass's are the other way round.
    exchanged = {"left": "right", "right": "left", "tie": "tie"}
    habits = Counter(a.verdict for a, _ in judged), Counter(exchanged[b.verdict] for _, b in judged)
    chance = sum(habits[0][side] * habits[1][side] for side in exchanged) / n**2
    kappa = None if chance == 1 else (agreed / n - chance) / (1 - chance)
    return Agreement(n, agreed, *wilson_interval(agreed, n), kappa)


def labelled(
    comparisons: Sequence[Comparison], verdicts: Sequence[Verdict], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Make the lines of an export: preference pairs with, under ``label``, where each is from.

    Args:
        comparisons: what was judged.
        verdicts: of both passes; ties, skips and pairs that were judged twice and not alike are left out.
        settings: ``labeller`` and ``rubric``.
    """
    judged: dict[int, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.verdict != "skip":
            judged.setdefault(verdict.pair, []).append(verdict)
    records = []
    for pair, given in sorted(judged.items()):
        preferred = {verdict.preferred for verdict in given}
        if len(preferred) > 1 or preferred == {"tie"}:
            continue
        comparison, last = comparisons[pair], given[-1]
        chosen = last.preferred
        label = {
            "labeller": settings["labeller"],
            "at": last.at,
            "left": "chosen" if last.left == chosen else "rejected",
            "times": len(given),
            "source": comparison.source,
            "rubric": settings["rubric"],
        }
        texts = {"chosen": getattr(comparison, chosen), "rejected": getattr(comparison, OTHER[chosen])}
        records.append({"prompt": comparison.prompt, **texts, "label": label})
    return records
