"""Reward gained against KL spent, as recorded runs have measured it, with sliders for beta and the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dpo_core.course.widgets.embed import embed
from dpo_core.errors import InputError

__all__ = ["FrontierExplorer", "FrontierPoint"]


@dataclass(frozen=True)
class FrontierPoint:
    """What the runs of one beta have spent and gained at a step."""

    beta: float
    step: int
    kl: float  # from the reference, nats an answer
    gain: float  # of the reward, with its 95 % interval
    low: float
    high: float


@dataclass(frozen=True)
class FrontierExplorer:
    """The points of runs with several beta, each at the same steps; the arguments say where the sliders stand at first.

    Args:
        points: of every beta at every step; that of step 0, where nothing is spent and gained, is added.
        beta: one of theirs.
        step: one of theirs, or 0.
    Raises:
        InputError: a point is missing or given twice, or beta or step is of none.

    >>> FrontierExplorer([FrontierPoint(0.1, 5, 0.02, 0.1, -0.1, 0.3)], beta=0.1, step=5).values()
    {'kl': 0.02, 'gain': 0.1, 'low': -0.1, 'high': 0.3}
    """

    points: Sequence[FrontierPoint]
    beta: float
    step: int

    def __post_init__(self) -> None:
        betas, steps = {point.beta for point in self.points}, {point.step for point in self.points}
        if {(point.beta, point.step) for point in self.points} != {(beta, step) for beta in betas for step in steps}:
            raise InputError("points: every beta must be measured at every step")
        if len(self.points) != len(betas) * len(steps) or 0 in steps:
            raise InputError("points: one of each beta and step, without step 0")
        if self.beta not in betas or self.step not in steps | {0}:
            raise InputError(f"no point of beta {self.beta} and step {self.step}")

    def values(self) -> dict[str, float]:
        """Look up what was measured at beta and step, to four digits."""
        start = FrontierPoint(self.beta, 0, 0.0, 0.0, 0.0, 0.0)
        chosen = [point for point in self.points if (point.beta, point.step) == (self.beta, self.step)]
        values = asdict(chosen[0] if chosen else start)
        return {name: round(values[name], 4) for name in ("kl", "gain", "low", "high")}

    def _repr_html_(self) -> str:
        points = sorted(self.points, key=lambda point: (point.beta, point.step))
        rounded = [{name: round(value, 4) for name, value in asdict(point).items()} for point in points]
        summary = "At beta {beta} and step {step} the KL is {kl} nats and the reward gained {gain} [{low}, {high}]."
        summary = summary.format(beta=self.beta, step=self.step, **self.values())
        return embed("frontier_explorer", {"points": rounded, "beta": self.beta, "step": self.step}, summary)
