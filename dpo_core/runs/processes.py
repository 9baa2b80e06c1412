"""Training in several processes: ``torchrun --nproc-per-node 2 -m dpo_core train ...``.

A step takes the same pairs however many processes share them, so losses, metrics and weights are those of one process.
The work is torch's: DDP (Li et al. 2020, arXiv:2006.15704) keeps the model whole in each process and averages the
gradients; FSDP2 (Zhao et al. 2023, arXiv:2304.11277) also spreads weights, gradients and moments over the processes.
``Processes`` divides the work of a step among them. In a process that is alone nothing here does anything.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.torch_version import TorchVersion

from dpo_core.data import PreferenceBatch
from dpo_core.errors import InputError
from dpo_core.logprobs import pair_logps
from dpo_core.model import GPT

__all__ = [
    "PairForward",
    "Processes",
    "any_rank",
    "copy_of",
    "launched",
    "print_error",
    "process_group",
    "rank",
    "scatter_like",
    "whole_on_first",
    "world_size",
]

T = TypeVar("T")


def launched() -> bool:
    """Tell whether ``torchrun`` started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def world_size() -> int:
    """Count the processes that share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them; number 0 prints and writes."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` started, inside this context; only number 0 prints there.

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
    """Print an error once, even if several processes fail alike.

    Args:
        message: without the word "error".
    """
    if launched() and not _first_to_say(message):
        return
    with suppress(OSError):  # where nobody reads it
        print(f"error: {message}", file=sys.stderr)


def _first_to_say(message: str) -> bool:
    """Ask the store that ``torchrun`` keeps for its processes; without an answer, better twice than never."""
    with suppress(RuntimeError, KeyError):
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))  # type: ignore[attr-defined]
        return store.add(f"said {message}", 1) == 1
    return True


def any_rank(flag: bool) -> bool:
    """Tell whether the flag is set in any process; every process has to call this, and they wait for each other.

    Args:
        flag: of this process.

    >>> any_rank(True), any_rank(False)
    (True, False)
    """
    return bool(_gather(torch.tensor([flag], device="cpu")).any())


def _gather(rows: Tensor) -> Tensor:
    """Join the rows of all processes in the order in which ``Processes.share`` deals out: one row of each in turn."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


# The model in several processes


class PairForward(nn.Module):
    """``pair_logps`` as a module, whose calls DDP and FSDP2 can follow."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PreferenceBatch, *args: Any) -> tuple[Tensor, Tensor]:
        """Compute ``pair_logps`` of a batch.

        Args:
            batch: of this process.
            args: its further arguments.
        """
        return pair_logps(self.model, batch, *args)


def _ddp(model: GPT) -> nn.Module:
    return DistributedDataParallel(PairForward(model))


FSDP_ON_CPU = "2.9"  # torch 2.6 cannot gather on a CPU, and 2.7 and 2.8 add gradients up where they should average


def _fsdp(model: GPT) -> nn.Module:
    if model.device.type == "cpu" and TorchVersion(torch.__version__) < TorchVersion(FSDP_ON_CPU):
        raise InputError(
            f"parallel is fsdp, which on a CPU needs torch 2.9 or later (this is {torch.__version__}); take ddp"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A block returns keys and values as views; nothing writes to them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh, forward = init_device_mesh(model.device.type, (world_size(),)), PairForward(model)
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(forward, mesh=mesh)
    return forward


WAYS = {"ddp": _ddp, "fsdp": _fsdp}  # one for each of ``config.PARALLEL``


class Processes:
    """Several processes at one step, each of which computes the log-probs of some of its pairs.

    Args:
        model: the same in each process, on its device; with FSDP2 its parameters become shards.
        how: one of ``config.PARALLEL``.

    >>> alone = Processes(GPT.from_pretrained("pocket"), "ddp")
    >>> alone.count, alone.share([5, 6, 7]), alone.owned(3)
    (1, [5, 6, 7], 3)
    """

    def __init__(self, model: GPT, how: str) -> None:
        self.count, self.rank = world_size(), rank()
        self.model: nn.Module = model if self.count == 1 else WAYS[how](model)  # what all call, for ``pair_logps``

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Pick this process's items; each process gets equally many, the first ones again where they run out.

        Args:
            items: the same in each process.
        """
        each = -(-len(items) // self.count)
        return [items[i % len(items)] for i in range(self.rank, each * self.count, self.count)]

    def owned(self, total: int) -> int:
        """Count those of ``share``'s items that no other process has; they come first.

        Args:
            total: of all items.
        """
        return len(range(self.rank, total, self.count))

    def passes(self, groups: Sequence[T]) -> Iterator[T]:
        """Yield a step's passes one by one; DDP adds up the gradients of the processes in the last one alone.

        FSDP2 does so in each, to save memory.

        Args:
            groups: the passes.
        """
        for number, group in enumerate(groups, start=1):
            ddp = isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if ddp and number < len(groups) else nullcontext():  # type: ignore[operator]
                yield group

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Join the rows that the processes computed, in the order of all items; each process gets all of them.

        Args:
            rows: (n, ...) without gradient, one row for each item of ``share``, or for each that is ``owned``.
            total: of all items.
        Returns:
            (total, ...).
        """
        missing = -(-total // self.count) - len(rows)
        if missing > 0:
            rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
        return _gather(rows)[:total]

    def clip(self, parameters: Iterable[Tensor], longest: float) -> float:
        """Shorten the gradient of all parameters together.

        Args:
            parameters: those that are trained.
            longest: norm that it may have.
        Returns:
            Its norm before.
        """
        return float(_whole(torch.nn.utils.clip_grad_norm_(parameters, longest)))


def _whole(tensor: Tensor) -> Tensor:
    """Assemble a tensor that FSDP2 may have spread; all processes have to call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_on_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors that FSDP2 may have spread to process 0, whole and on the CPU; all processes have to call it.

    Args:
        tensors: by name.
    Returns:
        Nothing in the other processes.
    """
    found = {}
    for name, tensor in tensors.items():
        full = _whole(tensor)
        if rank() == 0:
            found[name] = full.detach().cpu()
    return found


def copy_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU; those that FSDP2 spread are copied where they are, in parts.

    Args:
        tensors: by name.
    """
    spread_out = world_size() > 1 and any(hasattr(tensor, "full_tensor") for tensor in tensors.values())
    return {name: t.detach().clone() if spread_out else t.to("cpu", copy=True) for name, t in tensors.items()}


def scatter_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Spread a tensor over the processes as FSDP2 has spread another one, if it has.

    Args:
        tensor: whole, and the same in each process.
        like: the other one.
    """
    if world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
