"""Several processes, one training: ``torchrun --nproc-per-node 2 -m dpo_core train ...``.

A step takes the same pairs however many processes share them, so losses, metrics and weights are those of one process.
The work is torch's: DDP (Li et al. 2020, arXiv:2006.15704) keeps the model whole in each process and averages the
gradients; FSDP2 (Zhao et al. 2023, arXiv:2304.11277) also spreads weights, gradients and moments over the processes.
Here stands who computes what. In a process that is alone each function does nothing.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dpo_core.data import PreferenceBatch
from dpo_core.errors import InputError
from dpo_core.logprobs import pair_logps
from dpo_core.model import GPT

__all__ = [
    "PARALLEL",
    "PairForward",
    "anywhere",
    "collect",
    "exchanging",
    "gather",
    "launched",
    "owned",
    "parallel",
    "processes",
    "print_error",
    "rank",
    "share",
    "snapshot",
    "spread",
    "whole",
    "world_size",
]

T = TypeVar("T")


def launched() -> bool:
    """Whether ``torchrun`` started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def world_size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; number 0 prints and writes."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def processes() -> Iterator[None]:
    """Within it the processes that ``torchrun`` started belong together, and only number 0 prints.

    Raises:
        InputError: there are more processes than GPUs on this machine.
    """
    if not launched():
        yield
        return
    if torch.cuda.is_available():
        here, count = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > count:
            raise InputError(f"{here} processes for {count} GPUs; start torchrun with --nproc-per-node {count}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if rank() else nullcontext():
        yield
    dist.destroy_process_group()


def print_error(message: str) -> None:
    """Print an error; of the processes of a machine that fail alike, only the first does."""
    where = ""
    if launched() and os.environ["LOCAL_RANK"] != "0":
        time.sleep(30)  # by then torchrun has ended this process, if the first one failed too
        where = f" in process {os.environ['RANK']}"
    print(f"error{where}: {message}", file=sys.stderr)


# Who computes what


def share(items: Sequence[T]) -> list[T]:
    """The items of this process, as many as in each other one: where they run out, the first ones come again.

    >>> share([5, 6, 7])
    [5, 6, 7]
    """
    each = -(-len(items) // world_size())
    return [items[i % len(items)] for i in range(rank(), each * world_size(), world_size())]


def owned(count: int) -> int:
    """How many of ``share``'s items this process alone has, if there are ``count`` in all; they come first.

    >>> owned(3)
    3
    """
    return len(range(rank(), count, world_size()))


def gather(rows: Tensor, count: int | None = None) -> Tensor:
    """What the processes computed of their shares, in the order of all items; in each process the same.

    Args:
        rows: (share, ...) without gradient, one row an item.
        count: of all items.
    Returns:
        (count, ...), or with the items that came again if there is no count.
    """
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)[:count]


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process; all have to call it, and wait for each other."""
    return bool(gather(torch.tensor([flag], device="cpu")).any())


# The model in several processes


class PairForward(nn.Module):
    """``pair_logps`` as a module, whose calls DDP and FSDP2 can follow."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PreferenceBatch, *args: Any) -> tuple[Tensor, Tensor]:
        return pair_logps(self.model, batch, *args)


def _ddp(model: GPT) -> nn.Module:
    return DistributedDataParallel(PairForward(model))


def _fsdp(model: GPT) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A block returns keys and values as views; nothing writes to them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh, forward = init_device_mesh(model.device.type, (world_size(),)), PairForward(model)
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(forward, mesh=mesh)
    return forward


PARALLEL = {"ddp": _ddp, "fsdp": _fsdp}


def parallel(model: GPT, how: str) -> nn.Module:
    """The model as something that all processes call together, each with its share of a batch.

    Args:
        model: the same in each process, on its device; with FSDP2 its parameters become shards.
        how: one of ``PARALLEL``.
    Returns:
        What ``pair_logps`` takes as a model; the model itself if there is but one process.
    """
    return model if world_size() == 1 else PARALLEL[how](model)


def exchanging(model: nn.Module, now: bool) -> AbstractContextManager[Any]:
    """A context for a backward pass after which DDP exchanges gradients or not; FSDP2 always does, to keep its room."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not now else nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP2 may have spread; all processes have to call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def collect(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whole and on the CPU, in process 0, and nothing in the others; all have to call it."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if rank() == 0:
            found[name] = full.detach().cpu()
    return found


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, or where FSDP2 spread them, since each process has but a part."""
    spread_out = world_size() > 1 and any(hasattr(tensor, "full_tensor") for tensor in tensors.values())
    return {name: t.detach().clone() if spread_out else t.to("cpu", copy=True) for name, t in tensors.items()}


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in each process, in the form of another one that FSDP2 may have spread."""
    if world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
