"""Preference pairs as text, and the file formats they come in."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

from dpo_core.errors import InputError, shown
from dpo_core.formats.files import atomic_write, reason, sync

__all__ = [
    "LabelledAnswer", "PreferencePair", "add_pair", "load_labels", "load_pairs", "read_jsonl", "read_pair",
    "save_pairs", "shared_length", "write_jsonl",
]  # fmt: skip

COLUMNS = ("prompt", "chosen", "rejected")
ANSWER = "\n\nAssistant:"  # where an answer begins in HH-RLHF's text
SPEAKERS = {"system": "System", "user": "Human", "human": "Human", "assistant": "Assistant"}
SHOWN = 20  # bad lines listed in one error
LONGEST = 16 * 2**20  # bytes in a line; the longest answers that can be trained on have some thousand
BOMB = 200  # a packed file that unpacks to so many times its size, and to more than 20 MB, is no text
BOM = b"\xef\xbb\xbf"

T = TypeVar("T")
Texts = tuple[str, str, str]  # prompt, chosen, rejected


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


def load_pairs(path: str | Path) -> list[PreferencePair]:
    """Read preference pairs from a JSONL file; each line may be in any of the common formats.

    - ``prompt``, ``chosen``, ``rejected`` as text;
    - the same as lists of ``{"role", "content"}``, where ``chosen`` and ``rejected`` may hold the whole dialogue;
    - HH-RLHF: ``chosen`` and ``rejected`` as whole dialogues, ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``;
    - ``chosen`` and ``rejected`` as text with the same beginning, which is the prompt.

    Args:
        path: UTF-8, one JSON object a line, packed if it ends in ``.gz``; blank lines are skipped.
    Returns:
        The pairs in the file's order, each with its ``file:line`` as source.
    Raises:
        InputError: the file cannot be read, holds nothing, or has bad lines, which are listed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pairs(Path(folder) / "pairs.jsonl", [PreferencePair("Why?", "Because.", "No.")])
    ...     load_pairs(Path(folder) / "pairs.jsonl")[0].chosen
    'Because.'
    """
    return [PreferencePair(*texts, source) for texts, source in read_jsonl(path, read_pair)]


def load_labels(path: str | Path) -> list[LabelledAnswer] | list[PreferencePair]:
    """Read labelled answers, for KTO, from a JSONL file; a file of pairs alone is read as ``load_pairs`` does.

    Args:
        path: UTF-8, one JSON object a line, with ``prompt``, ``completion`` and ``label``, true or false, the first
            two as text or as messages; a pair among such lines counts as two answers.
    Returns:
        Answers, or pairs, in the file's order, each with its ``file:line`` as source.
    Raises:
        InputError: as ``load_pairs``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "answers.jsonl"
    ...     _ = file.write_text('{"prompt": "Why?", "completion": "Because.", "label": true}')
    ...     load_labels(file)[0].label
    True
    """
    found = read_jsonl(path, _read_labels)
    if not any(isinstance(label, bool) for (_, _, label), _ in found):
        return [PreferencePair(*cast(Texts, texts), source) for texts, source in found]
    answers = []
    for (prompt, first, second), source in found:
        one = [(first, second)] if isinstance(second, bool) else [(first, True), (second, False)]
        answers += [LabelledAnswer(prompt, text, label, source) for text, label in one]
    return answers


def _read_labels(record: dict[str, Any]) -> tuple[str, str, str | bool]:
    """Read prompt, completion and label of an object, or a pair."""
    if "completion" not in record:
        return read_pair(record)
    if "label" not in record:
        raise InputError('no "label"; a labelled answer needs prompt, completion and label, true (wanted) or false')
    if not isinstance(record["label"], bool):
        raise InputError(f'"label" is {shown(record["label"])}; it must be true (a wanted answer) or false')
    prompt, completion = record.get("prompt", []), record["completion"]
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, (str, list)):
            raise InputError(f'"{name}" is {shown(value)}; it must be text or a list of messages')
    if isinstance(prompt, list) or isinstance(completion, list):
        whole = _dialogue(prompt, "completion", completion)
        if whole.rfind(ANSWER) <= 0:
            raise InputError("no turn of the user before an answer; give a prompt")
        prompt, completion, _ = _cut_dialogue(whole, whole)
    for name, text in (("prompt", prompt), ("completion", completion)):
        if not text.strip():
            raise InputError(f'"{name}" is empty; fill it in or leave the line out')
    return prompt, completion, record["label"]


def read_jsonl(path: str | Path, parse: Callable[[dict[str, Any]], T]) -> list[tuple[T, str]]:
    """Parse each object of a JSONL file, and keep its place in the file.

    A file with bad lines is refused whole, and all of them are named together, up to twenty.

    Args:
        path: UTF-8, one JSON object a line, packed if it ends in ``.gz``; blank lines are skipped.
        parse: raises ``InputError`` for an object that will not do.
    Returns:
        What ``parse`` made of each object, with its ``file:line``.
    Raises:
        InputError: as ``load_pairs``.
    """
    parsed: list[tuple[T, str]] = []
    bad: list[str] = []
    count = 0
    for number, line in _lines(Path(path)):
        source = f"{path}:{number}"
        try:
            parsed.append((parse(_read_object(line) if isinstance(line, bytes) else _refuse(line)), source))
        except InputError as error:
            count += 1
            bad += [f"{source}: {error}"] if count <= SHOWN else []
        except RecursionError:
            count += 1
            bad += (
                [f"{source}: brackets nested too deeply; write text, or a list of messages"] if count <= SHOWN else []
            )
    if count:
        more = [f"... and {count - SHOWN} more"] if count > SHOWN else []
        raise InputError("\n".join([f"{count} bad lines in {path}:", *bad, *more]))
    if not parsed:
        raise InputError(f"{path}: no pairs in it; write one JSON object a line, with {', '.join(COLUMNS)}")
    return parsed


def _refuse(reason: str) -> NoReturn:
    raise InputError(reason)


def _lines(path: Path) -> Iterator[tuple[int, bytes | str]]:
    """Yield the lines that are not blank, each with its number; where reading has to end, the reason as text."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            file = cast(BinaryIO, opened)
            most = max(20 * 2**20, BOMB * os.stat(path).st_size) if path.suffix == ".gz" else None
            while line := file.readline(LONGEST + 1):
                number += 1
                line = line.removeprefix(BOM)  # of any line, as files may have been put one behind the other
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    yield number, "not UTF-8 but UTF-16; save the file as UTF-8"
                    return
                if len(line) > LONGEST:
                    yield number, f"has more than {LONGEST:,} bytes; write one object a line, and shorten long texts"
                    return
                if most and file.tell() > most:
                    yield number, f"unpacks to more than {BOMB} times the file's size; give the text unpacked"
                    return
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if number:  # of a packed file the end is missing or damaged
            yield number + 1, f"cannot be read from here on ({reason(error)}); copy or pack the file again"
            return
        raise InputError(f"{path}: cannot be read ({reason(error)}); check the path") from error


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
        line = json.dumps({name: getattr(pair, name) for name in COLUMNS}, ensure_ascii=False) + "\n"
        gap = b"\n" if old and not old.endswith(b"\n") else b""
        partial.write_bytes(old + gap + line.encode("utf-8", "backslashreplace"))
    sync(Path(path).resolve().parent)


