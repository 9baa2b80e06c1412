"""The exercises of chapter 08: KL at the optimum, nats behind a loss, pull of a pair, schedule, two ways to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpo_core.course.exercises.base import Exercise
from dpo_core.study.tabular import kl_divergence, optimal_policy, random_world

__all__ = ["EXERCISES"]


# KL at the optimum


def _world_cases() -> list[tuple]:
    worlds = [random_world(prompts=3, answers=4, seed=seed) for seed in (0, 1)]
    return [(world.reference, world.rewards, beta) for world in worlds for beta in (0.3, 2.0)]


def _kl_of(policy: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
    return lambda reference, rewards, beta: kl_divergence(policy(reference, rewards, beta), reference)


_right_kl = _kl_of(optimal_policy)

KL_AT_OPTIMUM = Exercise(
    cases=_world_cases,
    right=_right_kl,
    mistakes={
        "the reward is multiplied by beta; beta divides it": _kl_of(
            lambda reference, rewards, beta: optimal_policy(reference, rewards, 1 / beta)
        ),
        "the rows do not sum to 1; the partition function is missing": _kl_of(
            lambda reference, rewards, beta: reference + rewards / beta
        ),
        "the reference is left out of the policy": _kl_of(
            lambda reference, rewards, beta: (rewards / beta).log_softmax(-1)
        ),
        "this is KL(reference || policy); the policy stands first": (
            lambda reference, rewards, beta: kl_divergence(reference, optimal_policy(reference, rewards, beta))
        ),
        "this is the penalty, beta times KL; the KL itself is asked for": (
            lambda reference, rewards, beta: beta * _right_kl(reference, rewards, beta)
        ),
        "it is the mean over the prompts; one value a prompt is asked for": (
            lambda reference, rewards, beta: _right_kl(reference, rewards, beta).mean()
        ),
    },
)


# What a logged loss says in nats


def _loss_cases() -> list[tuple]:
    losses = torch.tensor([math.log(2), 0.68, 0.4, 0.05, 1.3], dtype=torch.float64)
    return [(losses, beta) for beta in (0.02, 0.1, 1.0)]


def _margins(losses: Tensor) -> Tensor:
    return -(losses.exp() - 1).log()


NATS_BEHIND_LOSS = Exercise(
    cases=_loss_cases,
    right=lambda losses, beta: _margins(losses) / beta,
    mistakes={
        "this is the margin; divide it by beta": lambda losses, beta: _margins(losses),
        "the margin is multiplied by beta; it holds a beta already": lambda losses, beta: beta * _margins(losses),
        "the sign is wrong; a loss below ln 2 means that the chosen answer gained": (
            lambda losses, beta: -_margins(losses) / beta
        ),
        "this is the straight line that touches the loss at ln 2; it holds for small margins only": (
            lambda losses, beta: 2 * (math.log(2) - losses) / beta
        ),
        "e to minus the loss is the probability of the label; its log-odds are asked for": (
            lambda losses, beta: (-losses).exp() / beta
        ),
        "it is the mean over the pairs; one value a pair is asked for": (
            lambda losses, beta: (_margins(losses) / beta).mean()
        ),
    },
)


# How hard a pair pulls


def _pull_cases() -> list[tuple]:
    ratios = 20 * torch.randn(8, generator=torch.Generator().manual_seed(0))
    return [(ratios, beta) for beta in (0.02, 0.1, 1.0)]


PULL = Exercise(
    cases=_pull_cases,
    right=lambda h, beta: beta * (-beta * h).sigmoid(),
    mistakes={
        "the beta in front is missing, by which plain gradient descent walks further": (
            lambda h, beta: (-beta * h).sigmoid()
        ),
        "the beta inside is missing; the sigmoid is of the margin": lambda h, beta: beta * (-h).sigmoid(),
        "the sign is wrong; pairs with a large margin let go": lambda h, beta: beta * (beta * h).sigmoid(),
        "this is the loss; minus its slope in h is asked for": (
            lambda h, beta: torch.nn.functional.softplus(-beta * h)
        ),
        "this is the slope; minus the slope is asked for": lambda h, beta: -beta * (-beta * h).sigmoid(),
    },
)


# A schedule


def _schedule_cases() -> list[tuple]:
    return [(60, 0.02, 1.0), (15, 1.0, 0.02), (5, 0.1, 0.1), (2, 0.1, 0.5)]


def _line(steps: int, first: float, last: float) -> Tensor:
    return torch.linspace(first, last, steps)


SCHEDULE = Exercise(
    cases=_schedule_cases,
    right=_line,
    mistakes={
        "the last update does not have the last beta; divide by one less": (
            lambda steps, first, last: first + (last - first) * torch.arange(steps) / steps
        ),
        "the first update does not have the first beta; begin at 0": (
            lambda steps, first, last: first + (last - first) * (torch.arange(steps) + 1) / steps
        ),
        "first and last are exchanged": lambda steps, first, last: _line(steps, last, first),
        "these are equal factors; equal steps are asked for": (
            lambda steps, first, last: _line(steps, math.log(first), math.log(last)).exp()
        ),
        "beta does not move": lambda steps, first, last: torch.full((steps,), first),
    },
)


# Two ways to stop

Stops = Callable[[Sequence[int], Sequence[float], Sequence[float]], tuple[int, int, float]]


def _stop_cases() -> list[tuple]:  # rewards in quarters, whose differences are exact
    return [
        ([0, 15, 30, 60], [0.69, 0.61, 0.52, 0.45], [0.75, 1.0, 0.25, -1.75]),
        ([0, 15, 30, 60], [0.69, 0.66, 0.64, 0.66], [0.75, 0.5, 1.0, 0.25]),
        ([0, 10, 20], [0.69, 0.60, 0.90], [0.5, 0.75, 1.25]),
    ]


def _stops(by_loss: Callable, by_reward: Callable, cost: Callable[[float, float], float]) -> Stops:
    def stops(steps: Sequence[int], losses: Sequence[float], rewards: Sequence[float]) -> tuple[int, int, float]:
        of_loss, of_reward = losses.index(by_loss(losses)), rewards.index(by_reward(rewards))
        return steps[of_loss], steps[of_reward], cost(rewards[of_reward], rewards[of_loss])

    return stops


def _exchanged(steps: Sequence[int], losses: Sequence[float], rewards: Sequence[float]) -> tuple[int, int, float]:
    of_loss, of_reward, cost = _right_stops(steps, losses, rewards)
    return of_reward, of_loss, cost


def _positions(steps: Sequence[int], losses: Sequence[float], rewards: Sequence[float]) -> tuple[int, int, float]:
    of_loss, of_reward, cost = _right_stops(steps, losses, rewards)
    return steps.index(of_loss), steps.index(of_reward), cost


def _in_loss(steps: Sequence[int], losses: Sequence[float], rewards: Sequence[float]) -> tuple[int, int, float]:
    of_loss, of_reward, _ = _right_stops(steps, losses, rewards)
    return of_loss, of_reward, losses[steps.index(of_reward)] - losses[steps.index(of_loss)]


_right_stops = _stops(min, max, lambda best, taken: best - taken)

TWO_STOPS = Exercise(
    cases=_stop_cases,
    right=_right_stops,
    mistakes={
        "it takes the highest loss; the lowest is asked for": _stops(max, max, lambda best, taken: best - taken),
        "it takes the lowest reward; the highest is asked for": _stops(min, min, lambda best, taken: best - taken),
        "the sign of the cost is wrong; what is lost is above 0": _stops(min, max, lambda best, taken: taken - best),
        "the two steps are exchanged": _exchanged,
        "these are positions in the lists; steps are asked for": _positions,
        "the cost is in loss; it is asked for in reward": _in_loss,
    },
)


EXERCISES = {
    "kl_at_optimum": KL_AT_OPTIMUM,
    "nats_behind_loss": NATS_BEHIND_LOSS,
    "pull": PULL,
    "schedule": SCHEDULE,
    "two_stops": TWO_STOPS,
}
