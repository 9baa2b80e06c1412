"""What a preference run is judged by, under TRL's names, and its history."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.losses import PairLoss

__all__ = ["History", "MetricSums", "log_line", "preference_metrics"]


def preference_metrics(
    pair_loss: PairLoss,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
) -> dict[str, Tensor]:
    """Metrics of each pair.

    ``rewards/accuracies`` asks whether the policy prefers the chosen answer more than the reference does, strictly:
    it is 0, not one half, as long as the two are equal. ``accuracies/policy`` ranks by the policy alone.

    Args:
        pair_loss: of ``dpo_loss``.
        policy_chosen: (B,) nats.
        policy_rejected: (B,) nats.
        reference_chosen: (B,) nats.
        chosen_lengths: (B,) tokens.
        rejected_lengths: (B,) tokens.
    Returns:
        (B,) float tensors without gradient, by name.

    >>> from dpo_core.losses import dpo_loss
    >>> logps = torch.tensor([[-10.0], [-12.0], [-11.0], [-11.0]])
    >>> metrics = preference_metrics(dpo_loss(*logps, beta=0.5), *logps[:3], torch.tensor([4]), torch.tensor([5]))
    >>> metrics["rewards/margins"].item(), metrics["rewards/accuracies"].item(), metrics["logps/chosen_delta"].item()
    (1.0, 1.0, 1.0)
    """
    rewards = pair_loss.chosen_rewards, pair_loss.rejected_rewards
    metrics = {
        "loss": pair_loss.loss,
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": rewards[0] - rewards[1],
        "rewards/accuracies": rewards[0] > rewards[1],
        "logps/chosen": policy_chosen,
        "logps/rejected": policy_rejected,
        "logps/chosen_delta": policy_chosen - reference_chosen,
        "accuracies/policy": policy_chosen > policy_rejected,
        "length/chosen": chosen_lengths,
        "length/rejected": rejected_lengths,
    }
    return {name: values.detach().float() for name, values in metrics.items()}


@dataclass
class MetricSums:
    """Sums over pairs, so that batches of unequal size average rightly.

    >>> sums = MetricSums()
    >>> sums.add({"loss": torch.tensor([1.0, 1.0, 1.0])})
    >>> sums.add({"loss": torch.tensor([5.0])})
    >>> sums.means()
    {'loss': 2.0}
    """

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Count in (B,) values of further pairs, each time under the same names."""
        values = torch.stack(list(metrics.values())).cpu()  # (names, B); one transfer from the device, not one per name
        for name, total in zip(metrics, values.double().sum(1).tolist()):
            self.sums[name] = self.sums.get(name, 0.0) + total
        self.count += values.shape[1]

    def means(self) -> dict[str, float]:
        """The average over all pairs so far."""
        return {name: total / self.count for name, total in self.sums.items()}


@dataclass
class History:
    """The rows logged in a run, one per step.

    >>> history = History()
    >>> history.log(10, loss=0.69)
    >>> history.log(10, eval_loss=0.68)
    >>> history.log(20, loss=0.5)
    >>> history.column("loss")
    ([10, 20], [0.69, 0.5])
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    def log(self, step: int, **metrics: float) -> None:
        """Add a row, or more metrics to the last row if it is of the same step."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1].update(metrics)

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was logged.

        Raises:
            InputError: it never was.
        """
        rows = [row for row in self.rows if name in row]
        if not rows:
            known = ", ".join(sorted({key for row in self.rows for key in row})) or "nothing"
            raise InputError(f"no metric {name!r} in this history; it holds {known}")
        return [int(row["step"]) for row in rows], [row[name] for row in rows]

    def kept_row(self, patience: int | None) -> dict[str, float]:
        """The row that evaluates the weights a run leaves: with patience the best, otherwise the last.

        Args:
            patience: how many evaluations without a lower loss end a run; none if it is never ended so.
        Returns:
            Nothing if there was no evaluation.

        >>> history = History([{"step": 5, "eval_loss": 0.6}, {"step": 10, "eval_loss": 0.7}])
        >>> history.kept_row(patience=None)["step"], history.kept_row(patience=2)["step"]
        (10, 5)
        """
        rows = self._evaluated()
        if patience and rows:
            return min(rows, key=lambda row: row["eval_loss"])
        return rows[-1] if rows else {}

    def stalled(self, patience: int | None) -> bool:
        """Whether the last ``patience`` evaluations brought no lower loss than those before them.

        >>> history = History([{"step": 5, "eval_loss": 0.6}, {"step": 10, "eval_loss": 0.7}])
        >>> history.stalled(patience=1), history.stalled(patience=2), history.stalled(patience=None)
        (True, False, False)
        """
        losses = [row["eval_loss"] for row in self._evaluated()]
        return patience is not None and losses[:-patience] != [] and min(losses[:-patience]) <= min(losses[-patience:])

    def _evaluated(self) -> list[dict[str, float]]:
        return [row for row in self.rows if "eval_loss" in row]

    def to_jsonl(self, path: str | Path) -> None:
        """Write one JSON object a row."""
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: str | Path) -> History:
        """Read what ``to_jsonl`` wrote.

        Raises:
            InputError: the file cannot be read, or a line is not a row.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); check the path") from error
        history = cls()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                history.log(int(row.pop("step")), **row)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                raise InputError(f'{path}:{number}: not a row of a history; it must be {{"step": ...}}') from error
        return history


def log_line(row: dict[str, float]) -> str:
    """A row of a history for the console.

    >>> log_line({"step": 100, "loss": 0.52, "rewards/margins": 0.35, "rewards/accuracies": 0.75})
    'step   100 | loss: 0.5200 | reward_margin: +0.3500 | accuracy: 0.750'
    """
    line = (
        f"step {row['step']:5.0f} | loss: {row['loss']:.4f} | reward_margin: {row['rewards/margins']:+.4f}"
        f" | accuracy: {row['rewards/accuracies']:.3f}"
    )
    if "eval_loss" in row:
        line += f" | eval_loss: {row['eval_loss']:.4f} | eval_accuracy: {row['eval_rewards/accuracies']:.3f}"
    return line
