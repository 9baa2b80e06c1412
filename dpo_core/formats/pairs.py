"""Preference pairs and labelled answers as text, on disk and in memory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from dpo_core.errors import InputError, printable
from dpo_core.formats.fields import COLUMNS, Fields
from dpo_core.formats.files import atomic_write, sync
from dpo_core.formats.readers import Reading, read_label, read_pair
from dpo_core.formats.tables import rows

__all__ = [
    "LabelledAnswer", "Loaded", "PreferencePair", "add_pair", "load_labels", "load_pairs", "load_records",
    "save_pairs", "take_back", "write_jsonl",
]  # fmt: skip

SHOWN = 20  # bad lines listed in one error
BAD_SHARE = 10  # one bad line in so many, or a single one, is dropped; more refuse the file

T = TypeVar("T")
Source = str | Path | Sequence[str | Path]  # a file or several


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with two answers, of which the first was preferred.

    >>> PreferencePair("Why is the sky blue?", "Air scatters blue light most.", "No idea.").chosen
    'Air scatters blue light most.'
    """

    prompt: str
    chosen: str
    rejected: str
    source: str = field(default="", compare=False)  # "file:line", for messages


@dataclass(frozen=True)
class LabelledAnswer:
    """A prompt with one answer, and whether such answers are wanted.

    >>> LabelledAnswer("Why is the sky blue?", "No idea.", False).label
    False
    """

    prompt: str
    completion: str
    label: bool
    source: str = field(default="", compare=False)  # "file:line", for messages


class Loaded(list[T]):
    """What was read from files, in their order, with what was not.

    >>> Loaded([1, 2], [("a.jsonl:3", "not JSON")]).dropped
    [('a.jsonl:3', 'not JSON')]
    """

    def __init__(
        self, items: Iterable[T] = (), dropped: Sequence[tuple[str, str]] = (), notes: Sequence[str] = ()
    ) -> None:
        super().__init__(items)
        self.dropped = list(dropped)  # places, and what was wrong there
        self.notes = list(notes)  # fields that were not used, and what was mended


def load_pairs(
    source: Source, *, prompt_field: str | Sequence[str] = (), chosen_field: str = "", rejected_field: str = ""
) -> Loaded[PreferencePair]:
    """Read preference pairs; each line may be in any of the common formats.

    - ``prompt``, ``chosen``, ``rejected`` as text;
    - the same as lists of ``{"role", "content"}`` or ``{"from", "value"}``, where the answers may hold the dialogue;
    - the prompt as ``instruction`` and ``input``, ``question``, ``messages``, ``conversations``, with ``system`` and
      ``history``; the answers as OpenAI's ``preferred_output`` and ``non_preferred_output``;
    - HH-RLHF: ``chosen`` and ``rejected`` as whole dialogues, ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``;
    - ``chosen`` and ``rejected`` as text with the same beginning, which is the prompt if no other field can be.

    A single bad line, or one in ten, is dropped with a warning; more refuse the file.

    Args:
        source: a file or several: JSONL, JSON, CSV, TSV, Parquet or Arrow, packed or not, or ``hub:NAME``.
        prompt_field: the field of the prompt, or several, which are joined; the known names if not given.
        chosen_field: the field of the chosen answer.
        rejected_field: the field of the rejected answer.
    Returns:
        The pairs in the files' order, each with its place as source, such as ``file:line``; ``dropped`` and ``notes``
        say what was not read.
    Raises:
        InputError: a file cannot be read, holds nothing, or has too many bad lines, which are listed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pairs(Path(folder) / "pairs.jsonl", [PreferencePair("Why?", "Because.", "No.")])
    ...     load_pairs(Path(folder) / "pairs.jsonl")[0].chosen
    'Because.'
    """
    fields = _fields(prompt_field, chosen_field, rejected_field)
    found = load_records(source, read_pair, fields)
    return Loaded([PreferencePair(*texts, place) for texts, place in found], found.dropped, found.notes)


def load_labels(
    source: Source, *, prompt_field: str | Sequence[str] = (), chosen_field: str = "", rejected_field: str = ""
) -> Loaded[LabelledAnswer] | Loaded[PreferencePair]:
    """Read labelled answers, for KTO; files of pairs alone are read as ``load_pairs`` does.

    Args:
        source: as ``load_pairs``, with ``prompt``, ``completion`` and ``label``, true or false, the first two as text
            or as messages; a pair among such lines counts as two answers.
        prompt_field: as ``load_pairs``, like the other two.
        chosen_field: of pairs.
        rejected_field: of pairs.
    Returns:
        Answers, or pairs, in the files' order, each with its place as source.
    Raises:
        InputError: as ``load_pairs``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "answers.jsonl"
    ...     _ = file.write_text('{"prompt": "Why?", "completion": "Because.", "label": true}')
    ...     load_labels(file)[0].label
    True
    """
    found = load_records(source, read_label, _fields(prompt_field, chosen_field, rejected_field))
    if not any(isinstance(label, bool) for (_, _, label), _ in found):
        pairs = [PreferencePair(*cast(tuple[str, str, str], texts), place) for texts, place in found]
        return Loaded(pairs, found.dropped, found.notes)
    answers = []
    for (prompt, first, second), place in found:
        one = [(first, second)] if isinstance(second, bool) else [(first, True), (second, False)]
        answers += [LabelledAnswer(prompt, text, label, place) for text, label in one]
    return Loaded(answers, found.dropped, found.notes)


