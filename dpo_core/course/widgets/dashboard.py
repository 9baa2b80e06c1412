"""Curves that grow while a model trains, and end as an ordinary figure."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from IPython.core.getipython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure

from dpo_core.course.plots import CARD, COLORS, INK, PANELS, curves
from dpo_core.metrics import History
from dpo_core.trainer import DPOTrainer

__all__ = ["Dashboard", "live_view"]

WIDTH, HEIGHT = 340, 180  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 38, 26
WORDS = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy", "eval_loss": "held-out loss"}


class Dashboard:
    """A live view of a run: the loss, the rewards, their margin and its accuracy.

    While the run goes it is a small SVG, replaced at most every ``interval`` seconds by way of Jupyter's display ids,
    which JupyterLab, Colab and VS Code know without any extension; drawing it takes a thousandth of a second. When the
    ``with`` block ends, however it ends, the figure of ``curves`` takes its place, and that is what a notebook stores.

    Args:
        steps: of the whole run, so that the axis does not move.
        title: of the figure.
        interval: seconds between two pictures.
        clock: seconds from any origin.

    >>> live = Dashboard(steps=20)  # with live: trainer.train(progress=False, callbacks=[live])
    >>> live.history.rows
    []
    """

    def __init__(
        self, steps: int, title: str = "", interval: float = 0.5, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.steps, self.title, self.interval, self.clock = steps, title, interval, clock
        self.history = History()
        self.due = -float("inf")
        self.place = None  # where it is shown; outside a notebook nowhere

    def __enter__(self) -> Dashboard:
        if get_ipython() is not None:
            self.place = display(HTML(live_view(self.history, self.steps)), display_id=True)
        return self

    def __call__(self, trainer: DPOTrainer, step: int, row: dict[str, float]) -> None:
        """Take note of the history, and show it unless it has just been shown."""
        self.history = trainer.history
        if self.clock() >= self.due:
            self._show(HTML(live_view(self.history, self.steps)))
            self.due = self.clock() + self.interval

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.history.rows:
            self._show(curves(self.history, self.title))

    def _show(self, view: HTML | Figure) -> None:
        if self.place is not None:
            self.place.update(view)


def live_view(history: History, steps: int) -> str:
    """Draw the panels of ``curves`` in HTML: what there is of a run so far, its last values in words above it.

    Args:
        history: rows so far.
        steps: at the right edge.

    >>> "step 10 of 20: loss 0.6000" in live_view(History([{"step": 10, "loss": 0.6}]), steps=20)
    True
    """
    row = history.rows[-1] if history.rows else {"step": 0}
    values = ", ".join(f"{label} {row[name]:.4f}" for name, label in WORDS.items() if name in row)
    words = f"step {row['step']:.0f} of {steps}{': ' if values else ''}{values}"
    panels = "".join(_panel(history, steps, *panel) for panel in PANELS)
    return (
        f'<div role="img" aria-label="{words}" style="background:{CARD};color:{INK};max-width:46rem;padding:8px">'
        f'<div style="font-variant-numeric:tabular-nums">{words}</div>'
        f'<div style="display:flex;flex-wrap:wrap;font:11px sans-serif">{panels}</div></div>'
    )


def _panel(
    history: History, steps: int, name: str, unit: str, lines: tuple[tuple[str, str, str], ...], level: float
) -> str:
    series = [  # (steps, values), color, dashes
        (history.column(prefix + metric), COLORS[color], dashes)
        for metric, _, color in lines
        for prefix, dashes in (("", "none"), ("eval_", "5 3"))
        if any(prefix + metric in row for row in history.rows)
    ]
    values = [level, *(value for (_, column), *_ in series for value in column)]
    low, high = min(values), max(values)
    reach = high - low or 1.0

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / steps

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / reach

    def text(x: float, y: float, anchor: str, words: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{words}</text>'

    parts = [
        f'<path d="M{x(0)},{y(level):.1f}H{x(steps)}" stroke="#999" stroke-dasharray="1 3"/>',
        text(LEFT, 13, "start", f"<tspan font-weight='600'>{name}</tspan>, {unit}"),
        text(
            LEFT, 27, "start", " ".join(f'<tspan fill="{COLORS[color]}">●</tspan> {label}' for _, label, color in lines)
        ),
        text(x(0), HEIGHT - 6, "middle", "0"),
        text(x(steps), HEIGHT - 6, "end", f"step {steps}"),
    ]
    parts += [text(LEFT - 6, y(value) + 4, "end", f"{value:.3g}") for value in dict.fromkeys((low, high))]
    for (at, column), color, dashes in series:
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(at, column))
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>',
            f'<circle cx="{x(at[-1]):.1f}" cy="{y(column[-1]):.1f}" r="3" fill="{color}"/>',
        ]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" style="flex:1 1 {WIDTH - 40}px">{"".join(parts)}</svg>'
