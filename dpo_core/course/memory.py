"""How many bytes of tensors a piece of code has alive at once, counted tensor by tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Live", "live_bytes"]


class Live(TorchDispatchMode):
    """Count the bytes of the tensors made inside ``with``, now and at the highest.

    What an operation needs for itself and frees before it returns is not seen.

    >>> with Live() as live:
    ...     x = torch.ones(1000)
    ...     y = x + x
    ...     del x
    >>> live.now, live.peak
    (4000, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and _key(each) not in self._known | given:
                self._count(each.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def live_bytes(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> tuple[int, int]:
    """Run a function and the backward pass of its sum.

    Args:
        function: makes the tensor whose sum is differentiated.
        arguments: of the function.
    Returns:
        Bytes alive between the two passes, and at the highest point.

    >>> live_bytes(torch.exp, torch.ones(1000, requires_grad=True))[0]  # the result, and its sum
    4004
    """
    with Live() as live:
        total = function(*arguments).sum()
        between = live.now
        total.backward()
    return between, live.peak
