"""The examples in the docstrings of ``tools/`` are true; pytest is not pointed there, as to ``dpo_core``."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"
WITH_EXAMPLES = sorted(file.stem for file in TOOLS.glob("*.py") if ">>>" in file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_are_true(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.attempted and not found.failed


def test_there_are_some():
    assert len(WITH_EXAMPLES) >= 3
