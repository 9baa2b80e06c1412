"""The settings of a DPO run, each with what it does when it is raised or lowered.

The flags of ``python -m dpo_core train`` are made of these fields: ``batch_size`` is ``--batch-size``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from dpo_core.errors import InputError
from dpo_core.formats.settings import COUNT, NOT_NEGATIVE, POSITIVE, SEED, Kind, check, one_of, setting
from dpo_core.kernels.precision import PRECISIONS
from dpo_core.losses import Loss
from dpo_core.methods.family import LOSSES, choose_loss, loss_name, own_settings
from dpo_core.methods.lora import adapters
from dpo_core.model import GPT

__all__ = [
    "PARALLEL",
    "REFERENCES",
    "SCHEDULES",
    "WRONG_LABELS",
    "DPOConfig",
    "default_learning_rate",
    "recorded_settings",
]

REFERENCES = ("cached", "live", "adapter_off")
PARALLEL = ("ddp", "fsdp")
SCHEDULES = ("constant", "linear", "cosine")
STEPS = 200  # if neither steps nor epochs are given
OWN = ("gamma", "penalty", "desirable_weight", "undesirable_weight")  # settings of single losses, None for their values
WRONG_LABELS = ("cdpo", "robust")  # the losses that have to be told how many labels are wrong

LOSS = Kind(
    object, "the name of a loss, or a function", lambda value: callable(value) or type(value) is str, (*LOSSES,)
)
FROM_0 = Kind(int, "a whole number of at least 0", lambda value: value >= 0)
METRIC = Kind(str, "the name of a metric", lambda value: value[:1].isalpha())
BELOW_HALF = Kind(float, "a number of at least 0 and below 0.5", lambda value: 0 <= value < 0.5)
BELOW_1 = Kind(float, "a number of at least 0 and below 1", lambda value: 0 <= value < 1)


@dataclass(frozen=True)
class DPOConfig:
    """The settings of a run.

    A step takes ``batch_size`` x ``grad_accum`` pairs, however many processes share them.

    What is None depends on the loss, the model or the data; ``resolve`` fills it in, and the trainer's own ``config``
    is resolved.

    The ``loss`` is one of ``LOSSES``, or a function that takes ``PairLogps`` and beta and returns a ``PairLoss``. The
    run's record keeps the function's name, and a resumed run needs a function of the same name.

    The log-probs of the ``reference`` are "cached", that is computed once before training. "live" asks a copy of the
    model in each step: the same numbers for more time and memory. "adapter_off" asks the model without its adapter
    (LoRA): the same for more time and no memory. That is the wrong reference if the adapter was trained before, for
    example by fine-tuning, since switching it off undoes that training, too. Such an adapter is refused: merge it first
    and add a new one.

    >>> DPOConfig(beta=1.0, beta_end=2.0, steps=3).beta_at(1)
    1.5
    """

    # fmt: off
    loss: str | Loss = setting("dpo", LOSS, metavar="LOSS", group="the loss",
        help="dpo, or one of its family, each with a beta of its own (below); sigmoid is TRL's name for dpo")
    beta: float = setting(None, POSITIVE, unset="the loss's own, 0.1 for dpo",
        help="weight of the KL term: higher keeps the policy closer to the reference")
    beta_end: float | None = setting(None, POSITIVE, "--beta-schedule", metavar="END", unset="beta stays",
        help="beta moves there in a straight line; rising, it tightens the leash")
    label_smoothing: float = setting(0.0, BELOW_HALF,
        help="share of labels assumed wrong: higher trusts them less and keeps margins smaller")
    gamma: float | None = setting(None, NOT_NEGATIVE, unset="0.5",
        help="simpo's target margin, in units of the reward: higher drives the two answers further apart")
    penalty: float | None = setting(None, NOT_NEGATIVE, unset="50",
        help="dpop's lambda: higher holds the chosen answers up more")
    desirable_weight: float | None = setting(None, NOT_NEGATIVE, unset="1",
        help="kto's weight of desirable answers: raise it where they are the rarer ones")
    undesirable_weight: float | None = setting(None, NOT_NEGATIVE, unset="1",
        help="kto's weight of undesirable answers: raise it where they are the rarer ones")
    sft_weight: float = setting(0.0, NOT_NEGATIVE,
        help="how much fine-tuning on the chosen answers is added: higher keeps them likelier")
    reference: str = setting("cached", one_of(*REFERENCES),
        help="its log-probs: computed once, or in each step by a copy of the model, or by the model without its"
        " adapter; the numbers are the same")

    steps: int = setting(None, COUNT, unset=f"{STEPS}", group="the steps",
        help="optimiser steps: more move the policy further, and some day too far")
    epochs: float | None = setting(None, POSITIVE, help="passes over the pairs, instead of steps")
    batch_size: int = setting(8, COUNT,
        help="pairs per forward pass: half of it with twice the grad-accum takes less memory, with the same result")
    grad_accum: int = setting(1, COUNT,
        help="forward passes per step: more give calmer gradients for more time, not memory")
    learning_rate: float = setting(None, POSITIVE, "--lr",
        unset="1e-4 for pocket, 1e-6 for GPT-2; for an adapter ten times that",
        help="length of a step: higher learns faster, and breaks the model's language sooner")
    learning_rate_schedule: str = setting("constant", one_of(*SCHEDULES), "--lr-schedule",
        help="the rate after the warm-up: it stays, or falls towards 0 at the last step")
    warmup_steps: int = setting(10, FROM_0,
        help="steps over which the rate rises to its value: more are gentler at the start")
    max_grad_norm: float = setting(1.0, POSITIVE,
        help="longer gradients are shortened to this: lower is more careful with odd pairs")
    weight_decay: float = setting(0.0, NOT_NEGATIVE,
        help="pull of all weights towards 0, not towards the reference: higher pulls more")

    max_length: int | None = setting(None, COUNT, unset="the model's context", group="the pairs",
        help="tokens of prompt and one answer: lower takes less memory and cuts more answers")
    val_share: float = setting(0.1, BELOW_1,
        help="share of the prompts set aside for validation: higher measures better and trains on less")
    seed: int = setting(0, SEED, help="of the split and the order of the pairs")

    eval_every: int = setting(50, COUNT, group="measuring and stopping",
        help="steps between evaluations: lower sees more and takes longer")
    log_every: int = setting(10, COUNT, help="steps averaged in one row of the history: higher is smoother")
    patience: int | None = setting(None, COUNT, "--early-stopping", unset="take all steps",
        help="stop after so many evaluations that are no better, and keep the best weights")
    metric_for_best_model: str = setting("eval_loss", METRIC, metavar="METRIC",
        help="what evaluations are compared by: lower is better if its name ends in loss, else higher")

    save_minutes: float = setting(10.0, NOT_NEGATIVE, group="saving and computing",
        help="minutes between checkpoints, with one at the end: lower loses less to a crash; 0 writes none")
    save_every: int | None = setting(None, COUNT, unset="by the clock alone",
        help="steps between checkpoints, besides those by the clock: lower loses less to a crash")
    precision: str = setting("float32", one_of(*PRECISIONS),
        help="bf16 and fp16 compute faster and coarser where supported; auto asks the processor")
    parallel: str = setting("ddp", one_of(*PARALLEL),
        help="under torchrun each process holds the whole model, or (fsdp) a part: less memory, more traffic")
    # fmt: on

    def __post_init__(self) -> None:
        for found in fields(self):
            check(found, getattr(self, found.name))
        if self.steps and self.epochs:
            raise InputError(
                f"steps is {self.steps} and epochs is {self.epochs:g}; one follows from the other, so give one"
            )
        self.pair_loss()

    def pair_loss(self) -> Loss:
        """Make the loss function that ``loss`` and its settings ask for.

        Returns:
            A function of ``PairLogps`` and beta.
        Raises:
            InputError: there is no such loss, or it has no such setting.
        """
        if self.loss in WRONG_LABELS and not self.label_smoothing:
            raise InputError(
                f"the loss {self.loss!r} needs label_smoothing, the share of labels assumed wrong; at 0 it is 'dpo'"
            )
        given = {"label_smoothing": self.label_smoothing or None} | {name: getattr(self, name) for name in OWN}
        settings = {name: value for name, value in given.items() if value is not None}
        return choose_loss(self.loss, self.sft_weight, **settings)

    def resolve(self, model: GPT, pairs: int) -> DPOConfig:
        """Fill in the settings that depend on the loss, the model and the data.

        Args:
            model: the one to train, with its adapter if it has one.
            pairs: how many there are to train on.
        Returns:
            The same settings, in which beta, the learning rate and the number of steps are numbers.

        >>> config = DPOConfig(loss="simpo", epochs=2).resolve(GPT.from_pretrained("pocket"), pairs=20)
        >>> config.beta, config.gamma, config.learning_rate, config.steps  # 8 + 8 + 4 pairs are an epoch
        (2.0, 0.5, 0.0001, 6)
        """
        epoch = math.ceil(pairs / (self.batch_size * self.grad_accum))
        steps = self.steps or (STEPS if self.epochs is None else max(1, round(self.epochs * epoch)))
        learning_rate = self.learning_rate or default_learning_rate(model)
        own = _own_settings(self.loss, vars(self))
        return replace(self, steps=steps, epochs=None, learning_rate=learning_rate, **own)

    def record(self) -> dict[str, Any]:
        """Convert the settings to a dict that JSON can hold, with a loss by its name."""
        return {found.name: getattr(self, found.name) for found in fields(self)} | {"loss": loss_name(self.loss)}

    def beta_at(self, step: int) -> float:
        """Compute the beta of a step.

        Args:
            step: how many steps are finished before it.
        """
        end = self.beta if self.beta_end is None else self.beta_end
        return self.beta + (end - self.beta) * step / max(1, self.steps - 1)

    def learning_rate_at(self, step: int) -> float:
        """Compute the learning rate of a step.

        The rate rises in a straight line, then stays, as in the DPO paper, or falls towards 0 at the last step.

        Args:
            step: how many steps are finished before it.

        >>> config = DPOConfig(steps=5, learning_rate=1.0, warmup_steps=1, learning_rate_schedule="linear")
        >>> [config.learning_rate_at(step) for step in range(5)]
        [1.0, 1.0, 0.75, 0.5, 0.25]
        """
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.learning_rate_schedule == "constant":
            return rate
        left = min(1.0, (self.steps - step) / max(1, self.steps - self.warmup_steps))
        return rate * (left if self.learning_rate_schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)

    @property
    def saves(self) -> bool:
        """Whether checkpoints are written; if so, there is also one at the end."""
        return bool(self.save_minutes or self.save_every)

    def save_due(self, step: int, minutes: float) -> bool:
        """Tell whether to write a checkpoint now.

        Args:
            step: how many are done.
            minutes: since the last checkpoint, or since the start.
        Returns:
            Never true after the last step, when the trainer writes one anyway.

        >>> config = DPOConfig(steps=20, save_every=5)
        >>> config.save_due(4, 9.9), config.save_due(5, 0.1), config.save_due(6, 10.0)
        (False, True, True)
        """
        by_count = self.save_every is not None and step % self.save_every == 0
        return step < self.steps and (by_count or 0 < self.save_minutes <= minutes)


def default_learning_rate(model: GPT, small: float = 1e-4, published: float = 1e-6) -> float:
    """Choose the learning rate where none is given, by the model and by what of it is trained.

    Args:
        model: as it will be trained.
        small: for a small model of one's own, as pocket is.
        published: for GPT-2, which was trained on far more text; a large step would undo that.
    Returns:
        One of the two, or ten times that for an adapter: it starts from nothing, and wants larger steps.

    >>> default_learning_rate(GPT.from_pretrained("pocket"))
    0.0001
    """
    return (published if model.config.tokenizer == "gpt2" else small) * (10 if adapters(model) else 1)


def recorded_settings(record: dict[str, Any]) -> dict[str, Any]:
    """Bring the settings of a record, even of an earlier version, into the form that ``record`` gives them today.

    Args:
        record: settings from a checkpoint; what an earlier version had no name for is what it did then.

    >>> old = recorded_settings({"loss": "sigmoid", "beta": 0.2, "loss_settings": {"sft_weight": 0.5}})
    >>> old["loss"], old["beta"], old["sft_weight"], old["learning_rate_schedule"]
    ('dpo', 0.2, 0.5, 'constant')
    """
    settings: dict[str, Any] = {found.name: found.default for found in fields(DPOConfig)}
    settings |= {name: value for name, value in record.items() if name != "loss_settings"}
    settings |= record.get("loss_settings", {})
    return settings | _own_settings(settings["loss"], settings) | {"loss": loss_name(settings["loss"])}


def _own_settings(loss: str | Loss, settings: dict[str, Any]) -> dict[str, Any]:
    """Look up the loss's own values for those of its settings that are None."""
    own = own_settings(loss) if callable(loss) or loss in LOSSES else {}
    return {name: own[name] for name in ("beta", *OWN) if name in own and settings[name] is None}
