"""The folder of a run of reinforcement learning: what is written there, and what a run can go on from.

No state of a random generator is kept: the seed of a step's answers follows from the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from dpo_core.errors import InputError
from dpo_core.formats.files import atomic_write, read_tensors
from dpo_core.metrics import History
from dpo_core.model import GPT
from dpo_core.rl.config import RLConfig
from dpo_core.rl.value import ValueHead
from dpo_core.runs.checkpoint import (
    folder_lock,
    list_checkpoints,
    load_checkpoint,
    read_state,
    remove_checkpoints,
    save_checkpoint,
    save_final,
    writable_folder,
    write_json,
)
from dpo_core.runs.checks import check_folder

__all__ = ["RLFolder"]

CHANGEABLE = ("steps", "learning_rate", "save_every", "batch_size")  # what may differ when a run is resumed


class RLFolder:
    """The folder of a run; without a folder nothing is written, and nothing is there to go on from.

    Args:
        path: made if it is missing; a finished run there is replaced.
        start: the model that training begins from, ``model.origin``.
    Raises:
        InputError: nothing can be written there, or a model is there.

    >>> RLFolder(None, start="pocket").save({}, GPT.from_pretrained("pocket"), None, None)
    'nothing was saved, as the run has no output folder'
    """

    def __init__(self, path: str | Path | None, start: str) -> None:
        self.path = None if path is None else writable_folder(path)
        if self.path:
            check_folder(self.path, start)
        self.start = start
        self.step = 0  # of the last checkpoint

    def identify(self, config: RLConfig, key: str, form: str) -> None:
        """Tell this object which run it serves; the methods below need that.

        Args:
            config: its settings, resolved.
            key: of weights and prompts, ``fingerprint``.
            form: of the prompts, ``form_of``.
        """
        self.config, self.key, self.form = config, key, form

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder, inside this context."""
        with folder_lock(self.path):
            yield

    def begin(
        self,
        resume: bool | Literal["auto"],
        fresh: bool,
        model: GPT,
        optimizer: torch.optim.AdamW,
        critic: ValueHead | None,
    ) -> dict[str, Any] | None:
        """Start a run in the folder, or load its last checkpoint.

        Args:
            resume: go on from the last checkpoint; with "auto" only if there is one.
            fresh: whether no step was taken yet.
            model: gets the weights.
            optimizer: gets the moments.
            critic: gets its weights, if there is one.
        Returns:
            The state that ``save`` was given; nothing at a start.
        Raises:
            InputError: there is nothing to resume, or it is of another run, or it would be lost by a start.
        """
        checkpoints = list_checkpoints(self.path) if self.path else []
        if resume is True and not checkpoints:
            where = f"no checkpoint in {self.path}" if self.path else "no output folder, and so no checkpoint"
            raise InputError(f"there is {where} to resume from; start without resume")
        state = None
        if resume and checkpoints:
            state = self._load(checkpoints[-1], model, optimizer, critic)
        elif fresh and checkpoints:
            if not read_state(checkpoints[-1]).get("finished"):
                raise InputError(
                    f"{self.path} holds checkpoints of an earlier run that is not finished; resume it, or choose"
                    " another output folder"
                )
            remove_checkpoints(checkpoints)
        if self.path:
            record = {"start": self.start, "key": self.key, "form": self.form} | self.config.record()
            write_json(self.path / "config.json", record)
        self.step = state["step"] if state else 0
        return state

    def _load(self, folder: Path, model: GPT, optimizer: torch.optim.AdamW, critic: ValueHead | None) -> dict[str, Any]:
        state, now = read_state(folder), self.config.record()
        changed = [
            f"{name} is {value}, was {state['config'].get(name)}"
            for name, value in now.items()
            if value != state["config"].get(name) and name not in CHANGEABLE
        ]
        if changed:
            raise InputError(f"{folder} was written with other settings ({'; '.join(changed)}); resume with the same")
        if state["key"] != self.key:
            raise InputError(f"{folder} was trained from other weights or on other prompts; resume with the same")
        load_checkpoint(folder, model, optimizer, stepped=state["step"] > 0)
        if critic:
            critic.load_state_dict(read_tensors(folder / "best.safetensors"))
        return state

    def save(
        self, state: dict[str, Any], model: GPT, optimizer: torch.optim.Optimizer | None, critic: ValueHead | None
    ) -> str:
        """Write a checkpoint.

        Args:
            state: step, rows and whatever else JSON can hold.
            model: as it is now.
            optimizer: as it is now.
            critic: as it is now, if there is one; its weights are the checkpoint's second set.
        Returns:
            A sentence on where it is and how to go on from it.
        """
        if self.path is None or optimizer is None:
            return "nothing was saved, as the run has no output folder"
        state = {"key": self.key, "config": self.config.record()} | state
        weights = critic.state_dict() if critic else None
        self.step = state["step"]
        folder = save_checkpoint(self.path, state["step"], model, optimizer, state, weights)
        return f"saved as {folder}, from where train(resume=True) goes on"

    def unsaved(self, step: int) -> bool:
        """Tell whether steps were taken since the start or the last checkpoint, and there is a folder for another."""
        return self.path is not None and step != self.step

    def write_history(self, history: History) -> None:
        """Bring ``history.jsonl`` up to date, so that others can look on."""
        if self.path:
            with atomic_write(self.path / "history.jsonl") as partial:
                history.to_jsonl(partial)

    def finish(self, model: GPT, history: History) -> None:
        """Write the final model and the history.

        Args:
            model: as it is now.
            history: all rows.
        """
        if self.path:
            save_final(self.path, model, history)
