"""A recorded training run to be stepped through: its curves, and the model's answers on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpo_core.course.records import read_record
from dpo_core.course.widgets.embed import embed
from dpo_core.errors import InputError

__all__ = ["RunExplorer"]


@dataclass(frozen=True)
class RunExplorer:
    """The curves and sampled answers of a run, with a slider for the step.

    ``tools/records/run_record.py`` makes such records.

    Args:
        record: ``rows`` of the history and ``stations`` with answers, both with their ``step``, and the ``prompts``.
        step: where the slider stands at first.
    Raises:
        InputError: the record has no row of step 0, or a station has not one answer a prompt.

    >>> rows = [{"step": 0, "loss": 0.6931, "eval_loss": 0.6931, "chosen": 0.0, "rejected": 0.0, "kl": 0.0},
    ...         {"step": 2, "loss": 0.6, "chosen": 0.1, "rejected": -0.1}]
    >>> stations = [{"step": 0, "answers": [{"text": "Because.", "reward": 0.2}]}]
    >>> RunExplorer({"rows": rows, "stations": stations, "prompts": ["Why?"]}, step=2).values()
    {'loss': 0.6, 'eval_loss': 0.6931, 'margin': 0.2, 'kl': 0.0}
    """

    record: Mapping[str, Any]
    step: int = 0

    def __post_init__(self) -> None:
        if not self.record["rows"] or self.record["rows"][0]["step"] != 0 or self.record["stations"][0]["step"] != 0:
            raise InputError("the record of a run has to begin with step 0: run `make records`")
        if any(len(station["answers"]) != len(self.record["prompts"]) for station in self.record["stations"]):
            raise InputError("a station of the record has not one answer a prompt: run `make records`")

    @classmethod
    def stored(cls) -> RunExplorer:
        """Load the run that is kept with the course."""
        return cls(read_record("run_record"))

    def values(self) -> dict[str, float]:
        """Look up what was last logged up to the step: nats a pair, and nats an answer for the KL."""
        rows = [row for row in self.record["rows"] if row["step"] <= self.step]
        last = {name: value for row in rows for name, value in row.items()}
        margin = round(last["chosen"] - last["rejected"], 4)
        return {"loss": last["loss"], "eval_loss": last["eval_loss"], "margin": margin, "kl": last["kl"]}

    def answers(self) -> list[str]:
        """Look up what the model wrote at the last station up to the step, a text a prompt."""
        station = [station for station in self.record["stations"] if station["step"] <= self.step][-1]
        return [answer["text"] for answer in station["answers"]]

    def _repr_html_(self) -> str:
        state = {name: self.record[name] for name in ("rows", "stations", "prompts")} | {"step": self.step}
        end = RunExplorer(self.record, int(self.record["rows"][-1]["step"]))
        start = RunExplorer(self.record)
        losses = [run.values()["eval_loss"] for run in (start, end)]
        summary = (
            f"A run of {end.step} steps: the held-out loss goes from {losses[0]} to {losses[1]}."
            f" “{self.record['prompts'][0]}” is answered “{start.answers()[0]}” at first and"
            f" “{end.answers()[0]}” in the end."
        )
        return embed("run_explorer", state, summary)
