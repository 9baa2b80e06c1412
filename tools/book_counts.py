"""Count what makes a chapter long or hard to read: ``python -m tools.book_counts``, or with numbers of chapters.

One row a chapter: words of its text; verdicts (``True`` and ``False``) in outputs that readers see; visible code cells,
and those of over 30 lines; and the minutes that the chapter takes by one rule, beside those that its head says.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
WORDS_A_MINUTE = 150
SECONDS_A_LINE = 4  # of visible code, with its output
MINUTES_AN_EXERCISE = 6
LONG = 30  # lines of a cell

NO_SOURCE = {"hide-input", "remove-input", "hide-cell", "remove-cell"}
NO_OUTPUT = {"hide-output", "remove-output", "hide-cell", "remove-cell"}
TIME = re.compile(r"\*\*Time:\*\* about (\w+) (minutes|hours?)|takes about (\w+) (minutes)")
NUMBERS = {"an": 1, "ten": 10, "two": 2, "three": 3}


@dataclass(frozen=True)
class Counts:
    chapter: str
    words: int
    verdicts: int
    cells: int
    long: int
    exercises: int
    minutes: int  # by the rule
    said: int  # in the head; 0 if it does not say


def words(markdown: str) -> int:
    """Count the words of a text, without code, formulas and addresses.

    >>> words("As [here](https://example.org/a-b), $x + y$ is `code`.")
    3
    """
    text = re.sub(r"```python.*?```|\$\$.*?\$\$|\$[^$\n]*\$|`[^`\n]*`", " ", markdown, flags=re.DOTALL)
    text = re.sub(r"\]\([^)\s]*\)|https?://\S+|<[^>]+>", " ", text)
    return sum(bool(re.search(r"[A-Za-z]", word)) for word in text.split())


def count(path: Path) -> Counts:
    """Count one chapter."""
    notebook = nbformat.read(path, as_version=4)
    told = verdicts = cells = long = lines = exercises = 0
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            told += words(cell.source)
            exercises += len(re.findall(r"^\*\*\d+\. \S", cell.source, re.MULTILINE))  # a quiz has **1.** alone
            continue
        if not tags & NO_SOURCE:
            length = len(cell.source.splitlines())
            cells, lines, long = cells + 1, lines + length, long + (length > LONG)
        if not tags & NO_OUTPUT:
            for output in cell.outputs:
                text = output.get("text") or output.get("data", {}).get("text/plain", "")
                verdicts += len(re.findall(r"\b(?:True|False)\b", text))
    minutes = told / WORDS_A_MINUTE + lines * SECONDS_A_LINE / 60 + exercises * MINUTES_AN_EXERCISE
    found = TIME.search(notebook.cells[0].source)
    said = 0
    if found:
        number, unit = (group for group in found.groups() if group)
        said = (NUMBERS.get(number) or int(number)) * (60 if unit.startswith("hour") else 1)
    return Counts(path.stem, told, verdicts, cells, long, exercises, round(minutes), said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="*", metavar="NN", help="numbers of chapters; all if none")
    args = parser.parse_args()
    rows = [count(p) for p in sorted(NOTEBOOKS.glob("*.ipynb")) if not args.chapters or p.stem[:2] in args.chapters]
    print(f"{'chapter':28} words verdicts cells over {LONG} exercises minutes said")
    for row in rows:
        print(
            f"{row.chapter:28} {row.words:5} {row.verdicts:8} {row.cells:5} {row.long:7} {row.exercises:9}"
            f" {row.minutes:7} {row.said:4}"
        )
    print(f"{'all':28} {sum(r.words for r in rows):5} {sum(r.verdicts for r in rows):8}", end="")
    print(f" {sum(r.cells for r in rows):5} {sum(r.long for r in rows):7}")


if __name__ == "__main__":
    main()
