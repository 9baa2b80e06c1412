"""Compare notebook outputs as a reader would: words to the letter, numbers as numbers.

nbval compares to the letter, and a last digit depends on the processor. The ``conftest.py`` beside ``pyproject.toml``
hands nbval this comparison instead; ``python tools/compare_outputs.py STORED.ipynb EXECUTED.ipynb`` compares two files.
What counts and what a cell's tags change is explained in ``book/contributing.md``. This module needs nothing of the
course, so a copy of it beside notebooks serves them wherever they lie.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby, zip_longest
from pathlib import Path
from types import MethodType
from typing import Any

import nbformat
import pytest
from nbval.plugin import (
    IPyNbCell,
    coalesce_streams,
    find_comment_markers,
    find_metadata_tags,
    get_sanitize_patterns,
    transform_streams_for_comparison,
)

TOKEN = re.compile(
    r"""(?P<word>[^\W\d]\w*(?:[.-]\w+)*      # gpt2, h.0.attn, step-000003
      | \d+(?:\.\d+){2,}|\d{4}-\d\d-\d\d)    # versions and dates
      | (?P<number>(?:(?<![\w)\]])[-+])?     # 3-5 is a range, not -5
        (?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[-+]?\d{1,3}(?!\w))?)
      | (?P<mark>\S)""",
    re.VERBOSE | re.IGNORECASE,
)
TAG = re.compile(r"within-(\d+(?:\.\d+)?)(%?)")
NUMBER = "#"  # stands for a number among a line's words
NOT_COMPARED = {"metadata", "traceback", "output_type", "name", "execution_count", "image/png", "image/jpeg"}
NOT_COMPARED |= {"application/vnd.jupyter.widget-view+json"}  # model ids are random


@dataclass(frozen=True)
class Tolerance:
    """What a cell's tags allow beyond the last printed digit."""

    absolute: Decimal = Decimal(0)
    relative: Decimal = Decimal(0)
    counts: bool = False

    @classmethod
    def of(cls, tags: Iterable[str]) -> Tolerance:
        """Read ``within-0.1``, ``within-5%`` and ``sampled-counts``; other tags mean nothing here.

        >>> Tolerance.of(["hide-input", "within-5%"]).relative
        Decimal('0.05')
        """
        absolute = relative = Decimal(0)
        for tag in (tag for tag in tags if tag.startswith("within-")):
            if not (found := TAG.fullmatch(tag)):
                raise ValueError(f"the tag {tag} names no tolerance; write one like within-0.1 or within-5%")
            if found[2]:
                relative = Decimal(found[1]) / 100
            else:
                absolute = Decimal(found[1])
        return cls(absolute, relative, "sampled-counts" in tags)

    def at(self, number: Number) -> Decimal:
        return max(self.absolute, self.relative * abs(number.value))


@dataclass(frozen=True)
class Number:
    """A printed number; ``text`` holds its sign, its thousands separators and its trailing zeros."""

    text: str

    @property
    def value(self) -> Decimal:
        return Decimal(self.text.replace(",", ""))

    @property
    def whole(self) -> bool:
        return not {".", "e", "E"} & set(self.text)

    @property
    def digits(self) -> int:
        """Significant digits as printed: 3 for 0.0290, 1 for 0.00."""
        return len(self.value.as_tuple().digits)

    @property
    def exponent(self) -> int:
        """The power of ten of the last digit: -4 for 0.0290, 1 for 1.20e+03."""
        return int(self.value.as_tuple().exponent)


