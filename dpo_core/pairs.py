"""Preference pairs as text, and the file formats they come in."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dpo_core.errors import InputError

__all__ = ["PreferencePair", "load_pairs", "read_jsonl", "read_pair", "save_pairs", "shared_length", "write_jsonl"]

COLUMNS = ("prompt", "chosen", "rejected")
ANSWER = "\n\nAssistant:"  # where an answer begins in HH-RLHF's text
SPEAKERS = {"system": "System", "user": "Human", "human": "Human", "assistant": "Assistant"}
SHOWN = 20  # bad lines listed in one error

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


def load_pairs(path: str | Path) -> list[PreferencePair]:
    """Read a JSONL file; each line may be in any of the common formats.

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


def read_jsonl(path: str | Path, parse: Callable[[dict[str, Any]], T]) -> list[tuple[T, str]]:
    """What ``parse`` makes of each object of a JSONL file, with its ``file:line``.

    Args:
        path: UTF-8, one JSON object a line, packed if it ends in ``.gz``; blank lines are skipped.
        parse: raises ``InputError`` for an object that will not do.
    Raises:
        InputError: as ``load_pairs``.
    """
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if Path(path).suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    parsed, bad = [], []
    for number, line_text in enumerate(text.split("\n"), start=1):
        if not line_text.strip():
            continue
        source = f"{path}:{number}"
        try:
            parsed.append((parse(_read_object(line_text)), source))
        except InputError as error:
            bad.append(f"{source}: {error}")
    if bad:
        more = [f"... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise InputError("\n".join([f"{len(bad)} bad lines in {path}:", *bad[:SHOWN], *more]))
    if not parsed:
        raise InputError(f"{path}: no pairs in it; write one JSON object a line, with {', '.join(COLUMNS)}")
    return parsed


def save_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as JSONL with ``prompt``, ``chosen``, ``rejected``; an old file stays whole until the new one is.

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
    """Write one JSON object a line; an old file stays whole until the new one is.

    Args:
        path: the file; its folder is made if it is missing.
        records: what to write.
    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Half a character, as in cut-off text, has no UTF-8; its backslash form is what JSON writes for it.
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _read_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON ({error.msg} at column {error.colno}); write one object a line") from error
    if not isinstance(record, dict):
        raise InputError(f"not an object but {_short(record)}; write {{...}} with {', '.join(COLUMNS)}")
    return record


def read_pair(record: dict[str, Any]) -> Texts:
    """Prompt, chosen and rejected answer of an object in any of the formats of ``load_pairs``.

    Raises:
        InputError: a field is missing, empty or of the wrong kind.

    >>> read_pair({"chosen": "It is blue.", "rejected": "It is red."})
    ('It is', ' blue.', ' red.')
    """
    for name in ("chosen", "rejected"):
        if name not in record:
            held = ", ".join(map(str, record)) or "nothing"
            raise InputError(f'no "{name}" (the line has {held}); a pair needs {", ".join(COLUMNS)}')
    for name in COLUMNS:
        if not isinstance(record.get(name, ""), (str, list)):
            raise InputError(f'"{name}" is {_short(record[name])}; it must be text or a list of messages')
    texts = next(texts for reader in READERS if (texts := reader(record)) is not None)
    for name, text in zip(COLUMNS, texts):
        if not text.strip():
            raise InputError(f'"{name}" is empty; fill it in or leave the line out')
    return texts


def _read_messages(record: dict[str, Any]) -> Texts | None:
    if not any(isinstance(record.get(name), list) for name in COLUMNS):
        return None
    prompt = _render("prompt", record.get("prompt", []), "user")
    answers = [_render(name, record[name], "assistant") for name in ("chosen", "rejected")]
    # Answers that do not start with the assistant are whole dialogues, the prompt included (UltraFeedback).
    return _cut_dialogue(*(prompt + text if text.startswith(ANSWER) else text for text in answers))


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
    """Messages as HH-RLHF's text; plain text is one message of ``speaker``."""
    text = ""
    for message in [{"role": speaker, "content": value}] if isinstance(value, str) else value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise InputError(f'"{name}" holds {_short(message)}; a message is {{"role": ..., "content": text}}')
        if message.get("role") not in list(SPEAKERS):  # a list, as the role may be anything
            raise InputError(f'"{name}" has the role {_short(message.get("role"))}; known are {", ".join(SPEAKERS)}')
        text += f"\n\n{SPEAKERS[message['role']]}: {message['content'].strip()}"
    return text


def _cut_dialogue(chosen: str, rejected: str) -> Texts:
    cut = chosen.rfind(ANSWER, 0, shared_length(chosen, rejected)) + len(ANSWER)
    if cut <= len(ANSWER):
        raise InputError("chosen and rejected do not answer the same dialogue; both must begin with its turns")
    return chosen[:cut], chosen[cut:].strip(), rejected[cut:].strip()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences have in common from their beginning.

    >>> shared_length("The sky is blue", "The sky is grey")
    11
    """
    differing = (i for i, (a, b) in enumerate(zip(first, second)) if a != b)
    return next(differing, min(len(first), len(second)))
