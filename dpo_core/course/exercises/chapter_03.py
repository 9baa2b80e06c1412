"""The exercises of chapter 03: optimum, beta for a budget of KL, implied rewards, gradient, and a second reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.course.exercises.base import Exercise
from dpo_core.study.tabular import implied_rewards, kl_divergence, optimal_policy, random_world

__all__ = ["EXERCISES"]

SHAPES = ((2, 5), (3, 4), (4, 6))  # never square, so that a sum along the wrong side shows


def _tables(seed: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a reference, rewards and a policy that is optimal for nothing in particular."""
    world, other = random_world(*shape, seed=seed), random_world(*shape, seed=seed + 100)
    return world.reference, world.rewards, other.reference


def _normalized(scores: Tensor) -> Tensor:
    return scores.log_softmax(-1)


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


# The closed form


def _optimum_cases() -> list[tuple]:
    shapes = (*SHAPES, SHAPES[0])
    return [(*_tables(seed, shape)[:2], beta) for seed, (shape, beta) in enumerate(zip(shapes, (0.4, 0.8, 3.0, 0.001)))]


OPTIMAL_POLICY = Exercise(
    cases=_optimum_cases,
    right=optimal_policy,
    mistakes={
        "exp(r / beta) overflows where beta is small; use log_softmax or torch.logsumexp": (
            lambda reference, rewards, beta: _shares(reference.exp() * (rewards / beta).exp()).log()
        ),
        "beta is inverted; rewards are divided by beta": lambda reference, rewards, beta: _normalized(
            reference + rewards * beta
        ),
        "the sign is flipped; a higher reward makes an answer likelier": lambda reference, rewards, beta: _normalized(
            reference - rewards / beta
        ),
        "the reference is forgotten; the optimum multiplies it by exp(r / beta)": lambda reference, rewards, beta: (
            _normalized(rewards / beta)
        ),
        "beta divides the reference too; it divides rewards alone": lambda reference, rewards, beta: _normalized(
            (reference + rewards) / beta
        ),
        "Z is missing; the answers to a prompt do not sum to 1": lambda reference, rewards, beta: (
            reference + rewards / beta
        ),
        "Z lacks the reference; it sums ref(y|x) exp(r / beta)": lambda reference, rewards, beta: (
            reference + rewards / beta - (rewards / beta).logsumexp(-1, keepdim=True)
        ),
        "Z sums over the prompts; each prompt has its own, summed over its answers": lambda reference, rewards, beta: (
            reference + rewards / beta
        ).log_softmax(0),
        "Z sums over the whole table; each prompt has its own": lambda reference, rewards, beta: (
            (reference + rewards / beta) - (reference + rewards / beta).logsumexp((0, 1))
        ),
        "these are probabilities; log-probabilities are asked for": lambda *arguments: optimal_policy(*arguments).exp(),
    },
)


# The beta that spends a given KL


def _budget_cases() -> list[tuple]:
    return [(*_tables(seed, shape)[:2], kl) for seed, (shape, kl) in enumerate(zip(SHAPES, (0.05, 0.15, 0.3)))]


def _bisect(spent: Callable[[float], Tensor], budget: float) -> Tensor:
    """Find the beta between 0.001 and 1000 at which a KL that falls as beta rises is the budget."""
    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if spent(middle) > budget else (low, middle)
    return torch.tensor(middle, dtype=torch.float64)


def _beta_for_kl(reference: Tensor, rewards: Tensor, budget: float) -> Tensor:
    return _bisect(lambda b: kl_divergence(optimal_policy(reference, rewards, b), reference).mean(), budget)


BETA_FOR_KL = Exercise(
    cases=_budget_cases,
    right=_beta_for_kl,
    mistakes={
        "this is 1 / beta; rewards are divided by beta, and a higher beta has a lower KL": lambda *arguments: (
            1 / _beta_for_kl(*arguments)
        ),
        "this is forward KL; the policy stands first": lambda reference, rewards, budget: _bisect(
            lambda b: kl_divergence(reference, optimal_policy(reference, rewards, b)).mean(), budget
        ),
        "this beta spends the budget as a sum over prompts; the mean is asked for": (
            lambda reference, rewards, budget: _beta_for_kl(reference, rewards, budget / len(reference))
        ),
        "this beta spends the budget at the first prompt; the mean over prompts is asked for": (
            lambda reference, rewards, budget: _beta_for_kl(reference[:1], rewards[:1], budget)
        ),
        "the bisection runs the wrong way: KL falls as beta rises": lambda reference, rewards, budget: _bisect(
            lambda b: -kl_divergence(optimal_policy(reference, rewards, b), reference).mean(), -budget
        ),
    },
)


# Implied rewards


def _implied_cases() -> list[tuple]:
    tables = [_tables(seed, shape) for seed, shape in enumerate(SHAPES)]
    return [(policy, reference, beta) for (reference, _, policy), beta in zip(tables, (0.1, 0.5, 2.0))]


