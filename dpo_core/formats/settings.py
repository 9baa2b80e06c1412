"""Settings that describe themselves: default, allowed values, effect, and name as a flag.

``DPOConfig`` is made of such settings; it checks its values by them, and the command line makes its flags of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from typing import Any

from dpo_core.errors import InputError

__all__ = ["COUNT", "NOT_NEGATIVE", "POSITIVE", "SEED", "SHARE", "Kind", "Setting", "check", "one_of", "setting"]


@dataclass(frozen=True)
class Kind:
    """Values that make sense, and the words for them.

    >>> COUNT.takes(3), COUNT.takes(0), COUNT.takes(3.0), POSITIVE.takes(3)
    (True, False, False, True)
    """

    type: type
    words: str
    fits: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def takes(self, value: object) -> bool:
        """Tell whether a value is of this kind; a whole number counts as a real one, too.

        Args:
            value: anything.
        """
        types = (int, float) if self.type is float else self.type
        return isinstance(value, types) and not isinstance(value, bool) and self.fits(value)


def one_of(*choices: str) -> Kind:
    """Make a kind that allows a few words.

    Args:
        choices: the words.
    """
    return Kind(str, " or ".join(choices), lambda value: value in choices, choices)


COUNT = Kind(int, "a whole number above 0", lambda value: value > 0)
SEED = Kind(int, "a whole number from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63)
POSITIVE = Kind(float, "a number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Kind(float, "a number of at least 0", lambda value: 0 <= value < math.inf)
SHARE = Kind(float, "a share from 0 to 1", lambda value: 0 <= value <= 1)


@dataclass(frozen=True)
class Setting:
    """What a field of a dataclass tells the command line about itself."""

    kind: Kind
    help: str
    flags: tuple[str, ...]  # names that it has besides its own
    metavar: str  # what stands for its value; "" for the usual
    unset: str  # what None comes to, in words
    group: str  # heading above it and those that follow; "" if it goes on


def setting(
    default: Any, kind: Kind, *flags: str, help: str, metavar: str = "", unset: str = "", group: str = ""
) -> Any:
    """Make a field of a dataclass that checks its values and can become a flag.

    Args:
        default: its value if none is given; if it is None, None is allowed.
        kind: which values make sense.
        flags: names besides its own on the command line, such as ``--lr`` of ``learning_rate``.
        help: what it does, and what more or less of it does.
        metavar: what stands for its value in the help.
        unset: what None comes to, in words, if the help does not say so.
        group: a heading that begins here.
    Returns:
        The field, typed as anything: one that is filled in later, such as ``steps``, can be declared as a number.
    """
    return field(default=default, metadata={"setting": Setting(kind, help, flags, metavar, unset, group)})


def check(found: Field[Any], value: object) -> None:
    """Refuse a value that is not of its field's kind.

    Args:
        found: the field, made by ``setting``.
        value: what it was given.
    Raises:
        InputError: it is not of the field's kind.
    """
    kind = found.metadata["setting"].kind
    if not (kind.takes(value) or value is None is found.default):
        quoted = " (a number, without quotes)" if kind.type in (int, float) and isinstance(value, str) else ""
        raise InputError(
            f"{found.name} is {value!r}; it must be {kind.words}{' or None' * (found.default is None)}{quoted}"
        )