def steps(one: Number, other: Number) -> Decimal:
    """Count the steps of the last printed digit from one number to the other.

    Two numbers of one format differ in their last digit's place where a power of ten lies between them (9.99, 10.0) or
    where zeros were left out at the end (``0.61`` for 0.610). Any other difference of places is another format.

    Returns:
        Steps, endless between two formats.

    >>> [int(steps(Number("2.35"), Number(found))) for found in ("2.36", "2.3", "2.4")]
    [1, 5, 5]
    >>> steps(Number("9.98"), Number("10.1")), steps(Number("0.5"), Number("0.50"))
    (Decimal('3'), Decimal('Infinity'))
    """
    fine, coarse = sorted((one, other), key=lambda number: number.exponent)
    apart = abs(fine.value - coarse.value)
    if fine.exponent == coarse.exponent:
        return apart.scaleb(-fine.exponent)
    if not (fine.value and coarse.value):
        return Decimal("Infinity")
    if fine.digits == coarse.digits:
        power = Decimal(1).scaleb(coarse.value.adjusted()).copy_sign(coarse.value)
        below, above = abs(power - fine.value), abs(coarse.value - power)
        return below.scaleb(-fine.exponent) + above.scaleb(-coarse.exponent)
    return apart.scaleb(-fine.exponent) if fine.value.as_tuple().digits[-1] else Decimal("Infinity")


def fault(stored: Number, found: Number, tolerance: Tolerance) -> str:
    """Say why a number cannot stand for the stored one, or nothing.

    >>> fault(Number("0.0290"), Number("0.0292"), Tolerance())
    ''
    >>> fault(Number("0.0290"), Number("0.0293"), Tolerance())
    'may differ by 0.0002, 2 in the last digit'
    >>> fault(Number("81"), Number("80"), Tolerance())
    'whole numbers have to be equal'
    """
    if stored.text == found.text:
        return ""
    if ("+" in (stored.text[0], found.text[0])) and not {stored.text[0], found.text[0]} <= {"+", "-"}:
        return "the plus sign is part of the format"
    apart, allowed = abs(stored.value - found.value), tolerance.at(stored)
    if stored.whole and found.whole:
        if not tolerance.counts:
            return "whole numbers have to be equal"
        allowed = allowed or 2 * abs(stored.value).sqrt()
        return "" if apart <= allowed else f"may differ by {allowed:.3g} (tag sampled-counts)"
    fewest = min(stored.digits, found.digits) if stored.exponent == found.exponent else max(stored.digits, found.digits)
    last = 1 if fewest < 3 else 2
    if steps(stored, found) <= last or (allowed and apart <= allowed):
        return ""
    if allowed:
        return f"may differ by {allowed.normalize():f} (tag within-...)"
    return f"may differ by {last * Decimal(1).scaleb(min(stored.exponent, found.exponent)):f}, {last} in the last digit"


@dataclass(frozen=True)
class Line:
    """A printed line: its words and marks, with ``NUMBER`` in the place of each number, and the numbers."""

    text: str
    words: tuple[str, ...]
    numbers: tuple[Number, ...]

    @classmethod
    def of(cls, text: str) -> Line:
        """Read a line. Spaces only separate.

        >>> Line.of("gpt2   −0.50 [-1.2, 0.3]").words
        ('gpt2', '#', '[', '#', ',', '#', ']')
        """
        tokens = list(TOKEN.finditer(text.replace("\N{MINUS SIGN}", "-")))
        words = tuple(NUMBER if token["number"] else token[0] for token in tokens)
        return cls(" ".join(text.split()), words, tuple(Number(t["number"]) for t in tokens if t["number"]))

    @property
    def leading(self) -> int:
        """How many numbers stand before the first bracket, and before another number or word that they can label."""
        brackets = [place for place, word in enumerate(self.words) if word in "[("]
        return min(self.words[: min(brackets, default=None)].count(NUMBER), len(self.numbers) - 1)

    @property
    def intervals(self) -> list[int]:
        """Where among the numbers an interval ``[low, high]`` begins."""
        shape = ("[", NUMBER, ",", NUMBER, "]")
        starts = (place for place in range(len(self.words)) if self.words[place : place + 5] == shape)
        return [self.words[:place].count(NUMBER) for place in starts]

    def includes_zero(self, place: int) -> bool:
        """Whether the interval there includes 0, where ``-0.00`` is below it and ``+0.00`` above."""
        low, high = self.numbers[place : place + 2]
        return (low.value.is_signed() or low.text.strip("0.") == "") and not high.value.is_signed()

    def key(self, numbers: int) -> tuple[str, ...]:
        """What has to be equal: the words, and so many numbers that are the line's label."""
        return (*self.words, *(number.text for number in self.numbers[:numbers]))