def _centred(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(-1, keepdim=True)


def _centred_rewards(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    return _centred(implied_rewards(policy, reference, beta))


CENTRED_REWARDS = Exercise(
    cases=_implied_cases,
    right=_centred_rewards,
    mistakes={
        "the answers to a prompt do not average 0; subtract their mean": implied_rewards,
        "one mean is subtracted from the whole table; each prompt has its own": lambda *arguments: (
            implied_rewards(*arguments) - implied_rewards(*arguments).mean()
        ),
        "it is divided by beta; the log-ratio is multiplied by beta": lambda policy, reference, beta: _centred(
            (policy - reference) / beta
        ),
        "beta is forgotten": lambda policy, reference, beta: _centred(policy - reference),
        "the sign is flipped; what the policy likes more than the reference has a high reward": lambda *arguments: (
            -_centred_rewards(*arguments)
        ),
        "the reference is forgotten": lambda policy, reference, beta: _centred(beta * policy),
        "it is the ratio; its logarithm is asked for": lambda policy, reference, beta: _centred(
            beta * (policy - reference).exp()
        ),
    },
)


# The gradient


def _pair_cases() -> list[tuple]:
    cases = []
    for seed, (shape, beta) in enumerate(zip(SHAPES, (0.3, 0.6, 2.5))):
        reference, _, policy = _tables(seed, shape)
        first = torch.arange(shape[0]) % shape[1]
        cases.append((policy, reference, beta, first, (first + 2) % shape[1]))
    return cases


def _gap(table: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Subtract the entry of one answer from that of another: (X,)."""
    return (table.gather(1, first[:, None]) - table.gather(1, second[:, None]))[:, 0]


def _one_hot(table: Tensor, column: Tensor) -> Tensor:
    return F.one_hot(column, table.shape[1]).to(table.dtype)


def _gradient(
    weight: Callable[[Tensor, float], Tensor] = lambda h, beta: -beta * torch.sigmoid(-beta * h),
) -> Callable[[Tensor, Tensor, float, Tensor, Tensor], Tensor]:
    """Multiply the weight of the log-ratios' difference h by what raises the chosen and lowers the rejected logit."""

    def gradient(policy: Tensor, reference: Tensor, beta: float, chosen: Tensor, rejected: Tensor) -> Tensor:
        h = _gap(policy - reference, chosen, rejected)
        return weight(h, beta)[:, None] * (_one_hot(policy, chosen) - _one_hot(policy, rejected))

    return gradient


def _chosen_alone(policy: Tensor, reference: Tensor, beta: float, chosen: Tensor, rejected: Tensor) -> Tensor:
    weight = -beta * torch.sigmoid(-beta * _gap(policy - reference, chosen, rejected))
    return weight[:, None] * (_one_hot(policy, chosen) - policy.exp())


TABULAR_GRADIENT = Exercise(
    cases=_pair_cases,
    right=_gradient(),
    mistakes={
        "the sign is flipped; it is the gradient of the loss, which falls as the chosen logit rises": _gradient(
            lambda h, beta: beta * torch.sigmoid(-beta * h)
        ),
        "the weight is sigmoid(+margin); a pair that is right already should count less": _gradient(
            lambda h, beta: -beta * torch.sigmoid(beta * h)
        ),
        "the factor beta in front is missing": _gradient(lambda h, beta: -torch.sigmoid(-beta * h)),
        "beta is missing inside the sigmoid": _gradient(lambda h, beta: -beta * torch.sigmoid(-h)),
        "the weight sigmoid(-margin) is missing": _gradient(lambda h, beta: -beta * torch.ones_like(h)),
        "the weight is that of the first step, 1/2, for all pairs": _gradient(
            lambda h, beta: -beta / 2 * torch.ones_like(h)
        ),
        "the reference is missing in the margin": lambda policy, reference, beta, chosen, rejected: _gradient()(
            policy, torch.zeros_like(reference), beta, chosen, rejected
        ),
        "the rejected answer is left out": _chosen_alone,
    },
)


# Two references


def _two_cases() -> list[tuple]:
    tables = [_tables(seed, shape) for seed, shape in enumerate(SHAPES)]
    betas = ((0.2, 0.7), (1.5, 0.5), (0.3, 0.4))
    return [(reference, other, rewards, *pair) for (reference, rewards, other), pair in zip(tables, betas)]


def _two_references(first: Tensor, second: Tensor, rewards: Tensor, beta_1: float, beta_2: float) -> Tensor:
    return _normalized((beta_1 * first + beta_2 * second + rewards) / (beta_1 + beta_2))


TWO_REFERENCES = Exercise(
    cases=_two_cases,
    right=_two_references,
    mistakes={
        "the two betas are exchanged": lambda first, second, rewards, beta_1, beta_2: _two_references(
            first, second, rewards, beta_2, beta_1
        ),
        "the references' probabilities are averaged; it is their logarithms that add up": (
            lambda first, second, rewards, beta_1, beta_2: optimal_policy(
                ((beta_1 * first.exp() + beta_2 * second.exp()) / (beta_1 + beta_2)).log(), rewards, beta_1 + beta_2
            )
        ),
        "both references count in full; each has the share beta_i / (beta_1 + beta_2)": (
            lambda first, second, rewards, beta_1, beta_2: _normalized(first + second + rewards / (beta_1 + beta_2))
        ),
        "the references count alike; each has the share beta_i / (beta_1 + beta_2)": (
            lambda first, second, rewards, beta_1, beta_2: _two_references(
                first, second, 2 * rewards / (beta_1 + beta_2), 1, 1
            )
        ),
        "it is not normalised; the answers to a prompt must sum to 1": (
            lambda first, second, rewards, beta_1, beta_2: (
                (beta_1 * first + beta_2 * second + rewards) / (beta_1 + beta_2)
            )
        ),
        "the second reference is forgotten": lambda first, second, rewards, beta_1, beta_2: optimal_policy(
            first, rewards, beta_1
        ),
    },
)


EXERCISES = {
    "optimal_policy": OPTIMAL_POLICY,
    "beta_for_kl": BETA_FOR_KL,
    "centred_rewards": CENTRED_REWARDS,
    "tabular_gradient": TABULAR_GRADIENT,
    "two_references": TWO_REFERENCES,
}
