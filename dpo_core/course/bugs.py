"""The laboratory of chapter 05: a tiny GPT, nine bugs of DPO code, and nine checks that look for them.

An implementation is a ``Code``; a bug is a ``Code`` with one part exchanged. A check measures a property that right
code has, and needs no right code to compare with.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.model import GPT, GPTConfig

__all__ = [
    "BUGS", "CHECKS", "EOS", "PROMPT", "VOCABULARY", "Code", "Measured", "Run",
    "answer_rows", "found_by", "score", "tiny_gpt", "toy_pairs", "train",
]  # fmt: skip

VOCABULARY = 11
EOS = 10
PROMPT = [3, 1, 4]
LN_V = math.log(VOCABULARY)  # what each token costs under a uniform model, in nats

Rows = tuple[Tensor, Tensor]  # ids and mask, (R, T) each
Logps = Callable[[GPT, Tensor, Tensor], Tensor]  # model, ids, mask -> (R,)


# The laboratory


def tiny_gpt(seed: int, spread: float) -> GPT:
    """Make a GPT of two layers with random weights in float64; with a spread of 0 it is uniform.

    Args:
        seed: of the weights.
        spread: their standard deviation.
    """
    config = GPTConfig(vocab_size=VOCABULARY, n_positions=256, n_embd=16, n_layer=2, n_head=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tiny = GPT(config).double().eval()
        for parameter in tiny.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return tiny


def answer_rows(answers: list[list[int]], width: int = 0) -> Rows:
    """Put answers to ``PROMPT`` into rows, padded on the right.

    Args:
        answers: token ids, as they are: with or without an ``EOS``.
        width: of the rows, if they have to be wider than the longest answer asks for.

    >>> answer_rows([[7, 10], [10]])
    (tensor([[ 3,  1,  4,  7, 10],
            [ 3,  1,  4, 10,  0]]), tensor([[0, 0, 0, 1, 1],
            [0, 0, 0, 1, 0]]))
    """
    width = max(width, len(PROMPT) + max(map(len, answers)))
    ids = torch.zeros(len(answers), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, answer in enumerate(answers):
        ids[r, : len(PROMPT + answer)] = torch.tensor(PROMPT + answer)
        mask[r, len(PROMPT) : len(PROMPT + answer)] = 1
    return ids, mask


@lru_cache(maxsize=1)
def _drawn() -> tuple[Rows, Rows, list[int]]:
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[int]:
        return torch.randint(EOS, (length,), generator=generator).tolist()

    def answers(shortest: int, longest: int) -> list[list[int]]:
        lengths = (int(torch.randint(shortest, longest, (), generator=generator)) for _ in range(16))
        return [[*tokens(length), EOS] for length in lengths]

    return answer_rows(answers(4, 12)), answer_rows(answers(2, 8)), tokens(200)


def toy_pairs() -> tuple[Rows, Rows]:
    """Give 16 random pairs: the rows of the chosen answers, and those of the shorter rejected ones."""
    return _drawn()[:2]


def _sequence_logps(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """Score answers as ``dpo_core.sequence_logps`` does, in the model's own precision: (R,)."""
    logps = model(ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return (logps * mask[:, 1:]).sum(1)


def _loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def _frozen_copy(model: GPT) -> GPT:
    return copy.deepcopy(model).requires_grad_(False)


@dataclass(frozen=True)
class Code:
    """An implementation of DPO: the parts of it that can be wrong. Without arguments it is right."""

    logps: Logps = _sequence_logps
    loss: Callable[..., Tensor] = _loss  # chosen, rejected, ref_chosen, ref_rejected (B,), beta -> (B,)
    make_reference: Callable[[GPT], GPT] = _frozen_copy
    optimise_reference: bool = False


class Run(NamedTuple):
    """What a training leaves."""

    logged: list[float]  # the loss at each step by the code that was trained with
    true: list[float]  # the loss of the same policy by right code
    reference: GPT  # as it is afterwards


def train(code: Code, steps: int, beta: float = 0.5) -> Run:
    """Train a tiny GPT on the toy pairs.

    Args:
        code: the implementation to train with.
        steps: how many, each over all 16 pairs.
        beta: of the loss.
    """
    policy, start = tiny_gpt(0, 0.2), tiny_gpt(0, 0.2)
    reference = code.make_reference(policy)
    learning = [*policy.parameters(), *(reference.parameters() if code.optimise_reference else ())]
    optimizer = torch.optim.Adam(learning, lr=3e-3)
    logged, true = [], []
    for _ in range(steps):
        with torch.set_grad_enabled(code.optimise_reference):
            of_reference = [code.logps(reference, *rows) for rows in toy_pairs()]
        of_policy = [code.logps(policy, *rows) for rows in toy_pairs()]
        loss = code.loss(*of_policy, *of_reference, beta).mean()
        with torch.no_grad():
            (chosen, rejected), (was_chosen, was_rejected) = (
                [_sequence_logps(model, *rows) for rows in toy_pairs()] for model in (policy, start)
            )
            true.append(_loss(chosen, rejected, was_chosen, was_rejected, beta).mean().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logged.append(loss.item())
    return Run(logged, true, reference)


# The bugs


def without_shift(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """Score each token by the logits at its own place, which have read it already."""
    logps = model(ids).log_softmax(-1).gather(2, ids[..., None])[..., 0]
    return (logps * mask).sum(1)


def prompt_counted(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """Sum over prompt and answer."""
    return _sequence_logps(model, ids, mask + (1 - mask.cummax(1).values))


def padding_counted(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """Sum over answer and padding."""
    return _sequence_logps(model, ids, mask.cummax(1).values)


def mean_for_sum(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """Divide by the number of the answer's tokens."""
    return _sequence_logps(model, ids, mask) / mask.sum(1)


def end_masked(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """Leave out the end of the text."""
    return _sequence_logps(model, ids, mask * (ids != EOS))


def bf16_sums(model: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """Take log-softmax and sum in bf16."""
    logps = model(ids)[:, :-1].bfloat16().log_softmax(-1)
    picked = logps.gather(2, ids[:, 1:, None])[..., 0]
    return (picked * mask[:, 1:]).sum(1).float()


def two_tensors(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """Forget the rejected answer."""
    return -F.logsigmoid(beta * (chosen - ref_chosen))


BUGS = {
    "off-by-one shift": Code(logps=without_shift),
    "prompt counted": Code(logps=prompt_counted),
    "padding counted": Code(logps=padding_counted),
    "mean for sum": Code(logps=mean_for_sum),
    "EOS masked": Code(logps=end_masked),
    "reference moving": Code(make_reference=copy.deepcopy, optimise_reference=True),
    "reference = policy": Code(make_reference=lambda model: model),
    "two-tensor loss": Code(loss=two_tensors),
    "bf16 sums": Code(logps=bf16_sums),
}


# The checks


class Measured(NamedTuple):
    """What a check returns."""

    value: float
    should: float
    tolerance: float


def score(code: Code, answer: list[int], gpt: GPT | None = None, width: int = 0) -> float:
    """Compute the log-probability of one answer by an implementation.

    Args:
        code: the implementation.
        answer: token ids.
        gpt: the model, the uniform one if not given.
        width: as of ``answer_rows``.

    >>> round(score(Code(), [1, 2, EOS]) / LN_V, 6)
    -3.0
    """
    model = tiny_gpt(0, 0.0) if gpt is None else gpt
    with torch.no_grad():
        return code.logps(model, *answer_rows([answer], width)).item()


def starts_at_ln2(code: Code) -> Measured:
    """Take the first loss, where policy and reference are equal."""
    return Measured(train(code, steps=1).logged[0], math.log(2), 1e-4)


def loss_falls(code: Code) -> Measured:
    """Take the loss after 30 steps."""
    return Measured(train(code, steps=30).logged[-1], 0.3, 0.3)


def answers_add_up(code: Code) -> Measured:
    """Add the probabilities of all answers of two tokens."""
    every = answer_rows([list(answer) for answer in product(range(VOCABULARY), repeat=2)])
    with torch.no_grad():
        return Measured(code.logps(tiny_gpt(1, 0.4), *every).exp().sum().item(), 1.0, 0.02)


def tokens_counted(code: Code) -> Measured:
    """Count the tokens that an answer of three is charged for, beside three of prompt and four of padding."""
    return Measured(-score(code, [1, 2, EOS], width=10) / LN_V, 3.0, 0.02)


def padding_is_free(code: Code) -> Measured:
    """Compare an answer in a row with padding and in a row without."""
    gpt, answer = tiny_gpt(1, 0.4), [1, 2, EOS]
    return Measured(score(code, answer, gpt, width=10) - score(code, answer, gpt), 0.0, 1e-3)


def stopping_has_a_price(code: Code) -> Measured:
    """Compare an answer with its end and without."""
    return Measured(score(code, [1, 2, EOS]) - score(code, [1, 2]), -LN_V, 0.1)


def pushes_are_opposite(code: Code) -> Measured:
    """Add the gradients by the log-probabilities of the chosen and the rejected answer."""
    four = (-20 - torch.arange(32.0).view(4, 8).cos()).requires_grad_()
    (slope,) = torch.autograd.grad(code.loss(*four, 0.5).sum(), four)
    return Measured((slope[0] + slope[1]).abs().max().item(), 0.0, 1e-6)


def reference_stays(code: Code) -> Measured:
    """Score with the reference before and after five steps."""
    chosen, _ = toy_pairs()
    reference = train(code, steps=5).reference
    with torch.no_grad():
        before, after = (_sequence_logps(model, *chosen) for model in (tiny_gpt(0, 0.2), reference))
    return Measured((after - before).abs().max().item(), 0.0, 1e-6)


def long_sums_are_exact(code: Code) -> Measured:
    """Score an answer of 200 tokens with the uniform model."""
    return Measured(score(code, _drawn()[2]), -200 * LN_V, 0.01)


CHECKS = (
    starts_at_ln2, loss_falls, answers_add_up, tokens_counted, padding_is_free, stopping_has_a_price,
    pushes_are_opposite, reference_stays, long_sums_are_exact,
)  # fmt: skip


def found_by(code: Code) -> dict[str, bool]:
    """Say of each check, by name, whether an implementation fails it.

    >>> [name for name, fails in found_by(BUGS["two-tensor loss"]).items() if fails]
    ['pushes_are_opposite']
    """
    found = {}
    for check in CHECKS:
        value, should, tolerance = check(code)
        found[check.__name__] = abs(value - should) > tolerance
    return found
