"""Text from a model: batched sampling with a key-value cache.

Prompts of unequal length are padded on the right. The columns of padding stay in the cache, hidden by the mask,
and each row counts its positions on from its own prompt, so a row gets the numbers it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tiktoken
import torch
from torch import Tensor
from tqdm import tqdm

from dpo_core.errors import InputError
from dpo_core.model import GPT, KVCache
from dpo_core.tokenizer import check_encoding, open_prompt

__all__ = ["Generation", "encode_prompt", "filter_logits", "generate"]


@dataclass
class Generation:
    """One answer and how it came to its end."""

    text: str  # the answer, cut before a stop; after a colon it begins with the space
    ids: list[int]  # every sampled token, the end-of-text token and those of a stop included
    ended: bool  # by the end-of-text token or a stop, not by max_new_tokens or the model's context
    prompt: str  # as given


def encode_prompt(model: GPT, encoding: tiktoken.Encoding, prompt: str) -> list[int]:
    """Encode a prompt into the token ids that ``generate`` continues.

    Args:
        model: what they are for; its context must have room for one more token.
        encoding: text to tokens.
        prompt: opened with ``open_prompt``.
    Returns:
        Token ids, at least one and fewer than the model has positions.
    Raises:
        InputError: the prompt is blank or too long, or the encoding is not the model's.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> encode_prompt(GPT.from_pretrained("pocket"), load_tokenizer("pocket"), "A")
    [65, 10]
    """
    limit = model.config.n_positions
    check_encoding(encoding, model.config.tokenizer, model.config.vocab_size)
    if not prompt.strip():
        raise InputError(f"prompt {prompt!r} is blank: give the model at least one word to go on")
    ids = encoding.encode_ordinary(open_prompt(prompt))
    if len(ids) >= limit:
        raise InputError(
            f"prompt {prompt[:40]!r}... has {len(ids)} tokens, which leaves no room for an answer in the model's"
            f" {limit} positions: shorten it"
        )
    return ids


def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Apply temperature, then ``top_k``, then ``top_p`` to the logits from which a token is sampled.

    Args:
        logits: (..., V).
        temperature: above 0; below 1 sharpens, above 1 flattens.
        top_k: keep this many of the most probable tokens (and ties with the last of them).
        top_p: keep the fewest most probable tokens that together hold this share of what top_k left
            (nucleus sampling, 1904.09751).
    Returns:
        (..., V) float32 logits up to a constant, ``-inf`` where a token is cut.

    >>> filter_logits(torch.tensor([0.0, 3.0, 2.0]), top_k=2)
    tensor([-inf, 0., -1.])
    """
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest is 0: a tiny temperature is safe
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        probs, order = logits.softmax(-1).sort(descending=True, stable=True)
        held_before = probs.cumsum(-1) - probs
        cut = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, held_before >= top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def generate(
    model: GPT,
    encoding: tiktoken.Encoding,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[str] = (),
    seed: int | None = None,
    batch_size: int = 64,
) -> list[Generation]:
    """Continue each prompt until the end-of-text token, a stop, ``max_new_tokens`` or the end of the context.

    In a terminal a bar counts the batches, if there are several.

    Args:
        model: sampled in evaluation mode.
        encoding: of the model.
        prompts: each opened with ``open_prompt``, so a question is answered on a new line.
        max_new_tokens: tokens per answer at most.
        temperature: 0 takes the most probable token each time; 1 samples the model's own distribution.
        top_k: see ``filter_logits``.
        top_p: see ``filter_logits``.
        stop: an answer ends before the first of these texts to be complete.
        seed: for the same answers again, given the same prompts and batch size; torch's global state if not given.
        batch_size: prompts at a time; more is faster and takes more memory.
    Returns:
        One answer per prompt, in order.
    Raises:
        InputError: a prompt is blank or too long, or a setting is out of its range.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> answers = generate(GPT.from_pretrained("pocket"), load_tokenizer("pocket"), ["Why is the sky blue?"], seed=0)
    >>> answers[0].prompt, len(answers[0].ids) <= 128
    ('Why is the sky blue?', True)
    """
    _check(prompts, max_new_tokens, temperature, top_k, top_p, stop, batch_size)
    encoded = [encode_prompt(model, encoding, prompt) for prompt in prompts]
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)

    def choose(logits: Tensor) -> Tensor:  # (B, V) -> (B,)
        if temperature == 0:
            return logits.argmax(-1)
        probs = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
        return torch.multinomial(probs, 1, generator=generator)[:, 0]

    training = model.training
    model.eval()
    answers = [Generation(text="", ids=[], ended=False, prompt=prompt) for prompt in prompts]
    try:
        few = len(prompts) <= batch_size
        for at in tqdm(range(0, len(prompts), batch_size), disable=few or None, unit="batch", leave=False):
            rows = slice(at, at + batch_size)
            _answer(model, encoding, encoded[rows], answers[rows], choose, max_new_tokens, stop)
    finally:
        model.train(training)
    return answers


