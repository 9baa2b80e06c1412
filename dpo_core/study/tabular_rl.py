"""Reinforcement learning in the exactly solvable world: every method's expected update, without sampling.

An answer is one token here. All groups of K answers that a policy can give to a prompt are listed, each with its
probability, and handed to the very functions that the trainer calls. So nothing is left to chance, and where a method
ends is where it wants to go.

Tables are (X, Y): X prompts, Y answers to each. Shapes: G groups of K answers, B = X G K answers in all.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from dpo_core.rl.advantages import grpo_advantages
from dpo_core.rl.config import RLConfig
from dpo_core.rl.methods import METHODS, Method, Rollout, gae_advantages, grouped
from dpo_core.study.tabular import kl_divergence, optimal_policy, total_variation

__all__ = ["TABULAR_METHODS", "distance_to_optimum", "expected_loss", "fit_method", "implied_beta"]


def centred_scores(rollout: Rollout, config: RLConfig) -> Tensor:
    """Subtract the prompt's mean from the scores, in which the KL is not: (B, 1)."""
    return grpo_advantages(grouped(rollout.scores, config), scale=False).view(-1, 1)


# PPO without whitening: that divides by the spread of the advantages, which is 0 at the optimum. "k3 in the loss" is
# GRPO without scaling, so that the two things by which GRPO differs from RLOO can be told apart.
TABULAR_METHODS: dict[str, Method] = {
    **{name: METHODS[name] for name in ("reinforce", "rloo", "dr_grpo", "grpo")},
    "ppo": replace(METHODS["ppo"], advantages=gae_advantages),
    "k3 in the loss": replace(METHODS["grpo"], advantages=centred_scores),
}


