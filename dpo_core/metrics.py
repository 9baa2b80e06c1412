"""The metrics of a preference run, under TRL's names, and their history."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.losses import PairLogps, PairLoss

__all__ = ["History", "MetricSums", "log_line", "preference_metrics"]


def preference_metrics(logps: PairLogps, out: PairLoss) -> dict[str, Tensor]:
    """Compute the metrics of each pair: loss, rewards, accuracies, log-probs and lengths.

    ``rewards/accuracies`` asks whether the policy prefers the chosen answer more than the reference does, strictly:
    it is 0, not one half, as long as the two are equal. ``accuracies/policy`` ranks by the policy alone.

    Args:
        logps: what the loss was given.
        out: what it returned.
    Returns:
        (B,) float tensors without gradient, by TRL's names.

    >>> from dpo_core.losses import EXAMPLE
    >>> from dpo_core.losses import dpo
    >>> metrics = preference_metrics(EXAMPLE, dpo(EXAMPLE, beta=0.5))
    >>> metrics["rewards/margins"].item(), metrics["rewards/accuracies"].item(), metrics["logps/chosen_delta"].item()
    (1.0, 1.0, 1.0)
    """
    metrics = {
        "loss": out.loss,
        "rewards/chosen": out.chosen_rewards,
        "rewards/rejected": out.rejected_rewards,
        "rewards/margins": out.chosen_rewards - out.rejected_rewards,
        "rewards/accuracies": out.chosen_rewards > out.rejected_rewards,
        "logps/chosen": logps.policy_chosen,
        "logps/rejected": logps.policy_rejected,
        "logps/chosen_delta": logps.chosen_ratios,
        "accuracies/policy": logps.policy_chosen > logps.policy_rejected,
        "length/chosen": logps.chosen_lengths,
        "length/rejected": logps.rejected_lengths,
    }
    return {name: values.detach().float() for name, values in metrics.items()}


@dataclass
class MetricSums:
    """Sums over pairs, so that batches of unequal size average rightly.

    >>> sums = MetricSums()
    >>> sums.add({"loss": torch.tensor([1.0, 1.0, 1.0])})
    >>> sums.add({"loss": torch.tensor([5.0]), "kl": torch.tensor([0.5])})
    >>> sums.means()
    {'loss': 2.0, 'kl': 0.5}
    """

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the values of further pairs to the sums.

        Args:
            metrics: (n,) values by name; n may differ from name to name.
        """
        values = torch.cat(list(metrics.values())).cpu().double()  # one transfer from the device, not one per name
        for (name, own), part in zip(metrics.items(), values.split([len(own) for own in metrics.values()])):
            self.sums[name] = self.sums.get(name, 0.0) + part.sum().item()
            self.counts[name] = self.counts.get(name, 0) + len(own)

    def means(self) -> dict[str, float]:
        """Average each metric over the pairs added so far; a metric without pairs is left out."""
        return {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name]}


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

    def log(self, step: int, /, **metrics: float) -> None:
        """Add a row, or more metrics to the last row if it is of the same step; a ``step`` among them is left out.

        Args:
            step: of the row.
            metrics: numbers by name.
        Raises:
            InputError: a metric is not a number.
        """
        for name, value in metrics.items():
            if not isinstance(value, (int, float)):
                raise InputError(f"the metric {name!r} is a {type(value).__name__}; it must be a number, as float(...)")
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1].update(metrics | {"step": step})

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Look up the steps at which a metric was logged, and its values there.

        Args:
            name: of the metric.
        Raises:
            InputError: it never was.
        """
        rows = [row for row in self.rows if name in row]
        if not rows:
            known = ", ".join(sorted({key for row in self.rows for key in row})) or "nothing"
            raise InputError(f"no metric {name!r} in this history; it holds {known}")
        return [int(row["step"]) for row in rows], [row[name] for row in rows]

    def kept_row(self, patience: int | None, metric: str = "eval_loss") -> dict[str, float]:
        """Find the row of the weights that a run keeps: with patience the best one, otherwise the last.

        Args:
            patience: how many evaluations that are no better end a run; none if it is never ended so.
            metric: by which rows are compared; lower is better if its name ends in "loss", else higher.
        Returns:
            The row; an empty one if there was no evaluation.

        >>> history = History([{"step": 5, "eval_loss": 0.6}, {"step": 10, "eval_loss": 0.7}])
        >>> history.kept_row(patience=None)["step"], history.kept_row(patience=2)["step"]
        (10, 5)
        """
        rows = self._evaluated(metric)
        if patience and rows:
            return max(rows, key=lambda row: _merit(metric, row))
        return rows[-1] if rows else {}

    def stalled(self, patience: int | None, metric: str = "eval_loss") -> bool:
        """Tell whether the last ``patience`` evaluations were no better than the best before them.

        Args:
            patience: as in ``kept_row``.
            metric: as in ``kept_row``.

        >>> history = History([{"step": 5, "eval_loss": 0.6}, {"step": 10, "eval_loss": 0.7}])
        >>> history.stalled(patience=1), history.stalled(patience=2), history.stalled(patience=None)
        (True, False, False)
        """
        merits = [_merit(metric, row) for row in self._evaluated(metric)]
        return patience is not None and merits[:-patience] != [] and max(merits[:-patience]) >= max(merits[-patience:])

    def _evaluated(self, metric: str) -> list[dict[str, float]]:
        return [row for row in self.rows if metric in row]

    def to_jsonl(self, path: str | Path) -> None:
        """Write the rows to a file, one JSON object a line.

        Args:
            path: the file.
        """
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: str | Path) -> History:
        """Read a history that ``to_jsonl`` wrote.

        Args:
            path: the file.
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


def _merit(metric: str, row: dict[str, float]) -> float:
    return -row[metric] if metric.endswith("loss") else row[metric]


# What a line for the console shows, of what there is: label, metric, format.
LINE = (
    ("loss", "loss", ".4f"),
    ("reward_margin", "rewards/margins", "+.4f"),
    ("accuracy", "rewards/accuracies", ".3f"),
    ("eval_loss", "eval_loss", ".4f"),
    ("eval_accuracy", "eval_rewards/accuracies", ".3f"),
)
SETTINGS = ("step", "grad_norm", "learning_rate", "beta")  # of a row, which its line leaves out


def log_line(row: dict[str, float]) -> str:
    """Put a row of a history in a line for the console, with what callbacks added under names without a slash.

    >>> log_line({"step": 100, "loss": 0.52, "rewards/margins": 0.35, "rewards/accuracies": 0.75})
    'step   100 | loss: 0.5200 | reward_margin: +0.3500 | accuracy: 0.750'
    >>> log_line({"step": 100, "loss": 0.48, "rewards/chosen": 0.2})  # one labelled answer
    'step   100 | loss: 0.4800'
    >>> log_line({"step": 100, "loss": 0.48, "eval_loss": 0.5, "eval_wins": 0.7})  # a callback's own metric
    'step   100 | loss: 0.4800 | eval_loss: 0.5000 | eval_wins: 0.7000'
    """
    known = (*SETTINGS, *(name for _, name, _ in LINE))
    added = ((name, name, ".4f") for name in row if "/" not in name and name not in known)
    shown = [f"{label}: {row[name]:{form}}" for label, name, form in (*LINE, *added) if name in row]
    return " | ".join([f"step {row['step']:5.0f}", *shown])
