"""Byte-pair encoding learned from words, which made the pocket vocabulary."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

__all__ = ["learn_bpe"]


def learn_bpe(words: Mapping[str, int], size: int) -> dict[bytes, int]:
    """Learn merges by joining, again and again, the most frequent pair of neighbours (Sennrich et al. 2016).

    Args:
        words: how often each word (with its leading space) occurs.
        size: number of tokens wanted, the 256 single bytes included.
    Returns:
        Token bytes to rank, as tiktoken wants it; fewer than ``size`` if the words hold no more pairs.

    >>> ranks = learn_bpe({"banana": 2, "ban": 1}, size=259)
    >>> sorted((rank, token) for token, rank in ranks.items())[256:]
    [(256, b'an'), (257, b'ban'), (258, b'banan')]
    """
    ranks = {bytes([i]): i for i in range(256)}
    split = [[bytes([b]) for b in word.encode()] for word in words]
    weights = list(words.values())
    counts: Counter[tuple[bytes, bytes]] = Counter()
    where: defaultdict[tuple[bytes, bytes], set[int]] = defaultdict(set)

    def tally(i: int, sign: int) -> None:
        for pair in zip(split[i], split[i][1:]):
            counts[pair] += sign * weights[i]
            where[pair].add(i)

    for i in range(len(split)):
        tally(i, 1)
    while len(ranks) < size and counts:
        pair = max(counts, key=lambda p: (counts[p], p))
        if counts[pair] <= 0:
            break
        ranks[pair[0] + pair[1]] = len(ranks)
        for i in where.pop(pair):
            tally(i, -1)
            merged: list[bytes] = []
            for token in split[i]:
                if merged and (merged[-1], token) == pair:
                    merged[-1] += token
                else:
                    merged.append(token)
            split[i] = merged
            tally(i, 1)
        counts += Counter()  # drops what has fallen to zero, so that max stays quick
    return ranks