def _read_object(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8").rstrip("\r\n")
        record = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error.reason} at byte {error.start + 1}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise InputError(f"not JSON ({what} at column {error.colno}); write one object a line") from error
    except InputError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"not JSON that can be read ({error}); shorten the number") from error
    if not isinstance(record, dict):
        raise InputError(f"not an object but {shown(record)}; write {{...}} with {', '.join(COLUMNS)}")
    return record


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) < len(items):
        twice = next(name for name, count in Counter(name for name, _ in items).items() if count > 1)
        raise InputError(f"{shown(twice)} is there twice, and only one can count; leave the other out")
    return record


def _no_number(name: str) -> NoReturn:
    raise InputError(f"{name} is not JSON; write null, or leave the field out")


def read_pair(record: dict[str, Any]) -> Texts:
    """Read prompt, chosen and rejected answer from an object in any of the formats of ``load_pairs``.

    Args:
        record: one line of a file.
    Raises:
        InputError: a field is missing, empty or of the wrong kind.

    >>> read_pair({"chosen": "It is blue.", "rejected": "It is red."})
    ('It is', ' blue.', ' red.')
    """
    for name in ("chosen", "rejected"):
        if name not in record:
            held = ", ".join([*(shown(key).strip('"') for key in list(record)[:8]), *["..."][: len(record) > 8]])
            kto = "; labelled answers are for the loss kto" * ("label" in record)
            raise InputError(f'no "{name}" (the line has {held or "nothing"}); a pair needs {", ".join(COLUMNS)}{kto}')
    for name in COLUMNS:
        if not isinstance(record.get(name, ""), (str, list)):
            raise InputError(f'"{name}" is {shown(record[name])}; it must be text or a list of messages')
    texts = next(texts for reader in READERS if (texts := reader(record)) is not None)
    for name, text in zip(COLUMNS, texts):
        if not text.strip():
            raise InputError(f'"{name}" is empty; fill it in or leave the line out')
    return texts


