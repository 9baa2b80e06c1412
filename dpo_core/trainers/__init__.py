"""Trainers of other methods on ``DPOTrainer``'s engine."""

from __future__ import annotations

from dpo_core.losses import Loss
from dpo_core.methods.family import loss_name
from dpo_core.trainer import DPOTrainer
from dpo_core.trainers.kto import KTOTrainer

__all__ = ["KTOTrainer", "trainer_for"]


def trainer_for(loss: str | Loss) -> type[DPOTrainer]:
    """Choose the class of the trainer that a loss needs.

    Args:
        loss: one of ``LOSSES``, or a function.

    >>> trainer_for("kto").__name__, trainer_for("ipo").__name__
    ('KTOTrainer', 'DPOTrainer')
    """
    return KTOTrainer if loss_name(loss) == "kto" else DPOTrainer
