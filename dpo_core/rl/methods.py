"""The methods of reinforcement learning: each is two functions, and says where its KL divergence stands.

``advantages`` turns the scores of a step's answers into weights, once; ``losses`` turns weights and log-probabilities
into the loss of each answer, once per inner epoch. ``METHODS`` has the known ones by name.

Shapes: B answers, X prompts with K answers each (B = X K, the answers to one prompt in a row), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpo_core.losses import dpo_loss
from dpo_core.rl.advantages import gae, grpo_advantages, reinforce_advantages, rloo_advantages, whiten
from dpo_core.rl.objectives import clipped_surrogate, k3, kl_reward, masked_sum, policy_gradient, token_rewards

if TYPE_CHECKING:
    from dpo_core.rl.config import RLConfig

__all__ = ["METHODS", "Method", "Rollout", "gae_advantages", "method_name"]

PER_ANSWER = ("mask", "scores", "old_logps", "reference_logps", "values")  # of a rollout, a row for each answer


@dataclass(frozen=True)
class Rollout:
    """What the policy of one moment answered, and how it was scored; nothing here has a gradient."""

    mask: Tensor  # (B, T) True at the tokens of the answers, the end-of-text included
    scores: Tensor  # (B,)
    old_logps: Tensor  # (B, T) under the policy that sampled
    reference_logps: Tensor  # (B, T)
    values: Tensor  # (B, T) the critic's; 0 without one
    baseline: Tensor  # () mean reward of the steps before; NaN at the first
    mean_length: Tensor  # () tokens per answer

    def part(self, rows: slice) -> Rollout:
        """Select some of the answers; what belongs to the whole step stays."""
        return replace(self, **{name: getattr(self, name)[rows] for name in PER_ANSWER})

    def rewards(self, beta: float) -> Tensor:
        """Compute (B,) the scores less beta times the answers' log-ratios, ``kl_reward``."""
        return kl_reward(self.scores, self.old_logps, self.reference_logps, self.mask, beta)


Advantages = Callable[[Rollout, "RLConfig"], Tensor]  # (B, 1) of answers, or (B, T) of their tokens
Losses = Callable[[Tensor, Rollout, Tensor, "RLConfig"], Tensor]  # log-probs (B, T), rollout, advantages: (B,)


@dataclass(frozen=True)
class Method:
    """A way from scores to a loss."""

    advantages: Advantages
    losses: Losses
    kl: str  # where the divergence from the reference stands: in the reward, in the loss, or nowhere
    own: dict[str, float] = field(default_factory=dict)  # settings that not all methods have, with their values
    returns: Callable[[Rollout, RLConfig], Tensor] | None = None  # (B, T) what a critic is to predict, if there is one
    whole_answers: bool = False  # an action is an answer, not a token
    inner_epochs: int = 1  # updates with the same answers, if the settings do not say
    reuses: bool = True  # whether the loss also holds for answers of the policy before an update
    samples: tuple[int, int] = (1, 2**31)  # answers to a prompt, at least and at most


def grouped(rewards: Tensor, config: RLConfig) -> Tensor:
    """Bring (B,) rewards into one row per prompt: (X, K)."""
    return rewards.view(-1, config.samples_per_prompt)


# REINFORCE and RLOO: an answer is one action, and the KL stands in its reward


def running_baseline_advantages(rollout: Rollout, config: RLConfig) -> Tensor:
    """Subtract the mean reward of the steps before; at the first step, that of the step itself: (B, 1)."""
    baseline = None if rollout.baseline.isnan() else rollout.baseline
    return reinforce_advantages(rollout.rewards(config.beta), baseline)[:, None]


def leave_one_out_advantages(rollout: Rollout, config: RLConfig) -> Tensor:
    """Subtract the mean reward of the prompt's other answers: (B, 1)."""
    return rloo_advantages(grouped(rollout.rewards(config.beta), config)).view(-1, 1)


def reinforce_losses(logps: Tensor, rollout: Rollout, advantages: Tensor, config: RLConfig) -> Tensor:
    """Weigh each answer's log-probability by its advantage: (B,)."""
    return policy_gradient(masked_sum(logps, rollout.mask), advantages[:, 0])


def rloo_losses(logps: Tensor, rollout: Rollout, advantages: Tensor, config: RLConfig) -> Tensor:
    """Clip the ratio of whole answers, as TRL does; in the first inner epoch the gradient is REINFORCE's: (B,)."""
    now, old = (masked_sum(each, rollout.mask) for each in (logps, rollout.old_logps))
    return clipped_surrogate(now, old, advantages[:, 0], config.clip)


# GRPO: the KL stands in the loss, or, without scaling, in the reward


def scaled_advantages(rollout: Rollout, config: RLConfig) -> Tensor:
    """Standardise the scores of each prompt; the KL is not in them: (B, 1)."""
    return grpo_advantages(grouped(rollout.scores, config)).view(-1, 1)


def unscaled_advantages(rollout: Rollout, config: RLConfig) -> Tensor:
    """Subtract the prompt's mean from rewards that hold the KL: (B, 1)."""
    return grpo_advantages(grouped(rollout.rewards(config.beta), config), scale=False).view(-1, 1)


