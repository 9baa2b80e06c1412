"""The logs of a training as a history that ``diagnose`` reads: our ``history.jsonl``, and ``trainer_state.json``.

The trainers of TRL, and so LLaMA-Factory and axolotl, write the second into each checkpoint and beside it. Their names
of metrics are ours. Beta is not among them, nor the reference's log-probs; where two evaluations of the same pairs are
there, both follow: an evaluation's mean reward is beta x (mean log-prob - the reference's), and of these only the
log-prob moves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_core.errors import InputError, shown
from dpo_core.formats.files import read_json
from dpo_core.metrics import History

__all__ = ["Log", "read_log"]

STATE, OURS = "trainer_state.json", "history.jsonl"
MOVED = 0.01  # nats between two evaluations, below which rounding would make up the beta
AGREE = 0.05  # the betas of chosen and rejected answers may differ by so much of themselves


@dataclass(frozen=True)
class Log:
    """A history, the file that it was read from, and what was worked out or left out, in words."""

    history: History
    file: Path
    notes: list[str] = field(default_factory=list)


def read_log(path: str | Path) -> Log:
    """Read the log of a training.

    Args:
        path: of a ``history.jsonl`` or ``trainer_state.json``, or of a run's folder; of checkpoints there the newest
            one's is taken.
    Raises:
        InputError: there is no log, or it cannot be read.

    >>> import json, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "trainer_state.json"
    ...     _ = file.write_text(json.dumps({"log_history": [{"loss": 0.69, "step": 10}, {"loss": 0.5, "step": 20}]}))
    ...     read_log(folder).history.column("loss")
    ([10, 20], [0.69, 0.5])
    """
    file = _find(Path(path))
    if file.suffix == ".jsonl":
        return Log(History.from_jsonl(file), file)
    rows = read_json(file, largest=2**30).get("log_history")
    if not isinstance(rows, list):
        raise InputError(f'{file}: no "log_history"; give the trainer_state.json of a trainer of TRL')
    history, notes = History(), []
    for row in rows:
        number = row.get("step") if isinstance(row, dict) else None
        if not isinstance(number, (int, float)):
            raise InputError(f"{file}: {shown(row)} is no row of a log; each has a step and metrics")
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
        if "train_runtime" not in numbers:  # the averages over the whole run are no row
            history.log(int(number), **numbers)
    notes += _work_out(history)
    return Log(history, file, notes)


def _find(path: Path) -> Path:
    if not path.is_dir():
        if path.exists():
            return path
        raise InputError(f"{path}: is not there; give a run's folder, its {OURS}, or a {STATE}")
    here = [path / OURS, path / STATE]
    numbered = [(re.fullmatch(r"checkpoint-(\d+)", file.parent.name), file) for file in path.glob(f"*/{STATE}")]
    here += [file for _, file in sorted(((int(name[1]), file) for name, file in numbered if name), reverse=True)]
    for file in here:
        if file.exists():
            return file
    raise InputError(f"{path}: no {OURS} and no {STATE} there, nor in a checkpoint-*; give a run's folder or a log")


def _work_out(history: History) -> list[str]:
    """Add beta and how far held-out chosen answers moved, where two evaluations tell them."""
    names = [f"eval_{kind}/{side}" for side in ("chosen", "rejected") for kind in ("logps", "rewards")]
    rows = [row for row in history.rows if all(math.isfinite(row.get(name, math.nan)) for name in names)]
    if any("beta" in row for row in history.rows) or len(rows) < 2:
        return []
    betas = [_slope(rows, f"eval_logps/{side}", f"eval_rewards/{side}") for side in ("chosen", "rejected")]
    found = [beta for beta in betas if beta is not None]
    if not found or min(found) <= 0 or max(found) - min(found) > AGREE * max(found):
        return []
    beta = sum(found) / len(found)
    for row in history.rows:
        row["beta"] = beta
    for row in rows:
        row["eval_logps/chosen_delta"] = row["eval_rewards/chosen"] / beta
    return [f"beta {beta:.3g}, worked out from {len(rows)} evaluations (reward = beta x log-ratio)"]


def _slope(rows: Sequence[dict[str, float]], across: str, up: str) -> float | None:
    """Find how much one metric changes with another between the two rows that lie furthest apart in it."""
    low, high = (end(rows, key=lambda row: row[across]) for end in (min, max))
    moved: Any = high[across] - low[across]
    return (high[up] - low[up]) / moved if moved > MOVED else None
