"""The exercises of chapter 01: mask, log-probability, and the seam between prompt and answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiktoken
import torch
from torch import Tensor

from dpo_core.course.exercises.base import Exercise
from dpo_core.data import encode_pair
from dpo_core.formats.pairs import PreferencePair
from dpo_core.logprobs import sequence_logps, token_logps
from dpo_core.model import GPT, GPTConfig
from dpo_core.tokenizer import load_tokenizer

__all__ = ["EXERCISES"]

# The completion mask


def _mask_cases() -> list[tuple]:
    return [(torch.tensor([2, 3, 1]), torch.tensor([5, 4, 7]), 7), (torch.tensor([4]), torch.tensor([6]), 9)]


def _marked(first: int, last: int) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Make a mask from ``first`` tokens after the prompt's end to ``last`` tokens after the answer's."""

    def mask(prompt_lengths: Tensor, lengths: Tensor, width: int) -> Tensor:
        t = torch.arange(width)
        return (t >= prompt_lengths[:, None] + first) & (t < lengths[:, None] + last)

    return mask


COMPLETION_MASK = Exercise(
    cases=_mask_cases,
    right=_marked(0, 0),
    mistakes={
        "the prompt's last token is marked; index prompt_length is the answer's first token": _marked(-1, 0),
        "the answer's first token is not marked; it stands at index prompt_length": _marked(1, 0),
        "the end-of-text token is not marked; it is the answer's last token, at index length - 1": _marked(0, -1),
        "one token of padding is marked; the answer ends before index length": _marked(0, 1),
        "padding is marked": _marked(0, 1_000),
        "the prompt is marked": _marked(-1_000, 0),
        "the mask is inverted; the answer is 1, all else 0": lambda *arguments: ~_marked(0, 0)(*arguments),
    },
)


# The log-probability of an answer


def _sequence_cases() -> list[tuple]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT(GPTConfig(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # far from uniform, so that mistakes show
        cases = []
        for rows, width in ((1, 3), (2, 8), (3, 12), (4, 16)):
            mask = _marked(0, 0)(
                torch.randint(1, width // 2 + 1, (rows,)), torch.randint(width - 1, width, (rows,)), width
            )
            cases.append((model, torch.randint(11, (rows, width)), mask.long()))
    return cases


def _logps(model: GPT, ids: Tensor, targets: Tensor) -> Tensor:
    """Compute the (B, T) log-probability of each target under the logits that stand at its own index."""
    return token_logps(model(ids).flatten(0, 1), targets.flatten()).view(ids.shape)


def _without_shift(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    return (_logps(model, ids, ids) * mask).sum(1)


def _shifted_twice(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    return (_logps(model, ids, ids.roll(-2, 1))[:, :-2] * mask[:, 2:]).sum(1)


def _mask_not_shifted(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    return (_logps(model, ids, ids.roll(-1, 1))[:, :-1] * mask[:, :-1]).sum(1)


def _without_mask(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    return sequence_logps(model, ids, torch.ones_like(mask))


def _mean(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    return sequence_logps(model, ids, mask) / mask.sum(1)


def _mean_of_row(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    return sequence_logps(model, ids, mask) / (ids.shape[1] - 1)


def _raw_logits(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    return (model(ids)[:, :-1].gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]).sum(1)


def _probabilities(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    return (_logps(model, ids, ids.roll(-1, 1))[:, :-1].exp() * mask[:, 1:]).sum(1)


SEQUENCE_LOGPS = Exercise(
    cases=_sequence_cases,
    right=sequence_logps,
    mistakes={
        "the shift is missing; the logits at t predict token t + 1": _without_shift,
        "the shift is 2, not 1; the logits at t predict token t + 1": _shifted_twice,
        "the targets are shifted but the mask is not; use mask[:, 1:]": _mask_not_shifted,
        "the mask is not used, so prompt and padding count": _without_mask,
        "this is the mean over the answer's tokens; return the sum": _mean,
        "this is the mean over the whole row, padding included; return the sum": _mean_of_row,
        "these are sums of logits; take log_softmax first": _raw_logits,
        "these are sums of probabilities; take log_softmax instead of softmax": _probabilities,
        "the sign is wrong; a log-probability is at most 0": lambda *arguments: -sequence_logps(*arguments),
    },
)


# The seam between prompt and answer


def _seam_cases() -> list[tuple]:
    encoding = load_tokenizer("pocket")
    return [
        (encoding, "What is the capital of France?\n", "Paris is the capital."),
        (encoding, "The capital of France is", " Paris."),
        (encoding, "The capital of France is ", "Paris."),
        (encoding, "Name three oceans.\n", "1. The Atlantic.\n2. The Pacific."),
    ]


def _split_prompt(encoding: tiktoken.Encoding, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    encoded = encode_pair(encoding, PreferencePair(prompt, answer, answer))
    return encoded.prompt, encoded.chosen


def _split_apart(encoding: tiktoken.Encoding, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    return encoding.encode_ordinary(prompt), [*encoding.encode_ordinary(answer), encoding.eot_token]


def _split_by_count(encoding: tiktoken.Encoding, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    whole = [*encoding.encode_ordinary(prompt + answer), encoding.eot_token]
    count = len(encoding.encode_ordinary(prompt))
    return whole[:count], whole[count:]


def _without_end(
    split: Callable[..., tuple[list[int], list[int]]],
) -> Callable[..., tuple[list[int], list[int]]]:
    def shorter(*arguments: Any) -> tuple[list[int], list[int]]:
        prompt, answer = split(*arguments)
        return prompt, answer[:-1]

    return shorter


SPLIT_PROMPT = Exercise(
    cases=_seam_cases,
    right=_split_prompt,
    mistakes={
        "prompt and answer are encoded apart, which gives other tokens than the whole text has": _split_apart,
        "the cut is at the prompt's token count; where tokens merge, the answer's first letters go to the prompt": (
            _split_by_count
        ),
        "the end-of-text token is missing at the answer's end": _without_end(_split_prompt),
        "prompt and answer are encoded apart, and the end-of-text token is missing": _without_end(_split_apart),
    },
)


EXERCISES = {
    "completion_mask": COMPLETION_MASK,
    "sequence_logps": SEQUENCE_LOGPS,
    "split_prompt": SPLIT_PROMPT,
}