def grpo_losses(logps: Tensor, rollout: Rollout, advantages: Tensor, config: RLConfig) -> Tensor:
    """Average surrogate and beta k3 over each answer's tokens (arXiv:2402.03300, Eq. 3): (B,)."""
    tokens = clipped_surrogate(logps, rollout.old_logps, advantages, config.clip)
    tokens = tokens + config.beta * k3(logps, rollout.reference_logps)
    return masked_sum(tokens, rollout.mask) / rollout.mask.sum(1)


def dr_grpo_losses(logps: Tensor, rollout: Rollout, advantages: Tensor, config: RLConfig) -> Tensor:
    """Divide by a constant instead of the answer's length, so that no length is preferred (arXiv:2503.20783): (B,)."""
    tokens = clipped_surrogate(logps, rollout.old_logps, advantages, config.clip)
    return masked_sum(tokens, rollout.mask) / config.max_new_tokens


# PPO: a token is an action, and each pays for its own KL in its reward


def gae_advantages(rollout: Rollout, config: RLConfig) -> Tensor:
    """Compare each token's reward with what the critic expected: (B, T)."""
    given = rollout.scores, rollout.old_logps, rollout.reference_logps, rollout.mask
    return gae(token_rewards(*given, config.beta), rollout.values, rollout.mask, lam=config.gae_lambda)


def whitened_advantages(rollout: Rollout, config: RLConfig) -> Tensor:
    """Bring the advantages of ``gae_advantages`` to mean 0 and standard deviation 1: (B, T)."""
    return whiten(gae_advantages(rollout, config), rollout.mask)


def value_targets(rollout: Rollout, config: RLConfig) -> Tensor:
    """Compute the returns that the critic is to predict, from advantages before they are whitened: (B, T)."""
    return gae_advantages(rollout, config) + rollout.values


def ppo_losses(logps: Tensor, rollout: Rollout, advantages: Tensor, config: RLConfig) -> Tensor:
    """Clip the ratio of each token; the mean over answers is that over all tokens of the step, as in TRL: (B,)."""
    tokens = clipped_surrogate(logps, rollout.old_logps, advantages, config.clip)
    return masked_sum(tokens, rollout.mask) / rollout.mean_length


# Online DPO: two answers, and the loss of DPO, in which the reference stands


def preferences(rollout: Rollout, config: RLConfig) -> Tensor:
    """Mark the better of a prompt's two answers by 1 and the other by -1, both of a tie by 0: (B, 1)."""
    first, second = grouped(rollout.scores, config).unbind(1)
    sign = (first - second).sign()
    return torch.stack([sign, -sign], dim=1).view(-1, 1)


def online_dpo_losses(logps: Tensor, rollout: Rollout, advantages: Tensor, config: RLConfig) -> Tensor:
    """Give both answers of a pair its DPO loss (Guo et al. 2024, arXiv:2402.04792); a tie teaches nothing: (B,)."""
    better = grouped(advantages[:, 0], config)  # (X, 2)
    chosen, rejected = (better.argmax(1, keepdim=True), better.argmin(1, keepdim=True))
    now, reference = (grouped(masked_sum(each, rollout.mask), config) for each in (logps, rollout.reference_logps))
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = (
        each.gather(1, side)[:, 0] for each in (now, reference) for side in (chosen, rejected)
    )
    out = dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, config.beta)
    loss = out.loss * (better[:, 0] != 0)  # (X,)
    return loss.repeat_interleave(2)


CLIP = {"clip": 0.2}
METHODS = {
    "reinforce": Method(
        running_baseline_advantages,
        reinforce_losses,
        "reward",
        {"baseline_decay": 0.9},
        whole_answers=True,
        reuses=False,
    ),
    "rloo": Method(leave_one_out_advantages, rloo_losses, "reward", CLIP, whole_answers=True, samples=(2, 2**31)),
    "grpo": Method(scaled_advantages, grpo_losses, "loss", CLIP, samples=(2, 2**31)),
    "dr_grpo": Method(unscaled_advantages, dr_grpo_losses, "reward", CLIP, samples=(2, 2**31)),
    "ppo": Method(
        whitened_advantages,
        ppo_losses,
        "reward",
        CLIP | {"gae_lambda": 0.95, "value_learning_rate": 1e-3},
        returns=value_targets,
        inner_epochs=4,
    ),
    "online_dpo": Method(preferences, online_dpo_losses, "loss", whole_answers=True, samples=(2, 2)),
}


def method_name(method: str | Method) -> str:
    """Name a method for a record: its name in ``METHODS``, or the names of its functions.

    Args:
        method: one of ``METHODS`` by name, or a method of one's own.

    >>> method_name("rloo"), method_name(METHODS["rloo"])
    ('rloo', 'rloo')
    >>> method_name(replace(METHODS["ppo"], advantages=gae_advantages))
    'gae_advantages, ppo_losses'
    """
    if isinstance(method, str):
        return method
    known = (name for name, each in METHODS.items() if each == method)
    return next(known, f"{method.advantages.__name__}, {method.losses.__name__}")