def labels(lines: Sequence[Line]) -> dict[tuple[str, ...], int]:
    """Count the leading numbers that tell rows of the same words apart, such as the β in the first column of a table.

    >>> rows = [Line.of(f"beta {beta}  0.5  {kl}") for beta, kl in [(0.1, 2.3), (0.2, 1.9)]]
    >>> labels(rows)
    {('beta', '#', '#', '#'): 1}
    """
    counts: dict[tuple[str, ...], int] = {}
    for words, run in groupby(lines, key=lambda line: line.words):
        rows = list(run)
        for count in range(1, rows[0].leading + 1 if len(rows) > 1 else 0):
            if len({row.key(count) for row in rows}) == len(rows):
                counts[words] = max(count, counts.get(words, 0))
                break
    return counts


def lines_of(text: str, html: bool = False) -> list[Line]:
    """Cut an output into lines; in HTML each row of a table is a line."""
    if html:
        text = re.sub(r" ?(?=<tr\b)|(?<=</tr>) ?", "\n", " ".join(text.split())).replace("\n\n", "\n")
    return [Line.of(line) for line in text.rstrip().splitlines()]


def moved(stored: Sequence[Line], found: Sequence[Line], counts: dict[tuple[str, ...], int]) -> str:
    """Say where the lines' words first differ: a row that is missing, new or in another place, or a word."""
    wanted, given = ([line.key(counts.get(line.words, 0)) for line in lines] for lines in (stored, found))
    pairs = zip_longest(wanted, given)
    place = next((place for place, (want, have) in enumerate(pairs) if want != have), None)
    if place is None:
        return ""
    want, have = (keys[place] if place < len(keys) else None for keys in (wanted, given))
    where = f"line {place + 1}"
    if want in given and have in wanted:
        return f'{where}: "{stored[place].text}" stands in another place, line {given.index(want) + 1}'
    if want is not None and want not in given and (have is None or have in wanted):
        return f'{where}: "{stored[place].text}" is missing'
    if have is not None and have not in wanted and (want is None or want in given):
        return f'{where}: "{found[place].text}" is not stored'
    return f'{where}: "{stored[place].text}" is stored, found "{found[place].text}"'


def differences(stored: str, found: str, tolerance: Tolerance = Tolerance(), html: bool = False) -> list[str]:
    """List what an output says otherwise than the stored one.

    Args:
        stored: The text of the reference.
        found: The text of the new run.
        tolerance: What the cell's tags allow.
        html: Whether the texts are HTML, whose rows begin at ``<tr``.

    Returns:
        One sentence per difference, none if the two say the same.

    >>> differences("beta  KL\\n 0.1  2.358", "beta  KL\\n 0.1  2.360")
    []
    >>> differences("beta  KL\\n 0.1  2.358", "beta  KL\\n 0.1  2.361")
    ['line 2, "0.1 2.358": 2.358 is stored, found 2.361; may differ by 0.002, 2 in the last digit']
    """
    before, after = lines_of(stored, html), lines_of(found, html)
    counts = labels(before)
    if problem := moved(before, after, counts):
        return [problem]
    problems = []
    for place, (old, new) in enumerate(zip(before, after), 1):
        where = f'line {place}, "{re.sub("<[^>]*>", " ", old.text).strip() if html else old.text}"'
        for one, other in zip(old.numbers, new.numbers):
            if reason := fault(one, other, tolerance):
                problems.append(f"{where}: {one.text} is stored, found {other.text}; {reason}")
        for at in old.intervals:
            if old.includes_zero(at) != new.includes_zero(at):
                ends = " to ".join(number.text for number in new.numbers[at : at + 2])
                verb = "includes" if new.includes_zero(at) else "no longer includes"
                problems.append(f"{where}: the interval {ends} {verb} 0")
    return problems


