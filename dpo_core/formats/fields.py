"""Which fields of a record are the prompt and which the answers; the one place that decides it.

Fields have names by which such things are known, or the caller names them. A field that is left unread although its
name is one that prompts go by makes the line bad, so that no question is lost in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dpo_core.errors import InputError, shown
from dpo_core.formats.dialogues import Turn, parse_message, parse_turns

__all__ = ["COLUMNS", "NAMES", "Fields", "blank", "check_unread", "find_answers", "find_prompt", "held"]

COLUMNS = ("prompt", "chosen", "rejected")
ANSWERS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),  # OpenAI
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),  # Stack Exchange, the better one first
)
# By which a prompt is known, the first that is there; what else is there and says more makes the line bad.
MAIN = ("prompt", "messages", "conversations", "conversation", "instruction", "question", "query", "input", "history")
SYSTEM = ("system", "system_prompt", "system_message")
NAMES = {*COLUMNS, *MAIN, *SYSTEM, "completion", "label", "text", *(name for both in ANSWERS for name in both)}

# Words in the names of fields that hold prompts, and those that say a field is about one and not one itself.
PROMPT_WORDS = set(
    "prompt prompts instruction instructions input inputs question questions query queries message messages"
    " conversation conversations dialogue dialogues dialog dialogs history context contexts system user human request"
    " turns chat post passage problem".split()
)
ABOUT_WORDS = set(
    "id ids idx index uuid length len token tokens count num number n score scores rating hash type lang language"
    " category name url time date version topic label difficulty level model template".split()
)


@dataclass(frozen=True)
class Fields:
    """The names of fields that the caller gives; where there are none, the known names count."""

    prompt: tuple[str, ...] = ()  # joined by line breaks, if they are several
    chosen: str = ""
    rejected: str = ""


def blank(value: object) -> bool:
    """Tell whether a field holds nothing."""
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def held(record: dict[str, Any]) -> str:
    """Name the fields of a record, for a message."""
    return ", ".join([*(shown(key).strip('"') for key in list(record)[:8]), *["..."][: len(record) > 8]]) or "nothing"


def find_answers(record: dict[str, Any], fields: Fields) -> tuple[str, str]:
    """Find the fields of the chosen and of the rejected answer.

    Raises:
        InputError: one is not there.

    >>> find_answers({"preferred_output": [], "non_preferred_output": []}, Fields())
    ('preferred_output', 'non_preferred_output')
    """
    known = next((names for names in ANSWERS if all(name in record for name in names)), ANSWERS[0])
    names = fields.chosen or known[0], fields.rejected or known[1]
    if missing := [name for name in names if name not in record]:
        kto = "; labelled answers are for the loss kto" * ("label" in record)
        other = "; other names are given as chosen_field and rejected_field" * (len(missing) == 2 and not kto)
        raise InputError(
            f"no {shown(missing[0])} (the line has {held(record)}); a pair needs {', '.join(COLUMNS)}{kto}{other}"
        )
    return names


def find_prompt(record: dict[str, Any], fields: Fields, taken: set[str]) -> tuple[str | list[Turn] | None, set[str]]:
    """Find the prompt of a record.

    Args:
        record: its fields.
        fields: names that the caller gave.
        taken: fields that hold the answers.
    Returns:
        Text or turns, or None if no field has a name that prompts are known by, and the fields it is made of.
    Raises:
        InputError: a field is not there, or of the wrong kind.

    >>> find_prompt({"instruction": "Add.", "input": "1, 2", "id": 7}, Fields(), set())[0]
    'Add.\\n1, 2'
    >>> find_prompt({"system": "Be brief.", "question": "Why?"}, Fields(), set())[0]
    [('System', 'Be brief.'), ('Human', 'Why?')]
    """
    if fields.prompt:
        return _named_prompt(record, fields.prompt), set(fields.prompt)
    there = {name: value for name, value in record.items() if name not in taken and not blank(value)}
    main = next((name for name in MAIN if name in there), None)
    if main is None:
        return None, {"prompt"}
    used = {main}
    prompt = _prompt(main, there[main])
    if main == "instruction" and isinstance(there.get("input"), str) and isinstance(prompt, str):
        prompt, used = f"{prompt}\n{there['input']}", {*used, "input"}
    system = next((name for name in SYSTEM if isinstance(record.get(name), str)), None)
    history = "history" if main != "history" and isinstance(record.get("history"), list) else None
    if system or history:  # also if both are empty, so that all lines of a file have one form
        turns = parse_turns(main, prompt, "Human") if isinstance(prompt, str) else prompt
        before = [("System", record[system].strip())] if system and record[system].strip() else []
        earlier = _history(record["history"]) if history else []
        prompt = [*(turn for turn in before if turn not in turns), *earlier, *turns]
        used |= {name for name in (system, history) if name}
    return prompt, used


def _named_prompt(record: dict[str, Any], names: tuple[str, ...]) -> str | list[Turn]:
    if missing := [name for name in names if name not in record]:
        raise InputError(f"no {shown(missing[0])} for the prompt (the line has {held(record)}); see prompt_field")
    if len(names) == 1:
        return _prompt(names[0], record[names[0]])
    for name in names:
        if record[name] is not None and not isinstance(record[name], str):
            raise InputError(f"{shown(name)} is {shown(record[name])}; a prompt of several fields is made of texts")
    return "\n".join(record[name] for name in names if not blank(record[name]))


def _prompt(name: str, value: object) -> str | list[Turn]:
    if isinstance(value, dict) and isinstance(value.get("messages"), list):  # OpenAI
        if value.get("tools"):
            raise InputError(f"{shown(name)} has tools, which are not supported; leave the line out")
        value = value["messages"]
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, dict)) or (isinstance(value, dict) and parse_message(name, value) is None):
        raise InputError(f"{shown(name)} is {shown(value)}; it must be text or a list of messages")
    return parse_turns(name, value, "Human")


def _history(history: list[Any]) -> list[Turn]:
    """Earlier turns, as messages or as pairs of question and answer."""
    turns: list[Turn] = []
    for item in history:
        if isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(text, str) for text in item):
            turns += [("Human", item[0].strip()), ("Assistant", item[1].strip())]
        else:
            turns += parse_turns("history", [item], "Human")
    return turns


def check_unread(
    record: dict[str, Any], read: set[str], texts: tuple[str, ...], anything: bool, chosen_by_hand: bool = False
) -> list[str]:
    """Name the fields that were not read, and refuse those that may hold what is missing from the prompt.

    Args:
        record: all fields.
        read: those that were read.
        texts: prompt and answers, as they were read.
        anything: whether a field under any name could be the prompt, as none was found.
        chosen_by_hand: whether the caller said what the prompt is; then nothing is refused.
    Returns:
        Names of unread fields that hold something.
    Raises:
        InputError: an unread field could be part of the prompt.

    >>> check_unread({"prompt": "Why?", "score": 3}, {"prompt"}, ("Why?",), False)
    ['score']
    """
    unread = [name for name in record if name not in read and not blank(record[name])]
    for name in list(unread):
        named = _prompts_name(name)
        if _says_nothing_new(name, record[name], texts):
            unread.remove(name)
        elif chosen_by_hand:
            continue
        elif isinstance(record[name], (str, list, dict)) and named:
            raise InputError(
                f"{shown(name)} is not read, and could be part of the prompt; name the fields that make the prompt"
                " (prompt_field), or leave it out"
            )
        elif anything and isinstance(record[name], str) and len(record[name].split()) > 1 and not _is_about(name):
            raise InputError(
                f'no "prompt", and {shown(name)} could be it; name the field of the prompt (prompt_field), or leave'
                " it out"
            )
    inner = [(name, record[name]) for name in record if name in read and isinstance(record[name], dict)]
    return unread + [
        f"{name}.{key}"
        for name, value in inner
        if "messages" in value
        for key in value
        if key != "messages" and not blank(value[key])
    ]


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def _is_about(name: str) -> bool:
    words = _words(name)
    return bool(words & ABOUT_WORDS) or ("source" in words and len(words) > 1)


def _prompts_name(name: str) -> bool:
    return bool(_words(name) & PROMPT_WORDS) and not _is_about(name)


def _says_nothing_new(name: str, value: object, texts: tuple[str, ...]) -> bool:
    """Tell whether all that a field says was read elsewhere, as where the dialogue stands there once more."""
    if isinstance(value, str):
        parts = [value]
    elif isinstance(value, list) and _prompts_name(name):
        try:
            parts = [text for _, text in parse_turns(name, value, "Human")]
        except InputError:
            return False
    else:
        return False
    # Of the rejected answer, whatever repeats it, nothing is known to belong to the prompt.
    return _prompts_name(name) and all(any(part.strip() in text for text in texts) for part in parts)
