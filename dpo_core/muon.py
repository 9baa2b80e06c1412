"""Muon: momentum whose direction is made orthogonal, for the matrices inside a model (Jordan et al. 2024).

torch has a Muon of its own, which orthogonalises in bf16; on a CPU without bf16 units that takes longer than the
model itself, so ours stays in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalize"]


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Roughly the nearest matrix whose singular values are all 1, by a Newton-Schulz iteration.

    Args:
        matrix: (M, N).
        iterations: five bring the singular values to between about 0.7 and 1.2, which is all an optimiser needs.
    Returns:
        (M, N).

    >>> orthogonalize(torch.tensor([[3.0, 0.0], [0.0, 0.5]])).diagonal().round()
    tensor([1., 1.])
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # a quintic that rises steeply at 0 and stays near 1
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix / (matrix.norm() + 1e-7)
    x = x if wide else x.T
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum, each update orthogonalised and scaled to the size of AdamW's (Liu et al. 2025).

    Args:
        matrices: parameters of two dimensions; query, key and value stacked in one count as three.
        lr: of AdamW's scale, since an update has a root mean square of 0.2 lr.
        momentum: share of the old direction that is kept.
        weight_decay: pull to zero, times lr.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                trace = self.state[matrix].setdefault("trace", torch.zeros_like(matrix))
                trace.lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(trace, group["momentum"])
                rows, columns = matrix.shape
                parts = update.split(columns) if rows == 3 * columns else (update,)
                update = torch.cat([orthogonalize(part) * 0.2 * max(part.shape) ** 0.5 for part in parts])
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
