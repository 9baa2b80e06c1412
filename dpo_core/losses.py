"""The DPO loss: per pair, from four log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dpo_core.errors import InputError

__all__ = ["PairLoss", "dpo_loss"]


@dataclass(frozen=True)
class PairLoss:
    """Loss and implicit rewards of each pair; whoever calls decides how to average."""

    loss: Tensor  # (B,)
    chosen_rewards: Tensor  # (B,) beta log(pi/ref) of the chosen answers, detached
    rejected_rewards: Tensor  # (B,)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PairLoss:
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7).

    Args:
        policy_chosen: (B,) log pi(y_w|x) in nats, summed over the answer's tokens; the others likewise.
        policy_rejected: (B,) log pi(y_l|x).
        reference_chosen: (B,) log ref(y_w|x).
        reference_rejected: (B,) log ref(y_l|x).
        beta: weight of the KL term: a higher one holds the policy closer to the reference.
        label_smoothing: share of pairs assumed to be labelled the wrong way round, in [0, 0.5)
            (conservative DPO, Mitchell 2023).
    Returns:
        Loss and rewards of each pair.
    Raises:
        InputError: beta or label_smoothing out of range.

    >>> import torch
    >>> out = dpo_loss(*torch.tensor([[-10.0], [-12.0], [-11.0], [-11.0]]), beta=0.5)
    >>> out.chosen_rewards.item(), out.rejected_rewards.item(), round(out.loss.item(), 4)  # -log sigmoid(1)
    (0.5, -0.5, 0.3133)
    """
    if beta <= 0:
        raise InputError(f"beta is {beta}; it must be above 0 (at 0 the reference would not count at all)")
    if not 0 <= label_smoothing < 0.5:
        raise InputError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5")
    chosen = beta * (policy_chosen - reference_chosen)  # (B,) implicit reward
    rejected = beta * (policy_rejected - reference_rejected)
    margin = chosen - rejected
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)  # Eq. 7 if 0
    return PairLoss(loss, chosen.detach(), rejected.detach())
