"""The exception for mistakes that a user can correct, and safe ways to put any text into its message."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

__all__ = ["InputError", "printable", "shown"]

TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # these turn the direction of writing round


class InputError(ValueError):
    """Something given to ``dpo_core`` is wrong; the message says what, where, and how to correct it."""


def printable(text: str) -> str:
    """Spell out the characters of a text that would steer a terminal; line breaks and tabs stay.

    Args:
        text: from anywhere.

    >>> printable("a\\x1b[2J b")
    'a\\\\x1b[2J b'
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if c not in "\n\t" and (unicodedata.category(c) in ("Cc", "Cs") or c in TURNING)
        else c
        for c in text
    )


def shown(value: Any, length: int = 40) -> str:
    """Write a value for a message: as JSON, on one line, short, and without characters that steer a terminal.

    Args:
        value: anything.
        length: characters at most.

    >>> shown({"text": "a long story, told in many words"}, length=20)
    '{"text": "a long ...'
    """
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (RecursionError, TypeError, ValueError):  # nested without end, or no JSON at all
        text = f"a {type(value).__name__}"
    return printable(text if len(text) <= length else text[: length - 3] + "...")
