"""The parts of an exercise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Exercise"]


@dataclass(frozen=True)
class Exercise:
    """What a reader is asked to write, and how it usually goes wrong."""

    cases: Callable[[], list[tuple]]  # arguments to try; seeded
    right: Callable[..., Any]
    mistakes: dict[str, Callable[..., Any]]  # what to say, and a function that makes this mistake
