"""How likely a model finds an answer: log pi(y|x), the sum of the log-probabilities of its tokens.

``sequence_logps`` is the textbook way, ``pair_logps`` the engine; both give the same numbers.

Shapes: B pairs, T tokens of a row, C channels, V vocabulary, M tokens and N answer tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dpo_core.data import EncodedPair, PreferenceBatch, by_length, collate
from dpo_core.kernels.attention import without_padding
from dpo_core.kernels.head import head_logps
from dpo_core.kernels.precision import compute_dtype
from dpo_core.model import GPT

__all__ = ["pair_logps", "reference_logps", "sequence_logps", "token_logps"]


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the log-probability of each target token, in float32 whatever the logits are.

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
    """Sum the log-probabilities of the marked tokens in each row, each token given all tokens before it.

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


def pair_logps(model: GPT | nn.Module, batch: PreferenceBatch, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Compute the log-probabilities of both answers of each pair, with the prompt computed once for both.

    Logits are made only where they predict a token of an answer.

    Args:
        model: any GPT, or what ``parallel`` made of one.
        batch: as of ``collate``, on the model's device.
        chunk: of ``head_logps``.
    Returns:
        (B,) of the chosen and (B,) of the rejected answers, nats.

    >>> from dpo_core.data import EncodedPair
    >>> from dpo_core.formats.pairs import PreferencePair
    >>> from dpo_core.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    >>> batch = collate([EncodedPair([1, 2], [3, 10], [3, 10], PreferencePair("", "", ""))])
    >>> chosen, rejected = pair_logps(model, batch)
    >>> torch.allclose(chosen, rejected)
    True
    """
    if not isinstance(model, GPT):
        return model(batch, chunk)
    ids, positions = (x.flatten()[batch.unpadded] for x in (batch.ids, batch.positions))  # (M,)
    attend = without_padding(batch.mask(), batch.unpadded, compute_dtype(model.wte.weight))
    states = model.hidden(ids, positions, attend=attend)[batch.predicts]  # (N, C)
    logps = head_logps(states, model.wte.weight, batch.targets, chunk)  # (N,)
    # A table, not index_add: on a GPU the order of index_add's sums, and so the last digit, is left to chance.
    B, T = batch.ids.shape
    table = logps.new_zeros(2 * B * T).scatter(0, batch.scatter_to, logps).view(2 * B, T)
    chosen, rejected = table.sum(1).split(B)
    return chosen, rejected


@torch.no_grad()
def reference_logps(
    model: GPT | nn.Module, encoded: Sequence[EncodedPair], batch_size: int = 8, progress: bool = False
) -> Tensor:
    """Compute the log-probabilities of all pairs under a model that does not learn.

    Computed once, they replace the reference model in training.

    Args:
        model: any GPT, or what ``parallel`` made of one.
        encoded: the pairs.
        batch_size: pairs per forward pass.
        progress: show a bar, if there is a terminal.
    Returns:
        (len(encoded), 2) nats on the CPU, chosen and rejected, in the order of ``encoded``.

    >>> from dpo_core.formats.pairs import PreferencePair
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
