"""The settings of a DPO run, each with what it does when it is raised or lowered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dpo_core.distributed import PARALLEL
from dpo_core.errors import InputError
from dpo_core.losses import PairLogps, PairLoss, choose_loss
from dpo_core.precision import PRECISIONS

__all__ = ["REFERENCES", "DPOConfig"]

REFERENCES = ("cached", "live", "adapter_off")


@dataclass(frozen=True)
class DPOConfig:
    """The settings of a run.

    A step takes ``batch_size`` x ``grad_accum`` pairs, however many processes share them.

    The log-probs of the ``reference`` are "cached", that is computed once before training. "live" asks a copy of the
    model in each step: the same numbers for more time and memory. "adapter_off" asks the model without its adapter
    (LoRA): the same for more time and no memory. It is the wrong reference if the adapter was trained before, as by
    fine-tuning, since off, that is undone too; it is refused then. Merge the adapter first and add a new one.

    The ``loss`` is one of ``LOSSES``, with settings as ``choose_loss`` takes them; "sigmoid" with label smoothing is
    "cdpo", as in TRL.

    >>> DPOConfig(beta=1.0, beta_end=2.0, steps=3).beta_at(1)
    1.5
    """

    beta: float = 0.1  # weight of the KL term: higher keeps the policy closer to the reference
    beta_end: float | None = None  # beta moves there in a straight line; rising, it tightens the leash
    label_smoothing: float = 0.0  # share of labels assumed wrong: higher trusts them less and keeps margins smaller
    loss: str = "sigmoid"  # DPO, or another one of the family in LOSSES
    loss_settings: dict[str, float] = field(default_factory=dict)  # such as {"sft_weight": 0.1}: higher ties it more
    steps: int = 200  # optimiser steps: more move the policy further, and some day too far
    batch_size: int = 8  # pairs per forward pass: lower takes less memory and more time, with the same result
    grad_accum: int = 1  # forward passes per step: higher gives calmer gradients, not more memory
    learning_rate: float = 1e-4  # for a small model; published GPT-2 wants 1e-6 to 1e-5, higher breaks its language
    warmup_steps: int = 10  # steps over which the learning rate rises to its value: more is gentler at the start
    max_grad_norm: float = 1.0  # longer gradients are shortened to this: lower is more careful
    weight_decay: float = 0.0  # pull of all weights towards 0, not towards the reference
    max_length: int | None = None  # tokens of prompt and one answer: lower takes less memory, cuts more; None is most
    val_share: float = 0.1  # of the prompts, set aside: higher measures better and trains on less
    eval_every: int = 50  # steps between evaluations: lower sees more and takes longer
    patience: int | None = None  # stop after so many evaluations without a lower eval_loss and keep the best weights
    log_every: int = 10  # steps averaged in one row of the history: higher is smoother
    save_every: int | None = None  # steps between checkpoints: lower loses less to a crash; None writes none
    seed: int = 0  # of the split and the order of the pairs
    precision: str = "float32"  # "bf16" and "fp16" compute faster and coarser where supported; "auto" chooses
    reference: str = "cached"  # or "live", or with LoRA "adapter_off"; see above
    parallel: str = "ddp"  # under torchrun; "fsdp" spreads the model over the processes: less memory, more traffic

    def __post_init__(self) -> None:
        needed = ("steps", "batch_size", "grad_accum", "eval_every", "log_every")
        optional = ("max_length", "patience", "save_every")
        for name in needed:
            self._require(name, "a whole number", lambda value: type(value) is int)
        for name in optional:
            self._require(name, "a whole number or None", lambda value: value is None or type(value) is int)
        for name in (*needed, *optional):
            self._require(name, "at least 1", lambda value: value is None or value >= 1)
        for name in ("beta", "beta_end", "learning_rate", "max_grad_norm"):
            self._require(name, "above 0", lambda value: value is None or value > 0)
        for name in ("warmup_steps", "weight_decay"):
            self._require(name, "at least 0", lambda value: value >= 0)
        self._require("label_smoothing", "at least 0 and below 0.5", lambda value: 0 <= value < 0.5)
        self._require("val_share", "at least 0 and below 1", lambda value: 0 <= value < 1)
        self._require("precision", " or ".join(PRECISIONS), lambda value: value in PRECISIONS)
        self._require("reference", " or ".join(REFERENCES), lambda value: value in REFERENCES)
        self._require("parallel", " or ".join(PARALLEL), lambda value: value in PARALLEL)
        self.pair_loss()

    def _require(self, name: str, what: str, fine: Callable[[Any], bool]) -> None:
        if not fine(getattr(self, name)):
            raise InputError(f"{name} is {getattr(self, name)!r}; it must be {what}")

    def pair_loss(self) -> Callable[[PairLogps, float], PairLoss]:
        """What ``choose_loss`` makes of ``loss`` and its settings."""
        smoothing = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        settings = smoothing | self.loss_settings
        if self.loss in ("cdpo", "robust") and not settings.get("label_smoothing"):
            raise InputError(
                f"the loss {self.loss!r} needs label_smoothing, the share of labels assumed wrong; at 0 it is 'sigmoid'"
            )
        return choose_loss("cdpo" if self.loss == "sigmoid" and smoothing else self.loss, **settings)

    def beta_at(self, step: int) -> float:
        """Beta of the update that follows ``step`` finished ones."""
        end = self.beta if self.beta_end is None else self.beta_end
        return self.beta + (end - self.beta) * step / max(1, self.steps - 1)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of that update: a linear rise, then constant, as in the DPO paper."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
