"""The exercises of all chapters; each ``chapter_NN.py`` in this folder holds a dict ``EXERCISES``."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from dpo_core.course.exercises.base import Exercise

__all__ = ["EXERCISES", "Exercise"]

EXERCISES: dict[str, Exercise] = {}
for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith("chapter_"):
        EXERCISES.update(import_module(f"{__name__}.{_module.name}").EXERCISES)