def _fields(prompt: str | Sequence[str], chosen: str, rejected: str) -> Fields:
    return Fields((prompt,) if isinstance(prompt, str) else tuple(prompt), chosen, rejected)


def load_records(
    source: Source, parse: Callable[[dict[str, Any], Reading], T], fields: Fields | None = None
) -> Loaded[tuple[T, str]]:
    """Read what ``parse`` makes of each record of one file or several, with its place.

    Args:
        source: as of ``load_pairs``.
        parse: raises ``InputError`` for a record that will not do, and notes what it leaves unread.
        fields: names that the caller gives.
    Raises:
        InputError: as ``load_pairs``.
    """
    every: Loaded[tuple[T, str]] = Loaded()
    for one in [source] if isinstance(source, (str, Path)) else source:
        found = _load_one(one, parse, Reading(fields or Fields()))
        every += found
        every.dropped += found.dropped
        every.notes += found.notes
    for place, fault in every.dropped[:SHOWN]:
        warnings.warn(f"dropped {place}: {fault}", stacklevel=3)
    return every


def _load_one(source: str | Path, parse: Callable[[dict[str, Any], Reading], T], reading: Reading) -> Loaded[Any]:
    parsed: list[tuple[T, str]] = []
    bad: list[tuple[str, str]] = []
    ends = False
    for row in rows(source):
        try:
            if row.fault:
                raise InputError(row.fault)
            parsed.append((parse(row.record, reading), row.place))
        except InputError as error:
            bad.append((row.place, str(error)))
            ends |= row.ends
        except RecursionError:
            bad.append((row.place, "brackets nested too deeply; write text, or a list of messages"))
    if bad and (ends or not parsed or len(bad) > max(1, (len(parsed) + len(bad)) // BAD_SHARE)):
        more = [f"... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        told = [f"{place}: {fault}" for place, fault in bad[:SHOWN]]
        raise InputError("\n".join([f"{len(bad)} bad lines in {source}:", *told, *more]))
    if not parsed:
        raise InputError(f"{source}: no pairs in it; write one JSON object a line, with {', '.join(COLUMNS)}")
    notes = [f"{source}: not used: {printable(', '.join(reading.unread))}"] if reading.unread else []
    notes += [f"{source}: {count} x {what}" for what, count in reading.mended.items()]
    return Loaded(parsed, bad, notes)


def save_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as JSONL with ``prompt``, ``chosen``, ``rejected``; an old file stays until the new one is whole.

    Args:
        path: the file; its folder is made if it is missing.
        pairs: what to write.
    Raises:
        InputError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pairs(Path(folder) / "pairs.jsonl", [PreferencePair("Why?", "Because.", "No.")])
    ...     print((Path(folder) / "pairs.jsonl").read_text(), end="")
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    """
    write_jsonl(path, ({name: getattr(pair, name) for name in COLUMNS} for pair in pairs))


def write_jsonl(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line; an old file stays until the new one is whole.

    Args:
        path: the file; its folder is made if it is missing.
        records: what to write.
    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as partial:
        # Half a character, as in cut-off text, has no UTF-8; its backslash form is what JSON writes for it.
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    sync(Path(path).resolve().parent)  # the new name, too, as this may be a person's work


def add_pair(path: str | Path, pair: PreferencePair) -> None:
    """Append a pair to a file of pairs, whose other lines stay as they are, with whatever else they hold.

    Args:
        path: the file; it is made if it is missing.
        pair: what to add.
    Raises:
        InputError: the file cannot be written; it is as it was then.
    """
    with atomic_write(Path(path)) as partial:
        old = Path(path).read_bytes() if Path(path).exists() else b""
        gap = b"\n" if old and not old.endswith(b"\n") else b""
        partial.write_bytes(old + gap + _line(pair))
    sync(Path(path).resolve().parent)


def take_back(path: str | Path, pair: PreferencePair) -> None:
    """Take a pair that was added last off the end of a file again.

    Args:
        record: one line of a file.
    Raises:
        InputError: the file does not end with it, as something else was written since.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file, pair = Path(folder) / "pairs.jsonl", PreferencePair("Why?", "Because.", "No.")
    ...     add_pair(file, pair)
    ...     take_back(file, pair)
    ...     file.read_text()
    ''
    """
    content, line = Path(path).read_bytes(), _line(pair)
    if not content.endswith(line):
        raise InputError(f"{path}: was changed by someone else since; take the pair out by hand")
    with atomic_write(path) as partial:
        partial.write_bytes(content.removesuffix(line))


def _line(pair: PreferencePair) -> bytes:
    record = {name: getattr(pair, name) for name in COLUMNS}
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
