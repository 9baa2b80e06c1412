"""Evaluation with its uncertainty: win rates, differences, and divergence from the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import tiktoken
import torch
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.generate import Generation, encode_prompt, generate
from dpo_core.model import GPT

__all__ = ["Difference", "WinRate", "paired_bootstrap", "parse_share", "sample_kl", "wilson_interval", "win_rate"]


def wilson_interval(wins: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Compute the Wilson score interval of a share, which stays inside [0, 1] and holds for small n (Wilson 1927).

    It is the set of p for which the observed share is within z standard errors of p:
    (share + z²/2n ± z √(share (1 - share)/n + z²/4n²)) / (1 + z²/n).

    Args:
        wins: successes out of n; a tie may count half, which makes the interval a little too wide, never too narrow.
        n: trials.
        z: standard errors; 1.96 for 95 %.
    Returns:
        Lower and upper end, as shares.
    Raises:
        InputError: n is below 1, or wins is not within 0 and n.

    >>> low, high = wilson_interval(8, 10)
    >>> print(f"{low:.3f} to {high:.3f}")
    0.490 to 0.943
    """
    if n < 1:
        raise InputError(f"an interval needs at least one trial, not {n}")
    if not 0 <= wins <= n:
        raise InputError(f"{wins} wins of {n} trials: wins must be between 0 and {n}")
    share = wins / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the two terms are equal; rounding would leave the end a hair inside.
    low = 0.0 if wins == 0 else (centre - half) / scale
    high = 1.0 if wins == n else (centre + half) / scale
    return low, high


