"""Callbacks that show a training's rows in other programs, whose own libraries have to be installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
            if not writers:  # nothing is written before there is something to show
                writers.append(SummaryWriter(str(Path(folder) / "tensorboard")))
            for name, value in row.items():
                writers[0].add_scalar(name, value, step)
            writers[0].flush()

    return report


def wandb(folder: str | Path) -> Callback:
    """Make a callback that sends rows to Weights & Biases, as its own settings say (``WANDB_MODE=offline``).

    Args:
        folder: of the run, whose name the run bears there.
    Raises:
        InputError: its library is not installed.
    """
    try:
        import wandb as library  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("wandb is not installed; pip install wandb") from error

    def report(trainer: DPOTrainer, step: int, row: dict[str, float]) -> None:
        if trainer.processes.first:
            if library.run is None:
                library.init(dir=str(folder), name=Path(folder).name, config=trainer.config.record())
            library.log({name: value for name, value in row.items() if name != "step"}, step=step)
            if step == trainer.config.steps:
                library.finish()

    return report


# By the name that --report-to knows.
REPORTS: dict[str, Callable[[str | Path], Callback]] = {"tensorboard": tensorboard, "wandb": wandb}
