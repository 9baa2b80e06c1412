"""The metrics of reinforcement learning, under TRL's names.

``objective/`` tells of the answers, ``policy/`` and ``val/`` of the updates made with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpo_core.rl.methods import Rollout
from dpo_core.rl.objectives import k1, masked_sum, ratio

__all__ = ["answer_metrics", "reward_line", "update_metrics"]


def answer_metrics(rollout: Rollout, ended: Tensor, beta: float) -> dict[str, Tensor]:
    """Compute what a step's answers tell of the policy that gave them.

    Args:
        rollout: of B answers.
        ended: (B,) whether the answer has an end-of-text.
        beta: price of a nat of divergence; a method that has it in the loss, not the reward, is measured alike.
    Returns:
        (B,) float tensors by name, and one of (1,): the number of end-of-text tokens.

    >>> mask, logps = torch.tensor([[True, True]]), torch.tensor([[-1.0, -2.0]])
    >>> zeros = torch.zeros(1, 2)
    >>> rollout = Rollout(mask, torch.tensor([4.0]), logps, logps - 1, zeros, torch.tensor(0.0), torch.tensor(2.0))
    >>> found = answer_metrics(rollout, torch.tensor([True]), beta=0.5)
    >>> found["objective/kl"].item(), found["objective/entropy"].item(), found["objective/rlhf_reward"].item()
    (2.0, 3.0, 3.0)
    """
    kl = masked_sum(k1(rollout.old_logps, rollout.reference_logps), rollout.mask)
    metrics = {
        "objective/kl": kl,  # k1 of whole answers, nats
        "objective/entropy": -masked_sum(rollout.old_logps, rollout.mask),  # nats of a whole answer
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": rollout.scores - beta * kl,
        "objective/scores": rollout.scores,
        "completions/mean_length": rollout.mask.sum(1),
        "completions/clipped_ratio": ~ended,
        "val/num_eos_tokens": ended.sum()[None],
    }
    return {name: values.float() for name, values in metrics.items()}


@torch.no_grad()
def update_metrics(
    logps: Tensor, rollout: Rollout, advantages: Tensor, whole_answers: bool, clip: float | None
) -> dict[str, Tensor]:
    """Compute how far the policy has moved from the one that gave the answers, before an update.

    Args:
        logps: (B, T) under the policy now.
        rollout: what was sampled.
        advantages: (B, 1) or (B, T).
        whole_answers: whether the method's action is an answer, not a token.
        clip: of the ratio, if the method clips.
    Returns:
        (N,) float tensors by name, one value per action: ratio, half the squared log-ratio, and, if there is a clip,
        whether it stops the gradient.

    >>> old, mask = torch.zeros(1, 2), torch.tensor([[True, True]])
    >>> rollout = Rollout(mask, torch.zeros(1), old, old, old, torch.tensor(0.0), torch.tensor(2.0))
    >>> now = torch.tensor([[1.5, 0.5]]).log()
    >>> update_metrics(now, rollout, torch.ones(1, 1), whole_answers=False, clip=0.2)["policy/clipfrac_avg"]
    tensor([1., 0.])
    """
    mask, old = rollout.mask, rollout.old_logps
    if whole_answers:
        logps, old = masked_sum(logps, mask)[:, None], masked_sum(old, mask)[:, None]
        mask = torch.ones_like(old, dtype=torch.bool)
    ratios = ratio(logps, old)[mask]
    metrics = {"val/ratio": ratios, "policy/approxkl_avg": ratios.log() ** 2 / 2}
    if clip:
        sign = advantages.sign().expand(mask.shape)[mask]
        metrics["policy/clipfrac_avg"] = ((ratios - 1) * sign > clip).float()  # too far, where it was to go
    return metrics


LINE = (
    ("scores", "objective/scores", "+.3f"),
    ("kl", "objective/kl", ".3f"),
    ("entropy", "policy/entropy_avg", ".3f"),
    ("length", "completions/mean_length", ".1f"),
)


def reward_line(row: dict[str, float], steps: int) -> str:
    """Put a row of a history in a line for the console, with what callbacks added under names without a slash.

    Args:
        row: of the history.
        steps: how many there will be.

    >>> reward_line({"step": 10, "objective/scores": 1.25, "objective/kl": 0.5, "wins": 0.75}, steps=100)
    'step    10/100 | scores: +1.250 | kl: 0.500 | wins: 0.7500'
    """
    added = tuple((name, name, ".4f") for name in row if "/" not in name and name not in ("step", "grad_norm"))
    shown = [f"{label}: {row[name]:{form}}" for label, name, form in (*LINE, *added) if name in row]
    return " | ".join([f"step {row['step']:5.0f}/{steps}", *shown])
