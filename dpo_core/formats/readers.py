"""A record's prompt and answers, whatever format it is in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dpo_core.errors import InputError, shown
from dpo_core.formats.dialogues import (
    ANSWER,
    Turn,
    cut_turns,
    joined,
    parse_text,
    parse_turns,
    render,
    shared_length,
    tidy,
    unpacked,
)
from dpo_core.formats.fields import Fields, blank, check_unread, find_answers, find_prompt, held

__all__ = ["COMPLETIONS", "Reading", "read_completion", "read_example", "read_label", "read_pair"]

Texts = tuple[str, str, str]  # prompt, chosen, rejected
COMPLETIONS = ("completion", "output", "response", "answer")  # an answer alone; the last three are Alpaca's and others'
DIALOGUES = ("messages", "conversations", "conversation")


@dataclass
class Reading:
    """How a file is read, and what there is to say about it."""

    fields: Fields = field(default_factory=Fields)
    unread: Counter[str] = field(default_factory=Counter)  # fields that hold something
    mended: Counter[str] = field(default_factory=Counter)  # what was put right, in words


def read_pair(record: dict[str, Any], reading: Reading | None = None) -> Texts:
    """Read the prompt, the chosen and the rejected answer of a record in any of the formats of ``load_pairs``.

    Args:
        record: its fields.
        reading: names of fields; what is left unread or mended is added to it.
    Raises:
        InputError: a field is missing, empty or of the wrong kind, or one is unread that could be the prompt.

    >>> read_pair({"chosen": "It is blue.", "rejected": "It is red."})
    ('It is', ' blue.', ' red.')
    """
    reading = reading or Reading()
    record = _unpacked(record, reading)
    names = find_answers(record, reading.fields)
    for name in names:
        if not isinstance(record[name], (str, list, dict)) or record[name] == {}:
            raise InputError(f"{shown(name)} is {shown(record[name])}; it must be text or a list of messages")
    prompt, used = find_prompt(record, reading.fields, {*names})
    chosen, rejected = (record[name] for name in names)
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        if ANSWER not in chosen:
            check_unread(record, {*names, *used}, (chosen, rejected), True)
        texts = _without_prompt(record, chosen, rejected)
        implicit = not parse_text(texts[0])
    else:
        texts, implicit = _with_prompt(prompt, names, chosen, rejected, reading), False
    for name, text in zip(("prompt", *names), texts):
        if not text.strip():
            raise InputError(f"{shown(name)} is empty; fill it in or leave the line out")
    _note_unread(record, {*names, *used}, texts, implicit, reading)
    return texts


def _unpacked(record: dict[str, Any], reading: Reading) -> dict[str, Any]:
    read = {name: unpacked(value) for name, value in record.items()}
    if any(read[name] is not record[name] for name in record):
        reading.mended["messages written as text were read as messages"] += 1
    return read


def _note_unread(
    record: dict[str, Any], read: set[str], texts: tuple[str, ...], implicit: bool, reading: Reading
) -> None:
    if isinstance(record.get("label"), dict):  # who judged a pair, in the labeller's files
        read = {*read, "label"}
    reading.unread.update(check_unread(record, read, texts, implicit, bool(reading.fields.prompt)))


def _without_prompt(record: dict[str, Any], chosen: str, rejected: str) -> Texts:
    """Cut whole dialogues in HH-RLHF's text, or texts that begin alike."""
    if ANSWER in chosen and ANSWER in rejected:
        return _cut_dialogue(chosen, rejected)
    if "prompt" in record:
        if isinstance(record["prompt"], str) or record["prompt"] == []:
            raise InputError('"prompt" is empty; fill it in or leave the line out')
        raise InputError(f'"prompt" is {shown(record["prompt"])}; it must be text or a list of messages')
    shared = chosen[: shared_length(chosen, rejected)]
    cut = max(shared.rfind(" "), shared.rfind("\n") + 1)  # a space belongs to the word after it, a line break does not
    if cut <= 0:
        raise InputError(
            'no "prompt", and chosen and rejected do not begin with the same words; add a prompt, or name its field'
            " (prompt_field)"
        )
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _cut_dialogue(chosen: str, rejected: str) -> Texts:
    cut = chosen.rfind(ANSWER, 0, shared_length(chosen, rejected)) + len(ANSWER)
    if cut <= len(ANSWER):
        raise InputError("chosen and rejected do not answer the same dialogue; both must begin with its turns")
    return chosen[:cut], tidy(chosen[cut:]), tidy(rejected[cut:])


