"""What every test run shares: nbval compares numbers as numbers, and leaves out what differs by machine."""

from pathlib import Path

import pytest
from compare_outputs import pytest_itemcollected  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    """Let plain ``pytest --nbval notebooks`` take the course's sanitizer, unless another one is named."""
    if not config.option.nbval_sanitize_with:
        config.option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "sanitize.cfg")