@dataclass(frozen=True)
class WinRate:
    """How often A beat B, with the 95 % Wilson interval; a tie counts half."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    n: int

    def __str__(self) -> str:
        return (
            f"win rate {self.rate:.3f} [{self.low:.3f}, {self.high:.3f}]"
            f" ({self.wins} wins, {self.ties} ties, {self.losses} losses, n = {self.n})"
        )


def win_rate(scores_a: Sequence[float], scores_b: Sequence[float]) -> WinRate:
    """Compute how often A's answer scores above B's to the same prompt; ties count half.

    Args:
        scores_a: a judge's scores, one per prompt.
        scores_b: those of B, in the same order.
    Returns:
        The rate with its interval and counts.
    Raises:
        InputError: no scores, lists of different length, or a score that is not a number.

    >>> print(win_rate([3, 2, 5, 1], [1, 2, 4, 2]))
    win rate 0.625 [0.219, 0.908] (2 wins, 1 ties, 1 losses, n = 4)
    """
    _check_paired(scores_a, scores_b)
    n = len(scores_a)
    wins = sum(a > b for a, b in zip(scores_a, scores_b))
    ties = sum(a == b for a, b in zip(scores_a, scores_b))
    low, high = wilson_interval(wins + ties / 2, n)
    return WinRate((wins + ties / 2) / n, low, high, wins, ties, n - wins - ties, n)


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_bootstrap(a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Difference:
    """Compute the mean of a - b with its 95 % percentile interval, by drawing prompts anew (Efron 1979).

    Prompts are drawn with replacement. Both scores of a prompt stay together, so what makes it hard for both cancels.

    Args:
        a: one score per prompt.
        b: the other's, in the same order.
        resamples: more make the ends of the interval steadier.
        seed: of the resampling.
    Returns:
        The mean difference and its interval.
    Raises:
        InputError: fewer than two pairs, lists of different length, a score that is not a number, resamples below 1.

    >>> print(paired_bootstrap([3, 2, 5, 1], [1, 2, 4, 2]))
    +0.500 [-0.500, +1.500]
    """
    _check_paired(a, b)
    if len(a) < 2:
        raise InputError("one pair tells nothing about the spread: give at least two")
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, not {resamples}")
    scores = partial(torch.tensor, dtype=torch.float64, device="cpu")
    differences = scores(a) - scores(b)  # (n,)
    generator = torch.Generator("cpu").manual_seed(seed)
    n = len(differences)
    means = torch.stack(
        [differences[torch.randint(n, (n,), generator=generator, device="cpu")].mean() for _ in range(resamples)]
    )  # (resamples,)
    low, high = means.quantile(scores([0.025, 0.975])).tolist()
    return Difference(differences.mean().item(), low, high)


def parse_share(answers: Sequence[str], parses: Callable[[str], bool]) -> tuple[float, float, float]:
    """Compute the share of answers that a judge can read, with its 95 % Wilson interval: a check of form, not of merit.

    Args:
        answers: texts.
        parses: whether the judge makes sense of a text.
    Returns:
        Share, lower and upper end.
    Raises:
        InputError: no answers.

    >>> share, low, high = parse_share(["The sky is blue.", "sky sky", "Because."], lambda text: text.endswith("."))
    >>> print(f"{share:.2f} [{low:.2f}, {high:.2f}]")
    0.67 [0.21, 0.94]
    """
    parsed = sum(map(parses, answers))
    low, high = wilson_interval(parsed, len(answers))
    return parsed / len(answers), low, high


def sample_kl(
    policy: GPT,
    reference: GPT,
    encoding: tiktoken.Encoding,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    seed: int = 0,
    batch_size: int = 16,
) -> tuple[float, float]:
    """Estimate KL(policy || reference) of whole answers on the policy's own samples at temperature 1.

    KL = E_{y ~ policy} Σ_t KL(policy(· | x, y_<t) || reference(· | x, y_<t)) by the chain rule. So each step of a
    sample adds the exact divergence over all tokens, not the log-ratio of the one that was drawn: the same mean,
    less variance (Rao-Blackwell; 2504.10637).

    Args:
        policy: sampled from.
        reference: what it is compared with; of the same vocabulary, on the same device.
        encoding: of both.
        prompts: one answer each; repeat a prompt for more.
        max_new_tokens: answers are cut there, and the divergence is that of answers so cut.
        seed: of the sampling.
        batch_size: prompts at a time; more is faster and takes more memory.
    Returns:
        Mean and its standard error over the samples, in nats per answer.
    Raises:
        InputError: fewer than two prompts, vocabularies that differ, or what ``generate`` refuses.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> model = GPT.from_pretrained("pocket")
    >>> sample_kl(model, model, load_tokenizer("pocket"), ["Why is the sky blue?"] * 2, max_new_tokens=4)
    (0.0, 0.0)
    """
    if len(prompts) < 2:
        raise InputError(f"a standard error needs at least two prompts, not {len(prompts)}")
    if policy.config.vocab_size != reference.config.vocab_size:
        raise InputError(
            f"the policy has {policy.config.vocab_size} tokens and the reference {reference.config.vocab_size}:"
            " they must share a vocabulary"
        )
    answers = generate(policy, encoding, prompts, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size)
    kl = answer_kl(policy, reference, encoding, answers, batch_size)
    return kl.mean().item(), (kl.std() / len(kl) ** 0.5).item()


def answer_kl(
    policy: GPT, reference: GPT, encoding: tiktoken.Encoding, answers: Sequence[Generation], batch_size: int = 16
) -> Tensor:
    """Sum KL(policy || reference) along each of the policy's own answers; ``sample_kl`` is its mean.

    Args:
        policy: who wrote the answers.
        reference: what it is compared with.
        encoding: of both.
        answers: of ``generate``.
        batch_size: answers at a time.
    Returns:
        (len(answers),) float64 nats.

    >>> from dpo_core.generate import generate
    >>> from dpo_core.tokenizer import load_tokenizer
    >>> model, encoding = GPT.from_pretrained("pocket"), load_tokenizer("pocket")
    >>> answer_kl(model, model, encoding, generate(model, encoding, ["Why is the sky blue?"], max_new_tokens=4))
    tensor([0.], dtype=torch.float64)
    """
    samples = [(encode_prompt(reference, encoding, answer.prompt), answer.ids) for answer in answers]
    parts = (samples[at : at + batch_size] for at in range(0, len(samples), batch_size))
    return torch.cat([_answer_kl(policy, reference, part, encoding.n_vocab) for part in parts])


@torch.no_grad()
def _answer_kl(
    policy: GPT, reference: GPT, samples: list[tuple[list[int], list[int]]], vocabulary: int, chunk: int = 1024
) -> Tensor:
    """Sum the divergence along each (prompt, answer) over the answer's tokens: (B,) float64."""
    texts = [prompt + answer[:-1] for prompt, answer in samples]  # nothing is predicted after the last token
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=policy.device)  # (B, T)
    columns = torch.arange(width, device=policy.device)
    predicts = torch.stack(
        [(columns >= len(prompt) - 1) & (columns < len(text)) for (prompt, _), text in zip(samples, texts)]
    )  # (B, T), True where the logits predict a token of the answer
    rows = predicts.nonzero()[:, 0]  # (N,)
    states_p, states_q = policy.hidden(ids)[predicts], reference.hidden(ids)[predicts]  # (N, C)
    parts = []
    for at in range(0, len(rows), chunk):  # so that (N, V) never exists whole
        part = slice(at, at + chunk)
        log_p = policy.logits(states_p[part])[:, :vocabulary].float().log_softmax(-1)
        log_q = reference.logits(states_q[part])[:, :vocabulary].float().log_softmax(-1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    # Added up on the CPU: on a GPU the order of the sums, and so the last digit, would be left to chance.
    total = torch.zeros(len(samples), dtype=torch.float64, device="cpu")
    return total.index_add_(0, rows.cpu(), torch.cat(parts).cpu().double())


def _check_paired(a: Sequence[float], b: Sequence[float]) -> None:
    if len(a) != len(b):
        raise InputError(f"{len(a)} scores against {len(b)}: there must be one of each per prompt, in the same order")
    if not len(a):
        raise InputError("no scores to compare: give at least one of each")
    if bad := [i for i, pair in enumerate(zip(a, b)) if any(map(math.isnan, pair))]:
        raise InputError(f"score {bad[0]} is not a number (NaN): leave that prompt out of both lists")
