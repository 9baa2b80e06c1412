"""Advantages: how much better an answer, or a token, did than was to be expected.

All functions are pure, and none keeps a gradient: an advantage is a weight, and no part of what is differentiated.

Shapes: B answers, X prompts with K answers each, T tokens of the longest answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpo_core.errors import InputError

__all__ = ["gae", "grpo_advantages", "moving_baseline", "reinforce_advantages", "rloo_advantages", "whiten"]

EPSILON = 1e-4  # TRL's, which keeps groups of equal rewards from a division by 0


@torch.no_grad()
def reinforce_advantages(rewards: Tensor, baseline: Tensor | float | None = None) -> Tensor:
    """Subtract a baseline that is the same for all answers (Williams 1992, doi:10.1007/BF00992696).

    Args:
        rewards: (B,) or of another shape.
        baseline: of ``moving_baseline``; the mean of these rewards if not given. That mean holds each answer's own
            reward, which shrinks the expected gradient by the factor 1 - 1/B.
    Returns:
        Advantages of the rewards' shape.

    >>> reinforce_advantages(torch.tensor([1.0, 2.0, 6.0])), reinforce_advantages(torch.tensor([1.0, 2.0]), 0.5)
    (tensor([-2., -1.,  3.]), tensor([0.5000, 1.5000]))
    """
    return rewards - (rewards.mean() if baseline is None else baseline)


@torch.no_grad()
def moving_baseline(baseline: float | None, rewards: Tensor, decay: float) -> float:
    """Move a running baseline towards the mean of the newest rewards (Williams 1992, "reinforcement comparison").

    Args:
        baseline: so far; None before the first step.
        rewards: of any shape.
        decay: share of the old baseline that stays; a higher one remembers longer.
    Returns:
        The baseline of the next step.

    >>> moving_baseline(None, torch.tensor([1.0, 3.0]), decay=0.75), moving_baseline(1.0, torch.tensor([5.0]), 0.75)
    (2.0, 2.0)
    """
    newest = rewards.mean().item()
    return newest if baseline is None else decay * baseline + (1 - decay) * newest


@torch.no_grad()
def rloo_advantages(rewards: Tensor) -> Tensor:
    """Subtract from each reward the mean of the others of its prompt.

    REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740).

    Args:
        rewards: (X, K), the answers to one prompt in a row.
    Returns:
        (X, K) advantages, K/(K-1) times those around the row's mean.
    Raises:
        InputError: there are no others, as K is 1.

    >>> rloo_advantages(torch.tensor([[1.0, 2.0, 6.0]]))  # 1 - 4, 2 - 3.5, 6 - 1.5
    tensor([[-3.0000, -1.5000,  4.5000]])
    """
    _check_group(rewards)
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)  # (X, K)
    return rewards - others


@torch.no_grad()
def grpo_advantages(rewards: Tensor, scale: bool = True) -> Tensor:
    """Subtract the mean of the prompt's rewards, and divide by their standard deviation.

    GRPO (Shao et al. 2024, arXiv:2402.03300, section 4.1.2); without scaling Dr. GRPO (Liu et al. 2025,
    arXiv:2503.20783). The standard deviation has the divisor K - 1 and is raised by 1e-4, as in TRL.

    Args:
        rewards: (X, K), the answers to one prompt in a row.
        scale: divide, so that each prompt's advantages are of size 1 however far apart its rewards are.
    Returns:
        (X, K) advantages.
    Raises:
        InputError: K is 1.

    >>> grpo_advantages(torch.tensor([[1.0, 2.0, 3.0]]))  # the standard deviation is 1
    tensor([[-0.9999,  0.0000,  0.9999]])
    >>> grpo_advantages(torch.tensor([[1.0, 2.0, 6.0]]), scale=False)
    tensor([[-2., -1.,  3.]])
    """
    _check_group(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + EPSILON) if scale else centred


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Compute generalized advantage estimates, one per token.

    Schulman et al. 2015, arXiv:1506.02438, Eq. 16; the recursion is that of PPO, arXiv:1707.06347, Eq. 11 and 12.

    Args:
        rewards: (B, T) of each token.
        values: (B, T) expected before each token is chosen; after an answer's last token 0 is expected.
        mask: (B, T) True at the tokens.
        gamma: discount per token.
        lam: 1 trusts the rewards alone (little bias), 0 the next value alone (little variance).
    Returns:
        (B, T) advantages, 0 where there is no token; added to the values they are the returns.

    >>> mask = torch.tensor([[True, True, False]])
    >>> gae(torch.tensor([[0.0, 4.0, 9.0]]), torch.tensor([[1.0, 2.0, 9.0]]), mask, lam=0.5)  # 2 - 1 + 0.5 x (4 - 2)
    tensor([[2., 2., 0.]])
    """
    rewards, values = rewards * mask, values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * following - values  # (B, T), Eq. 12
    advantages: list[Tensor] = []
    later = torch.zeros_like(deltas[:, 0])
    for delta in reversed(deltas.unbind(1)):
        later = delta + gamma * lam * later  # (B,), Eq. 11
        advantages.insert(0, later)
    return torch.stack(advantages, dim=1) * mask


@torch.no_grad()
def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Bring the advantages of all tokens of a step to mean 0 and standard deviation 1, as TRL's PPO does.

    Args:
        advantages: (B, T).
        mask: (B, T) True at the tokens; at least two.
    Returns:
        (B, T), 0 where there is no token.

    >>> whiten(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[True, True], [True, False]]))
    tensor([[-1.,  0.],
            [ 1.,  0.]])
    """
    counted = advantages[mask]
    return (advantages - counted.mean()) * (counted.var() + 1e-8).rsqrt() * mask


def _check_group(rewards: Tensor) -> None:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise InputError(
            f"rewards of shape {tuple(rewards.shape)}: a prompt's answers are compared with each other, so there must"
            " be one row per prompt and at least two answers in it; raise samples_per_prompt"
        )
