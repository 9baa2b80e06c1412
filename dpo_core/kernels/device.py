"""The device to compute on: an NVIDIA GPU, an Apple GPU or the CPU."""

from __future__ import annotations

import warnings

import torch

__all__ = ["FUSED_ADAMW", "best_device"]

FUSED_ADAMW = ("cpu", "cuda")  # where AdamW has a step in one kernel in every torch that we support


def best_device() -> torch.device:
    """Pick the device for a model: an NVIDIA GPU, else an Apple GPU, else the CPU.

    Nobody has tested this library on an Apple GPU (``mps``), and a warning says so. There it computes in float32, adds
    up metrics on the CPU, because ``mps`` has no float64, and takes AdamW's plain step.

    Returns:
        What ``model.to`` takes.

    >>> best_device().type in ("cuda", "mps", "cpu")
    True
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        warnings.warn(
            "dpo_core is untested on Apple's GPU (mps); if an operation is missing there,"
            " PYTORCH_ENABLE_MPS_FALLBACK=1 runs it on the CPU",
            stacklevel=2,
        )
        return torch.device("mps")
    return torch.device("cpu")
