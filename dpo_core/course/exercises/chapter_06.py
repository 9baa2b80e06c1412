"""The exercises of chapter 06: accumulation, clipping, warm-up, the first gradient, and the order of the pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.course.exercises.base import Exercise
from dpo_core.data import batches
from dpo_core.losses import dpo_loss

__all__ = ["EXERCISES"]

# Accumulation


def _softplus_loss(weights: Tensor, pairs: Tensor) -> Tensor:
    """Compute a loss of features (B, P) in the shape of DPO's: (B,)."""
    return F.softplus(-pairs @ weights)


def _accumulation_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, 2, 1), (5, 1), (4, 4, 3, 2))  # no two passes alike, so that a wrong divisor shows
    return [
        (torch.randn(6, generator=generator), _softplus_loss, [torch.randn(n, 6, generator=generator) for n in case])
        for case in sizes
    ]


def _accumulated(divisor: Callable[[Tensor, list[Tensor]], float]) -> Callable[..., Tensor]:
    """Add up the sums of the passes, each divided by what ``divisor(part, passes)`` says."""

    def accumulate(weights: Tensor, loss_of: Callable[..., Tensor], passes: list[Tensor]) -> Tensor:
        weights = weights.detach().requires_grad_()
        parts = [loss_of(weights, part).sum() / divisor(part, passes) for part in passes]
        return torch.autograd.grad(torch.stack(parts).sum(), weights)[0]

    return accumulate


def _pairs(passes: list[Tensor]) -> int:
    return sum(map(len, passes))


def _last_only(weights: Tensor, loss_of: Callable[..., Tensor], passes: list[Tensor]) -> Tensor:
    return _accumulated(lambda *_: _pairs(passes))(weights, loss_of, passes[-1:])


ACCUMULATE = Exercise(
    cases=_accumulation_cases,
    right=_accumulated(lambda part, passes: _pairs(passes)),
    mistakes={
        "it is the mean of the passes' means, so a pair in a short pass counts for more; divide each pass's sum by the"
        " number of all pairs": _accumulated(lambda part, passes: len(part) * len(passes)),
        "it is the sum of the passes' means, as many times too long as there are passes": _accumulated(
            lambda part, passes: len(part)
        ),
        "it is the sum over pairs; the mean is asked for": _accumulated(lambda part, passes: 1),
        "each sum is divided by the number of passes; divide it by the number of all pairs": _accumulated(
            lambda part, passes: len(passes)
        ),
        "only the last pass is in it; clear the gradient before the first pass, not before each": _last_only,
        "it is divided by the number of all pairs twice": _accumulated(lambda part, passes: _pairs(passes) ** 2),
    },
)


# Clipping


def _clipping_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(1)
    return [
        (scale * torch.randn(passes, 8, generator=generator), max_norm)
        for passes, scale, max_norm in ((3, 2.0, 1.0), (2, 0.01, 1.0), (4, 3.0, 2.5), (1, 5.0, 0.5))
    ]


def _clipped(gradient: Tensor, max_norm: float) -> Tensor:
    return gradient * min(1.0, max_norm / gradient.norm().item())


CLIP = Exercise(
    cases=_clipping_cases,
    right=lambda passes, max_norm: _clipped(passes.sum(0), max_norm),
    mistakes={
        "each pass is clipped on its own, which bends the direction; add up first, then clip once": (
            lambda passes, max_norm: torch.stack([_clipped(part, max_norm) for part in passes]).sum(0)
        ),
        "each number is clipped on its own, which bends the direction; shorten the whole gradient": (
            lambda passes, max_norm: passes.sum(0).clamp(-max_norm, max_norm)
        ),
        "a gradient shorter than max_norm is lengthened; leave it alone": (
            lambda passes, max_norm: passes.sum(0) * max_norm / passes.sum(0).norm()
        ),
        "nothing is clipped": lambda passes, max_norm: passes.sum(0),
        "it is divided by its length even where max_norm is not 1; multiply by max_norm": (
            lambda passes, max_norm: passes.sum(0) / passes.sum(0).norm().clamp(min=max_norm)
        ),
        "it is the mean over the passes; their losses were divided before, so add up": (
            lambda passes, max_norm: _clipped(passes.mean(0), max_norm)
        ),
    },
)


# Warm-up


def _ramp(first: int, last: int, level: bool = True) -> Callable[[float, int, int], Tensor]:
    """Compute peak times (step + first) / (warmup + last), held at the peak from there on if ``level``."""

    def rates(peak: float, warmup: int, steps: int) -> Tensor:
        ramp = (torch.arange(steps) + first) / max(1, warmup + last)
        return peak * (ramp.clamp(max=1.0) if level else ramp) if warmup else torch.full((steps,), float(peak))

    return rates


