"""Attention without padding, and in bf16 on a CPU.

Shapes: B rows, T and S positions, H heads, D numbers per head, M tokens in all rows together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Attend", "attention_bias", "scaled_dot_product_attention", "without_padding"]

# How a layer mixes its values: queries, keys and values of (..., H, D) and the dropout give another (..., H, D).
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask into numbers to add to the attention scores, once for all layers.

    Given a mask, torch's kernel would make such numbers in each layer and keep them for the backward pass. Rows begin
    at multiples of 8 numbers, because its CUDA kernel would copy others.

    Args:
        mask: (..., T, S) bool, True where attention is allowed.
        dtype: of the scores.
    Returns:
        (..., T, S) 0 where attention is allowed, else -inf.

    >>> attention_bias(torch.tensor([[True, False]]), torch.float32)
    tensor([[0., -inf]])
    """
    S = mask.shape[-1]
    rows = torch.zeros(*mask.shape[:-1], -(-S // 8) * 8, dtype=dtype, device=mask.device)
    return rows[..., :S].masked_fill_(~mask, -torch.inf)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Compute softmax(q k^T / sqrt(D) + bias) v, by torch's function of this name unless there is a faster way.

    Args:
        q: (B, H, T, D) queries.
        k: (B, H, S, D) keys.
        v: (B, H, S, D) values.
        bias: of ``attention_bias``, broadcastable to (B, H, T, S); without one, attention is causal.
        dropout: share of the attention weights to drop.
    Returns:
        (B, H, T, D).

    >>> q = torch.zeros(1, 1, 2, 4)
    >>> v = torch.tensor([[[[0.0], [1.0]]]])
    >>> scaled_dot_product_attention(q, q, v, None, dropout=0.0).flatten()  # the second query sees both keys
    tensor([0.0000, 0.5000])
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # where torch's kernel takes several times as long
        with torch.autocast("cpu", enabled=False):
            return _in_products(q, k, v, bias, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, dropout_p=dropout)


def _in_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    B, H, T, D = q.shape
    S = k.shape[2]
    if bias is None:
        bias = attention_bias(torch.ones(T, S, dtype=torch.bool, device=q.device).tril(), q.dtype)
    bias = bias.expand(B, H, T, S)
    flat_q, flat_k, flat_v = (x.reshape(B * H, -1, D) for x in (q, k, v))
    scores = torch.baddbmm(bias.reshape(B * H, T, S), flat_q, flat_k.mT, alpha=D**-0.5)
    return (F.dropout(scores.softmax(-1), dropout) @ flat_v).view(B, H, T, D)


def without_padding(mask: Tensor, unpadded: Tensor, dtype: torch.dtype) -> Attend:
    """Make an attention function for tokens of several rows that stand one after another, without padding.

    A CPU goes through the rows, each as long as it is. Other devices put the tokens back into rows of (B, T) and take
    them out again.

    Args:
        mask: (B, 1, T, T) bool, True where attention is allowed; padding stands on the right.
        unpadded: (M,) where in B*T the tokens stand, in ascending order.
        dtype: of the scores.
    Returns:
        A function of queries, keys and values of (M, H, D) and the dropout, for ``GPT.hidden``; it returns (M, H, D).

    >>> mask = torch.ones(2, 1, 2, 2, dtype=torch.bool).tril()
    >>> attend = without_padding(mask, torch.tensor([0, 1, 2]), torch.float32)  # a row of two tokens, a row of one
    >>> q, v = torch.zeros(3, 1, 4), torch.tensor([0.0, 1.0, 7.0]).view(3, 1, 1)
    >>> attend(q, q, v, 0.0).flatten()
    tensor([0.0000, 0.5000, 7.0000])
    """
    bias, (B, T) = attention_bias(mask, dtype), (mask.shape[0], mask.shape[-1])
    if mask.device.type != "cpu":
        return partial(_in_padded_rows, bias=bias, unpadded=unpadded)
    lengths = torch.bincount(unpadded // T, minlength=B).tolist()
    return partial(_row_by_row, lengths=lengths, biases=[b[..., :n, :n] for b, n in zip(bias.split(1), lengths)])


def _row_by_row(q: Tensor, k: Tensor, v: Tensor, dropout: float, lengths: list[int], biases: list[Tensor]) -> Tensor:
    mixed = []
    for *row, bias in zip(*(x.split(lengths) for x in (q, k, v)), biases):
        row_q, row_k, row_v = (x.transpose(0, 1)[None] for x in row)  # (1, H, length, D)
        mixed.append(scaled_dot_product_attention(row_q, row_k, row_v, bias, dropout)[0].transpose(0, 1))
    return torch.cat(mixed)


def _in_padded_rows(q: Tensor, k: Tensor, v: Tensor, dropout: float, bias: Tensor, unpadded: Tensor) -> Tensor:
    B, T = bias.shape[0], bias.shape[-1]
    rows = (x.new_zeros(B * T, *x.shape[1:]).index_copy(0, unpadded, x).unflatten(0, (B, T)) for x in (q, k, v))
    padded_q, padded_k, padded_v = (x.transpose(1, 2) for x in rows)  # (B, H, T, D)
    mixed = scaled_dot_product_attention(padded_q, padded_k, padded_v, bias, dropout)
    return mixed.transpose(1, 2).flatten(0, 1)[unpadded]