@torch.no_grad()
def _answer(
    model: GPT,
    encoding: tiktoken.Encoding,
    prompts: list[list[int]],
    answers: list[Generation],
    choose: Callable[[Tensor], Tensor],
    max_new_tokens: int,
    stop: Sequence[str],
) -> None:
    """Fill one batch of answers; a row that is done leaves the batch, and so the cache."""
    lengths = torch.tensor([len(ids) for ids in prompts], device=model.device)  # (B,)
    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in prompts], device=model.device)  # (B, P)
    visible = torch.arange(width, device=model.device) < lengths[:, None]  # (B, P)
    rooms = [min(max_new_tokens, model.config.n_positions - len(row)) for row in prompts]
    running = list(range(len(prompts)))  # the rows still in the batch

    cache: KVCache = []
    states = model.hidden(ids, cache=cache)  # causal attention never looks at padding on the right
    states = states[torch.arange(len(prompts), device=model.device), lengths - 1]  # (B, C)
    while True:
        tokens = choose(model.logits(states)[:, : encoding.n_vocab])  # (B,)
        for row, token in zip(running, tokens.tolist()):
            _extend(answers[row], token, encoding, stop)
        going = [i for i, row in enumerate(running) if not answers[row].ended and len(answers[row].ids) < rooms[row]]
        if not going:
            return
        if len(going) < len(running):
            kept = torch.tensor(going, device=model.device)
            running = [running[i] for i in going]
            tokens, lengths, visible = tokens[kept], lengths[kept], visible[kept]
            cache[:] = [(keys[kept], values[kept]) for keys, values in cache]
        visible = torch.cat([visible, visible.new_ones(len(running), 1)], dim=1)  # (B, T_past + 1)
        states = model.hidden(tokens[:, None], lengths[:, None], visible[:, None, None], cache)[:, 0]
        lengths = lengths + 1


def _extend(answer: Generation, token: int, encoding: tiktoken.Encoding, stop: Sequence[str]) -> None:
    answer.ids.append(token)
    answer.ended = token == encoding.eot_token
    answer.text = encoding.decode(answer.ids[:-1] if answer.ended else answer.ids)
    if found := [answer.text.index(text) for text in stop if text in answer.text]:
        answer.text = answer.text[: min(found)]
        answer.ended = True


def _check(
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop: Sequence[str],
    batch_size: int,
) -> None:
    faults = {
        f"prompts is the text {prompts!r}: put it in a list": isinstance(prompts, str),
        f"stop is the text {stop!r}: put it in a list": isinstance(stop, str),
        "a stop is empty and would end every answer at once: leave it out": "" in list(stop),
        f"max_new_tokens must be at least 1, not {max_new_tokens}": max_new_tokens < 1,
        f"temperature must be 0 (greedy) or more, not {temperature}": not 0 <= temperature < float("inf"),
        f"top_k must be at least 1, not {top_k}": top_k is not None and top_k < 1,
        f"top_p must be above 0 and at most 1, not {top_p}": top_p is not None and not 0 < top_p <= 1,
        f"batch_size must be at least 1, not {batch_size}": batch_size < 1,
    }
    for fault, present in faults.items():
        if present:
            raise InputError(fault)
