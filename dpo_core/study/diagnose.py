"""The diagnosis of a run by its curves; ``dpo_core.study.setup_check`` looks before the first step.

Each rule is a small function that looks at the numbers and says what it saw, or nothing. ``NUMBERS`` asks whether they
are numbers at all. ``MACHINERY`` holds the faults
of the program; where one is found nothing else is said, since a curve drawn by a broken machine tells nothing about
learning. ``LEARNING`` holds the faults of data and settings. Thresholds stand at the top, each with its reason.

No curve can tell whether the labels are right. Pairs that are all labelled the wrong way round, the held-out ones too,
are learned with the same fine curves. Only reading or judging answers shows that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dpo_core.errors import InputError
from dpo_core.metrics import History
from dpo_core.runs.still import LN2, REMEDY, ROUNDING, STILL, distance, unmoved

__all__ = ["Finding", "LEARNING", "MACHINERY", "NUMBERS", "Rule", "diagnose", "unasked"]

HIGH_LOSS = LN2 + 0.1  # clearly worse than not to have moved at all
NOISE_FLOOR = 0.673  # nats, -0.6 ln 0.6 - 0.4 ln 0.4: the least loss on new pairs of which 40 % are mislabelled
NEAR_HALF = (0.4, 0.6)  # the accuracy of a judge whom 40 % of the labels contradict, or who guesses
CHANGED = 0.5  # in float32 nearly every weight changes in the first steps, in bf16 most updates are rounded away
WHOLE = 0.95  # share of chosen answers; a few that were cut for length do no harm
ODD_PER_ANSWER = 1.0  # a broken word in every answer can be seen by eye
FALL = 1.0  # nats: chosen answers are e times less likely than they were


@dataclass(frozen=True)
class Finding:
    """A fault of a run, or with ``note`` something to know that needs no cure."""

    name: str
    evidence: str
    remedy: str
    note: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}\n  -> {self.remedy}"


class Curves:
    """A history as the rules read it."""

    def __init__(self, history: History) -> None:
        self.names = {name for row in history.rows if row["step"] > 0 for name in row}
        if any(_other_family(row) for row in history.rows[:2]):
            self.names -= {"loss", "eval_loss"}  # at a level that means something else
        if len({row["beta"] for row in history.rows if row["step"] > 0 and "beta" in row}) > 1:
            # Evaluations keep the first beta: beside those of training these say nothing.
            self.names -= {"eval_loss", "eval_rewards/chosen", "eval_rewards/rejected"}
        self.history = history

    def end(self, name: str) -> float:
        """Return the last value of a metric.

        Args:
            name: of the metric.
        """
        return self.history.column(name)[1][-1]

    def begin(self, name: str) -> float:
        """Return the first value of a metric.

        Args:
            name: of the metric.
        """
        return self.history.column(name)[1][0]

    def late(self, name: str) -> float:
        """Average a metric over the last third of the rows, as single rows of few pairs jump.

        Args:
            name: of the metric.
        """
        values = [row[name] for row in self.history.rows if name in row and row["step"] > 0]
        tail = values[-max(1, len(values) // 3) :]
        return sum(tail) / len(tail)

    def largest(self, *names: str) -> float:
        """Find the largest absolute value of several metrics, where they were logged.

        Args:
            names: of the metrics.
        """
        return max(abs(row[name]) for row in self.history.rows for name in names if name in row)

    def distance(self) -> float:
        """Measure how far the policy went, in nats, where that was measured."""
        return distance(self.history) or 0.0


def _other_family(row: dict[str, float]) -> bool:
    """Tell by a row in which policy and reference are still equal, or nearly so, that the loss is not of DPO's kind."""
    near = all(abs(row.get(name, math.inf)) < 0.02 for name in ("rewards/chosen", "rewards/rejected"))
    tolerance = 0.01 if row["step"] == 0 else 0.1 if near else math.inf
    return abs(row.get("loss", LN2) - LN2) > tolerance


@dataclass(frozen=True)
class Rule:
    """Metrics without which it is silent; what it sees in them, or None; and what helps."""

    needs: tuple[str, ...]
    sees: Callable[[Curves], str | None]
    remedy: str
    note: bool = False


# Numbers that are none


def _not_finite(c: Curves) -> str | None:
    rows = [row for row in c.history.rows if not math.isfinite(row.get("loss", 0.0))]
    if rows:
        return f"the loss is {rows[0]['loss']} at step {rows[0]['step']:.0f}"
    norms = [row for row in c.history.rows if "grad_norm" in row][-1:]  # single ones are fp16's scale that is too high
    if norms and not math.isfinite(norms[0]["grad_norm"]):
        return f"the gradient's norm is {norms[0]['grad_norm']} at step {norms[0]['step']:.0f}, the last"
    return None


NUMBERS: dict[str, Rule] = {
    "not finite": Rule(
        ("loss",),
        _not_finite,
        "compute in bf16 or float32, not fp16; divide the learning rate by 10; look for pairs without an answer",
    ),
}


# Faults of the program


