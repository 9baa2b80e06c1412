"""Two models' answers to the same prompts, judged blind: who wins how often, as far as it is known by now.

A contest is a ``LabelSession`` whose first answers are one model's and whose second are the other's. So the sides are
drawn, every verdict is on disk before the next question, and opening the file again goes on where it stopped.
``widgets/arena.py`` shows it in a notebook.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dpo_core.course.labeling import LabelSession
from dpo_core.course.verdicts import Comparison
from dpo_core.errors import InputError
from dpo_core.generate import Generation
from dpo_core.study.evaluate import WinRate, win_rate

__all__ = ["ArenaSession", "contest"]


def contest(first: Sequence[Generation], second: Sequence[Generation], names: tuple[str, str]) -> list[Comparison]:
    """Put the answers of two models side by side, prompt by prompt.

    Args:
        first: one model's answers.
        second: the other's, to the same prompts in the same order.
        names: of the models, the first one's first; the judge does not see which side is whose.
    Raises:
        InputError: the prompts are not the same, or one is there twice.

    >>> ours, theirs = Generation("Because.", [], True, "Why?"), Generation("No.", [], True, "Why?")
    >>> contest([ours], [theirs], ("ours", "theirs"))[0].source
    'ours against theirs'
    """
    prompts = [answer.prompt for answer in first]
    if prompts != [answer.prompt for answer in second]:
        raise InputError("the two models must answer the same prompts, in the same order")
    if len(set(prompts)) < len(prompts):
        raise InputError("a prompt is there twice; ask each once")
    source = f"{names[0]} against {names[1]}"
    return [Comparison(a.prompt, a.text, b.text, source) for a, b in zip(first, second)]


class ArenaSession(LabelSession):
    """One judge at one contest; answers that are the same are not asked but count as ties.

    Args:
        path: as of ``LabelSession``.
        comparisons: what ``contest`` makes.
        labeller, rubric, seed: as of ``LabelSession``.
    Raises:
        InputError: as ``LabelSession``, or the file is of another contest.

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = tempfile.TemporaryDirectory()
    >>> asked = [Comparison(f"{x}?", "Yes.", "No.", "ours against theirs") for x in "abc"]
    >>> with ArenaSession(Path(folder.name) / "contest.jsonl", asked) as session:
    ...     while turn := session.turn:
    ...         session.decide("left" if turn.left == "Yes." else "right")
    ...     print(session.title, session.standing())
    ours against theirs win rate 1.000 [0.438, 1.000] (3 wins, 0 ties, 0 losses, n = 3)
    >>> folder.cleanup()
    """

    @property
    def title(self) -> str:
        """Who plays against whom."""
        return self.comparisons[0].source

    def standing(self) -> WinRate | None:
        """Compute how often the first model won in the first pass; skipped pairs do not count.

        Returns:
            None before any verdict.
        """
        judged = [verdict.preferred for verdict in self.verdicts if not verdict.second_pass]
        judged = [preferred for preferred in judged if preferred != "skip"]
        if not judged and self._asked():
            return None
        judged += ["tie"] * (len(self.comparisons) - len(self._asked()))
        return win_rate([side == "first" for side in judged], [side == "second" for side in judged])

    def _add(self, comparisons: Iterable[Comparison]) -> None:
        asked = list(comparisons)
        if len(titles := {comparison.source for comparison in [*self.comparisons, *asked]}) > 1:
            raise InputError(
                f"{self.path}: one file has one contest, not {', '.join(sorted(titles))}; begin another file"
            )
        super()._add(asked)

    def _asked(self) -> Sequence[int]:
        return [i for i, comparison in enumerate(self.comparisons) if comparison.first != comparison.second]
