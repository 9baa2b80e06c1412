"""The files of a run: checkpoints, the final model and caches, each whole or not there.

A checkpoint holds the model in Hugging Face layout (with LoRA the adapter alone), ``optimizer.safetensors`` and
``trainer.json``: the step, from which the order of the pairs follows, settings, history, sums and the scaler. No random
number is drawn in training, so there is no state of a generator to keep. A checkpoint is written under another name,
brought to the disk and renamed; the one before it goes only after that, so a whole one is there at every moment.
Of several processes the first one writes, whole tensors, so that any number of them can go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpo_core.data import EncodedPair
from dpo_core.errors import InputError
from dpo_core.formats.files import NamedLock, atomic_write, read_json, read_tensors, reason, sync
from dpo_core.methods.adapter_files import read_adapter, save_adapter
from dpo_core.methods.lora import adapters, merged_copy
from dpo_core.metrics import History
from dpo_core.model import GPT, write_tokenizer
from dpo_core.runs.exits import delayed_interrupt
from dpo_core.runs.processes import any_rank, rank, scatter_like, whole_on_first

__all__ = [
    "cached",
    "fingerprint",
    "folder_lock",
    "kept_precision",
    "list_checkpoints",
    "load_best",
    "load_checkpoint",
    "read_state",
    "remove_checkpoints",
    "save_checkpoint",
    "save_final",
    "save_trained",
    "trainable_state",
    "writable_folder",
    "write_json",
]

KEPT = 2
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each parameter


def writable_folder(path: str | Path) -> Path:
    """Make a folder if it is missing, and try whether it can be written to.

    Args:
        path: of the folder.
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
    """Write an object as JSON, whole or not at all."""
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def folder_lock(run: Path | None) -> Iterator[None]:
    """Keep every other process from training in the folder, inside this context.

    Args:
        run: the folder; without one nothing is locked. Of several processes that work together the first one asks.
    Raises:
        InputError: another process is training there.
    """
    if run is None or rank():
        yield
        return
    try:
        lock = NamedLock(run / ".lock")
    except InputError as error:
        raise InputError(
            f"{run} is in use by {error}; wait until it is done, or choose another output folder"
        ) from error
    except OSError as error:
        raise InputError(
            f"{run}: cannot write there ({reason(error)}); make room, or choose another output folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def trainable_state(model: GPT) -> dict[str, Tensor]:
    """Select the weights that training changes, without copying them: all, or those of the adapter if there is one."""
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if ".lora_" in name} if adapters(model) else state