def _frozen(c: Curves) -> str | None:
    moved = c.largest("rewards/chosen", "rewards/rejected", "eval_rewards/chosen", "eval_rewards/rejected")
    if c.end("weights/changed") > 0 if "weights/changed" in c.names else moved > ROUNDING:
        return None
    return f"no reward is further from 0 than {moved:.0e}, though the gradient's norm is {c.end('grad_norm'):.2g}"


def _moving_reference(c: Curves) -> str | None:
    if c.largest("rewards/chosen", "rewards/rejected") > ROUNDING or c.distance() <= ROUNDING:
        return None
    return (
        f"every training reward is 0 and the loss stays at {c.late('loss'):.4f}, yet the policy moved by"
        f" {c.distance():.2f} nats"
    )


def _dropout(c: Curves) -> str | None:
    beta = c.end("beta")
    train = c.late("rewards/chosen") / beta, c.late("rewards/rejected") / beta
    held_out = c.end("eval_rewards/chosen") / beta, c.end("eval_rewards/rejected") / beta
    # Learning lowers training answers too, rejected ones above all, but not both kinds far below the held-out ones.
    if any(t > 2 * min(h, 0.0) - 2.0 for t, h in zip(train, held_out)):
        return None
    return (
        f"in training the log-ratios of chosen and rejected answers average {train[0]:.1f} and {train[1]:.1f} nats, in"
        f" evaluation {held_out[0]:.1f} and {held_out[1]:.1f}"
    )


def _half_precision(c: Curves) -> str | None:
    changed = c.end("weights/changed")
    if not 0 < changed < CHANGED:
        return None
    return f"only {changed:.0%} of the weights have changed after {c.history.rows[-1]['step']:.0f} steps"


MACHINERY: dict[str, Rule] = {
    "frozen policy": Rule(
        ("rewards/chosen", "rewards/rejected", "grad_norm"),
        _frozen,
        "check that the optimiser holds this model's parameters, and then the learning rate",
    ),
    "moving reference": Rule(
        ("rewards/chosen", "rewards/rejected", "loss", "eval_logps/chosen_delta"),
        _moving_reference,
        "copy the model before training, or compute the reference's log-probs before the first step",
    ),
    "dropout on": Rule(
        ("rewards/chosen", "rewards/rejected", "eval_rewards/chosen", "eval_rewards/rejected", "beta"),
        _dropout,
        "set every dropout to 0, for the policy too",
    ),
    "half-precision weights": Rule(
        ("weights/changed",),
        _half_precision,
        "keep weights and optimiser in float32 (model.float()) and compute in bf16 by autocast",
    ),
}


# Faults of data and settings


def _swapped(c: Curves) -> str | None:
    margin, held_out = c.late("rewards/margins"), c.end("eval_rewards/margins")
    accuracy = c.end("eval_rewards/accuracies")
    # The mirror image. Overfitting and noise bring the margin near 0 and the accuracy near one half, not far below.
    if margin <= 0 or held_out > -margin / 4 or accuracy >= NEAR_HALF[0]:
        return None
    return f"margin {margin:+.2f} in training but {held_out:+.2f} held out, where accuracy is {accuracy:.2f}"


def _memorised(c: Curves) -> str | None:
    loss, held_out = c.late("loss"), c.end("eval_loss")
    if loss > held_out / 4 or held_out < LN2 / 2:  # a held-out loss that has halved is no failure
        return None
    return f"training loss {loss:.2g}, held-out loss {held_out:.2f}"


def _too_high(c: Curves) -> str | None:
    losses = [c.late("loss")] + ([c.end("eval_loss")] if "eval_loss" in c.names else [])
    if min(losses) < HIGH_LOSS:
        return None
    return f"a loss of {min(losses):.2f}, above the {LN2:.2f} of a model that was never trained"


def _no_end(c: Curves) -> str | None:
    whole, before, after = c.end("ended/chosen"), c.begin("eos/chosen"), c.end("eos/chosen")
    if whole >= WHOLE or after > before * 2 / 3:
        return None
    return (
        f"only {whole:.0%} of the chosen answers in training have an end-of-text token; where held-out ones end, the"
        f" policy ends with probability {after:.2f}, and did with {before:.2f}"
    )


def _noisy(c: Curves) -> str | None:
    loss, late = c.end("eval_loss"), c.late("loss")
    accuracy, seen = c.end("eval_rewards/accuracies"), c.late("rewards/accuracies")
    both = (accuracy + seen) / 2  # as the accuracy of fifty held-out pairs alone scatters by 0.07
    low, high = NEAR_HALF
    if c.distance() < STILL or min(loss, late) < NOISE_FLOOR or not low <= both <= high or _too_high(c):
        return None
    return (
        f"the policy moved by {c.distance():.2f} nats, but the loss is {late:.3f} in training and {loss:.3f} held out,"
        f" accuracy {seen:.2f} and {accuracy:.2f}"
    )


