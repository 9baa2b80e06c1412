"""The exercises of chapter 10: IPO's target, the robust loss, DPOP's penalty, SimPO's margin, KTO's reference point."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.course.exercises.base import Exercise

__all__ = ["EXERCISES"]


def _draw(*spreads: float, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [spread * torch.randn(count, generator=generator) for spread in spreads]


# IPO


def _ipo_cases() -> list[tuple]:
    lengths = (torch.tensor([30.0, 12.0, 51.0, 8.0]), torch.tensor([22.0, 40.0, 51.0, 9.0]))
    return [(*_draw(6, 6, count=4, seed=seed), *lengths, beta) for seed, beta in ((0, 0.5), (1, 2.0))]


IPO_LOSS = Exercise(
    cases=_ipo_cases,
    right=lambda c, rej, n_w, n_l, beta: (c / n_w - rej / n_l - 1 / (2 * beta)) ** 2,
    mistakes={
        "the log-ratios are not divided by the lengths; the target is one of nats a token": (
            lambda c, rej, n_w, n_l, beta: (c - rej - 1 / (2 * beta)) ** 2
        ),
        "the whole margin is divided by the chosen answer's length": (
            lambda c, rej, n_w, n_l, beta: ((c - rej) / n_w - 1 / (2 * beta)) ** 2
        ),
        "this is beta squared times the loss; some texts have it so, and the gradients differ by as much": (
            lambda c, rej, n_w, n_l, beta: (beta * (c / n_w - rej / n_l) - 0.5) ** 2
        ),
        "the target is half of what it should be; it is 1 / (2 beta)": (
            lambda c, rej, n_w, n_l, beta: (c / n_w - rej / n_l - 1 / (4 * beta)) ** 2
        ),
        "the target is beta / 2; it is 1 / (2 beta), so that a higher beta holds closer": (
            lambda c, rej, n_w, n_l, beta: (c / n_w - rej / n_l - beta / 2) ** 2
        ),
        "it is the mean over the pairs; one value a pair is asked for": (
            lambda c, rej, n_w, n_l, beta: ((c / n_w - rej / n_l - 1 / (2 * beta)) ** 2).mean()
        ),
    },
)


# Robust DPO


def _right_and_flipped(margin: Tensor) -> tuple[Tensor, Tensor]:
    return -F.logsigmoid(margin), -F.logsigmoid(-margin)


def _mixed(margin: Tensor, share: float, sign: int, scale: float) -> Tensor:
    right, flipped = _right_and_flipped(margin)
    return ((1 - share) * right + sign * share * flipped) / scale


ROBUST_LOSS = Exercise(
    cases=lambda: [(*_draw(2, count=6, seed=2), share) for share in (0.1, 0.3)],
    right=lambda margin, share: _mixed(margin, share, -1, 1 - 2 * share),
    mistakes={
        "this is cdpo, which adds the flipped loss; it has to be taken away": (
            lambda margin, share: _mixed(margin, share, 1, 1.0)
        ),
        "it is not divided by 1 - 2 e; without flips it would then not be DPO's loss in the mean": (
            lambda margin, share: _mixed(margin, share, -1, 1.0)
        ),
        "it is cdpo divided by 1 - 2 e; the flipped loss has to be taken away": (
            lambda margin, share: _mixed(margin, share, 1, 1 - 2 * share)
        ),
        "it is divided by 1 - e; the two weights sum to 1 - 2 e": (
            lambda margin, share: _mixed(margin, share, -1, 1 - share)
        ),
        "the sign of the margin is wrong": lambda margin, share: _mixed(-margin, share, -1, 1 - 2 * share),
    },
)


# DPOP


def _dpop_cases() -> list[tuple]:
    return [
        (*_draw(3, 3, count=8, seed=seed), beta, penalty) for seed, beta, penalty in ((3, 0.1, 50.0), (4, 0.5, 2.0))
    ]


DPOP_LOSS = Exercise(
    cases=_dpop_cases,
    right=lambda c, rej, beta, penalty: -F.logsigmoid(beta * (c - rej - penalty * F.relu(-c))),
    mistakes={
        "the penalty is not multiplied by beta": (
            lambda c, rej, beta, penalty: -F.logsigmoid(beta * (c - rej) - penalty * F.relu(-c))
        ),
        "it punishes a chosen answer that has become likelier": (
            lambda c, rej, beta, penalty: -F.logsigmoid(beta * (c - rej - penalty * F.relu(c)))
        ),
        "it looks at the rejected answer; the chosen one is not to fall": (
            lambda c, rej, beta, penalty: -F.logsigmoid(beta * (c - rej - penalty * F.relu(-rej)))
        ),
        "it rewards chosen answers above the reference, too; there the penalty is 0": (
            lambda c, rej, beta, penalty: -F.logsigmoid(beta * (c - rej + penalty * c))
        ),
        "the penalty stands outside the sigmoid": (
            lambda c, rej, beta, penalty: -F.logsigmoid(beta * (c - rej)) + beta * penalty * F.relu(-c)
        ),
    },
)


# SimPO


def _simpo_cases() -> list[tuple]:
    chosen, rejected = _draw(4, 4, count=4, seed=5)
    lengths = (torch.tensor([30.0, 12.0, 51.0, 8.0]), torch.tensor([22.0, 40.0, 51.0, 9.0]))
    return [(chosen - 20, rejected - 20, *lengths, 2.0, 0.5), (chosen - 30, rejected - 20, *lengths, 10.0, 3.0)]


SIMPO_LOSS = Exercise(
    cases=_simpo_cases,
    right=lambda w, rej, n_w, n_l, beta, gamma: -F.logsigmoid(beta * (w / n_w - rej / n_l) - gamma),
    mistakes={
        "gamma is multiplied by beta; in the paper it is not": (
            lambda w, rej, n_w, n_l, beta, gamma: -F.logsigmoid(beta * (w / n_w - rej / n_l - gamma))
        ),
        "gamma is added; it is what the margin has to reach": (
            lambda w, rej, n_w, n_l, beta, gamma: -F.logsigmoid(beta * (w / n_w - rej / n_l) + gamma)
        ),
        "the log-probabilities are not divided by the lengths": (
            lambda w, rej, n_w, n_l, beta, gamma: -F.logsigmoid(beta * (w - rej) - gamma)
        ),
        "the lengths are exchanged": (
            lambda w, rej, n_w, n_l, beta, gamma: -F.logsigmoid(beta * (w / n_l - rej / n_w) - gamma)
        ),
    },
)


# KTO's reference point

KTO_POINT = Exercise(
    cases=lambda: [(torch.tensor(drift),) for drift in ([0.5, 1.5, -0.5], [-3.0, 1.0, -1.0], [4.0, -1.0])],
    right=lambda drift: drift.mean().clamp(min=0),
    mistakes={
        "it may be below 0; a KL never is, so it is held at 0": lambda drift: drift.mean(),
        "each log-ratio is held at 0 before the mean; that counts rises only": lambda drift: drift.clamp(min=0).mean(),
        "it is the mean distance from 0; falls and rises have to cancel": lambda drift: drift.abs().mean(),
        "it is the sum; the mean is asked for": lambda drift: drift.sum().clamp(min=0),
        "it is always 0; that is APO-zero, not KTO": lambda drift: drift.new_zeros(()),
    },
)


EXERCISES = {
    "ipo_loss": IPO_LOSS,
    "robust_loss": ROBUST_LOSS,
    "dpop_loss": DPOP_LOSS,
    "simpo_loss": SIMPO_LOSS,
    "kto_point": KTO_POINT,
}
