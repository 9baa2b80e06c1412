"""Callbacks that show a training's rows in other programs, whose own libraries have to be installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_core.errors import InputError
from dpo_core.trainer import Callback, DPOTrainer

__all__ = ["REPORTS", "tensorboard", "wandb"]


def tensorboard(folder: str | Path) -> Callback:
    """Make a callback that writes rows for TensorBoard, which ``tensorboard --logdir FOLDER`` shows.

    Args:
        folder: of the run; its ``tensorboard`` folder gets them.
    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard is not installed; pip install tensorboard") from error
    writers: list[SummaryWriter] = []

    def report(trainer: DPOTrainer, step: int, row: dict[str, float]) -> None:
        if trainer.processes.first:
            if not writers:  # nothing is written before there is something to show; what a resume repeats is shown once
                writers.append(SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step))
            for name, value in _metrics(row).items():
                writers[0].add_scalar(name, value, step)
            writers[0].flush()

    return report


def wandb(folder: str | Path) -> Callback:
    """Make a callback that sends rows to Weights & Biases, as its own settings say (``WANDB_MODE=offline``).

    Where a run of yours is open there, the rows are part of it, and it stays open.

    Args:
        folder: of the run, whose name the run bears there.
    Raises:
        InputError: its library is not installed.
    """
    try:
        import wandb as library  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("wandb is not installed; pip install wandb") from error

    begun: list[Any] = []

    def report(trainer: DPOTrainer, step: int, row: dict[str, float]) -> None:
        if trainer.processes.first:
            if library.run is None:
                settings = trainer.config.record()
                begun.append(library.init(dir=str(folder), name=Path(folder).name, config=settings))
            library.log(_metrics(row), step=step)
            if begun and _last(trainer, step):  # or the next training in this process would go on in these curves
                begun.pop().finish()

    return report


def _metrics(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step"}


def _last(trainer: DPOTrainer, step: int) -> bool:
    """Tell whether this row is the training's last; of callbacks that stop it, those that come later are not known."""
    config = trainer.config
    return (
        step == config.steps or trainer.stop or trainer.history.stalled(config.patience, config.metric_for_best_model)
    )


# By the name that --report-to knows.
REPORTS: dict[str, Callable[[str | Path], Callback]] = {"tensorboard": tensorboard, "wandb": wandb}
