"""Muon: momentum whose direction is made orthogonal, for the matrices inside a model (Jordan et al. 2024).

torch has a Muon of its own, which always orthogonalises in bf16; on a CPU without bf16 units that takes longer than the
model itself, so ours can also do it in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalize"]


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Approximate the nearest matrix whose singular values are all 1, by a Newton-Schulz iteration.

    Args:
        matrix: (..., M, N).
        iterations: five bring the singular values to between about 0.7 and 1.2, which is all an optimiser needs.
    Returns:
        (..., M, N).

    >>> orthogonalize(torch.tensor([[3.0, 0.0], [0.0, 0.5]])).diagonal().round()
    tensor([1., 1.])
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # a quintic that rises steeply at 0 and stays near 1
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x if wide else x.mT
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum, each update orthogonalised and scaled to the size of AdamW's (Liu et al. 2025).

    Args:
        matrices: parameters of two dimensions; query, key and value stacked in one count as three.
        lr: of AdamW's scale, since an update has a root mean square of 0.2 lr.
        momentum: share of the old direction that is kept.
        weight_decay: pull to zero, times lr.
        dtype: in which directions are made orthogonal; bf16 is exact enough, and faster where there are units for it.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            # Those of one shape go through the iteration together.
            parts: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for matrix in (p for p in group["params"] if p.grad is not None):
                trace = self.state[matrix].setdefault("trace", torch.zeros_like(matrix))
                trace.lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(trace, group["momentum"])
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                rows, columns = matrix.shape
                count = 3 if rows == 3 * columns else 1
                parts[rows // count, columns] += zip(matrix.chunk(count), update.chunk(count))
            for shape, pairs in parts.items():
                directions = orthogonalize(torch.stack([update for _, update in pairs]).to(self.dtype))
                for (part, _), direction in zip(pairs, directions):
                    part.add_(direction, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
