"""What chapter 02 needs beside its lesson: printed answers, simulated choices, and answers as bags of words."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import torch
from torch import Tensor

from dpo_core.formats.pairs import PreferencePair

__all__ = ["ask", "has_maximum", "show", "vocabulary_of", "word_differences", "words"]


def show(label: str, text: str) -> None:
    """Print a text in lines of 80 characters, with a label before it and the lines below indented.

    >>> show("+0.5 curt", "Air scatters blue light the most.")
    +0.5 curt  Air scatters blue light the most.
    """
    print(textwrap.fill(f"{label}  {text}", width=80, subsequent_indent=" " * (len(label) + 2)))


def ask(p: Tensor, each: int, repeats: int, seed: int) -> Tensor:
    """Simulate experiments in which every pair of answers is compared ``each`` times.

    Args:
        p: (K, K), the probability that the row's answer is preferred to the column's.
        each: choices for every pair.
        repeats: how many experiments, R.
        seed: of the random numbers.
    Returns:
        (R, K, K), how often the row's answer was preferred to the column's.

    >>> ask(torch.full((2, 2), 1.0), each=3, repeats=1, seed=0).tolist()
    [[[0.0, 3.0], [0.0, 0.0]]]
    """
    u = torch.rand(repeats, *p.shape, each, generator=torch.Generator().manual_seed(seed))
    first = (u < p[..., None]).sum(-1).double().triu(1)
    return first + (each * torch.ones_like(first).triu(1) - first).mT


def has_maximum(wins: Tensor) -> Tensor:
    """Tell which experiments have finite rewards of highest likelihood.

    They exist if every answer can be reached from every other one by steps from a winner to a loser.

    Args:
        wins: (R, K, K), how often the row's answer was preferred to the column's.
    Returns:
        (R,) of bool.

    >>> has_maximum(torch.tensor([[[0, 3], [0, 0]], [[0, 3], [1, 0]]])).tolist()
    [False, True]
    """
    k = wins.shape[-1]
    reached = torch.linalg.matrix_power((wins > 0).double() + torch.eye(k, dtype=torch.float64), k) > 0
    return reached.flatten(1).all(1)


def words(text: str) -> list[str]:
    """Split a text into its words, in small letters.

    >>> words("It's blue.")
    ["it's", 'blue']
    """
    return re.findall(r"[a-z']+", text.lower())


def vocabulary_of(pairs: Sequence[PreferencePair]) -> dict[str, int]:
    """Give each word of all answers a number, in the order of the alphabet."""
    found = {word for pair in pairs for word in words(f"{pair.chosen} {pair.rejected}")}
    return {word: i for i, word in enumerate(sorted(found))}


def word_differences(pairs: Sequence[PreferencePair], vocabulary: dict[str, int]) -> Tensor:
    """Count each word in the chosen answer minus its count in the rejected one; other words are left out.

    Returns:
        (N, V) of float64, for N pairs and V words.
    """
    counts = torch.zeros(len(pairs), len(vocabulary), dtype=torch.float64)
    for row, pair in zip(counts, pairs):
        for answer, sign in ((pair.chosen, 1), (pair.rejected, -1)):
            for word in words(answer):
                if word in vocabulary:
                    row[vocabulary[word]] += sign
    return counts
