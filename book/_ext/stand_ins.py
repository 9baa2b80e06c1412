"""Lets the book be built without torch, which brings gigabytes: its pages need names, signatures and docstrings only.

Every name of such a package is an empty class here, with which nothing can be computed. Sphinx's own
``autodoc_mock_imports`` puts objects there: a class that inherits from one loses its signature, a decorated function
its source. The build uses stand-ins where torch is installed, too, so that the book is the same everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

PACKAGES = {"anywidget", "cycler", "filelock", "matplotlib", "regex", "safetensors", "tiktoken", "torch", "tqdm"}
ROOT = Path(__file__).resolve().parent.parent.parent
T = TypeVar("T")


class Name(type):
    """The type of the empty classes: a name looked up on one is another, as in ``torch.autograd.Function``."""

    def __getattr__(cls, name: str) -> Name:
        return stand_in(repr(cls), name)

    def __repr__(cls) -> str:
        return f"{cls.__module__}.{cls.__qualname__}"  # as torch shows torch.float32


# No docstring: what inherits from a stand-in would show it for its own.
class Empty(metaclass=Name):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, decorated: Callable[..., T]) -> Callable[..., T]:
        return decorated  # as ``@torch.no_grad()``


class StandIn(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Name:
        return stand_in(self.__name__, name)


class Importer(MetaPathFinder, Loader):
    """Imports a ``StandIn`` for each of ``PACKAGES`` and what is in it, installed or not."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in PACKAGES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in(module: str, name: str) -> Name:
    """Make an empty class of this name; what Python itself looks for is not there."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Name(name, (Empty,), {"__module__": module})


def install() -> None:
    """From now on import the library of this checkout, and stand-ins for the packages under it."""
    sys.path.insert(0, str(ROOT))
    sys.meta_path.insert(0, Importer())


def setup(app: Any) -> dict[str, Any]:
    install()
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
