"""The precision to compute in: float32, or bf16 or fp16 for matrix products, with weights and sums in float32."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from dpo_core.errors import InputError

__all__ = ["DTYPES", "PRECISIONS", "Precision", "autocast", "choose", "compute_dtype", "cpu_has_bf16"]

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = (*DTYPES, "auto")
# Values of ONEDNN_MAX_CPU_ISA that keep oneDNN, which computes torch's bf16 products, from the bf16 units.
WITHOUT_BF16 = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")


def cpu_has_bf16() -> bool:
    """Tell whether this processor has bf16 units that torch uses.

    The processor's list of instructions decides, not a stopwatch, so the answer is the same each time. A processor
    without the units emulates bf16, which takes several times as long as float32. With ``avx512_bf16`` on one core of
    an AMD EPYC 9004 (torch 2.13), a training step in bf16 took 0.6 of the time of one in float32, with the pocket model
    and with GPT-2's shape. ARM's units are trusted unmeasured.

    Returns:
        False also where ``ATEN_CPU_CAPABILITY`` or ``ONEDNN_MAX_CPU_ISA`` holds torch's libraries to older units.

    >>> cpu_has_bf16() in (True, False)
    True
    """
    if not torch.backends.mkldnn.is_available():
        return False
    instructions = _instructions()
    if "bf16" in instructions:  # of ARM
        return True
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").lower()
    held_back = "AVX512" not in torch.backends.cpu.get_cpu_capability() or limit in WITHOUT_BF16
    return not held_back and not instructions.isdisjoint(("avx512_bf16", "amx_bf16"))


def _instructions() -> set[str]:
    """List the processor's instruction sets: torch's list where it has one, else that of Linux, which agrees."""
    if ask := getattr(torch.cpu, "get_capabilities", None):
        return {name for name, has in ask().items() if has is True}
    cpuinfo = Path("/proc/cpuinfo")
    return set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()


def choose(precision: str, device: torch.device) -> str:
    """Choose the precision that a setting means on a device.

    ``auto`` is bf16 where the device has units for it. Without them it is fp16 on an NVIDIA GPU and float32 elsewhere.
    On an Apple GPU, which is untested, everything is computed in float32, with a warning if something else was asked.

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
    if device.type == "mps":
        if precision not in ("auto", "float32"):
            warnings.warn(f"{precision} is untested on Apple's GPU (mps); computing in float32", stacklevel=2)
        return "float32"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Make a context in which matrix products are computed in a precision; with float32 nothing changes.

    Args:
        device: of the model.
        precision: a key of ``DTYPES``.
    """
    lower = precision != "float32"
    return torch.autocast(device.type, DTYPES[precision] if lower else None, enabled=lower)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Tell in which dtype matrix products with a weight are computed here, inside ``autocast`` or not.

    Args:
        weight: of the model.

    >>> with autocast(torch.device("cpu"), "bf16"):
    ...     compute_dtype(torch.ones(1))
    torch.bfloat16
    """
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class Precision:
    """The precision of a training: how it computes, and how fp16's gradients stay in their small range.

    Args:
        name: a key of ``DTYPES``, as of ``choose``.
        device: of the model.

    >>> Precision("float32", torch.device("cpu")).lower_scale()
    False
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**12, enabled=name == "fp16")

    def compute(self) -> torch.autocast:
        """Make the context of ``autocast`` for this precision."""
        return autocast(self.device, self.name)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to that of the parameters, scaled up in fp16.

        Args:
            loss: () scalar.
        """
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale the gradients down again, once in a step.

        Args:
            optimizer: whose parameters have them.
        """
        self.scaler.unscale_(optimizer)

    def move(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer take its step, unless fp16 gradients are not finite.

        Args:
            optimizer: of the parameters.
        """
        self.scaler.step(optimizer)
        self.scaler.update()

    def lower_scale(self) -> bool:
        """Scale fp16 gradients up by less from now on, after one that was not finite.

        Returns:
            Whether that can help: there was a scale to lower.
        """
        scaled = self.scaler.get_scale() > 1
        self.scaler.update()
        return scaled
