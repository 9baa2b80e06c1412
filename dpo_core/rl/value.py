"""The critic: a head that predicts, from the policy's states, how an answer will score."""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

__all__ = ["ValueHead"]


class ValueHead(nn.Module):
    """One number per state: the reward to be expected from there on.

    It shares the policy's states and trains nothing but itself; its output is 0 at the start.

    Args:
        channels: C of the states.

    >>> import torch
    >>> ValueHead(4)(torch.ones(3, 4)).tolist()
    [0.0, 0.0, 0.0]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Predict the reward from each state: (..., C) to (...)."""
        return self.head(states)[..., 0]
