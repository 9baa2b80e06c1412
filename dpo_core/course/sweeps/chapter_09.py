"""Chapter 09's own runs: pairs labelled by a judge who loves length. Its frontier is of chapter 08's runs."""

from __future__ import annotations

from functools import partial

from dpo_core.course.museum import pairs, trainer
from dpo_core.course.sweeps import Exhibits
from dpo_core.pocket.judge import RewardWeights
from dpo_core.trainer import DPOTrainer

__all__ = ["PROXY", "RUNS", "STATIONS"]

PROXY = RewardWeights(words=0.15, repeats=0.0, filler=0.0)  # a proxy: each word counts, said twice or to no purpose too
STATIONS = (5, 15, 30, 60, 120)


def as_they_come(seed: int, weights: RewardWeights | None = None, **settings: object) -> DPOTrainer:
    """Make a trainer as in chapter 08, but longer, for pairs of any lengths, labelled by the true judge or another."""
    training, held_out = pairs(seed, 480, 96, weights, None)
    return trainer(seed, training, held_out, **({"steps": 120, "eval_every": 15} | settings))


RUNS: Exhibits = {
    **{f"proxy, beta {beta:g}": partial(as_they_come, weights=PROXY, beta=beta) for beta in (0.05, 0.3)},
    "truth, beta 0.3": partial(as_they_come, beta=0.3),  # the control: it differs in the judge alone
}