def list_checkpoints(run: Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first."""
    found = [
        (re.fullmatch(r"step-(\d+)(\.old)?", folder.name), folder) for folder in (run / "checkpoints").glob("step-*")
    ]
    # One that was about to be replaced, as the process ended, comes before what replaced it.
    return [folder for _, _, folder in sorted((int(name[1]), not name[2], folder) for name, folder in found if name)]


def save_checkpoint(
    run: Path,
    step: int,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    best: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint, whole or not at all, and remove all but the last two.

    Args:
        run: folder of the run.
        step: names the checkpoint.
        model: its weights are written.
        optimizer: its moments are written; its settings are not.
        state: anything that JSON can hold.
        best: a second set of weights.
    Returns:
        ``run/checkpoints/step-000100``.
    Raises:
        InputError: it cannot be written; those before it are as they were.
    """
    folder = run / "checkpoints" / f"step-{step:06d}"
    weights, best = whole_on_first(trainable_state(model)), best and whole_on_first(best)
    moments = whole_on_first(
        {
            f"{parameter}.{name}": tensor
            for parameter, tensors in optimizer.state_dict()["state"].items()
            for name, tensor in tensors.items()
        }
    )
    if rank():
        return folder
    partial, old = folder.with_name("partial"), folder.with_name(f"{folder.name}.old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        if adapters(model):
            save_adapter(model, partial, weights)
        else:
            merged_copy(model, weights).save_pretrained(partial)
        save_file(moments, partial / "optimizer.safetensors")
        if best:
            save_file(best, partial / "best.safetensors")
        (partial / "trainer.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            sync(path)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        sync(folder.parent)
    except (OSError, SafetensorError, InputError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        whole = list_checkpoints(run)[-1:]
        kept = f"; {whole[0]} is whole, and train(resume=True) goes on from it" if whole else ""
        raise InputError(f"{folder}: cannot be written ({reason(error)}); make room there{kept}") from error
    remove_checkpoints([*list_checkpoints(run)[:-KEPT], *folder.parent.glob("*.old")])
    return folder


def remove_checkpoints(folders: Sequence[Path]) -> None:
    """Remove checkpoints so that none is ever there in part; of several processes the first one does it."""
    for folder in folders if rank() == 0 else ():
        with suppress(OSError):  # what is half removed must not pass for a checkpoint
            os.replace(folder, partial := folder.with_name("partial"))
            shutil.rmtree(partial)


def save_final(run: Path, model: GPT, history: History) -> None:
    """Write the trained model, its adapter if there is one, and the history into the folder of a run.

    ``run/final`` holds the model with an adapter merged, ``run/adapter`` the adapter alone.
    ``final/training.json`` keeps what ``run/config.json`` says, which the next training in this folder overwrites.
    """
    weights = whole_on_first(model.state_dict())
    if rank() == 0:
        with delayed_interrupt():  # it takes a moment, and half of it would be no use
            save_trained(model, run / "final", run / "adapter", read_json(run / "config.json"), weights)
            with atomic_write(run / "history.jsonl") as partial:
                history.to_jsonl(partial)
            sync(run)
    any_rank(False)  # all wait until it is there


def save_trained(
    model: GPT, folder: Path, adapter: Path, record: dict[str, Any], weights: dict[str, Tensor] | None = None
) -> None:
    """Write a model with its adapter merged, and the adapter alone if there is one, in place of an earlier one.

    Args:
        model: as it was trained.
        folder: gets the model, the record as ``training.json``, and a tokenizer; ``adapter`` the adapter alone.
        record: of the training; its ``form`` is that of the tokenizer's chat template.
        weights: to write instead of the model's own.
    """
    merged_copy(model, weights).save_pretrained(folder)
    shutil.rmtree(adapter, ignore_errors=True)
    if adapters(model):
        save_adapter(model, adapter, weights)
    write_json(folder / "training.json", record)
    write_tokenizer(model.config, folder, record.get("form", "plain"))


def read_state(folder: Path) -> dict[str, Any]:
    """Read the ``state`` that ``save_checkpoint`` was given.

    Args:
        folder: of the checkpoint.
    Raises:
        InputError: the file is damaged.
    """
    try:
        state = read_json(folder / "trainer.json", largest=2**30)
        kinds = {"step": int, "key": str, "config": dict, "history": list, "sums": dict, "scaler": dict}
        for name, kind in kinds.items():
            if not isinstance(state.get(name), kind):
                raise InputError(f"trainer.json has no {name}")
        steps = state["config"].get("steps")
        if not isinstance(steps, int) or not 0 <= state["step"] <= steps:
            raise InputError(f"trainer.json is of step {state['step']} of {steps}")
        state["sums"] = _sums(state["sums"])
        if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in state["history"]):
            raise InputError("trainer.json has a history that is none")
    except InputError as error:
        raise _damaged(folder, error) from error
    return state


def _sums(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the sums of ``MetricSums``; an earlier version had one count for all."""
    sums, counts = found.get("sums"), found.get("counts", found.get("count"))
    if isinstance(counts, int) and isinstance(sums, dict):
        counts = dict.fromkeys(sums, counts)
    if isinstance(sums, dict) and isinstance(counts, dict) and len(found) == 2 and sums.keys() == counts.keys():
        return {"sums": sums, "counts": counts}
    raise InputError("trainer.json has other sums than ours")


def kept_precision(run: Path) -> str | None:
    """Find the precision in which a run's newest checkpoint was computed.

    Args:
        run: folder of the run.
    Returns:
        Nothing if no checkpoint tells; one that is damaged is refused where it is resumed.
    """
    for folder in list_checkpoints(run)[-1:]:
        with suppress(InputError):
            return read_state(folder).get("precision")
    return None


def load_checkpoint(folder: Path, model: GPT, optimizer: torch.optim.AdamW, stepped: bool) -> None:
    """Load weights and moments of a checkpoint into model and optimizer.

    Args:
        folder: of the checkpoint.
        model: gets the weights.
        optimizer: gets the moments.
        stepped: whether there must be moments, because the optimizer had taken a step.
    Raises:
        InputError: a file is damaged; nothing has changed then.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        weights = read_adapter(model, folder) if adapters(model) else GPT.from_pretrained(folder).state_dict()
        tensors = read_tensors(folder / "optimizer.safetensors")
        names = {f"{number}.{name}" for number in range(len(parameters)) for name in MOMENTS}
        if odd := sorted(tensors.keys() ^ names if tensors or stepped else []):
            raise InputError(f"optimizer.safetensors lacks a moment or has one too many, {odd[0]}")
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            number, _, name = key.partition(".")
            like = parameters[int(number)] if name != "step" else tensor.new_zeros(())
            if tensor.shape != like.shape or not tensor.is_floating_point() or not tensor.isfinite().all():
                raise InputError(f"{key} in optimizer.safetensors has another shape than its parameter, or odd numbers")
            moments.setdefault(int(number), {})[name] = scatter_like(tensor, like)
    except (OSError, InputError) as error:
        raise _damaged(folder, error) from error
    model.load_state_dict(_scattered(weights, model), strict=False)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _scattered(weights: dict[str, Tensor], model: GPT) -> dict[str, Tensor]:
    own = model.state_dict()
    return {name: scatter_like(tensor, own[name]) for name, tensor in weights.items()}


def load_best(folder: Path, model: GPT) -> dict[str, Tensor] | None:
    """Load the ``best`` that ``save_checkpoint`` was given, for this model; None if it was given none.

    Args:
        folder: of the checkpoint.
        model: gets the weights later.
    Raises:
        InputError: the file is damaged.
    """
    file = folder / "best.safetensors"
    if not file.exists():
        return None
    try:
        best, own = read_tensors(file), trainable_state(model)
        layouts = [{name: (t.shape, t.dtype) for name, t in tensors.items()} for tensors in (best, own)]
        if layouts[0] != layouts[1]:
            raise InputError("best.safetensors is of another model")
    except InputError as error:
        raise _damaged(folder, error) from error
    return _scattered(best, model)


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder} is damaged ({error}); delete it to resume from the checkpoint before")


def fingerprint(model: GPT, sets: Iterable[Iterable[EncodedPair]], settings: Any) -> str:
    """Compute a key of weights, data and settings: what was computed under another key is stale."""
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    for encoded in sets:
        for e in encoded:
            digest.update(repr((e.prompt, e.chosen, e.rejected)).encode())
        digest.update(b"end of set")
    return digest.hexdigest()


def cached(file: Path | None, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Load tensors that were stored under the same key, or compute and store them.

    Args:
        file: where they are stored; nowhere if None.
        key: of what they follow from.
        compute: gives them by name.

    >>> cached(None, "key", lambda: {"one": torch.ones(1)})
    {'one': tensor([1.])}
    """
    tensors = None
    if file and file.exists():
        # Old releases of safetensors would load to torch's default device.
        with suppress(SafetensorError, OSError), safe_open(file, "pt") as kept, torch.device("cpu"):
            if kept.metadata() == {"key": key}:
                tensors = {name: kept.get_tensor(name) for name in kept.keys()}
    if not any_rank(tensors is None) and tensors is not None:  # elsewhere the file may be missing: all compute then
        return tensors
    tensors = compute()
    if file and rank() == 0:
        with atomic_write(file) as partial:
            save_file(tensors, partial, metadata={"key": key})
    return tensors
