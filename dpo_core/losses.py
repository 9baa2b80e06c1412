"""The DPO loss of each pair, from the log-probabilities of both answers; its family is in ``dpo_core.methods.family``.

A loss gives one number per pair, so that the caller decides how to average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.errors import InputError

__all__ = ["EXAMPLE", "Loss", "PairLogps", "PairLoss", "check_beta", "check_label_smoothing", "dpo", "dpo_loss"]


@dataclass(frozen=True)
class PairLoss:
    """The loss of each pair, and the rewards of its answers."""

    loss: Tensor  # (B,)
    chosen_rewards: Tensor  # (B,) beta log(pi/ref) of the chosen answers where a reference is used, detached
    rejected_rewards: Tensor  # (B,)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PairLoss:
    """Compute DPO's loss of each pair (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7).

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
    >>> smoothed = dpo_loss(*torch.tensor([[-10.0], [-12.0], [-11.0], [-11.0]]), beta=0.5, label_smoothing=0.1)
    >>> round(smoothed.loss.item(), 4)  # 0.9 x 0.3133 + 0.1 x 1.3133
    0.4133
    """
    check_beta(beta)
    check_label_smoothing(label_smoothing)
    chosen = beta * (policy_chosen - reference_chosen)  # (B,) implicit reward
    rejected = beta * (policy_rejected - reference_rejected)
    margin = chosen - rejected
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)  # Eq. 7 if 0
    return PairLoss(loss, chosen.detach(), rejected.detach())


@dataclass(frozen=True)
class PairLogps:
    """What a loss may look at: log-probabilities of B pairs, in nats, summed over each answer's tokens.

    >>> EXAMPLE.chosen_ratios.item(), EXAMPLE.rejected_ratios.item()
    (1.0, -1.0)
    """

    policy_chosen: Tensor  # (B,) log pi(y_w|x)
    policy_rejected: Tensor  # (B,) log pi(y_l|x)
    reference_chosen: Tensor  # (B,) log ref(y_w|x)
    reference_rejected: Tensor  # (B,) log ref(y_l|x)
    chosen_lengths: Tensor  # (B,) tokens of y_w that count, end of text included
    rejected_lengths: Tensor  # (B,)
    mismatched: Tensor | None = None  # (M,) log pi/ref of answers under prompts that are not theirs; only kto asks

    def first(self, count: int) -> PairLogps:
        """Keep only the first pairs, those that no other process has, too.

        Args:
            count: how many; ``mismatched`` stays whole.
        """
        rows = {name: values[:count] for name, values in vars(self).items() if name != "mismatched"}
        return PairLogps(**rows, mismatched=self.mismatched)

    @property
    def chosen_ratios(self) -> Tensor:
        """(B,) log pi(y_w|x) - log ref(y_w|x) in nats, called c in ``methods.family``."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_ratios(self) -> Tensor:
        """(B,) log pi(y_l|x) - log ref(y_l|x) in nats, called l."""
        return self.policy_rejected - self.reference_rejected


# The pair on which the docstrings compute: c = 1, l = -1, h = 2, z0 = 0.5.
EXAMPLE = PairLogps(*(torch.tensor([value]) for value in (-10.0, -12.0, -11.0, -11.0, 2.0, 4.0, 0.5)))


Loss = Callable[[PairLogps, float], PairLoss]  # what a trainer calls with log-probs and beta


def check_beta(beta: float) -> None:
    """Refuse a beta that is not above 0."""
    if beta <= 0:
        raise InputError(f"beta is {beta}; it must be above 0 (at 0 the reference would not count at all)")


def check_label_smoothing(label_smoothing: float) -> None:
    """Refuse a share of wrong labels outside [0, 0.5): at one half nothing could be learned."""
    if not 0 <= label_smoothing < 0.5:
        raise InputError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5")


def dpo(logps: PairLogps, beta: float = 0.1, label_smoothing: float = 0.0) -> PairLoss:
    """Compute DPO's loss -log s(beta h), s being the logistic function and h the difference of the log-ratios.

    This is ``dpo_loss`` in the form that all of ``LOSSES`` have (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7), TRL's
    ``sigmoid``.

    Args:
        logps: of B pairs.
        beta: as in ``dpo_loss``.
        label_smoothing: as in ``dpo_loss``.

    >>> round(dpo(EXAMPLE, beta=0.5).loss.item(), 4)  # -log s(1)
    0.3133
    """
    four = logps.policy_chosen, logps.policy_rejected, logps.reference_chosen, logps.reference_rejected
    return dpo_loss(*four, beta, label_smoothing)
