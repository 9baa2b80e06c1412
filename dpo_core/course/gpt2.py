"""The parts of chapters that need a GPU: the same code on GPT-2, or a line that says why they are left out."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dpo_core.errors import InputError
from dpo_core.kernels.device import best_device

__all__ = ["on_gpu"]


def on_gpu(work: Callable[[torch.device], None]) -> None:
    """Do some work with GPT-2 if there is a GPU, and otherwise say what is missing: GPU, network or memory.

    Args:
        work: is given the GPU.

    >>> on_gpu(lambda device: print("GPT-2 on", device))  # doctest: +SKIP
    No GPU here, so GPT-2 is left out. On Colab: Runtime, Change runtime type, GPU.
    """
    device = best_device()
    if device.type == "cpu":
        print("No GPU here, so GPT-2 is left out. On Colab: Runtime, Change runtime type, GPU.")
        return
    try:
        work(device)
    except torch.OutOfMemoryError:
        print("GPT-2 is left out: the GPU's memory is full. Shut other notebooks down, or lower batch_size.")
    except (InputError, OSError) as error:
        print(f"GPT-2 is left out: {error}")