def _read_messages(record: dict[str, Any]) -> Texts | None:
    if not any(isinstance(record.get(name), list) for name in COLUMNS):
        return None
    prompt = record.get("prompt", [])
    return _cut_dialogue(*(_dialogue(prompt, name, record[name]) for name in ("chosen", "rejected")))


def _dialogue(prompt: str | list[Any], name: str, answer: str | list[Any]) -> str:
    """Prompt and answer as HH-RLHF's text."""
    before, text = _render("prompt", prompt, "user"), _render(name, answer, "assistant")
    # Answers that do not start with the assistant are whole dialogues, the prompt included (UltraFeedback).
    return before + text if text.startswith(ANSWER) else text


def _read_columns(record: dict[str, Any]) -> Texts | None:
    return (record["prompt"], record["chosen"], record["rejected"]) if "prompt" in record else None


def _read_hh(record: dict[str, Any]) -> Texts | None:
    chosen, rejected = record["chosen"], record["rejected"]
    return _cut_dialogue(chosen, rejected) if ANSWER in chosen and ANSWER in rejected else None


def _read_shared_start(record: dict[str, Any]) -> Texts | None:
    chosen, rejected = record["chosen"], record["rejected"]
    shared = chosen[: shared_length(chosen, rejected)]
    cut = max(shared.rfind(" "), shared.rfind("\n") + 1)  # a space belongs to the word after it, a line break does not
    if cut <= 0:
        raise InputError('no "prompt", and chosen and rejected do not begin with the same words; add a prompt')
    return chosen[:cut], chosen[cut:], rejected[cut:]


READERS = (_read_messages, _read_columns, _read_hh, _read_shared_start)


def _render(name: str, value: str | list[Any], speaker: str) -> str:
    """Write messages as HH-RLHF's text; plain text is one message of ``speaker``."""
    text = ""
    for message in [{"role": speaker, "content": value}] if isinstance(value, str) else value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise InputError(f'"{name}" holds {shown(message)}; a message is {{"role": ..., "content": text}}')
        if message.get("role") not in list(SPEAKERS):  # a list, as the role may be anything
            raise InputError(f'"{name}" has the role {shown(message.get("role"))}; known are {", ".join(SPEAKERS)}')
        text += f"\n\n{SPEAKERS[message['role']]}: {message['content'].strip()}"
    return text


def _cut_dialogue(chosen: str, rejected: str) -> Texts:
    cut = chosen.rfind(ANSWER, 0, shared_length(chosen, rejected)) + len(ANSWER)
    if cut <= len(ANSWER):
        raise InputError("chosen and rejected do not answer the same dialogue; both must begin with its turns")
    return chosen[:cut], chosen[cut:].strip(), rejected[cut:].strip()


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Count the items that two sequences have in common from their beginning.

    Args:
        first: text, or token ids.
        second: another.

    >>> shared_length("The sky is blue", "The sky is grey")
    11
    """
    differing = (i for i, (a, b) in enumerate(zip(first, second)) if a != b)
    return next(differing, min(len(first), len(second)))
