"""The folder of a run of reinforcement learning: that of any training, with the critic's weights in its checkpoints.

No state of a random generator is kept: the seed of a step's answers follows from the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.formats.files import read_tensors
from dpo_core.model import GPT
from dpo_core.runs.checkpoint import load_checkpoint, read_state
from dpo_core.runs.run import Run

__all__ = ["RLRun"]

CHANGEABLE = ("steps", "learning_rate", "save_every", "batch_size")  # what may differ when a run is resumed


class RLRun(Run):
    """``Run`` for ``RLTrainer``: where a training by DPO keeps its best weights, the critic's are kept.

    >>> RLRun(None, start="pocket").save({}, GPT.from_pretrained("pocket"), None, None)
    'nothing was saved, as the run has no output folder'
    """

    def _load(
        self, folder: Path, model: GPT, optimizer: torch.optim.AdamW
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
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
        critic = folder / "best.safetensors"
        weights = read_tensors(critic) if critic.exists() else None
        load_checkpoint(folder, model, optimizer, stepped=state["step"] > 0)
        return state, weights
