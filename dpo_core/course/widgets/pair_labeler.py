"""A labelling session in a notebook, by keyboard or mouse."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from dpo_core.course.drive import DriveCopy
from dpo_core.course.labeling import LabelSession, Turn
from dpo_core.course.verdicts import VERDICTS, Comparison
from dpo_core.course.widgets.embed import IMPORT, embed
from dpo_core.errors import InputError

__all__ = ["PairLabeler"]

FOLDER = resources.files(__package__)
STATIC = 10  # pairs to try on a page without a kernel


def _source(*names: str) -> str:
    return IMPORT.sub("", "\n".join((FOLDER / name).read_text("utf-8") for name in names))


class PairLabeler(anywidget.AnyWidget):
    """A widget for a ``LabelSession``: keys ← and → for the better side, T for a tie, S to skip, U to undo.

    The session is ``session``; what is decided there by code is shown, too. On Colab a copy is kept on Drive, if it is
    mounted. Where a notebook is only read, as in the book, the first pairs can be tried out.

    Args:
        path: as of ``LabelSession``.
        comparisons: as of ``LabelSession``.
        labeller: as of ``LabelSession``.
        rubric: as of ``LabelSession``; it is shown above each pair.
        seed: as of ``LabelSession``.
    Raises:
        InputError: as ``LabelSession``.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> labeler = PairLabeler(Path(folder.name) / "labels.jsonl", [Comparison("Why?", "Because.", "No.")])
    >>> labeler.session.decide("left")
    >>> labeler
    PairLabeler: 1 of 1 judged, in labels.jsonl
    >>> labeler.session.close()
    >>> folder.cleanup()
    """

    _esm = _source("kit.js", "pair_labeler.js")
    _css = _source("widgets.css", "pair_labeler.css")
    shown = traitlets.Dict().tag(sync=True)
    sessions: ClassVar[type[LabelSession]] = LabelSession  # what is shown

    def __init__(
        self,
        path: str | Path,
        comparisons: Iterable[Comparison] = (),
        *,
        labeller: str | None = None,
        rubric: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.copy = DriveCopy(path)
        notes = ["Your labels of an earlier runtime are back from Drive."] if self.copy.fetch() else []
        self.session = self.sessions(path, comparisons, labeller=labeller, rubric=rubric, seed=seed)
        self.session.on_change = self._show
        self.on_msg(self._on_message)
        self._show(" ".join([*notes, *self.session.notes]))

    def _actions(self) -> dict[str, Callable[[], Any]]:
        """List what can be done now, by name."""
        session = self.session
        actions: dict[str, Callable[[], Any]] = {}
        if session.turn:
            actions |= {verdict: partial(session.decide, verdict) for verdict in VERDICTS}
        elif not session.again:
            actions["second pass"] = session.begin_second_pass
        if session.verdicts:
            actions["undo"] = session.undo
        if not session.turn:
            actions["export"] = lambda: self._show(f"Written to {session.export()}")
        return actions

    def _on_message(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        if content.get("turn") != self.shown["turn"]:
            return  # pressed before this pair was seen
        try:
            self._actions()[content["action"]]()
        except InputError as error:
            self._show(str(error))

    def _show(self, message: str = "") -> None:
        self.copy.update()
        session, turn = self.session, self.session.turn
        judged, total = session.progress()
        second_pass = turn.second_pass if turn else session.again
        progress = f"Pair {judged + 1} of {total}" if turn else f"{judged} of {total} judged"
        self.shown = _displayable(
            {
                **_texts(turn),
                "rubric": session.settings["rubric"],
                "turn": self.shown.get("turn", 0) + 1,
                "judged": judged,
                "total": total,
                "done": turn is None,
                "progress": progress + (", second pass" if second_pass else ""),
                "message": message or self._message(),
                "actions": list(self._actions()),
            }
        )

    def _message(self) -> str:
        session = self.session
        saved = f"{len(session.verdicts)} saved in {session.path.name}."
        parts = [saved if session.verdicts else "Every choice is saved at once.", self.copy.where()]
        if not session.turn:
            parts.append(", ".join(f"{verdict} {session.counts()[verdict]}" for verdict in VERDICTS) + ".")
            parts += [f"Second pass: {agreement}." for agreement in [session.agreement()] if agreement]
        return " ".join(filter(None, parts))

    def __repr__(self) -> str:
        judged, total = self.session.progress()
        return f"{type(self).__name__}: {judged} of {total} judged, in {self.session.path.name}"

    def _practice(self) -> dict[str, Any]:
        """Collect what a page without a kernel is given."""
        session = self.session
        turns = [_texts(session.ask(pair)) for pair in session._asked()[:STATIC]]
        return {"turns": turns, "rubric": session.settings["rubric"]}

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        assert bundle, "a widget with a view can be shown"
        data, metadata = bundle
        practice = embed(
            "pair_labeler", _displayable(self._practice()), "Here is a labeller, if your browser runs JavaScript."
        )
        return data | {"text/html": f"{practice}\n<style>\n{_source('pair_labeler.css')}</style>"}, metadata


def _texts(turn: Turn | None) -> dict[str, str]:
    return {name: getattr(turn, name, "") for name in ("prompt", "left", "right")}


def _displayable(value: Any) -> Any:
    """Replace half characters, which no browser can be sent."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
