"""The family of losses along the margin, to be moved by hand; it lives in a page without a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_core.course.widgets.embed import embed
from dpo_core.errors import InputError
from dpo_core.losses import PairLogps
from dpo_core.methods.family import LOSSES

__all__ = ["FAMILY", "RANGES", "SETTINGS", "FamilyExplorer", "pair_at"]

START, TOKENS, DRIFT = -40.0, 30, 0.5  # of both answers: nats under the reference, tokens; KTO's z0 in nats

FAMILY: dict[str, dict[str, dict[str, float]]] = {  # beta is larger for means, by about the number of tokens
    "functions of the margin": {
        "sigmoid": {"beta": 0.1},
        "cdpo": {"beta": 0.1, "label_smoothing": 0.3},
        "robust": {"beta": 0.1, "label_smoothing": 0.3},
        "hinge": {"beta": 0.1},
    },
    "means over tokens": {
        "sigmoid_norm": {"beta": 3.0},
        "ipo": {"beta": 2.0},
        "simpo": {"beta": 3.0, "gamma": 0.5},
    },
    "functions of both answers": {
        "dpop": {"beta": 0.1, "penalty": 5.0},
        "apo_zero": {"beta": 0.1},
        "apo_down": {"beta": 0.1},
        "kto": {"beta": 0.1},
    },
    "fine-tuning": {"orpo": {"beta": 0.1}, "sft": {"beta": 0.1}},
}
SETTINGS = {name: settings for group in FAMILY.values() for name, settings in group.items()}
RANGES = {  # of the pictures, here and in chapter 10
    "functions of the margin": {"loss": [-5, 11], "pull": [-0.05, 0.2]},
    "means over tokens": {"loss": [0, 7], "pull": [-0.15, 0.2]},
    "functions of both answers": {"loss": [0, 6], "pull": [-0.03, 0.1]},
    "fine-tuning": {"loss": [0, 3.5], "pull": [0, 0.03]},
}


def pair_at(h: Tensor, both: Tensor | float = 0.0) -> PairLogps:
    """Make pairs of thirty tokens whose answers have moved away from the reference.

    Args:
        h: (B,) how much further the chosen answer has moved up than the rejected one, nats: c - l.
        both: (B,) or one number, how far they have moved together: (c + l) / 2.

    >>> pair = pair_at(torch.tensor([4.0]), both=-10.0)
    >>> pair.chosen_ratios.item(), pair.rejected_ratios.item()
    (-8.0, -12.0)
    """
    start, tokens, drift = torch.full_like(h, START), torch.full_like(h, TOKENS), torch.full_like(h, DRIFT)
    return PairLogps(start + both + h / 2, start + both - h / 2, start, start, tokens, tokens, drift)


@dataclass(frozen=True)
class FamilyExplorer:
    """Each loss of ``LOSSES`` and its pull on either answer, with sliders; the arguments say how those stand at first.

    Args:
        group: one of ``FAMILY``.
        h: margin, the log-ratio of the chosen answer minus that of the rejected one, nats.
        both: by how many nats both answers have moved together.
    Raises:
        InputError: no such group.

    >>> FamilyExplorer("fine-tuning").values()["sft"]
    {'loss': 1.3333, 'chosen': 0.0333, 'rejected': 0.0}
    """

    group: str = "functions of the margin"
    h: float = 0.0
    both: float = 0.0

    def __post_init__(self) -> None:
        if self.group not in FAMILY:
            raise InputError(f"no group {self.group!r} in the explorer; it has {', '.join(FAMILY)}")

    def values(self) -> dict[str, dict[str, float]]:
        """Compute each loss of the group, and minus its slope in either answer's log-ratio."""
        return {name: self._pulls(name) for name in FAMILY[self.group]}

    def _pulls(self, name: str) -> dict[str, float]:
        h, both = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (self.h, self.both))
        loss = LOSSES[name](pair_at(h, both), **SETTINGS[name]).loss
        by_h, by_both = torch.autograd.grad(loss.sum(), (h, both))  # h = c - l, both = (c + l) / 2
        values = {"loss": loss, "chosen": -by_h - by_both / 2, "rejected": by_h - by_both / 2}
        return {name: round(value.item(), 4) + 0.0 for name, value in values.items()}

    def _repr_html_(self) -> str:
        groups = {name: {"losses": losses, "range": RANGES[name]} for name, losses in FAMILY.items()}
        state = {
            "groups": groups,
            "pair": {"start": START, "tokens": TOKENS, "drift": DRIFT},
            "group": self.group,
            "h": self.h,
            "both": self.both,
        }
        losses = "; ".join(f"{name} {values['loss']}" for name, values in self.values().items())
        summary = f"Losses of a pair at a margin of {self.h} nats, both answers moved by {self.both}: {losses}."
        return embed("family_explorer", state, summary)
