"""A policy that stays where it began: the rule by which ``study.diagnose`` names it, and the line of the run itself."""

from __future__ import annotations

import math

from dpo_core.metrics import History, log_line

__all__ = ["LN2", "REMEDY", "ROUNDING", "STILL", "console_lines", "distance", "unmoved"]

LN2 = math.log(2)  # the loss of a policy that equals its reference, and of one that guesses
ROUNDING = 1e-5  # a reward below it is float32's rounding of a sum of some hundred nats, times beta
STILL = 0.1  # nats: whole answers have kept their probability to within a tenth
NEAR_LN2 = 0.003  # nats: margins of a tenth or so of a reward, either way
SMALL_REWARD = 0.02  # a fifth of a nat at a beta of 0.1, on the average of a row's answers
ROWS = 3  # fewer say little, as the rate may still be rising
REMEDY = "multiply the learning rate by 3 to 10, or train longer"


def distance(history: History) -> float | None:
    """Measure how far the policy went, in nats: by the KL on its samples or the log-ratio of chosen answers.

    Args:
        history: of a run.
    Returns:
        None if neither was measured after the start.

    >>> distance(History([{"step": 5, "eval_logps/chosen_delta": -0.5}]))
    0.5
    """
    last = {name: value for row in history.rows if row["step"] > 0 for name, value in row.items()}
    found = [abs(last[name]) for name in ("kl/policy_ref", "eval_logps/chosen_delta") if name in last]
    return max(found, default=None)


def unmoved(history: History) -> str | None:
    """Say by which numbers a policy has hardly moved, if it has hardly moved.

    Evaluations tell it best. Without them a loss that stays at ln 2 does, with rewards near 0 where there are any.

    Args:
        history: of a run by DPO's loss.
    Returns:
        The numbers in words, or None.

    >>> unmoved(History([{"step": step, "loss": 0.6932} for step in (10, 20, 30)]))
    'after 30 steps the loss is 0.6932, and never was further than 0.0001 from ln 2 = 0.6931'
    """
    rows = [row for row in history.rows if row["step"] > 0]
    start = [row["loss"] for row in history.rows if row["step"] == 0 and "loss" in row]
    if not rows or any(abs(loss - LN2) > 0.01 for loss in start):  # of another family, at a level of its own
        return None
    rewards = [abs(row[name]) for row in history.rows for name in ("rewards/chosen", "rewards/rejected") if name in row]
    steps, went = f"after {rows[-1]['step']:.0f} steps", distance(history)
    held_out = [row["eval_loss"] for row in rows if "eval_loss" in row]
    if went is not None and held_out:
        if went > STILL or abs(held_out[-1] - LN2) > 0.02 or max(rewards, default=0.0) < ROUNDING:
            return None
        return f"{steps} the policy is {went:.1g} nats away and the held-out loss {held_out[-1]:.4f}"
    losses = [row["loss"] for row in rows if "loss" in row]
    near = all(abs(loss - LN2) <= NEAR_LN2 for loss in losses)  # which no NaN is
    if len(losses) < ROWS or not near or max(rewards, default=0.0) > SMALL_REWARD:
        return None
    gap = max(abs(loss - LN2) for loss in losses)
    return f"{steps} the loss is {losses[-1]:.4f}, and never was further than {gap:.4f} from ln 2 = {LN2:.4f}"


def console_lines(history: History, steps: int) -> str:
    """Put the last row in a line for the console; halfway through a run another line tells if nothing has moved.

    Args:
        history: all rows so far.
        steps: of the whole run.

    >>> history = History([{"step": step, "loss": 0.6931} for step in (10, 20, 30)])
    >>> print(console_lines(history, steps=60))
    step    30 | loss: 0.6931
    the policy has hardly moved: after 30 steps the loss is 0.6931, and never was further than 0.0000 from ln 2 = 0.6931
      -> multiply the learning rate by 3 to 10, or train longer
    """
    row, before = history.rows[-1], history.rows[-2]["step"] if len(history.rows) > 1 else 0
    halfway = 2 * before < steps <= 2 * row["step"]
    told = unmoved(history) if halfway and len(history.rows) >= ROWS else None
    return log_line(row) + (f"\nthe policy has hardly moved: {told}\n  -> {REMEDY}" if told else "")