def fields(outputs: Sequence[Any], clean: Callable[[Any], Any]) -> dict[str, list[Any]]:
    """Collect a cell's outputs by stream and by MIME type, as nbval does, so that a stream may come between two."""
    found = defaultdict(list)
    for output in transform_streams_for_comparison(coalesce_streams(outputs)):
        for name, value in {**output, **output.get("data", {})}.items():
            if name not in NOT_COMPARED | {"data"}:
                found[name].append(clean(value))
    return found


def cell_differences(
    stored: Sequence[Any], found: Sequence[Any], tags: Sequence[str], clean: Callable[[Any], Any]
) -> list[str]:
    """List what a cell's new outputs say otherwise than its stored ones; ``clean`` is nbval's sanitizer."""
    before, after = fields(stored, clean), fields(found, clean)
    problems = [
        f"{len(before.get(name, ()))} outputs of {name} are stored, found {len(after.get(name, ()))}"
        for name in sorted(before.keys() | after.keys())
        if len(before.get(name, ())) != len(after.get(name, ()))
    ]
    if problems:
        return problems
    tolerance = Tolerance.of(tags)
    for name, values in before.items():
        for one, other in zip(values, after[name]):
            if isinstance(one, str) and isinstance(other, str):
                problems += [f"{name}, {p}" for p in differences(one, other, tolerance, name == "text/html")]
            elif one != other:
                problems.append(f"{name}: {one} is stored, found {other}")
    return problems


def compare_outputs(self: Any, test: Sequence[Any], ref: Sequence[Any], skip_compare: Any = None) -> bool:
    """Take the place of nbval's method of this name: whether a cell's new outputs agree with the stored ones."""
    problems = cell_differences(ref, test, self.cell.metadata.get("tags", []), self.sanitize)
    self.comparison_traceback = [f"Cell {self.cell_num}, {problem}" for problem in problems]
    return not problems


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let nbval's cells compare as above."""
    if isinstance(item, IPyNbCell):
        item.compare_outputs = MethodType(compare_outputs, item)


def notebook_differences(stored: Path, executed: Path, sanitize: str = "") -> list[str]:
    """List what an executed notebook says otherwise than the stored one, cell by cell, as nbval would find it.

    Args:
        stored: The reference.
        executed: The same notebook, run elsewhere.
        sanitize: nbval's patterns, as in ``tests/sanitize.cfg``.
    """
    patterns = get_sanitize_patterns(sanitize)

    def clean(value: Any) -> Any:
        for pattern, word in patterns if isinstance(value, str) else ():
            value = re.sub(pattern, word, value)
        return value

    notebooks = (nbformat.read(path, as_version=4).cells for path in (stored, executed))
    before, after = ([cell for cell in cells if cell.cell_type == "code"] for cells in notebooks)
    if [cell.source for cell in before] != [cell.source for cell in after]:
        raise ValueError(f"{executed} has other code than {stored}; run the stored one again")
    problems = []
    for number, (one, other) in enumerate(zip(before, after)):
        marks = dict([*find_metadata_tags(one.metadata), *find_comment_markers(one.source)])
        if marks.get("check", True) and not marks.get("skip") and one.execution_count is not None:
            found = cell_differences(one.outputs, other.outputs, one.metadata.get("tags", []), clean)
            problems += [f"Cell {number}, {problem}" for problem in found]
    return problems


def main(stored: str, executed: str) -> int:
    """Print what differs between two notebooks; 1 if anything does."""
    sanitize = Path(__file__).resolve().parent.parent / "tests" / "sanitize.cfg"
    problems = notebook_differences(Path(stored), Path(executed), sanitize.read_text(encoding="utf-8"))
    print("\n".join(problems) or "the two say the same")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
