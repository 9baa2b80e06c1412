"""The losses of policy gradients, from log-probabilities and advantages, and the KL terms.

Where each method puts the KL divergence from the reference: ``kl_reward`` and ``token_rewards`` take it off the reward,
so that it is estimated from samples and never differentiated; ``k3`` is a term of the loss, and is differentiated.
What the trainer does is in ``dpo_core.rl.methods``.

Shapes: B answers, T tokens of the longest answer. Log-probabilities are in nats; losses are to be lowered.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "clipped_surrogate",
    "k1",
    "k3",
    "kl_reward",
    "masked_sum",
    "policy_gradient",
    "ratio",
    "token_rewards",
    "value_loss",
]


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Add up what belongs to each answer.

    Args:
        values: (B, T) of each token.
        mask: (B, T) True at the tokens.
    Returns:
        (B,); of log-probabilities it is log pi(y|x).

    >>> masked_sum(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[True, True], [True, False]]))
    tensor([3., 3.])
    """
    return (values * mask).sum(1)


# The policy


def policy_gradient(logps: Tensor, advantages: Tensor) -> Tensor:
    """Compute REINFORCE's loss: minus advantage times log-probability (Williams 1992, doi:10.1007/BF00992696).

    Its value means nothing; its gradient, over samples of the policy itself, is minus that of the expected reward.

    Args:
        logps: of any shape, with gradient: of whole answers or of tokens.
        advantages: of the same shape; no gradient flows into them.
    Returns:
        Losses of that shape.

    >>> logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    >>> policy_gradient(logps, torch.tensor([3.0, -1.0])).sum().backward()
    >>> logps.grad  # descent raises the first
    tensor([-3.,  1.])
    """
    return -advantages.detach() * logps


def ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    """Compute how many times likelier the policy makes now what it sampled then: pi / pi_old.

    Args:
        logps: of any shape, with gradient.
        old_logps: at the moment of sampling; no gradient flows into them.
    Returns:
        Ratios of that shape; 1 before the first update, with the gradient of the log-probability.

    >>> ratio(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())
    tensor([2.])
    """
    return (logps - old_logps.detach()).exp()


def clipped_surrogate(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float = 0.2) -> Tensor:
    """Compute PPO's loss: minus the smaller of ratio and clipped ratio times advantage (arXiv:1707.06347, Eq. 7).

    The gradient ends where the ratio has gone further than ``clip`` in the direction of the advantage; where it went
    the wrong way, the gradient stays.

    Args:
        logps: of any shape, with gradient: of tokens, or of whole answers, as TRL's RLOO has it.
        old_logps: of the same shape, at the moment of sampling.
        advantages: of the same shape; no gradient flows into them.
        clip: epsilon; higher allows longer steps away from the policy that sampled.
    Returns:
        Losses of that shape.

    >>> old = torch.tensor([0.5, 0.5, 0.5]).log()
    >>> now = torch.tensor([0.75, 0.75, 0.25]).log()  # ratios 1.5, 1.5, 0.5
    >>> clipped_surrogate(now, old, torch.tensor([1.0, -1.0, -1.0]), clip=0.2)
    tensor([-1.2000,  1.5000,  0.8000])
    """
    ratios, advantages = ratio(logps, old_logps), advantages.detach()
    return -torch.min(ratios * advantages, ratios.clamp(1 - clip, 1 + clip) * advantages)


# The critic


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """Compute half the squared error of the values, the larger one of values and of clipped values.

    PPO's value loss (arXiv:1707.06347, Eq. 9), clipped as in its authors' code and in TRL.

    Args:
        values: (B, T) with gradient.
        old_values: (B, T) at the moment of sampling.
        returns: (B, T) what was to be predicted: ``gae`` plus the old values.
        mask: (B, T) True at the tokens.
        clip: how far a value may move from the old one and still gain by it.
    Returns:
        (B, T), 0 where there is no token.

    >>> mask = torch.tensor([[True, True, False]])
    >>> value_loss(torch.tensor([[1.0, 0.1, 7.0]]), torch.zeros(1, 3), torch.full((1, 3), 2.0), mask, clip=0.5)
    tensor([[1.1250, 1.8050, 0.0000]])
    """
    old, returns = old_values.detach(), returns.detach()
    clipped = old + (values - old).clamp(-clip, clip)
    return torch.max((values - returns) ** 2, (clipped - returns) ** 2) / 2 * mask


# The divergence from the reference


def k1(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Compute the plain estimate of KL(policy || reference) on the policy's samples: log pi - log ref.

    Unbiased; below 0 wherever the reference finds the sample likelier (Schulman 2020, "Approximating KL divergence").

    Args:
        logps, reference_logps: of any shape.
    Returns:
        Nats, of that shape; the sum over an answer's tokens is an estimate for whole answers.

    >>> k1(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())  # ln 2, ln 2/3
    tensor([ 0.6931, -0.4055])
    """
    return logps - reference_logps


def k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Compute the estimate ref/pi - log(ref/pi) - 1 of KL(policy || reference), which is never below 0.

    GRPO's KL term (arXiv:2402.03300, Eq. 4). Its mean over samples of the policy is that of ``k1``. Its gradient is
    another matter: on the policy's own samples it is that of KL(reference || policy), the other direction.

    Args:
        logps: of any shape, with gradient.
        reference_logps: of the same shape.
    Returns:
        Nats, of that shape.

    >>> k3(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())  # 1/2 + ln 2 - 1, 3/2 - ln 3/2 - 1
    tensor([0.1931, 0.0945])
    """
    log_ratio = reference_logps.detach() - logps
    return log_ratio.exp() - log_ratio - 1


@torch.no_grad()
def kl_reward(scores: Tensor, logps: Tensor, reference_logps: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Take beta times the answer's log-ratio off its score (Ziegler et al. 2019, arXiv:1909.08593, Eq. 2).

    The answer's log-ratio is ``k1`` summed over its tokens; the expected value of the result is the objective of RLHF.

    Args:
        scores: (B,) of the whole answers.
        logps: (B, T) under the policy that sampled.
        reference_logps: (B, T).
        mask: (B, T) True at the tokens.
        beta: price of a nat of divergence, in units of the score.
    Returns:
        (B,) rewards, without gradient.

    >>> logps, reference = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -1.5]])
    >>> kl_reward(torch.tensor([3.0]), logps, reference, torch.tensor([[True, True]]), beta=2.0)  # 3 - 2 x 1.5
    tensor([0.])
    """
    return scores - beta * masked_sum(k1(logps, reference_logps), mask)


@torch.no_grad()
def token_rewards(scores: Tensor, logps: Tensor, reference_logps: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Spread the reward of ``kl_reward`` over the tokens: each pays for its own log-ratio, the last one gets the score.

    As PPO has it (Ouyang et al. 2022, arXiv:2203.02155, section 3.5). Each row adds up to ``kl_reward``.

    Args:
        scores, logps, reference_logps, mask, beta: as in ``kl_reward``.
    Returns:
        (B, T) rewards, 0 where there is no token, without gradient.

    >>> logps, reference = torch.tensor([[-1.0, -1.0, 0.0]]), torch.tensor([[-2.0, -1.5, 0.0]])
    >>> token_rewards(torch.tensor([3.0]), logps, reference, torch.tensor([[True, True, False]]), beta=2.0)
    tensor([[-2.,  2.,  0.]])
    """
    rewards = torch.where(mask, -beta * k1(logps, reference_logps), 0.0)
    last = mask.sum(1, keepdim=True) - 1  # (B, 1): the end-of-text, or where the answer was cut
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))
