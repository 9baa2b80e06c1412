"""A labelling session: which of two answers is better, in blind order, each verdict on disk before the next question.

A session is one JSONL file of events that is only ever added to: settings, comparisons, verdicts, undos. Opening it
again replays them, so whatever was decided before a crash is there. Nothing here needs a front end;
``widgets/pair_labeler.py`` shows a session in a notebook.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpo_core.course.locked_log import LockedLog
from dpo_core.course.verdicts import OTHER, VERDICTS, Agreement, Comparison, Verdict, agreement, labelled
from dpo_core.errors import InputError, shown
from dpo_core.formats.files import now
from dpo_core.formats.pairs import write_jsonl

__all__ = ["LabelSession", "Turn"]


@dataclass(frozen=True)
class Turn:
    """What the labeller is shown, and nothing that would give the source away."""

    prompt: str
    left: str
    right: str
    second_pass: bool


class LabelSession:
    """The work of one labeller at one file.

    Args:
        path: the session's file. If it is there already, labelling goes on where it stopped.
        comparisons: what to judge; those that the file has already are not added again.
        labeller: who judges; one file has one labeller. If None, the file's, or ``anonymous``.
        rubric: what "better" shall mean; one file has one. If None, the file's, or none.
        seed: of sides and of the second pass. If None, the file's, or 0.
    Raises:
        InputError: another process has the file open, its labeller, rubric or seed is another, it is not a session, it
            cannot be written, or there is nothing to judge.

    >>> import tempfile
    >>> from dpo_core.formats.pairs import load_pairs
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "labels.jsonl"
    >>> with LabelSession(path, [Comparison("Why?", "Because.", "No."), Comparison("Who?", "Me.", "You.")]) as session:
    ...     print(session.turn.left, "|", session.turn.right)
    ...     session.decide("left")
    Because. | No.
    >>> with LabelSession(path) as session:  # later, perhaps after a crash
    ...     print(session.turn.prompt, session.progress())
    ...     session.decide("tie")
    ...     print(len(load_pairs(session.export())), "pair exported")
    Who? (1, 2)
    1 pair exported
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | Path,
        comparisons: Iterable[Comparison] = (),
        *,
        labeller: str | None = None,
        rubric: str | None = None,
        seed: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.on_change: Callable[[], None] = lambda: None  # called after every event, for a front end
        self.settings: dict[str, Any] = {}
        self.comparisons: list[Comparison] = []
        self.verdicts: list[Verdict] = []  # those that were not taken back, in order
        self.again: list[int] = []  # what the second pass asks, in order
        self.notes: list[str] = []  # what a crash left behind and how it was mended
        self._file = LockedLog(self.path)
        try:
            self._replay()
            self._settle({"labeller": labeller, "rubric": rubric, "seed": seed})
            self._add(comparisons)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LabelSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was decided is in it."""
        self._file.close()

    # What is asked

    @property
    def turn(self) -> Turn | None:
        """The question now, or None when all are answered."""
        slot = self._next()
        return None if slot is None else self.ask(*slot)

    def ask(self, pair: int, second_pass: bool = False) -> Turn:
        """Put the question about one pair, the same whenever its turn comes.

        Args:
            pair: its index.
            second_pass: whether it is asked again.
        """
        comparison, left = self.comparisons[pair], self._left(pair, second_pass)
        return Turn(comparison.prompt, getattr(comparison, left), getattr(comparison, OTHER[left]), second_pass)

    def progress(self) -> tuple[int, int]:
        """Count the judged pairs of the present pass, and all that it has."""
        slot = self._next()
        second_pass = slot[1] if slot else bool(self.again)
        judged = sum(verdict.second_pass == second_pass for verdict in self.verdicts)
        return judged, len(self.again if second_pass else self._asked())

    def _asked(self) -> Sequence[int]:
        """List the pairs of the first pass, in order."""
        return range(len(self.comparisons))

    def _next(self) -> tuple[int, bool] | None:
        judged = {(verdict.pair, verdict.second_pass) for verdict in self.verdicts}
        slots = [*((i, False) for i in self._asked()), *((i, True) for i in self.again)]
        return next((slot for slot in slots if slot not in judged), None)

    def _left(self, pair: int, second_pass: bool) -> str:
        """Draw by the seed which answer stands on the left; the second pass exchanges the sides.

        So a habit of one side counts as disagreement.
        """
        heads = random.Random(f"{self.settings['seed']} {pair}").random() < 0.5
        return "first" if heads != second_pass else "second"

    # What is answered

    def decide(self, verdict: str) -> None:
        """Answer the question; the answer is on disk when this returns.

        Args:
            verdict: ``left``, ``right``, ``tie`` or ``skip``.
        Raises:
            InputError: no such verdict, nothing is asked, or the file cannot be written (nothing has changed then).
        """
        if verdict not in VERDICTS:
            raise InputError(f"verdict {verdict!r}: there are {', '.join(VERDICTS)}")
        slot = self._next()
        if slot is None:
            raise InputError("every pair is judged; add comparisons, or begin the second pass")
        self._write([{"event": "verdict", **asdict(Verdict(*slot, self._left(*slot), verdict, now()))}])

    def undo(self) -> None:
        """Take back the last verdict that stands; its pair is asked again.

        Raises:
            InputError: none stands, or the file cannot be written.
        """
        if not self.verdicts:
            raise InputError("there is no verdict to take back")
        self._write([{"event": "undo", "at": now()}])

    def begin_second_pass(self, count: int = 50) -> None:
        """Ask pairs a second time, in another order and with sides exchanged, to see how far you agree with yourself.

        Args:
            count: at most so many of the judged pairs, drawn by the seed; skipped ones are not asked again.
        Raises:
            InputError: it has begun already, or nothing is judged yet.
        """
        if self.again:
            raise InputError("the second pass has begun already")
        judged = [verdict.pair for verdict in self.verdicts if verdict.verdict != "skip"]
        if not judged:
            raise InputError("nothing is judged yet, so there is nothing to judge again")
        chosen = random.Random(f"{self.settings['seed']} again").sample(judged, min(count, len(judged)))
        self._write([{"event": "second pass", "pairs": chosen, "at": now()}])

    # What came of it

    def counts(self) -> Counter[str]:
        """Count how often each verdict was given in the first pass."""
        return Counter(verdict.verdict for verdict in self.verdicts if not verdict.second_pass)

    def agreement(self) -> Agreement | None:
        """Measure how often the second pass agrees with the first; None before any pair was judged twice."""
        return agreement(self.verdicts)

    def export(self, path: str | Path | None = None) -> Path:
        """Write the preferences as ``prompt``, ``chosen``, ``rejected``, and the origin of each under ``label``.

        Ties and skips stay in the session's file only, and so does a pair that was judged twice and not alike.

        Args:
            path: the file to write; beside the session's file, ending in ``.pairs.jsonl``, if None.
        Returns:
            The file's path; ``load_pairs`` reads it.
        Raises:
            InputError: there is nothing to write, or it cannot be written there.
        """
        path = self.path.with_suffix(".pairs.jsonl") if path is None else Path(path)
        if path.resolve() == self.path.resolve():
            raise InputError(f"{path} is the session's own file; export to another")
        if not (records := labelled(self.comparisons, self.verdicts, self.settings)):
            raise InputError("no pair has a preferred answer yet, so there is nothing to export")
        write_jsonl(path, records)
        return path

    # The file

    def _write(self, events: list[dict[str, Any]]) -> None:
        self._file.append(events)
        for event in events:
            self._apply(event)
        self.on_change()

    def _apply(self, event: dict[str, Any]) -> None:
        """Change the state as an event says; nothing else does."""
        handlers: dict[str, Callable[..., None]] = {
            "session": self._on_session,
            "pair": self._on_pair,
            "verdict": self._on_verdict,
            "undo": self._on_undo,
            "second pass": self._on_second_pass,
        }
        values = dict(event)
        handlers[values.pop("event")](**values)

    def _on_session(self, labeller: str, rubric: str, seed: int, at: str) -> None:
        _require(all(isinstance(text, str) for text in (labeller, rubric)), "labeller and rubric must be text")
        self.settings = {"labeller": labeller, "rubric": rubric, "seed": seed}

    def _on_pair(self, **texts: str) -> None:
        _require(all(isinstance(text, str) for text in texts.values()), "a pair must be text")
        self.comparisons.append(Comparison(**texts))

    def _on_verdict(self, pair: int, **values: Any) -> None:
        _require(values["verdict"] in VERDICTS and values["left"] in OTHER, "an unknown verdict or side")
        _require(isinstance(values["second_pass"], bool), "second_pass must be true or false")
        self._require_pair(pair)
        self.verdicts.append(Verdict(pair, **values))

    def _on_undo(self, at: str) -> None:
        self.verdicts.pop()

    def _on_second_pass(self, pairs: list[int], at: str) -> None:
        for pair in pairs:
            self._require_pair(pair)
        self.again = list(pairs)

    def _require_pair(self, pair: Any) -> None:
        _require(isinstance(pair, int) and pair in range(len(self.comparisons)), f"there is no pair {shown(pair)}")

    def _replay(self) -> None:
        for number, line in enumerate(self._file.read(), start=1):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"{self.path}:{number}: not a line of a labelling session ({type(error).__name__}: {error});"
                    " choose another file, or take this line out"
                ) from error
        self._file.mend()
        self.notes = self._file.notes

    def _settle(self, asked: dict[str, Any]) -> None:
        if not self.settings:
            defaults = {"labeller": "anonymous", "rubric": "", "seed": 0}
            chosen = {name: defaults[name] if value is None else value for name, value in asked.items()}
            self._write([{"event": "session", **chosen, "at": now()}])
        for name, value in asked.items():
            if value is not None and value != self.settings[name]:
                raise InputError(
                    f"{self.path} has the {name} {self.settings[name]!r}, not {value!r}; leave {name} out to go on, or"
                    " begin another file"
                )

    def _add(self, comparisons: Iterable[Comparison]) -> None:
        def texts(c: Comparison) -> tuple[str, frozenset[str]]:
            return c.prompt, frozenset((c.first, c.second))

        known = {texts(comparison) for comparison in self.comparisons}
        new = {texts(comparison): comparison for comparison in comparisons if texts(comparison) not in known}
        if new:
            self._write([{"event": "pair", **asdict(comparison)} for comparison in new.values()])
        if not self.comparisons:
            raise InputError(f"{self.path}: there is nothing to judge; give comparisons")


def _require(fine: bool, what: str) -> None:
    if not fine:
        raise InputError(what)
