"""Student's t, and a share with an interval over groups, for answers that are not independent, as to one prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

__all__ = ["share_over_groups", "student_t"]

FEW = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}  # where the series is not exact enough


def student_t(freedom: int) -> float:
    """Compute the two-sided 95 % point of Student's t to three digits.

    From 6 degrees of freedom on it is the series of Cornish and Fisher in powers of one over the degrees.

    Args:
        freedom: degrees of freedom; for a mean, one less than there are values.

    >>> [round(student_t(freedom), 2) for freedom in (1, 4, 7, 23)]
    [12.71, 2.78, 2.36, 2.07]
    """
    if freedom in FEW:
        return FEW[freedom]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def share_over_groups(hits: Sequence[bool], groups: Sequence[Hashable]) -> tuple[float, float, float]:
    """Compute a share of hits, with its 95 % interval by Student's t over groups.

    Groups may differ in size: the share is a ratio of two sums, and its error that of the ratio to first order.

    Args:
        hits: one for each answer.
        groups: what each answer belongs to, such as its prompt; at least five different ones.
    Returns:
        Share, lower and upper end.
    Raises:
        ValueError: there are fewer than five groups.

    >>> hits, groups = [True, False] * 4 + [True, True], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    >>> [round(number, 2) for number in share_over_groups(hits, groups)]
    [0.6, 0.32, 0.88]
    """
    found: dict[Hashable, list[bool]] = defaultdict(list)
    for hit, group in zip(hits, groups, strict=True):
        found[group].append(hit)
    count = len(found)
    if count < 5:
        raise ValueError(f"{count} groups are too few for an interval; give five or more")
    share = sum(hits) / len(hits)
    squares = sum((sum(each) - share * len(each)) ** 2 for each in found.values())
    error = (squares * count / (count - 1)) ** 0.5 / len(hits)
    half = student_t(count - 1) * error
    return share, share - half, share + half
