"""Automatic checks of the exercises: the reader's function against ours, on seeded random inputs.

A wrong result is compared with those of the usual mistakes, so that the message can name the one that was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dpo_core.course.exercises import EXERCISES, Exercise
from dpo_core.errors import InputError

__all__ = ["check", "verdict"]


def check(name: str, function: Callable[..., Any]) -> None:
    """Print whether a function does what the exercise asks, and if not, what is off.

    Args:
        name: one of those in ``course/exercises/``.
        function: what the reader wrote.

    >>> from dpo_core.logprobs import sequence_logps
    >>> check("sequence_logps", sequence_logps)
    sequence_logps: right in all 4 cases
    """
    print(verdict(name, function))


def verdict(name: str, function: Callable[..., Any]) -> str:
    """Compare a function with the right one, and put the result into the line that ``check`` prints.

    Args:
        name: one of those in ``course/exercises/``.
        function: what the reader wrote.
    Returns:
        ``NAME: right in all N cases``, or ``NAME: not yet: REASON``.
    Raises:
        InputError: there is no such exercise.

    >>> verdict("sequence_logps", lambda model, ids, mask: None)
    'sequence_logps: not yet: it returns nothing'
    """
    if name not in EXERCISES:
        raise InputError(f"no exercise {name!r}: there are {', '.join(EXERCISES)}")
    with torch.device("cpu"):  # whatever torch's default device is
        return _verdict(name, EXERCISES[name], function)


def _verdict(name: str, exercise: Exercise, function: Callable[..., Any]) -> str:
    cases = exercise.cases()
    try:
        results = [function(*arguments) for arguments in cases]
    except Exception as error:  # whatever the reader's code raises
        return f"{name}: not yet: it raises {type(error).__name__}: {error}"
    got = [_plain(result) for result in results]

    def gives(other: Callable[..., Any]) -> bool:
        return all(_same(result, _plain(other(*arguments))) for result, arguments in zip(got, cases))

    if gives(exercise.right):
        return f"{name}: right in all {len(cases)} cases"
    found = next((mistake for mistake, wrong in exercise.mistakes.items() if gives(wrong)), None)
    return f"{name}: not yet: {found or _difference(exercise, cases, got)}"


def _plain(result: Any) -> Any:
    """Put results into a form to compare: float tensors for tensors, a tuple of lists for anything else in sequence."""
    if isinstance(result, Tensor):
        return result.detach().cpu().double()
    if isinstance(result, (tuple, list)):
        parts = (part.tolist() if isinstance(part, Tensor) else part for part in result)
        return tuple(list(part) if isinstance(part, Iterable) else part for part in parts)
    return result


def _same(got: Any, expected: Any) -> bool:
    if isinstance(got, Tensor) and isinstance(expected, Tensor):
        return got.shape == expected.shape and torch.allclose(got, expected, atol=1e-4, equal_nan=True)
    return type(got) is type(expected) and got == expected


def _difference(exercise: Exercise, cases: list[tuple], got: list[Any]) -> str:
    expected = [_plain(exercise.right(*arguments)) for arguments in cases]
    first, (result, wanted) = next((i, pair) for i, pair in enumerate(zip(got, expected), start=1) if not _same(*pair))
    if result is None:
        return "it returns nothing"
    if not isinstance(result, type(wanted)):
        return f"it returns a {type(result).__name__}, but a {type(wanted).__name__} is asked for"
    if isinstance(wanted, Tensor) and result.shape != wanted.shape:
        return f"it returns shape {tuple(result.shape)} instead of {tuple(wanted.shape)}"
    if isinstance(wanted, Tensor):
        return f"values are off by up to {(result - wanted).abs().max():.4f} in case {first}"
    return f"in case {first} it returns {result} instead of {wanted}"
