"""Prompts with one answer each as tensors, and the log-probabilities of the answers' tokens.

An answer's end-of-text token counts as any other of its tokens; the prompt's tokens are never counted.

Shapes: B answers, W tokens of the longest row, T tokens of the longest answer, N tokens of all answers, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dpo_core.kernels.head import head_logps
from dpo_core.model import GPT

__all__ = ["AnswerBatch", "Sample", "answer_logps", "answer_states", "collate_answers", "token_entropy"]

Sample = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt and of an answer to it


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts with their answers, one a row, padded on the right."""

    ids: Tensor  # (B, W) token ids; the padding is 0, which nothing attends to or predicts
    predicts: Tensor  # (B, W) True where the state predicts a token of the answer
    last: Tensor  # (B,) where in the row the answer's last token stands
    targets: Tensor  # (N,) the tokens of the answers
    mask: Tensor  # (B, T) True where an answer has a token

    def table(self, values: Tensor) -> Tensor:
        """Lay out one value per token, (N,), as a table of one row per answer: (B, T), 0 where there is no token."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


def collate_answers(
    samples: Sequence[Sample], device: torch.device | str = "cpu", width: int | None = None
) -> AnswerBatch:
    """Pack prompts and answers into one batch.

    Args:
        samples: B prompts with their answers, none of which is empty; an answer that ended ends in its end-of-text.
        device: of the batch.
        width: T, if the tables shall be wider than the longest of these answers.
    Returns:
        The batch.

    >>> batch = collate_answers([([5, 6], [7, 9]), ([5], [9])])
    >>> batch.ids.tolist(), batch.mask.tolist()
    ([[5, 6, 7, 9], [5, 9, 0, 0]], [[True, True], [True, False]])
    >>> batch.predicts.int().tolist(), batch.targets.tolist(), batch.last.tolist()
    ([[0, 1, 1, 0], [1, 0, 0, 0]], [7, 9, 9], [3, 1])
    """
    W = max(len(prompt) + len(answer) for prompt, answer in samples)
    T = width or max(len(answer) for _, answer in samples)
    numbers = partial(torch.tensor, dtype=torch.long, device=device)
    ids = numbers([[*prompt, *answer, *[0] * (W - len(prompt) - len(answer))] for prompt, answer in samples])
    first = numbers([len(prompt) for prompt, _ in samples])[:, None]  # (B, 1) where the answer begins
    length = numbers([len(answer) for _, answer in samples])[:, None]
    at = torch.arange(W, device=device)
    return AnswerBatch(
        ids=ids,
        predicts=(at >= first - 1) & (at < first + length - 1),  # the state at t predicts token t + 1
        last=(first + length - 1)[:, 0],
        targets=numbers([token for _, answer in samples for token in answer]),
        mask=torch.arange(T, device=device) < length,
    )


def answer_states(model: GPT, batch: AnswerBatch) -> Tensor:
    """Compute the states that predict the answers' tokens.

    Args:
        model: any GPT.
        batch: on the model's device.
    Returns:
        (N, C), answer after answer.
    """
    return model.hidden(batch.ids)[batch.predicts]


def answer_logps(model: GPT, batch: AnswerBatch, states: Tensor | None = None) -> Tensor:
    """Compute the log-probability of each token of the answers, given all tokens before it.

    Args:
        model: any GPT.
        batch: on the model's device.
        states: of ``answer_states``, if they are there already.
    Returns:
        (B, T) nats, 0 where there is no token; the sums of the rows are those of ``sequence_logps``.

    >>> from dpo_core.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    >>> answer_logps(model, collate_answers([([5, 6], [7, 9]), ([5], [9])])).shape
    torch.Size([2, 2])
    """
    states = answer_states(model, batch) if states is None else states
    return batch.table(head_logps(states, model.wte.weight, batch.targets))


@torch.no_grad()
def token_entropy(model: GPT, states: Tensor, chunk: int = 1024) -> Tensor:
    """Compute the entropy of the next token, of which the policy's entropy is the mean.

    Args:
        model: any GPT.
        states: (N, C) of ``answer_states``.
        chunk: states whose logits exist at the same time.
    Returns:
        (N,) nats from 0 to log V.

    >>> from dpo_core.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    >>> token_entropy(model, torch.zeros(2, 8))  # all tokens alike: ln 8
    tensor([2.0794, 2.0794])
    """
    logps = (model.logits(part).float().log_softmax(-1) for part in states.split(chunk))
    return torch.cat([-(each.exp() * each).sum(-1) for each in logps])
