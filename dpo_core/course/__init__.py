"""What only the chapters need: the set-up line, figures, widgets, exercises and their checks."""

from __future__ import annotations

import os

import torch

from dpo_core.course.plots import use_style
from dpo_core.kernels.device import best_device

__all__ = ["setup"]


def setup() -> None:
    """Start a chapter: set the style of the figures and say on which tier and device it computes.

    The pocket model is so small that a chapter's cells stay on the CPU; those about GPT-2 take the GPU, if there is
    one. The line of the device differs between machines, so ``tests/sanitize.cfg`` takes it out of the comparison.

    >>> setup()
    tier: pocket
    device: ...
    """
    use_style()
    gpu = best_device().type
    name = f" ({torch.cuda.get_device_name()})" if gpu == "cuda" else ""
    print("tier: pocket")
    print(f"device: cpu ({os.cpu_count()} cores)" + (f"; cells about GPT-2 use {gpu}{name}" if gpu != "cpu" else ""))
