"""Folders of a training run: checkpoints and caches that are whole or not there, and stops that cut no update in half.

A checkpoint holds the model in Hugging Face layout (with LoRA the adapter alone), ``optimizer.safetensors`` and
``trainer.json``. Of several processes the first one writes, whole tensors, so that any number of them can go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_core.data import EncodedPair
from dpo_core.distributed import anywhere, collect, rank, spread
from dpo_core.errors import InputError
from dpo_core.lora import adapters, merged_copy, read_adapter, save_adapter
from dpo_core.metrics import History
from dpo_core.model import GPT

__all__ = [
    "cached",
    "delayed_interrupt",
    "fingerprint",
    "learned",
    "list_checkpoints",
    "load_best",
    "load_checkpoint",
    "read_state",
    "save_checkpoint",
    "save_final",
    "save_trained",
    "writable_folder",
    "write_json",
]

KEPT = 2


def writable_folder(path: str | Path) -> Path:
    """The folder, made if it is missing and tried by writing to it.

    Raises:
        InputError: nothing can be written there.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); choose another output folder") from error


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def learned(model: GPT) -> dict[str, Tensor]:
    """The weights that training changes: all, or those of the adapter if there is one; no copies."""
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if ".lora_" in name} if adapters(model) else state


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def save_checkpoint(
    run: Path,
    step: int,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    best: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint under another name, rename it when it is complete, and remove all but the last two.

    Args:
        run: folder of the run.
        step: names the checkpoint.
        model: its weights are written.
        optimizer: its moments are written; its settings are not.
        state: anything that JSON can hold.
        best: a second set of weights.
    Returns:
        ``run/checkpoints/step-000100``.
    """
    folder = run / "checkpoints" / f"step-{step:06d}"
    weights, best = collect(learned(model)), best and collect(best)
    moments = collect(
        {
            f"{parameter}.{name}": tensor
            for parameter, tensors in optimizer.state_dict()["state"].items()
            for name, tensor in tensors.items()
        }
    )
    if rank():
        return folder
    partial = folder.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    if adapters(model):
        save_adapter(model, partial, weights)
    else:
        merged_copy(model, weights).save_pretrained(partial)
    save_file(moments, partial / "optimizer.safetensors")
    if best:
        save_file(best, partial / "best.safetensors")
    write_json(partial / "trainer.json", state)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    for old in list_checkpoints(run)[:-KEPT]:
        shutil.rmtree(old)
    return folder


def save_final(run: Path, model: GPT, history: History) -> None:
    """Write ``run/final``, an adapter merged, ``run/adapter``, if there is one, and ``run/history.jsonl``."""
    weights = collect(model.state_dict())
    if rank() == 0:
        save_trained(model, run / "final", run / "adapter", weights)
        history.to_jsonl(run / "history.jsonl")
    anywhere(False)  # all wait until it is there


def save_trained(model: GPT, folder: Path, adapter: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model, its adapter merged, and if there is one the adapter alone; an earlier training's is removed."""
    merged_copy(model, weights).save_pretrained(folder)
    shutil.rmtree(adapter, ignore_errors=True)
    if adapters(model):
        save_adapter(model, adapter, weights)


def read_state(folder: Path) -> dict[str, Any]:
    """The ``state`` that ``save_checkpoint`` was given.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error


def load_checkpoint(folder: Path, model: GPT, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and moments of a checkpoint into model and optimizer.

    Raises:
        InputError: a file is damaged.
    """
    try:
        weights = read_adapter(model, folder) if adapters(model) else GPT.from_pretrained(folder).state_dict()
        tensors = load_file(folder / "optimizer.safetensors")
    except (OSError, InputError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".")
        like = parameters[int(number)] if tensor.dim() else tensor  # the count of steps is a number
        moments.setdefault(int(number), {})[name] = spread(tensor, like)
    model.load_state_dict(_spread(weights, model), strict=False)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _spread(weights: dict[str, Tensor], model: GPT) -> dict[str, Tensor]:
    own = model.state_dict()
    return {name: spread(tensor, own[name]) for name, tensor in weights.items()}


def load_best(folder: Path, model: GPT) -> dict[str, Tensor] | None:
    """The ``best`` that ``save_checkpoint`` was given, for the model.

    Raises:
        InputError: the file is damaged.
    """
    file = folder / "best.safetensors"
    try:
        return _spread(load_file(file), model) if file.exists() else None
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder} is damaged ({error}); delete it to resume from the checkpoint before")


def fingerprint(model: GPT, sets: Iterable[Iterable[EncodedPair]], settings: Any) -> str:
    """A key of weights, data and settings: what was computed from them is stale as soon as it differs."""
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    for encoded in sets:
        for e in encoded:
            digest.update(repr((e.prompt, e.chosen, e.rejected)).encode())
        digest.update(b"end of set")
    return digest.hexdigest()


def cached(file: Path | None, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``compute`` returns, from the file if it was written under the same key.

    >>> cached(None, "key", lambda: {"one": torch.ones(1)})
    {'one': tensor([1.])}
    """
    if file and file.exists():
        with suppress(SafetensorError), safe_open(file, "pt") as kept:
            if kept.metadata() == {"key": key}:
                return {name: kept.get_tensor(name) for name in kept.keys()}
    tensors = compute()
    if file and rank() == 0:
        partial = file.with_suffix(".partial")
        save_file(tensors, partial, metadata={"key": key})
        os.replace(partial, file)
    return tensors


@contextmanager
def delayed_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, to be looked at between two steps; a second one interrupts at once.

    >>> with delayed_interrupt() as interrupted:
    ...     signal.raise_signal(signal.SIGINT)
    ...     interrupted.is_set()
    True
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals arrive in the main thread only
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
