"""The exercises of chapter 09: Wilson interval, paired error, like lengths, k3, calibration error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpo_core.course.exercises.base import Exercise

__all__ = ["EXERCISES"]

Z = 1.96


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The Wilson interval


def _wilson_cases() -> list[tuple]:
    return [tuple(torch.tensor(pair, dtype=torch.float64)) for pair in ((8, 10), (0, 5), (26.5, 48), (390, 400))]


def _wilson(wins: Tensor, n: Tensor, z: float = Z) -> Tensor:
    share, scale = wins / n, 1 + z**2 / n
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)).sqrt()
    return torch.stack([share + z**2 / (2 * n) - half, share + z**2 / (2 * n) + half]) / scale


def _wald(wins: Tensor, n: Tensor) -> Tensor:
    share = wins / n
    half = Z * (share * (1 - share) / n).sqrt()
    return torch.stack([share - half, share + half])


WILSON = Exercise(
    cases=_wilson_cases,
    right=_wilson,
    mistakes={
        "this is the share plus and minus 1.96 standard errors (Wald); with 0 of 5 it is no interval at all": _wald,
        "it is not divided by 1 + z²/n": lambda wins, n: _wilson(wins, n) * (1 + Z**2 / n),
        "z is 1, which makes 68 %; 1.96 makes 95 %": lambda wins, n: _wilson(wins, n, 1.0),
        "lower and upper end are exchanged": lambda wins, n: _wilson(wins, n).flip(0),
        "these are counts; divide by n": lambda wins, n: _wilson(wins, n) * n,
    },
)


# The paired standard error


def _paired_cases() -> list[tuple]:
    hard = [torch.randn(40, generator=_generator(seed)) * 2 for seed in (0, 1)]  # what makes a prompt hard for both
    return [tuple(common + torch.randn(2, 40, generator=_generator(9 + i))) for i, common in enumerate(hard)]


PAIRED_ERROR = Exercise(
    cases=_paired_cases,
    right=lambda a, b: (a - b).std() / len(a) ** 0.5,
    mistakes={
        "it treats the two lists as if they were of different prompts; take the differences first": (
            lambda a, b: (a.var() / len(a) + b.var() / len(b)).sqrt()
        ),
        "this is the spread of single differences; divide by √n": lambda a, b: (a - b).std(),
        "it divides by n; the error falls with √n": lambda a, b: (a - b).std() / len(a),
        "this is the mean difference; its standard error is asked for": lambda a, b: (a - b).mean(),
        "the spread is divided by n, not by n - 1": lambda a, b: (a - b).std(correction=0) / len(a) ** 0.5,
        "this is a variance; take the root": lambda a, b: (a - b).var() / len(a),
    },
)


# The win rate among answers of like length


def _length_cases() -> list[tuple]:
    scores = [torch.randint(0, 4, (2, 60), generator=_generator(seed)).float() for seed in (2, 3)]
    words = [torch.randint(20, 60, (2, 60), generator=_generator(seed)).float() for seed in (4, 5)]
    return [(*score, *length, 0.2) for score, length in zip(scores, words)]


def _like_length(
    points: Callable[[Tensor, Tensor], Tensor], against: Callable[[Tensor, Tensor], Tensor] = torch.maximum
) -> Callable[..., Tensor]:
    def rate(scores_a: Tensor, scores_b: Tensor, words_a: Tensor, words_b: Tensor, tolerance: float) -> Tensor:
        like = (words_a - words_b).abs() <= tolerance * against(words_a, words_b)
        return points(scores_a, scores_b)[like].mean()

    return rate


def _half_for_ties(a: Tensor, b: Tensor) -> Tensor:
    return (1 + (a - b).sign()) / 2


def _without_ties(
    scores_a: Tensor, scores_b: Tensor, words_a: Tensor, words_b: Tensor, tolerance: float
) -> Tensor:  # as some leader boards have it
    untied = scores_a != scores_b
    lists = (part[untied] for part in (scores_a, scores_b, words_a, words_b))
    return _like_length(_half_for_ties)(*lists, tolerance)


LIKE_LENGTH = Exercise(
    cases=_length_cases,
    right=_like_length(_half_for_ties),
    mistakes={
        "length is not looked at; this is the win rate of all pairs": lambda *a: _half_for_ties(*a[:2]).mean(),
        "ties count as losses; let them count half": _like_length(lambda a, b: (a > b).float()),
        "ties count as wins; let them count half": _like_length(lambda a, b: (a >= b).float()),
        "ties are left out; let them count half": _without_ties,
        "the difference is compared with the shorter answer; take the longer one": (
            _like_length(_half_for_ties, torch.minimum)
        ),
        "the difference is compared with the tolerance itself; it is a share of the longer answer": (
            lambda *a: _like_length(_half_for_ties, lambda x, y: torch.ones_like(x))(*a)
        ),
        "this is the other model's win rate": lambda *a: 1 - _like_length(_half_for_ties)(*a),
        "the points are divided by the number of all pairs, not of the like ones": (
            lambda a, b, words_a, words_b, tolerance: (
                _half_for_ties(a, b)
                * ((words_a - words_b).abs() <= tolerance * torch.maximum(words_a, words_b)).float()
            ).mean()
        ),
    },
)


# The estimator k3


def _k3_cases() -> list[tuple]:
    reference = [-10 * torch.rand(50, generator=_generator(seed)) for seed in (6, 7)]
    return [(ref + 0.7 * torch.randn(50, generator=_generator(8 + i)), ref) for i, ref in enumerate(reference)]


def _k3(policy: Tensor, reference: Tensor) -> Tensor:
    log_ratio = policy - reference
    return (log_ratio.neg().exp() - 1 + log_ratio).mean()


K3 = Exercise(
    cases=_k3_cases,
    right=_k3,
    mistakes={
        "policy and reference are exchanged; the samples are the policy's, so r is reference / policy": (
            lambda policy, reference: _k3(reference, policy)
        ),
        "this is k1, the mean log-ratio": lambda policy, reference: (policy - reference).mean(),
        "this is k2, half the squared log-ratio": lambda policy, reference: ((policy - reference) ** 2 / 2).mean(),
        "the log of r is added; it is subtracted": (
            lambda policy, reference: ((reference - policy).exp() - 1 + (reference - policy)).mean()
        ),
        "the -1 is missing; the estimate of two equal models must be 0": lambda *a: _k3(*a) + 1,
        "the log-probabilities are not exponentiated: r is a ratio of probabilities": (
            lambda policy, reference: (reference / policy - 1 - (reference / policy).log()).mean()
        ),
        "one value a sample; their mean is asked for": (
            lambda policy, reference: (reference - policy).exp() - 1 - (reference - policy)
        ),
    },
)


# The calibration error


def _calibration_cases() -> list[tuple]:
    shares = [torch.rand(80, generator=_generator(seed)) for seed in (10, 11)]
    hits = [(torch.rand(80, generator=_generator(12 + i)) < 0.5 + 0.3 * (p - 0.5)) for i, p in enumerate(shares)]
    return [(p, hit.float()) for p, hit in zip(shares, hits)]


def _calibration(
    shares: Tensor, hits: Tensor, weigh: bool = True, gap: Callable[[Tensor], Tensor] = torch.abs
) -> Tensor:
    bins = (shares * 5).long().clamp(max=4)
    total, count = torch.zeros(()), 0
    for index in range(5):
        inside = bins == index
        if inside.any():
            total = total + gap(shares[inside].mean() - hits[inside].mean()) * (inside.float().mean() if weigh else 1)
            count += 1
    return total if weigh else total / count


CALIBRATION_ERROR = Exercise(
    cases=_calibration_cases,
    right=_calibration,
    mistakes={
        "each bin counts alike; weigh it by its share of the pairs": lambda shares, hits: _calibration(
            shares, hits, weigh=False
        ),
        "gaps of unlike sign cancel; take their size": lambda shares, hits: _calibration(shares, hits, gap=lambda x: x),
        "the gaps are squared; take their size": lambda shares, hits: _calibration(shares, hits, gap=torch.square),
        "nothing is binned; this is the gap of the means": lambda shares, hits: (shares.mean() - hits.mean()).abs(),
        "nothing is binned; single labels are 0 or 1, so each pair is far off": (
            lambda shares, hits: (shares - hits).abs().mean()
        ),
    },
)


EXERCISES = {
    "wilson": WILSON,
    "paired_error": PAIRED_ERROR,
    "like_length": LIKE_LENGTH,
    "k3": K3,
    "calibration_error": CALIBRATION_ERROR,
}
