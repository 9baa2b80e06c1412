"""KTO's loss on answers judged one by one, and the point from which it measures their rewards.

N answers, M answers under prompts that are not theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from dpo_core.errors import InputError

__all__ = ["kto_loss", "mismatch", "reference_point"]


def kto_loss(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    point: Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Compute KTO's loss on single answers (Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 7).

    Args:
        policy: (N,) log pi(y|x) in nats, summed over the answer's tokens.
        reference: (N,) log ref(y|x).
        desirable: (N,) bool, whether the answer is a wanted one.
        point: () of ``reference_point``; at 0 this is APO-zero without pairs.
        beta: as in DPO.
        desirable_weight: of the losses of desirable answers.
        undesirable_weight: of the others.
    Returns:
        (N,) losses.

    >>> ones = torch.ones(2)
    >>> kto_loss(2 * ones, ones, torch.tensor([True, False]), torch.tensor(0.5), beta=1.0)  # s(-0.5), s(0.5)
    tensor([0.3775, 0.6225])
    """
    if beta <= 0:
        raise InputError(f"beta is {beta}; it must be above 0")
    reward = beta * (policy - reference - point)  # (N,) 1 - s(x) = s(-x)
    wanted, unwanted = desirable_weight * torch.sigmoid(-reward), undesirable_weight * torch.sigmoid(reward)
    return torch.where(desirable, wanted, unwanted)


def reference_point(mismatched: Tensor) -> Tensor:
    """Compute KTO's z0, how far the policy has drifted whatever is asked: a mean over answers to *other* prompts.

    A mean below 0 counts as 0. It stands for KL(pi, ref), which would need samples of the policy. The answers' own
    log-ratios would not do: they are what training moves on purpose. Nor would these in another order, which has the
    same mean: the answers have to be scored under prompts that are not theirs.

    Args:
        mismatched: (M,) log pi(y|x) - log ref(y|x) in nats, each y being the answer to another prompt than x.
    Returns:
        () nats, without gradient.

    >>> reference_point(torch.tensor([0.0, 1.0])), reference_point(torch.tensor([-3.0, 1.0]))
    (tensor(0.5000), tensor(0.))
    """
    return mismatched.detach().mean().clamp(min=0)


def mismatch(prompts: Sequence[str]) -> list[int]:
    """Choose for each prompt another prompt's answer, each answer once, for the reference point.

    Args:
        prompts: one for each pair, or for each answer.
    Returns:
        Indices, a permutation.
    Raises:
        InputError: one prompt has more than half of the answers.

    >>> mismatch(["x", "x", "y", "z"])
    [2, 3, 0, 1]
    """
    most = max(Counter(prompts).values(), default=0)
    if 2 * most > len(prompts):
        raise InputError(f"one prompt has {most} of {len(prompts)} answers; kto needs others to borrow answers from")
    order = sorted(range(len(prompts)), key=prompts.__getitem__)  # equal prompts side by side, at most ``most`` of them
    lender = dict(zip(order, order[most:] + order[:most]))
    return [lender[i] for i in range(len(prompts))]
