"""The exercises of chapter 05: log-probabilities step by step, the loss, its gradient, and one row per pair."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.course.exercises.base import Exercise
from dpo_core.losses import dpo_loss

__all__ = ["EXERCISES"]

# Each token's log-probability under what stands before it


def _logits_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 3, 5), (2, 6, 7), (3, 4, 11))
    return [
        (3 * torch.randn(shape, generator=generator), torch.randint(shape[2], shape[:2], generator=generator))
        for shape in shapes
    ]


def _picked(scores: Tensor, ids: Tensor) -> Tensor:
    return scores.gather(2, ids[..., None])[..., 0]


def _next_token_logps(logits: Tensor, ids: Tensor) -> Tensor:
    return _picked(logits[:, :-1].log_softmax(2), ids[:, 1:])


NEXT_TOKEN_LOGPS = Exercise(
    cases=_logits_cases,
    right=_next_token_logps,
    mistakes={
        "the shift is missing; the logits at t predict token t + 1, the last logits predict nothing": lambda *given: (
            _picked(given[0].log_softmax(2), given[1])
        ),
        "the last column is dropped, but the shift is missing; the logits at t predict token t + 1": lambda *given: (
            _picked(given[0].log_softmax(2), given[1])[:, :-1]
        ),
        "the shift goes the wrong way; drop the last logits and the first token": lambda *given: _picked(
            given[0][:, 1:].log_softmax(2), given[1][:, :-1]
        ),
        "these are logits; take log_softmax first": lambda *given: _picked(given[0][:, :-1], given[1][:, 1:]),
        "these are probabilities; use log_softmax instead of softmax": lambda *given: _next_token_logps(*given).exp(),
        "log_softmax runs over the positions; the vocabulary is the last dimension": lambda *given: _picked(
            given[0][:, :-1].log_softmax(1), given[1][:, 1:]
        ),
        "the sign is wrong; a log-probability is at most 0": lambda *given: -_next_token_logps(*given),
    },
)


# The sum over the answer


def _answer_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(1)
    cases = []
    for prompts, ends in (([2], [5]), ([1, 3, 4], [4, 8, 6]), ([5, 2], [7, 9])):
        t = torch.arange(max(ends) + 1)
        mask = (t >= torch.tensor(prompts)[:, None]) & (t < torch.tensor(ends)[:, None])
        cases.append((-3 * torch.rand(len(ends), len(t) - 1, generator=generator), mask.long()))
    return cases


def _answer_sum(logps: Tensor, mask: Tensor) -> Tensor:
    return (logps * mask[:, 1:]).sum(1)


def _without_last(mask: Tensor) -> Tensor:
    return mask * F.pad(mask[:, 1:], (0, 1))  # a token counts only if the next one does


ANSWER_SUM = Exercise(
    cases=_answer_cases,
    right=_answer_sum,
    mistakes={
        "the mask is not shifted; logps[:, t] belongs to token t + 1, so use mask[:, 1:]": lambda logps, mask: (
            logps * mask[:, :-1]
        ).sum(1),
        "the mask is not used, so prompt and padding count": lambda logps, mask: logps.sum(1),
        "this is the mean over the answer's tokens; return the sum": lambda logps, mask: (
            _answer_sum(logps, mask) / mask.sum(1)
        ),
        "this is the mean over the whole row with its padding; return the sum": lambda logps, mask: (
            logps * mask[:, 1:]
        ).mean(1),
        "the last token of the answer, its end of text, is left out; it counts": lambda logps, mask: _answer_sum(
            logps, _without_last(mask)
        ),
        "this also sums over the batch; return one number per row": lambda logps, mask: (logps * mask[:, 1:]).sum(),
    },
)


# The loss


def _loss_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(2)
    cases = [
        (*(-20 + 5 * torch.randn(count, generator=generator) for _ in range(4)), beta)
        for count, beta in ((1, 0.1), (4, 0.5), (3, 2.0))
    ]
    far = torch.tensor([-2000.0, -50.0]), torch.tensor([-100.0, -3000.0])  # margins of -1,900 and 2,950
    return [*cases, (*far, torch.full((2,), -100.0), torch.full((2,), -100.0), 1.0)]


def _loss(sign: float = -1.0, inside: float = 1.0, power: int = 1, outside: int = 0) -> Callable[..., Tensor]:
    """Compute sign beta^outside log sigmoid(inside beta^power h)."""

    def loss(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
        return sign * beta**outside * F.logsigmoid(inside * beta**power * ((pc - rc) - (pr - rr)))

    return loss


def _unstable(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    return -torch.log(torch.sigmoid(beta * ((pc - rc) - (pr - rr))))


DPO_LOSS = Exercise(
    cases=_loss_cases,
    right=_loss(),
    mistakes={
        "this is the mean; return one loss per pair, and let the caller average": (
            lambda *given: _loss()(*given).mean()
        ),
        "this uses two of the four numbers; a pair has two answers": (
            lambda pc, pr, rc, rr, beta: -F.logsigmoid(beta * (pc - rc))
        ),
        "the reference is missing; the margin is a difference of log-ratios": (
            lambda pc, pr, rc, rr, beta: -F.logsigmoid(beta * (pc - pr))
        ),
        "the reference has the wrong sign; each log-ratio is policy minus reference": (
            lambda pc, pr, rc, rr, beta: -F.logsigmoid(beta * (pc + rc - pr - rr))
        ),
        "beta is applied twice": _loss(power=2),
        "beta is missing; it multiplies the margin": _loss(power=0),
        "beta is outside the sigmoid; it belongs inside": _loss(power=0, outside=1),
        "the sign is wrong; a loss is not negative": _loss(sign=1.0),
        "chosen and rejected are exchanged; the loss is low when the margin is large": _loss(inside=-1.0),
        "the loss is infinite at a large margin, because log(sigmoid(x)) is log(0); use logsigmoid": _unstable,
        "these are probabilities; the loss is -log of them": lambda *given: (-_loss()(*given)).exp(),
    },
)


# Its gradient


def _gradient_cases() -> list[tuple]:
    return _loss_cases()[:3]


def _gradient(
    sign: float = -1.0, inside: float = -1.0, beta_outside: bool = True, beta_inside: bool = True
) -> Callable[..., Tensor]:
    def gradient(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
        h = (pc - rc) - (pr - rr)
        return sign * (beta if beta_outside else 1) * torch.sigmoid(inside * (beta if beta_inside else 1) * h)

    return gradient


DPO_GRADIENT = Exercise(
    cases=_gradient_cases,
    right=_gradient(),
    mistakes={
        "the sign is wrong; a step should raise the chosen answer, so its gradient is negative": _gradient(sign=1.0),
        "beta is missing in front; the chain rule brings it out": _gradient(beta_outside=False),
        "beta is missing inside the sigmoid": _gradient(beta_inside=False),
        "the weight is sigmoid(+margin) instead of sigmoid(-margin); pairs with a negative margin should pull most": (
            _gradient(inside=1.0)
        ),
        "this is the gradient of the mean; return the gradient of each pair's own loss": lambda *given: (
            _gradient()(*given) / len(given[0])
        ),
    },
)


# A loss that survives large margins


def _margin_cases() -> list[tuple]:
    return [(torch.linspace(-4, 4, 9),), (torch.tensor([-500.0, -90.0, -20.0, 20.0, 90.0, 500.0]),)]


NEG_LOG_SIGMOID = Exercise(
    cases=_margin_cases,
    right=lambda x: -F.logsigmoid(x),
    mistakes={
        "the loss is infinite at large negative margins, where float32 has 0 for sigmoid(x) and infinity for exp(-x)": (
            lambda x: -torch.log(torch.sigmoid(x))
        ),
        "the loss is nan at large positive margins, where exp(x) is too large for float32": lambda x: (
            -torch.log(torch.exp(x) / (1 + torch.exp(x)))
        ),
        "a small number under the log caps the loss, so there is no gradient where the model is most wrong": (
            lambda x: -torch.log(torch.sigmoid(x) + 1e-8)
        ),
        "the margin is clipped, so there is no gradient where the model is most wrong": lambda x: (
            -F.logsigmoid(x.clamp(-20, 20))
        ),
        "the sign of the margin is wrong": lambda x: -F.logsigmoid(-x),
        "the sign of the loss is wrong": lambda x: F.logsigmoid(x),
    },
)


# One row per pair


def _segment_cases() -> list[tuple]:
    return [(torch.tensor(segments),) for segments in ([0, 0, 1, 1, 2, 2, 2], [0, 1, 2], [0, 0, 0, 1, 2, 2])]


def _pair_mask(segments: Tensor) -> Tensor:
    query, key = segments[:, None], segments[None, :]
    return _causal(segments) & ((query == key) | (key == 0))


def _causal(segments: Tensor) -> Tensor:
    return torch.ones(len(segments), len(segments), dtype=torch.bool).tril()


PAIR_MASK = Exercise(
    cases=_segment_cases,
    right=_pair_mask,
    mistakes={
        "the rejected answer sees the chosen one": _causal,
        "the answers do not see the prompt": lambda segments: (
            _causal(segments) & (segments[:, None] == segments[None, :])
        ),
        "tokens see what comes after them; the mask has to be causal as well": lambda segments: (
            (segments[:, None] == segments[None, :]) | (segments[None, :] == 0)
        ),
        "rows and columns are exchanged; the row is the token that looks": lambda segments: _pair_mask(segments).T,
        "no token sees itself; allow the diagonal": lambda segments: (
            _pair_mask(segments) & ~torch.eye(len(segments), dtype=torch.bool)
        ),
        "the mask is inverted; true means that looking is allowed": lambda segments: ~_pair_mask(segments),
    },
)


# Labels that may be wrong


def _smoothed_cases() -> list[tuple]:
    return [(*case, smoothing) for case, smoothing in zip(_loss_cases(), (0.1, 0.3, 0.2))]


def _smoothed(right: Callable[[float], float], wrong: Callable[[float], float]) -> Callable[..., Tensor]:
    """Add right(e) times the loss as labelled and wrong(e) times that of the flipped label."""

    def loss(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float, smoothing: float) -> Tensor:
        margin = beta * ((pc - rc) - (pr - rr))
        return -right(smoothing) * F.logsigmoid(margin) - wrong(smoothing) * F.logsigmoid(-margin)

    return loss


CDPO_LOSS = Exercise(
    cases=_smoothed_cases,
    right=lambda *given: dpo_loss(*given).loss,
    mistakes={
        "the weights are exchanged; smoothing is the share of wrong labels": _smoothed(lambda e: e, lambda e: 1 - e),
        "the weights do not add up to 1; the given label has the weight 1 - smoothing": _smoothed(
            lambda e: 1, lambda e: e
        ),
        "the loss of the flipped label is subtracted, as in robust DPO; add it": _smoothed(
            lambda e: 1 - e, lambda e: -e
        ),
        "this is robust DPO, which corrects for the flips; return the plain mixture": _smoothed(
            lambda e: (1 - e) / (1 - 2 * e), lambda e: -e / (1 - 2 * e)
        ),
        "the smoothing is not used": _smoothed(lambda e: 1, lambda e: 0),
        "the margin is shrunk; mix the two losses instead": lambda *given: _smoothed(lambda e: 1, lambda e: 0)(
            *given[:4], given[4] * (1 - 2 * given[5]), 0.0
        ),
        "only the given label counts, with less weight; add the loss of the flipped label": _smoothed(
            lambda e: 1 - e, lambda e: 0
        ),
    },
)


EXERCISES = {
    "next_token_logps": NEXT_TOKEN_LOGPS,
    "answer_sum": ANSWER_SUM,
    "dpo_loss": DPO_LOSS,
    "dpo_gradient": DPO_GRADIENT,
    "neg_log_sigmoid": NEG_LOG_SIGMOID,
    "pair_mask": PAIR_MASK,
    "cdpo_loss": CDPO_LOSS,
}
