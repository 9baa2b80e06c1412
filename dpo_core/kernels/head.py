"""Log-probs from the output head, a chunk of tokens at a time.

Shapes: N tokens, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dpo_core.kernels.precision import compute_dtype

__all__ = ["head_logps"]

LOGITS = 26_000_000  # that exist at the same time, in float32: 100 MB, or 512 tokens of GPT-2's vocabulary


def head_logps(states: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """Compute the log-probability of each target without ever holding more than a chunk of the logits.

    Args:
        states: (N, C) of ``GPT.hidden``.
        weight: (V, C) of the head.
        targets: (N,) token ids.
        chunk: tokens whose logits exist at the same time; what makes 100 MB if not given.
    Returns:
        (N,) float32 nats, the same as ``token_logps`` of all logits.

    >>> states, weight, targets = torch.ones(3, 2), torch.eye(4, 2), torch.tensor([0, 2, 3])
    >>> all_at_once = (states @ weight.T).log_softmax(-1)[range(3), targets]
    >>> torch.allclose(head_logps(states, weight, targets, chunk=2), all_at_once)
    True
    """
    return _HeadLogps.apply(states, weight, targets, chunk or max(1, LOGITS // len(weight)))


class _HeadLogps(torch.autograd.Function):
    """``token_logps(states @ weight.T, targets)``, a chunk of tokens at a time, forward and backward.

    The backward pass starts with the last chunk, which is still there, and computes the others anew.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        ctx.chunk, ctx.dtypes = chunk, (states.dtype, weight.dtype)
        dtype = compute_dtype(weight)
        states, weight = states.to(dtype), weight.to(dtype)
        logps = states.new_empty(len(states), dtype=torch.float32)
        ctx.last = None
        for part in _parts(len(states), chunk):
            ctx.last = None  # its room is free for the next one
            ctx.last = _log_softmax_of_logits(states[part], weight)
            logps[part] = ctx.last.gather(1, targets[part, None])[:, 0]
        if not any(ctx.needs_input_grad):
            ctx.last = None
        ctx.save_for_backward(states, weight, targets)
        return logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        states, weight, targets = ctx.saved_tensors
        grad_states = torch.empty_like(states)
        learning = ctx.needs_input_grad[1]  # not with LoRA
        grad_weight: Tensor | None = None
        last, ctx.last = ctx.last, None
        for part in reversed([*_parts(len(states), ctx.chunk)]):
            found, last = last, None
            if found is None:
                found = _log_softmax_of_logits(states[part], weight)
            slope = found.exp_().mul_(-grad[part, None])  # d logp / d logits = 1 at the target, minus probs
            slope.scatter_add_(1, targets[part, None], grad[part, None])
            slope = slope.to(weight.dtype)[:, : len(weight)]
            torch.mm(slope, weight, out=grad_states[part])
            if not learning:
                continue
            if grad_weight is None:  # no zeros to be added to: they cost as much as the product
                grad_weight = (slope.T @ states[part]).to(ctx.dtypes[1])
            elif grad_weight.dtype == slope.dtype:
                grad_weight.addmm_(slope.T, states[part])
            else:
                grad_weight += slope.T @ states[part]
        return grad_states.to(ctx.dtypes[0]), grad_weight, None, None


def _log_softmax_of_logits(states: Tensor, weight: Tensor) -> Tensor:
    """Compute the log-softmax of the logits, with columns of -inf added on the right: (N, V + a few) float32.

    So rows begin at round addresses, where products are faster.
    """
    V = len(weight)
    logits = states.new_empty(len(states), -(-V // 64) * 64)
    logits[:, V:] = -torch.inf
    torch.mm(states, weight.T, out=logits[:, :V])
    return logits.log_softmax(-1, dtype=torch.float32)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