def every_group(policy: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """List the groups of answers that can be sampled, with their probabilities.

    Args:
        policy: (X, Y) log-probabilities.
        samples: K.
    Returns:
        (G, K) answers, G = Y^K, and (X, G) probabilities.

    >>> answers, probs = every_group(torch.tensor([[0.25, 0.75]]).log(), samples=2)
    >>> answers.tolist(), probs
    ([[0, 0], [0, 1], [1, 0], [1, 1]], tensor([[0.0625, 0.1875, 0.1875, 0.5625]]))
    """
    answers = torch.tensor(list(product(range(policy.shape[1]), repeat=samples)), device=policy.device)
    return answers, policy[:, answers].sum(-1).exp()


def expected_loss(
    method: Method, policy: Tensor, old: Tensor, reference: Tensor, rewards: Tensor, config: RLConfig
) -> Tensor:
    """Compute the mean loss of a method over all that could have been sampled.

    Args:
        method: of ``METHODS``, or of one's own.
        policy: (X, Y) log-probabilities, with gradient.
        old: (X, Y) of the policy that samples, before the update.
        reference, rewards: (X, Y).
        config: resolved settings of the method.
    Returns:
        (X,) of each prompt.

    >>> reference, rewards = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]])
    >>> policy = reference.clone().requires_grad_()
    >>> config = RLConfig("rloo", samples_per_prompt=2, beta=1.0, clip=0.2)
    >>> expected_loss(METHODS["rloo"], policy, reference, reference, rewards, config).sum().backward()
    >>> policy.grad  # minus probability times (reward - mean)
    tensor([[-0.2500,  0.2500]])
    """
    X, K = len(old), config.samples_per_prompt
    answers, probs = every_group(old, K)

    def tokens(table: Tensor) -> Tensor:  # (X, Y) to (B, 1)
        return table[:, answers].reshape(-1, 1)

    paid = rewards - config.beta * (old - reference)
    values = (old.exp() * paid).sum(-1, keepdim=True).expand_as(old)  # what a perfect critic says
    one = torch.ones((), dtype=old.dtype, device=old.device)
    rollout = Rollout(
        mask=torch.ones_like(tokens(old), dtype=torch.bool),
        scores=tokens(rewards)[:, 0],
        old_logps=tokens(old),
        reference_logps=tokens(reference),
        values=tokens(values),
        baseline=values.mean(),
        mean_length=one,
    )
    with torch.no_grad():
        advantages = method.advantages(rollout, config)
    losses = method.losses(tokens(policy), rollout, advantages, config)  # (B,)
    return (losses.view(X, -1, K).mean(-1) * probs).sum(1)


def fit_method(
    method: Method,
    reference: Tensor,
    rewards: Tensor,
    beta: float,
    *,
    samples: int = 3,
    inner_epochs: int = 1,
    steps: int = 400,
    rate: float = 0.1,
) -> Tensor:
    """Follow a method's expected updates from the reference until they end.

    Each answer's logit moves by its gradient divided by its probability (the natural gradient of a softmax): the same
    resting points as plain descent, without waiting for answers that are rare.

    Args:
        method: of ``TABULAR_METHODS``, or of one's own.
        reference, rewards: (X, Y).
        beta: weight of the KL term.
        samples: answers in a group.
        inner_epochs: updates with the same samples; more than one bring the clip into play.
        steps: samplings.
        rate: of the updates; what moves a logit at most by 1.
    Returns:
        (X, Y) log-probabilities.

    >>> from dpo_core.study.tabular import random_world
    >>> world = random_world(prompts=1, answers=3)
    >>> policy = fit_method(METHODS["rloo"], world.reference, world.rewards, beta=1.0, samples=2, steps=200)
    >>> bool(total_variation(policy, optimal_policy(world.reference, world.rewards, beta=1.0)) < 1e-6)
    True
    """
    own: dict[str, Any] = method.own
    config = RLConfig(method, samples_per_prompt=samples, beta=beta, max_new_tokens=1, **own)
    logits = reference.clone().requires_grad_()
    for _ in range(steps):
        old = logits.detach().log_softmax(-1)
        for _ in range(inner_epochs):
            policy = logits.log_softmax(-1)
            loss = expected_loss(method, policy, old, reference, rewards, config).sum()
            (gradient,) = torch.autograd.grad(loss, logits)
            with torch.no_grad():
                logits -= (rate * gradient / policy.exp()).clamp(-1, 1)
    return logits.detach().log_softmax(-1)


def distance_to_optimum(policy: Tensor, reference: Tensor, rewards: Tensor, beta: float) -> float:
    """Measure how far a policy is from the closed form, on the prompt where it is furthest.

    Args:
        policy, reference, rewards: (X, Y).
        beta: weight of the KL term.
    Returns:
        The largest total variation, from 0 to 1.

    >>> reference, rewards = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, 0.0]])
    >>> distance_to_optimum(torch.tensor([[0.75, 0.25]]).log(), reference, rewards, beta=1.0)
    0.25
    """
    return total_variation(policy, optimal_policy(reference, rewards, beta)).max().item()


def implied_beta(policy: Tensor, reference: Tensor, rewards: Tensor) -> Tensor:
    """Find, for each prompt, the beta at which the optimal policy spends as much KL as this one.

    Args:
        policy: (X, Y) log-probabilities, none of them the reference's row.
        reference, rewards: (X, Y).
    Returns:
        (X,) betas; for an optimal policy it is its own beta, the same for all prompts.

    >>> from dpo_core.study.tabular import example_world
    >>> world = example_world()
    >>> implied_beta(optimal_policy(world.reference, world.rewards, 0.5), world.reference, world.rewards)
    tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    spent = kl_divergence(policy, reference)  # (X,)
    low, high = torch.full_like(spent, math.log(1e-4)), torch.full_like(spent, math.log(1e4))
    for _ in range(60):  # KL falls as beta rises
        middle = (low + high) / 2
        tilted = (reference + rewards / middle.exp()[:, None]).log_softmax(-1)
        too_much = kl_divergence(tilted, reference) > spent
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return ((low + high) / 2).exp()
