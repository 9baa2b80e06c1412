"""The look of all figures: Okabe and Ito's colours, which colour-blind readers can tell apart, on a light card.

The card is opaque, so that a figure reads the same on a light page and on a dark one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from cycler import cycler

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dpo_core.metrics import History

__all__ = ["CARD", "COLORS", "curves", "use_style"]

CARD = "#fafaf7"
INK = "#333333"
COLORS = {  # named for what they mean here, where they mean something
    "chosen": "#0072b2",  # blue
    "rejected": "#d55e00",  # vermilion
    "margin": "#009e73",  # green
    "policy": "#cc79a7",  # purple
    "reference": "#56b4e9",  # sky blue
    "highlight": "#e69f00",  # orange
    "neutral": "#000000",
}

STYLE: dict[Any, Any] = {  # rcParams
    "axes.prop_cycle": cycler(color=list(COLORS.values())),
    "figure.facecolor": CARD,
    "savefig.facecolor": CARD,
    "axes.facecolor": CARD,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 2.0,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
}

# One panel each: title, unit of the vertical axis, lines as (metric, label, color), and a level to compare with.
PANELS = (
    ("Loss", "nats per pair", (("loss", "loss", "neutral"),), math.log(2)),
    (
        "Implicit rewards",
        "β × log-ratio, nats",
        (("rewards/chosen", "chosen", "chosen"), ("rewards/rejected", "rejected", "rejected")),
        0.0,
    ),
    ("Reward margin", "β × nats", (("rewards/margins", "chosen minus rejected", "margin"),), 0.0),
    ("Reward accuracy", "share of pairs", (("rewards/accuracies", "margin above 0", "policy"),), 0.5),
)


def use_style() -> None:
    """Give every figure drawn from now on the look of the course."""
    plt.rcParams.update(STYLE)


def curves(history: History, title: str = "") -> Figure:
    """Draw a training run: loss, implicit rewards, their margin and its accuracy, each over the steps.

    Args:
        history: what ``DPOTrainer.train`` returns; evaluations (``eval_…``) are drawn dashed where there are any.
        title: what is to be seen, in a few words.
    Returns:
        A figure of four panels, closed for pyplot, so that a notebook shows it once.
    """
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.2), sharex=True)
    for ax, (name, unit, lines, level) in zip(axes.flat, PANELS):
        ax.axhline(level, color="#999999", linewidth=1, linestyle=":")
        for metric, label, color in lines:
            _line(ax, history, metric, label, COLORS[color], "-")
            _line(ax, history, f"eval_{metric}", f"{label}, held out", COLORS[color], "--")
        ax.set(title=name, ylabel=unit)
        if len(ax.get_lines()) > 2:  # one line besides the level needs no legend
            ax.legend()
    for ax in axes[-1]:
        ax.set_xlabel("optimiser step")
    figure.suptitle(title)
    plt.close(figure)
    return figure


def _line(ax: Axes, history: History, metric: str, label: str, color: str, style: str) -> None:
    if any(metric in row for row in history.rows):
        steps, values = history.column(metric)
        ax.plot(steps, values, style, color=color, label=label, marker="o" if style == "--" else None, markersize=4)
