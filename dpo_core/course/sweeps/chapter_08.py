"""Chapter 08's runs: beta in a fixed budget with Adam and with SGD, and its neighbours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from dpo_core.course.museum import pairs, trainer
from dpo_core.course.sweeps import Exhibits
from dpo_core.trainer import DPOTrainer

__all__ = ["BETAS", "RUNS", "STATIONS"]

BETAS = (0.02, 0.05, 0.1, 0.3, 1.0)
STATIONS = (5, 15, 30, 60)
PAIRS, VALIDATION = 480, 96  # as many as 60 steps of eight see once


def adam(seed: int, count: int = PAIRS, **settings: Any) -> DPOTrainer:
    """Make a trainer for 480 pairs, each met once, but for the settings given.

    Of a lower count, each pair is met more often.
    """
    training, held_out = pairs(seed, PAIRS, VALIDATION)
    return trainer(seed, training[:count], held_out, **({"steps": 60, "eval_every": 15} | settings))


def sgd(seed: int, **settings: Any) -> DPOTrainer:
    """Make the same trainer with plain gradient descent, whose steps are as long as the gradient; it is not clipped."""
    run = adam(seed, max_grad_norm=1e9, **({"learning_rate": SGD_RATE} | settings))
    run.optimizer = torch.optim.SGD(run.parameters)  # type: ignore[assignment]  # the trainer sets its rate
    return run


SGD_RATE = 0.005  # with sixty times as much the model breaks within ten steps
RUNS: Exhibits = {
    **{f"beta {beta:g}": partial(adam, beta=beta) for beta in BETAS},
    **{f"sgd, beta {beta:g}": partial(sgd, beta=beta) for beta in (0.02, 0.1, 0.3)},
    **{f"rate {rate:g}": partial(adam, learning_rate=rate) for rate in (1e-5, 3e-4)},
    "batch 32": partial(adam, batch_size=32, steps=PAIRS // 32),
    "120 pairs, four times": partial(adam, count=120),
    "beta 0.02 to 1": partial(adam, beta=0.02, beta_end=1.0),
    "beta 1 to 0.02": partial(adam, beta=1.0, beta_end=0.02),
}
