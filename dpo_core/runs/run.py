"""The folder of a training: what is written there, what a run can go on from, and who may use it."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from dpo_core.config import DPOConfig
from dpo_core.errors import InputError
from dpo_core.formats.files import reason
from dpo_core.metrics import History
from dpo_core.model import GPT
from dpo_core.runs.checkpoint import (
    KEPT,
    cached,
    folder_lock,
    kept_precision,
    list_checkpoints,
    load_best,
    load_checkpoint,
    read_state,
    remove_checkpoints,
    save_checkpoint,
    save_final,
    writable_folder,
    write_json,
)
from dpo_core.runs.checks import check_folder, check_resumable, check_room
from dpo_core.runs.exits import lasting_output
from dpo_core.runs.processes import any_rank, rank, world_size

__all__ = ["Run", "Settings"]


class Settings(Protocol):
    """What a run wants to know of the settings of its training, ``DPOConfig`` or ``RLConfig``."""

    @property
    def patience(self) -> int | None:
        """After how many evaluations that are no better the training ends."""

    @property
    def saves(self) -> bool:
        """Whether checkpoints are written."""

    def save_due(self, step: int, minutes: float) -> bool:
        """Tell whether to write a checkpoint now."""

    def record(self) -> dict[str, Any]:
        """Convert the settings to a dict that JSON can hold."""


class Run:
    """The folder of a training; without a folder nothing is written, and nothing is there to go on from.

    Args:
        folder: made if it is missing; a finished run there is replaced.
        start: the model that training begins from, ``model.origin``.
    Raises:
        InputError: nothing can be written there, or a model is there.

    >>> run = Run(None, start="pocket")
    >>> run.asked_precision("auto"), run.save({}, GPT.from_pretrained("pocket"), None, None)
    ('auto', 'nothing was saved, as the run has no output folder')
    """

    def __init__(self, folder: str | Path | None, start: str) -> None:
        self.folder = None if folder is None else writable_folder(folder)
        if self.folder:
            check_folder(self.folder, start)
        self.start, self.saved = start, time.monotonic()
        self.written = 0  # rows in history.jsonl
        self.step = 0  # of the last checkpoint, also of one that could not be written

    def asked_precision(self, asked: str) -> str:
        """Hold a resumed run of precision "auto" to what it chose at first, even on another machine.

        Args:
            asked: the setting.
        Returns:
            The setting, or what was chosen.
        """
        kept = kept_precision(self.folder) if self.folder and asked == "auto" else None
        return kept or asked

    def identify(self, config: Settings, precision: str, key: str, form: str = "plain") -> None:
        """Tell this object which run it serves; the methods below need that.

        Args:
            config: its settings, resolved.
            precision: in which is computed.
            key: of weights and data, ``fingerprint``.
            form: of the prompts, ``form_of``.
        """
        self.config, self.precision, self.key, self.form = config, precision, key, form

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder, inside this context.

        Raises:
            InputError: another process trains there.
        """
        with folder_lock(self.folder):
            yield

    def cached_reference(self, device: torch.device, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Load the reference's log-probs from the folder, or compute them and store them there.

        Numbers of another device or another share of the work are rounded otherwise, though the run is the same.

        Args:
            device: on which they are computed.
            compute: gives them by name of the set.
        """
        file = self.folder and self.folder / "reference.safetensors"
        with self.locked(), lasting_output():
            return cached(file, f"{self.key} {device.type} {world_size()}", compute)

    def begin(
        self, resume: bool | Literal["auto"], fresh: bool, model: GPT, optimizer: torch.optim.AdamW
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None] | None:
        """Start a run in the folder, or load its last checkpoint into model and optimizer.

        Args:
            resume: go on from the last checkpoint; with "auto" only if there is one.
            fresh: whether no step was taken yet.
            model: gets the weights.
            optimizer: gets the moments.
        Returns:
            The state that ``save`` was given and the best weights, if there is patience; nothing at a start.
        Raises:
            InputError: there is nothing to resume, or it is of another run, or it would be lost by a start.
        """
        checkpoints = list_checkpoints(self.folder) if self.folder else []
        if resume is True and not checkpoints:
            where = f"no checkpoint in {self.folder}" if self.folder else "no output folder, and so no checkpoint"
            raise InputError(f"there is {where} to resume from; start without resume")
        found = self._load(checkpoints[-1], model, optimizer) if resume and checkpoints else None
        if not found and fresh and checkpoints:
            if not read_state(checkpoints[-1]).get("finished"):
                raise InputError(
                    f"{self.folder} holds checkpoints of an earlier run that is not finished; resume it, or choose"
                    " another output folder"
                )
            any_rank(False)  # all have looked before the first process clears the folder
            remove_checkpoints(checkpoints)
        if self.folder:
            self._check_room(model, len(checkpoints) if found else 0)
        if self.folder and rank() == 0:
            record = {"start": self.start, "key": self.key, "form": self.form} | self.config.record()
            write_json(self.folder / "config.json", record)
        self.saved, self.written = time.monotonic(), 0
        if found or fresh:
            self.step = found[0]["step"] if found else 0
        return found

    def _check_room(self, model: GPT, there: int) -> None:
        """Compare the disk's room with weights, moments and the model at the end; all processes refuse, or none."""
        assert self.folder
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        every = sum(parameter.numel() for parameter in model.parameters())
        # Weights and AdamW's two moments, and the weights of the best evaluation; one more than is kept is there while
        # it is written.
        checkpoint = 4 * trained * (4 if self.config.patience else 3)
        kept = KEPT + 1 - there if self.config.saves else 0
        check_room(self.folder, checkpoint, 4 * every, kept)

    def _load(
        self, folder: Path, model: GPT, optimizer: torch.optim.AdamW
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        state = read_state(folder)
        assert isinstance(self.config, DPOConfig)
        check_resumable(folder, state, self.config, self.precision, self.key)
        best = load_best(folder, model) if self.config.patience else None
        if self.config.patience and not best:
            raise InputError(
                f"{folder} was written without patience (early stopping), or its best.safetensors is lost;"
                " resume without"
            )
        load_checkpoint(folder, model, optimizer, stepped=state["step"] > 0)
        return state, best

    def write_history(self, history: History) -> None:
        """Bring ``history.jsonl`` up to date, so that others can look on; a full disk only gives a warning.

        Args:
            history: all rows so far.
        """
        if not self.folder or rank():
            return
        file, rows = self.folder / "history.jsonl", history.rows
        self.written *= file.exists()
        whole = file.stat().st_size if self.written else 0
        try:
            with file.open("a" if whole else "w", encoding="utf-8") as opened:
                opened.writelines(json.dumps(row) + "\n" for row in rows[self.written :])
            self.written = len(rows)
        except OSError as error:
            with suppress(OSError):
                os.truncate(file, whole)  # no row in part; the next time all that are missing are written
            warnings.warn(f"{file}: a row cannot be written ({reason(error)}); the training goes on", stacklevel=2)

    def save_due(self, step: int) -> bool:
        """Tell whether to write a checkpoint after this step.

        Args:
            step: how many are done.
        """
        return self.config.save_due(step, (time.monotonic() - self.saved) / 60)

    def unsaved(self, step: int) -> bool:
        """Tell whether steps were taken since the start or the last checkpoint, and there is a folder for another.

        Args:
            step: how many are done.
        """
        return self.folder is not None and step != self.step

    def save(
        self,
        state: dict[str, Any],
        model: GPT,
        optimizer: torch.optim.Optimizer | None,
        best: dict[str, Tensor] | None,
    ) -> str:
        """Write a checkpoint.

        Args:
            state: step, rows and whatever else JSON can hold.
            model: as it is now.
            optimizer: as it is now.
            best: the weights of the best evaluation so far, if there is patience.
        Returns:
            A sentence on where it is and how to go on from it.
        """
        if self.folder is None or optimizer is None:
            return "nothing was saved, as the run has no output folder"
        self.step = state["step"]
        state = {"key": self.key, "precision": self.precision, "config": self.config.record()} | state
        folder = save_checkpoint(self.folder, state["step"], model, optimizer, state, best)
        self.saved = time.monotonic()
        return f"saved as {folder}, from where train(resume=True) goes on"

    def finish(self, model: GPT, history: History) -> None:
        """Write the final model and the history; where there is no room, in place of the older checkpoints.

        Args:
            model: as it is now.
            history: all rows.
        """
        if self.folder is None:
            return
        try:
            save_final(self.folder, model, history)
        except (OSError, SafetensorError, InputError):
            older = list_checkpoints(self.folder)[:-1]
            if world_size() > 1 or not older:
                raise
            remove_checkpoints(older)
            save_final(self.folder, model, history)
