"""Dialogues: turns out of messages, and how a prompt and the dialogues in the answers make one."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from dpo_core.errors import InputError, shown

__all__ = [
    "ANSWER", "SPEAKERS", "Turn", "cut_turns", "joined", "parse_message", "parse_text", "parse_turns", "render",
    "shared_length", "tidy", "unpacked",
]  # fmt: skip

ANSWER = "\n\nAssistant:"  # where an answer begins in HH-RLHF's text
ROLES = ("system", "user", "human", "assistant")  # for messages to people; others that mean the same are known, too
SPEAKERS = {
    "system": "System", "developer": "System", "user": "Human", "human": "Human", "prompter": "Human",
    "assistant": "Assistant", "gpt": "Assistant", "bot": "Assistant", "model": "Assistant", "chatgpt": "Assistant",
}  # fmt: skip
MARK = re.compile(r"\n\n(System|Human|Assistant):")
NO_DIALOGUE = "chosen and rejected do not answer the same dialogue; both must begin with its turns"

Turn = tuple[str, str]  # who speaks, System, Human or Assistant, and what


def tidy(text: str) -> str:
    """Take off the white space that only separates: blank lines before, one space before, all behind.

    Indentation stays, as the first line may be code.

    >>> tidy(" Yes. "), tidy("\\n    return 1\\n")
    ('Yes.', '    return 1')
    """
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text).rstrip()
    return text if re.match(r"\t|[^\S\n]{2}", text) else text.lstrip()


def render(turns: Sequence[Turn]) -> str:
    """Write turns as HH-RLHF's text.

    >>> render([("Human", "Why?")])
    '\\n\\nHuman: Why?'
    """
    return "".join(f"\n\n{speaker}: {text}" for speaker, text in turns)


def parse_text(text: str) -> list[Turn]:
    """Read HH-RLHF's text as turns; of any other there are none, and an open turn at the end is left out.

    >>> parse_text("\\n\\nHuman: Why?\\n\\nAssistant:")
    [('Human', 'Why?')]
    """
    if not re.match(MARK, text):
        return []
    parts = re.split(MARK, text)[1:]
    turns = [(speaker, tidy(part)) for speaker, part in zip(parts[::2], parts[1::2])]
    return turns[:-1] if turns[-1] == ("Assistant", "") else turns


def parse_message(name: str, message: object) -> Turn | None:
    """Read a message, as ``{"role", "content"}`` or ShareGPT's ``{"from", "value"}``; None if it is none.

    Raises:
        InputError: its role is unknown, or it holds more than text.
    """
    if not isinstance(message, dict):
        return None
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if message.get("tool_calls") or message.get("function_call"):
        raise InputError(f"{shown(name)} has a call of a tool, which is not supported; leave the line out")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        kinds = {str(part.get("type")) for part in content} - {"text"}
        if kinds:
            raise InputError(f"{shown(name)} has a part of the type {shown(min(kinds))}; only text is read")
        texts = [part.get("text") for part in content]
        content = "".join(texts) if texts and all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        return None
    speaker = SPEAKERS.get(role.strip().lower()) if isinstance(role, str) else None
    if speaker is None:
        raise InputError(f"{shown(name)} has the role {shown(role)}; known are {', '.join(ROLES)}")
    return speaker, tidy(content)


def parse_turns(name: str, value: str | dict[str, Any] | list[Any], speaker: str) -> list[Turn]:
    """Read text, a message or a list of messages as turns; an empty turn of the system says nothing and is left out.

    Args:
        name: of the field, for messages.
        value: what it holds.
        speaker: whose turn plain text is.
    Raises:
        InputError: something in it is no message.
    """
    if isinstance(value, str):
        return parse_text(value) or [(speaker, tidy(value))]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        raise InputError(f"{shown(name)} holds {shown(value[0])}; a message is an object; write one text a line")
    turns = []
    for message in [value] if isinstance(value, dict) else value:
        turn = parse_message(name, message)
        if turn is None:
            raise InputError(f'{shown(name)} holds {shown(message)}; a message is {{"role": ..., "content": text}}')
        turns.append(turn)
    return [turn for turn in turns if turn != ("System", "")]


def unpacked(value: object) -> object:
    """Read messages that were written as text, in JSON or as Python shows them; anything else comes back as it is.

    >>> unpacked("[{'role': 'user', 'content': 'Why?'}]")
    [{'role': 'user', 'content': 'Why?'}]
    """
    if not isinstance(value, str) or not re.match(r"\s*[\[{]", value) or not re.search(r"[\"'](role|from)[\"']", value):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        listed = found if isinstance(found, list) else [found]
        if listed and all(isinstance(item, dict) and {"role", "from"} & item.keys() for item in listed):
            return found
    return value


def cut_turns(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> tuple[list[Turn], str, str]:
    """Cut two dialogues where the last answer begins before which they agree.

    Returns:
        What they have in common, and the two answers, with further turns that may stand behind them.
    Raises:
        InputError: they are not about the same.

    >>> cut_turns([("Human", "Why?"), ("Assistant", "So.")], [("Human", "Why?"), ("Assistant", "No.")])
    ([('Human', 'Why?')], 'So.', 'No.')
    """
    last = min(shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    answers = (at for at in range(last, -1, -1) if chosen[at][0] == rejected[at][0] == "Assistant")
    at = next(answers, None)
    if at is None:
        raise InputError(NO_DIALOGUE)
    first, second = (turns[at][1] + render(turns[at + 1 :]) for turns in (chosen, rejected))
    return list(chosen[:at]), first, second


def joined(prompt: list[Turn], opening: list[Turn], answers: tuple[str, ...]) -> list[Turn]:
    """Join a prompt with the turns that the answers begin with, where the one goes over into the other.

    Args:
        prompt: turns of the field.
        opening: what both dialogues in the answers begin with.
        answers: behind it; a prompt that ends in one of them holds it once too often.
    Returns:
        All turns before the answer.
    Raises:
        InputError: they are of different dialogues.

    >>> joined([("System", "Be brief."), ("Human", "Hi?")], [("Human", "Hi?")], ())
    [('System', 'Be brief.'), ('Human', 'Hi?')]
    """
    if prompt and prompt[-1][0] == "Assistant" and prompt[-1][1] in answers:
        prompt = prompt[:-1]
    longest = min(len(prompt), len(opening))
    overlap = next((n for n in range(longest, 0, -1) if prompt[-n:] == opening[:n]), 0)
    if prompt and opening and not overlap:
        if opening[-len(prompt) :] == prompt:  # the dialogue also has a turn of the system before
            return opening
        if opening[0][0] != "Assistant":
            raise InputError(
                "the prompt is neither the beginning of the dialogue in the answers nor does it end with it; give the"
                " whole dialogue in one place"
            )
    turns = prompt + opening[overlap:]
    if not any(speaker == "Human" for speaker, _ in turns):
        raise InputError(NO_DIALOGUE)
    if turns[-1][0] == "Assistant":
        raise InputError("the prompt ends with the assistant's turn; it must end with the user's")
    return turns


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Count the items that two sequences have in common from their beginning.

    >>> shared_length("The sky is blue", "The sky is grey")
    11
    """
    differing = (i for i, (a, b) in enumerate(zip(first, second)) if a != b)
    return next(differing, min(len(first), len(second)))