def _harmful(c: Curves) -> str | None:
    odd = c.end("samples/odd")
    if odd < ODD_PER_ANSWER:
        return None
    return (
        f"a sample holds {odd:.1f} tokens to which the reference gives less than 1 in 1,000, and held"
        f" {c.begin('samples/odd'):.2f} before; held-out chosen answers: {c.end('eval_logps/chosen_delta'):+.1f} nats"
    )


def _too_low(c: Curves) -> str | None:
    return unmoved(c.history)


def _fell(c: Curves) -> str | None:
    fall, margin = c.end("eval_logps/chosen_delta"), c.end("eval_rewards/margins")
    if fall > -FALL or margin <= 0:
        return None
    return f"held-out chosen answers lost {-fall:.1f} nats while the margin grew to {margin:+.2f}"


def _harmless(c: Curves) -> str | None:
    fell = _fell(c)
    return f"{fell}; samples hold {c.end('samples/odd'):.2f} odd tokens" if fell and not _harmful(c) else None


def _unexamined(c: Curves) -> str | None:
    return None if "samples/odd" in c.names else _fell(c)


LEARNING: dict[str, Rule] = {
    "swapped labels": Rule(
        ("rewards/margins", "eval_rewards/margins", "eval_rewards/accuracies"),
        _swapped,
        "read three training and three held-out pairs, and exchange the columns of the set that is wrong",
    ),
    "memorised pairs": Rule(
        ("loss", "eval_loss"),
        _memorised,
        "more pairs or fewer steps; patience keeps the weights of the lowest held-out loss",
    ),
    "learning rate too high": Rule(
        ("loss",),
        _too_high,
        "divide the learning rate by 3 to 10, and start again from the reference",
    ),
    "no end of text": Rule(
        ("ended/chosen", "eos/chosen"),
        _no_end,
        "end each answer in one end-of-text token that counts; raise max_length where chosen answers are cut",
    ),
    "noisy labels": Rule(
        ("loss", "eval_loss", "rewards/accuracies", "eval_rewards/accuracies", "eval_logps/chosen_delta"),
        _noisy,
        "have fifty pairs labelled again and drop what people disagree on; label_smoothing keeps margins small, but in"
        " chapter 10, section 4, it ranked no more pairs right",
    ),
    "harmful displacement": Rule(
        ("samples/odd", "eval_logps/chosen_delta"),
        _harmful,
        "stop earlier, lower the learning rate or raise beta; use pairs that the model itself might have written",
    ),
    "learning rate too low": Rule(
        ("loss",),
        _too_low,
        REMEDY,
    ),
    "harmless displacement": Rule(
        ("samples/odd", "eval_logps/chosen_delta", "eval_rewards/margins"),
        _harmless,
        "nothing: the loss sees only the difference; keep an eye on the samples",
        note=True,
    ),
    "displacement": Rule(
        ("eval_logps/chosen_delta", "eval_rewards/margins"),
        _unexamined,
        "whether that harms only samples tell: train(callbacks=[watch(trainer, prompts)])",
        note=True,
    ),
}


def diagnose(history: History) -> list[Finding]:
    """Name what is wrong with a run, by its curves.

    A rule needs its metrics: without held-out pairs or ``watch`` some keep silent, and silence is not health.

    Args:
        history: of ``DPOTrainer.train``, best with ``callbacks=[watch(trainer, prompts)]``; or under the same names.
    Returns:
        Faults, the likeliest first, then notes; nothing if no rule applies.
    Raises:
        InputError: the history has no row of a step.

    >>> history = History([{"step": 0, "loss": 0.69}, {"step": 50, "loss": 5.2}, {"step": 100, "loss": 9.3}])
    >>> print(diagnose(history)[0])
    learning rate too high: a loss of 9.30, above the 0.69 of a model that was never trained
      -> divide the learning rate by 3 to 10, and start again from the reference
    """
    if not any(row["step"] > 0 and "loss" in row for row in history.rows):
        raise InputError("the history holds no step with a loss; train first")
    curves = Curves(history)
    return _apply(NUMBERS, curves) or _apply(MACHINERY, curves) or _apply(LEARNING, curves)


def unasked(history: History) -> dict[str, list[str]]:
    """List the rules that had to keep silent, each with the metrics that it lacked.

    Args:
        history: as of ``diagnose``.

    >>> history = History([{"step": 50, "loss": 0.6, "eval_loss": 0.7}])
    >>> unasked(history)["swapped labels"]
    ['rewards/margins', 'eval_rewards/margins', 'eval_rewards/accuracies']
    """
    names, rules = Curves(history).names, NUMBERS | MACHINERY | LEARNING
    lacking = {name: [metric for metric in rule.needs if metric not in names] for name, rule in rules.items()}
    return {name: metrics for name, metrics in lacking.items() if metrics}


def _apply(rules: dict[str, Rule], curves: Curves) -> list[Finding]:
    return [
        Finding(name, evidence, rule.remedy, rule.note)
        for name, rule in rules.items()
        if curves.names.issuperset(rule.needs) and (evidence := rule.sees(curves))
    ]
