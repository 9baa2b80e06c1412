"""The exercises of chapter 02 that have a check: a reward model's loss, standard errors, the ceiling of accuracy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.course.exercises.base import Exercise

__all__ = ["EXERCISES"]


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The loss of a reward model


def _loss_cases() -> list[tuple]:
    cases = [(_normal(seed, 4), _normal(seed + 100, 5, 4), _normal(seed + 200, 5, 4)) for seed in range(3)]
    weights, chosen, rejected = cases[-1]
    return [*cases, (1_000 * weights, chosen, rejected)]  # margins of thousands, where log(sigmoid) is -inf


def _reward_loss(weights: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    return -F.logsigmoid((chosen - rejected) @ weights).mean()


REWARD_LOSS = Exercise(
    cases=_loss_cases,
    right=_reward_loss,
    mistakes={
        "the sign of the difference is wrong; it should be low where chosen answers score higher": (
            lambda weights, chosen, rejected: _reward_loss(weights, rejected, chosen)
        ),
        "the sign of the loss is wrong; a negative log-likelihood is at least 0": lambda *arguments: (
            -_reward_loss(*arguments)
        ),
        "it is the sum over the pairs; the mean is asked for": lambda weights, chosen, rejected: (
            len(chosen) * _reward_loss(weights, chosen, rejected)
        ),
        "log(sigmoid(x)) is minus infinity where x is far below 0; use logsigmoid": lambda weights, chosen, rejected: (
            -((chosen - rejected) @ weights).sigmoid().log().mean()
        ),
        "it has no logarithm; a probability is not a log-likelihood": lambda weights, chosen, rejected: (
            -((chosen - rejected) @ weights).sigmoid().mean()
        ),
        "each answer is judged alone, chosen as 1 and rejected as 0; only the difference within a pair was observed": (
            lambda weights, chosen, rejected: (
                -(F.logsigmoid(chosen @ weights) + F.logsigmoid(-rejected @ weights)).mean()
            )
        ),
    },
)


# Standard errors of rewards


def _error_cases() -> list[tuple]:
    cases = []
    for seed, k in enumerate((3, 4, 6)):
        counts = torch.randint(20, 60, (k, k), generator=torch.Generator().manual_seed(seed)).triu(1)
        cases.append((_normal(seed, k), (counts + counts.T).float()))
    return cases


def _information(rewards: Tensor, counts: Tensor) -> Tensor:
    """Compute what the comparisons tell about the rewards, (K, K); a constant added to all of them it does not see."""
    p = (rewards[:, None] - rewards).sigmoid()
    each = counts * p * (1 - p)
    return torch.diag(each.sum(1)) - each


def _standard_errors(rewards: Tensor, counts: Tensor) -> Tensor:
    return torch.linalg.pinv(_information(rewards, counts), hermitian=True).diagonal().sqrt()


def _first_fixed(rewards: Tensor, counts: Tensor) -> Tensor:
    inverse = torch.linalg.inv(_information(rewards, counts)[1:, 1:])
    return torch.cat([torch.zeros(1), inverse.diagonal().sqrt()])


def _without_the_other(rewards: Tensor, counts: Tensor) -> Tensor:
    p = (rewards[:, None] - rewards).sigmoid()
    each = counts * p
    information = torch.diag(each.sum(1)) - each
    return torch.linalg.pinv((information + information.T) / 2, hermitian=True).diagonal().sqrt()


STANDARD_ERRORS = Exercise(
    cases=_error_cases,
    right=_standard_errors,
    mistakes={
        "these are variances; take the square root": lambda *arguments: _standard_errors(*arguments) ** 2,
        "this inverts the diagonal; invert the matrix, then take its diagonal": lambda *arguments: (
            _information(*arguments).diagonal().rsqrt()
        ),
        "the first reward is held at 0; let the rewards have mean 0, as the pseudo-inverse does": _first_fixed,
        "every comparison counts twice; a pair stands in the table at (i, j) and at (j, i), but was compared once": (
            lambda rewards, counts: _standard_errors(rewards, 2 * counts)
        ),
        "a comparison tells p (1 - p), not p": _without_the_other,
        "a comparison tells p (1 - p), not 1/4; 1/4 holds for equal rewards": lambda rewards, counts: _standard_errors(
            torch.zeros_like(rewards), counts
        ),
    },
)


# The ceiling of accuracy


def _ceiling_cases() -> list[tuple]:
    return [(3 * _normal(seed, 50), noise) for seed, noise in enumerate((1.0, 0.5, 3.0))]


def _ceiling(gaps: Tensor, noise: float) -> Tensor:
    return (gaps.abs() / noise).sigmoid().mean()


def _agreement(gaps: Tensor, noise: float) -> Tensor:
    p = (gaps / noise).sigmoid()
    return (p**2 + (1 - p) ** 2).mean()


ACCURACY_CEILING = Exercise(
    cases=_ceiling_cases,
    right=_ceiling,
    mistakes={
        "the absolute value is missing; whoever knows the gap bets on the better answer, first or second": (
            lambda gaps, noise: (gaps / noise).sigmoid().mean()
        ),
        "this is how often two labellers agree; the truth agrees with one labeller more often": _agreement,
        "it takes the mean gap first; average the probabilities": lambda gaps, noise: (
            gaps.abs().mean() / noise
        ).sigmoid(),
        "the gaps are multiplied by the noise; divide": lambda gaps, noise: _ceiling(gaps, 1 / noise),
        "the noise is not used": lambda gaps, noise: _ceiling(gaps, 1.0),
    },
)


EXERCISES = {
    "reward_loss": REWARD_LOSS,
    "standard_errors": STANDARD_ERRORS,
    "accuracy_ceiling": ACCURACY_CEILING,
}
