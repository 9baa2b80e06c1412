"""How likely a model finds an answer: log pi(y|x), the sum of its tokens' log-probabilities.

``sequence_logps`` is the textbook way, ``pair_logps`` the engine; both give the same numbers.

Shapes: B pairs, T tokens of a row, C channels, V vocabulary, N answer tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dpo_core.data import EncodedPair, PreferenceBatch, by_length, collate
from dpo_core.model import GPT
from dpo_core.precision import compute_dtype

__all__ = ["head_logps", "pair_logps", "reference_logps", "sequence_logps", "token_logps"]

LOGITS = 26_000_000  # that the head holds at the same time, in float32: 100 MB, or 512 tokens of GPT-2's vocabulary


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target token, in float32 whatever the logits are.

    Args:
        logits: (N, V).
        targets: (N,) token ids.
    Returns:
        (N,) nats, at most 0.

    >>> token_logps(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor([0.2500, 0.2500])
    """
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def sequence_logps(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of the marked tokens of each row, given all that stands before them.

    Args:
        model: any GPT.
        ids: (B, T) token ids, one sequence a row, padded on the right with anything.
        mask: (B, T) 1 at the tokens that count (the answer and its end-of-text), else 0.
    Returns:
        (B,) nats.

    >>> from dpo_core.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    >>> sequence_logps(model, torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 1]])).shape
    torch.Size([1])
    """
    logits, targets = model(ids)[:, :-1], ids[:, 1:]  # the logits at t predict token t + 1
    logps = token_logps(logits.flatten(0, 1), targets.flatten()).view(targets.shape)  # (B, T-1)
    return (logps * mask[:, 1:]).sum(1)


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
    """(N, V) float32 and a few columns of -inf, so that rows begin at round addresses, where products are faster."""
    V = len(weight)
    logits = states.new_empty(len(states), -(-V // 64) * 64)
    logits[:, V:] = -torch.inf
    torch.mm(states, weight.T, out=logits[:, :V])
    return logits.log_softmax(-1, dtype=torch.float32)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def head_logps(states: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """Log-probability of each target under the output head, without ever holding the logits of more than a chunk.

    Args:
        states: (N, C) of ``GPT.hidden``.
        weight: (V, C) of the head.
        targets: (N,) token ids.
        chunk: tokens whose logits exist at the same time; what makes 100 MB if not given.
    Returns:
        (N,) float32 nats, the same as ``token_logps`` of all logits.

    >>> states, weight, targets = torch.ones(3, 2), torch.eye(4, 2), torch.tensor([0, 2, 3])
    >>> torch.allclose(head_logps(states, weight, targets, chunk=2), token_logps(states @ weight.T, targets))
    True
    """
    return _HeadLogps.apply(states, weight, targets, chunk or max(1, LOGITS // len(weight)))


def pair_logps(model: GPT | nn.Module, batch: PreferenceBatch, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both answers of each pair, with the prompt computed once and logits only for answers.

    Args:
        model: any GPT, or what ``parallel`` made of one.
        batch: as of ``collate``, on the model's device.
        chunk: of ``head_logps``.
    Returns:
        (B,) of the chosen and (B,) of the rejected answers, nats.

    >>> from dpo_core.data import EncodedPair, PreferencePair
    >>> from dpo_core.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    >>> batch = collate([EncodedPair([1, 2], [3, 10], [3, 10], PreferencePair("", "", ""))])
    >>> chosen, rejected = pair_logps(model, batch)
    >>> torch.allclose(chosen, rejected)
    True
    """
    if not isinstance(model, GPT):
        return model(batch, chunk)
    states = model.hidden(batch.ids, batch.positions, batch.mask(), kept=batch.kept)[batch.source]  # (N, C)
    logps = head_logps(states, model.wte.weight, batch.target, chunk)  # (N,)
    # A table, not index_add: on a GPU the order of index_add's sums, and so the last digit, is left to chance.
    B, T = batch.ids.shape
    table = logps.new_zeros(2 * B * T).scatter(0, batch.place, logps).view(2 * B, T)
    chosen, rejected = table.sum(1).split(B)
    return chosen, rejected


@torch.no_grad()
def reference_logps(
    model: GPT | nn.Module, encoded: Sequence[EncodedPair], batch_size: int = 8, progress: bool = False
) -> Tensor:
    """Log-probabilities of all pairs under a model that is not learning; computed once, they replace the model.

    Args:
        model: any GPT, or what ``parallel`` made of one.
        encoded: the pairs.
        batch_size: pairs per forward pass.
        progress: show a bar, if there is a terminal.
    Returns:
        (len(encoded), 2) nats on the CPU, chosen and rejected, in the order of ``encoded``.

    >>> from dpo_core.data import PreferencePair
    >>> from dpo_core.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    >>> reference_logps(model, [EncodedPair([1, 2], [3, 10], [4, 10], PreferencePair("", "", ""))]).shape
    torch.Size([1, 2])
    """
    out, device = torch.zeros(len(encoded), 2, device="cpu"), next(model.parameters()).device
    groups = by_length(encoded, range(len(encoded)), batch_size)
    for indices in tqdm(groups, desc="log-probs", leave=False, disable=None if progress else True):
        batch = collate([encoded[i] for i in indices]).to(device)
        out[indices] = torch.stack(pair_logps(model, batch), dim=1).cpu()
    return out