def _with_prompt(
    prompt: str | list[Turn] | None, names: tuple[str, str], chosen: Any, rejected: Any, reading: Reading
) -> Texts:
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        if parse_text(prompt) and chosen.startswith(prompt.rstrip()) and rejected.startswith(prompt.rstrip()):
            reading.mended["both answers began with the whole prompt, which was taken off"] += 1
            start = len(prompt.rstrip())
            return prompt, tidy(chosen[start:]), tidy(rejected[start:])
        if not (parse_text(chosen) and parse_text(rejected)):
            return prompt, chosen, rejected
    turns = [parse_turns(name, value, "Assistant") for name, value in zip(names, (chosen, rejected))]
    opening, *answers = cut_turns(*turns)
    before = parse_turns("prompt", prompt, "Human") if isinstance(prompt, str) else prompt or []
    before = [turn for turn in before if turn[1]] if prompt == "" else before
    return render(joined(before, opening, tuple(answers))) + ANSWER, answers[0], answers[1]


def read_completion(record: dict[str, Any], name: str, reading: Reading) -> tuple[str, str]:
    """Read a prompt and the one answer to it.

    Args:
        record: its fields.
        name: of the field that holds the answer.
        reading: as of ``read_pair``.
    Raises:
        InputError: as ``read_pair``.
    """
    record = _unpacked(record, reading)
    prompt, used = find_prompt(record, reading.fields, {name})
    answer = record[name]
    if not isinstance(answer, (str, list, dict)) or answer == {}:
        raise InputError(f"{shown(name)} is {shown(answer)}; it must be text or a list of messages")
    if prompt is None and isinstance(record.get("prompt", ""), str) and isinstance(answer, str):
        empty = '"prompt" is empty; fill it in or leave the line out'
        raise InputError(empty if "prompt" in record else f'no "prompt" (the line has {held(record)}); add one')
    if not (isinstance(prompt, str) and isinstance(answer, str)):
        turns = parse_turns(name, answer, "Assistant")
        before = parse_turns("prompt", prompt, "Human") if isinstance(prompt, str) else prompt or []
        if not turns or not any(speaker == "Human" for speaker, _ in [*before, *turns]):
            raise InputError("no turn of the user before an answer; give a prompt")
        opening, answer, _ = cut_turns(turns, turns)
        prompt = render(joined(before, opening, (answer,))) + ANSWER
    for what, text in (("prompt", prompt), (name, answer)):
        if not text.strip():
            raise InputError(f"{shown(what)} is empty; fill it in or leave the line out")
    _note_unread(record, {name, "label", *used}, (prompt, answer), False, reading)
    return prompt, answer


def read_label(record: dict[str, Any], reading: Reading) -> tuple[str, str, str | bool]:
    """Read prompt, completion and label, or a pair."""
    if "completion" not in record:
        return read_pair(record, reading)
    if "label" not in record:
        raise InputError('no "label"; a labelled answer needs prompt, completion and label, true (wanted) or false')
    if not isinstance(record["label"], bool):
        raise InputError(f'"label" is {shown(record["label"])}; it must be true (a wanted answer) or false')
    return *read_completion(record, "completion", reading), record["label"]


def read_example(record: dict[str, Any], reading: Reading) -> tuple[str, str]:
    """Read a prompt and a good answer to it; text alone is an answer to nothing.

    >>> read_example({"instruction": "Add.", "input": "1, 2", "output": "3"}, Reading())
    ('Add.\\n1, 2', '3')
    """
    if record.get("label") is False:
        raise InputError('"label" is false, so the answer is not a good one; leave the line out')
    fields = reading.fields
    if fields.chosen and fields.chosen in record:
        return read_completion(record, fields.chosen, reading)
    if "completion" not in record and "chosen" in record:
        if "rejected" in record:
            return read_pair(record, reading)[:2]
        return read_completion(record, "chosen", reading)
    if name := next((name for name in COMPLETIONS if not blank(record.get(name)) or name in record), None):
        return read_completion(record, name, reading)
    record = _unpacked(record, reading)
    if name := next((name for name in DIALOGUES if isinstance(record.get(name), list)), None):
        *before, last = parse_turns(name, record[name], "Human") or [("", "")]
        if last[0] != "Assistant" or not any(speaker == "Human" for speaker, _ in before):
            raise InputError(f"{shown(name)} must end with the assistant's answer to a turn of the user")
        prompt = render(before) + ANSWER
        _note_unread(record, {name}, (prompt, last[1]), False, reading)
        return prompt, last[1]
    if isinstance(record.get("text"), str) and record["text"].strip():
        _note_unread(record, {"text"}, ("", record["text"]), False, reading)
        return "", record["text"]
    raise InputError(
        f"no answer (the line has {held(record)}); an example needs prompt and completion, or instruction and output,"
        " or messages, or text, or is a pair"
    )