WARMUP = Exercise(
    cases=lambda: [(2.0, 4, 8), (1.0, 10, 12), (3.0, 1, 3), (1.5, 0, 4)],
    right=_ramp(1, 0),
    mistakes={
        "the first rate is 0, so the first update does nothing; step s has finished s updates and takes the s+1-th": (
            _ramp(0, 0)
        ),
        "the peak comes one update late; the last of the warm-up's updates has it": _ramp(1, 1),
        "the peak comes one update early": _ramp(2, 0),
        "it goes on rising after the warm-up": _ramp(1, 0, level=False),
        "there is no warm-up": lambda peak, warmup, steps: torch.full((steps,), float(peak)),
    },
)


# The first gradient


def _gradient_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(2)

    def case(pairs: int, beta: float) -> tuple:
        chosen, rejected = torch.randn(2, pairs, 5, generator=generator)
        return torch.randn(5, generator=generator), lambda weights: (chosen @ weights, rejected @ weights), beta

    return [case(1, 0.5), case(4, 2.0), case(7, 1.0)]


LogpsOf = Callable[[Tensor], tuple[Tensor, Tensor]]


def _gradient(detached: bool) -> Callable[[Tensor, LogpsOf, float], Tensor]:
    def gradient(weights: Tensor, logps_of: LogpsOf, beta: float) -> Tensor:
        weights = weights.detach().requires_grad_()
        chosen, rejected = logps_of(weights)
        reference = (chosen.detach(), rejected.detach()) if detached else (chosen, rejected)
        return torch.autograd.grad(dpo_loss(chosen, rejected, *reference, beta).loss.mean(), weights)[0]

    return gradient


def _scaled(scale: Callable[[int, float], float]) -> Callable[[Tensor, LogpsOf, float], Tensor]:
    """Multiply the right gradient by ``scale(pairs, beta)``."""

    def gradient(weights: Tensor, logps_of: LogpsOf, beta: float) -> Tensor:
        return scale(len(logps_of(weights)[0]), beta) * _gradient(detached=True)(weights, logps_of, beta)

    return gradient


def _without_reference(weights: Tensor, logps_of: LogpsOf, beta: float) -> Tensor:
    weights = weights.detach().requires_grad_()
    chosen, rejected = logps_of(weights)
    return torch.autograd.grad(-F.logsigmoid(beta * (chosen - rejected)).mean(), weights)[0]


FIRST_GRADIENT = Exercise(
    cases=_gradient_cases,
    right=_gradient(detached=True),
    mistakes={
        "it is 0, because the reference moves along with the policy; detach its log-probs, or compute them under"
        " no_grad": _gradient(detached=False),
        "the reference is missing: here it makes every margin 0 and every weight one half": _without_reference,
        "beta is missing in front of the log-ratios": _scaled(lambda pairs, beta: 1 / beta),
        "it is the sum over pairs; the mean is asked for": _scaled(lambda pairs, beta: pairs),
        "the sign is wrong: the loss has to fall as the margin grows": _scaled(lambda pairs, beta: -1),
        "the weight of a pair is missing; at a margin of 0 it is one half": _scaled(lambda pairs, beta: 2),
    },
)


# The order of the pairs


def _order_cases() -> list[tuple]:
    return [(10, 4, 0, 2, 7), (9, 2, 1, 6, 11), (5, 5, 3, 1, 4)]


def _same_every_epoch(count: int, size: int, seed: int) -> Iterator[list[int]]:
    while True:
        yield from islice(batches(count, size, seed), -(-count // size))


def _full_only(count: int, size: int, seed: int) -> Iterator[list[int]]:
    return (batch for batch in batches(count, size, seed) if len(batch) == size)


def _remaining(
    order: Callable[[int, int, int], Iterator[list[int]]], skipped: Callable[[int], int]
) -> Callable[[int, int, int, int, int], list[list[int]]]:
    def remaining(count: int, size: int, seed: int, done: int, steps: int) -> list[list[int]]:
        return list(islice(order(count, size, seed), skipped(done), skipped(done) + steps - done))

    return remaining


REMAINING_BATCHES = Exercise(
    cases=_order_cases,
    right=_remaining(batches, lambda done: done),
    mistakes={
        "it begins the order anew, so the first pairs are seen twice and others not at all; pass over the batches that"
        " are done": _remaining(batches, lambda done: 0),
        "every epoch has the same order; go on drawing from one generator": _remaining(
            _same_every_epoch, lambda done: done
        ),
        "one batch too many is passed over; `done` updates have used `done` batches": _remaining(
            batches, lambda done: done + 1
        ),
        "one batch too few is passed over; `done` updates have used `done` batches": _remaining(
            batches, lambda done: done - 1
        ),
        "the smaller batch at the end of an epoch is left out": _remaining(_full_only, lambda done: done),
    },
)


EXERCISES = {
    "accumulate": ACCUMULATE,
    "clip": CLIP,
    "warmup": WARMUP,
    "first_gradient": FIRST_GRADIENT,
    "remaining_batches": REMAINING_BATCHES,
}
