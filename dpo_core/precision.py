"""In which precision to compute: float32, or bf16 or fp16 for matrix products, with weights and sums in float32."""

from __future__ import annotations

import time
from functools import cache

import torch

from dpo_core.errors import InputError

__all__ = ["DTYPES", "PRECISIONS", "autocast", "bf16_pays", "choose"]

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = (*DTYPES, "auto")


@cache
def bf16_pays(device: str) -> bool:
    """Whether a matrix product in bf16 takes clearly less time than in float32; measured once, in milliseconds.

    Args:
        device: ``cpu`` or ``cuda``. A GPU or a CPU without bf16 units emulates it, which is many times slower.
    """
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return False

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(512, 512, device=device, dtype=dtype)
        took = []
        for _ in range(5):
            start = time.perf_counter()
            float((x @ x)[0, 0])  # waits for the device
            took.append(time.perf_counter() - start)
        return min(took)

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)


def choose(precision: str, device: torch.device) -> str:
    """What a setting means on a device: ``auto`` is bf16 where that is faster, fp16 on a GPU that lacks bf16.

    Args:
        precision: one of ``PRECISIONS``.
        device: of the model.
    Returns:
        A key of ``DTYPES``.
    Raises:
        InputError: there is no such setting.

    >>> choose("float32", torch.device("cpu")), choose("bf16", torch.device("cpu"))
    ('float32', 'bf16')
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; it must be {' or '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if bf16_pays(device.type):
        return "bf16"
    return "fp16" if device.type == "cuda" else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which matrix products are done in a key of ``DTYPES``; with float32 nothing changes."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32")
