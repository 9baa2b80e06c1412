"""The exercises of chapter 07: accuracy, margin per token, gradient weight, displacement, share of wrong labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpo_core.course.exercises.base import Exercise
from dpo_core.losses import dpo_loss

__all__ = ["EXERCISES"]


def _draw(*spreads: float, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [spread * torch.randn(count, generator=generator) for spread in spreads]


# Reward accuracy


def _accuracy_cases() -> list[tuple]:
    reference = _draw(3, 3, count=12, seed=0)
    same = tuple(reference) * 2  # step 0: policy and reference are equal
    moved = [ratio + logps for ratio, logps in zip(_draw(3, 3, count=12, seed=1), reference)]
    half_moved = [torch.where(torch.arange(12) < 6, old, new) for old, new in zip(reference, moved)]
    return [same, (*moved, *reference), (*half_moved, *reference)]


def _share(true: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def share(chosen: Tensor, rejected: Tensor, *reference: Tensor) -> Tensor:
        rewards = dpo_loss(chosen, rejected, reference[0], reference[1])
        return true(rewards.chosen_rewards, rewards.rejected_rewards, chosen, rejected, *reference).float().mean()

    return share


REWARD_ACCURACY = Exercise(
    cases=_accuracy_cases,
    right=_share(lambda chosen, rejected, *_: chosen > rejected),
    mistakes={
        "ties count as hits; at step 0 that would be an accuracy of 1": _share(
            lambda chosen, rejected, *_: chosen >= rejected
        ),
        "ties count half; nobody logs it so, and at step 0 it would look like chance": _share(
            lambda chosen, rejected, *_: (1 + (chosen - rejected).sign()) / 2
        ),
        "this is the policy's own ranking; the reference is left out": _share(lambda *a: a[2] > a[3]),
        "this is the reference's ranking; the policy is left out": _share(lambda *a: a[4] > a[5]),
        "the sign is wrong; the chosen answer should have the larger reward": _share(
            lambda chosen, rejected, *_: chosen < rejected
        ),
        "it compares the chosen reward with 0; compare it with the rejected one": _share(lambda chosen, *_: chosen > 0),
    },
)


# Margin per token


def _per_token_cases() -> list[tuple]:
    lengths = (torch.tensor([40, 60, 7, 120]), torch.tensor([20, 75, 7, 11]))
    return [(*_draw(8, 8, count=4, seed=seed), *lengths) for seed in (2, 3)]


MARGIN_PER_TOKEN = Exercise(
    cases=_per_token_cases,
    right=lambda chosen, rejected, n_chosen, n_rejected: chosen / n_chosen - rejected / n_rejected,
    mistakes={
        "the whole margin is divided by the tokens of both answers; divide each log-ratio by its own length": (
            lambda chosen, rejected, n_chosen, n_rejected: (chosen - rejected) / (n_chosen + n_rejected)
        ),
        "both log-ratios are divided by the chosen answer's length": (
            lambda chosen, rejected, n_chosen, n_rejected: (chosen - rejected) / n_chosen
        ),
        "the lengths are exchanged": (
            lambda chosen, rejected, n_chosen, n_rejected: chosen / n_rejected - rejected / n_chosen
        ),
        "nothing is divided; this is the margin of whole answers": lambda chosen, rejected, *_: chosen - rejected,
        "it is the mean over the pairs; one value a pair is asked for": (
            lambda chosen, rejected, n_chosen, n_rejected: (chosen / n_chosen - rejected / n_rejected).mean()
        ),
    },
)


# Gradient weight


def _weight_cases() -> list[tuple]:
    return [tuple(_draw(spread, spread, count=8, seed=4)) for spread in (0.5, 3.0)]


GRADIENT_WEIGHT = Exercise(
    cases=_weight_cases,
    right=lambda chosen, rejected: (rejected - chosen).sigmoid().mean(),
    mistakes={
        "the sign is wrong; pairs with a large margin have little left to teach": (
            lambda chosen, rejected: (chosen - rejected).sigmoid().mean()
        ),
        "the mean is taken inside the sigmoid; a few lost pairs then hide behind many won ones": (
            lambda chosen, rejected: (rejected - chosen).mean().sigmoid()
        ),
        "this is the loss; its derivative is asked for": (
            lambda chosen, rejected: -(chosen - rejected).sigmoid().log().mean()
        ),
        "one value a pair; their mean is asked for": lambda chosen, rejected: (rejected - chosen).sigmoid(),
    },
)


# Displacement


def _displacement_cases() -> list[tuple]:
    return [
        (2.5, 0.8, 0.1),
        (-0.4, 0.6, 0.1),
        (-3.0, 0.9, 0.1),
        (-60.0, 2.0, 0.3),  # off-policy answers that nobody samples
        (-4.0, 1.2, 6.0),
        (-50.0, 1.5, 20.0),
        (-3.0, -0.5, 0.1),
        (-30.0, -0.5, 9.0),
    ]


def _displacement(chosen_delta: float, margin: float, odd: float) -> str:
    if chosen_delta > -1 or margin <= 0:
        return "none"
    return "harmful" if odd >= 1 else "harmless"


def _by_depth(chosen_delta: float, margin: float, odd: float) -> str:
    if chosen_delta > -1 or margin <= 0:
        return "none"
    return "harmful" if chosen_delta < -20 else "harmless"


DISPLACEMENT = Exercise(
    cases=_displacement_cases,
    right=_displacement,
    mistakes={
        "it judges harm by how far the chosen answers fell; only samples can tell": _by_depth,
        "the margin is not looked at; where it did not grow, something else is wrong": (
            lambda chosen_delta, margin, odd: _displacement(chosen_delta, 1.0, odd)
        ),
        "every fall counts as harm": lambda *a: "none" if _displacement(*a) == "none" else "harmful",
        "no fall counts as harm": lambda *a: "none" if _displacement(*a) == "none" else "harmless",
        "odd tokens make it harmful even where nothing fell": (
            lambda chosen_delta, margin, odd: "harmful" if odd >= 1 else _displacement(chosen_delta, margin, odd)
        ),
    },
)


# The share of wrong labels


def _flipped_cases() -> list[tuple]:
    return [tuple(torch.tensor(pair)) for pair in ((0.54, 0.70), (0.80, 0.80), (0.65, 0.35), (0.59, 0.95))]


FLIPPED_SHARE = Exercise(
    cases=_flipped_cases,
    right=lambda training, held_out: (held_out - training) / (2 * held_out - 1),
    mistakes={
        "this is the difference of the accuracies; a flip turns a hit into a miss, but also a miss into a hit": (
            lambda training, held_out: held_out - training
        ),
        "this is the share of hits that were lost; misses that became hits are left out": (
            lambda training, held_out: (held_out - training) / held_out
        ),
        "this is the share of right labels; one minus it is asked for": (
            lambda training, held_out: 1 - (held_out - training) / (2 * held_out - 1)
        ),
        "the two accuracies are exchanged": lambda training, held_out: (training - held_out) / (2 * training - 1),
    },
)


EXERCISES = {
    "reward_accuracy": REWARD_ACCURACY,
    "margin_per_token": MARGIN_PER_TOKEN,
    "gradient_weight": GRADIENT_WEIGHT,
    "displacement": DISPLACEMENT,
    "flipped_share": FLIPPED_SHARE,
}
