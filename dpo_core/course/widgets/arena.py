"""A blind contest of two models in a notebook: the labeller, with the win rate so far."""

from __future__ import annotations

from typing import Any, ClassVar

from dpo_core.course.arena import ArenaSession
from dpo_core.course.labeling import LabelSession
from dpo_core.course.widgets.pair_labeler import PairLabeler

__all__ = ["Arena"]


class Arena(PairLabeler):
    """A widget for an ``ArenaSession``, with the keys of ``PairLabeler``, and after each verdict the win rate so far.

    The rate is the first model's; which side it has is drawn anew for each prompt and not shown.

    Args:
        path: as of ``LabelSession``.
        comparisons: what ``contest`` makes.
        labeller, rubric, seed: as of ``LabelSession``.
    Raises:
        InputError: as ``ArenaSession``.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from dpo_core.course.verdicts import Comparison
    >>> folder = tempfile.TemporaryDirectory()
    >>> arena = Arena(Path(folder.name) / "contest.jsonl", [Comparison("Why?", "Because.", "No.", "a against b")])
    >>> arena.session.decide("tie")
    >>> arena.shown["message"]
    '1 saved in contest.jsonl. left 0, right 0, tie 1, skip 0. a against b: win rate 0.500 [0.055, 0.945] (0 wins, ...
    >>> arena.session.close()
    >>> folder.cleanup()
    """

    session: ArenaSession
    sessions: ClassVar[type[LabelSession]] = ArenaSession

    def _message(self) -> str:
        standing = self.session.standing()
        return super()._message() + (f" {self.session.title}: {standing}." if standing else "")

    def _practice(self) -> dict[str, Any]:
        state, session = super()._practice(), self.session
        asked = session._asked()[: len(state["turns"])]
        return state | {"sides": [session._left(pair, False) for pair in asked], "contest": session.title}
