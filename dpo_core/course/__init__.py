"""What only the chapters need: the set-up line, figures, and later widgets and exercise checks."""

from __future__ import annotations

import os

import torch

from dpo_core.course.plots import use_style

__all__ = ["setup"]


def setup() -> None:
    """Start a chapter: set the style of the figures and say which tier and device were found.

    The line of the device differs between machines, so ``tests/sanitize.cfg`` takes it out of the comparison.

    >>> setup()
    tier: pocket
    device: ...
    """
    use_style()
    cuda = torch.cuda.is_available()
    print("tier: pocket")
    print("device:", f"cuda ({torch.cuda.get_device_name()})" if cuda else f"cpu ({os.cpu_count()} cores)")
