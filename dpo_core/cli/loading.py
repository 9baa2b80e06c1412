"""Files that a command reads and writes, and what there is to say about them."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tiktoken

from dpo_core.data import Audit, audit_pairs
from dpo_core.errors import InputError
from dpo_core.formats.files import read_json
from dpo_core.formats.hf_layout import on_hub
from dpo_core.formats.pairs import LabelledAnswer, Loaded, PreferencePair, take_back
from dpo_core.methods.adapter_files import load_model
from dpo_core.methods.lora import LoRAConfig, add_lora, count_parameters
from dpo_core.model import GPT
from dpo_core.runs.checkpoint import list_checkpoints, writable_folder
from dpo_core.trainers.kto import audit_labels

__all__ = [
    "audit_of",
    "open_model",
    "open_to_train",
    "read_files",
    "read_text",
    "recorded",
    "tell",
    "undo",
    "writable_file",
]


def writable_file(path: Path) -> None:
    """Refuse a file that cannot be written, before any work."""
    writable_folder(path.parent)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it")


def read_text(path: Path) -> str:
    """Read a text file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def undo(file: Path, pairs: list[PreferencePair], old: int) -> None:
    """Take back the pair that was added last, if it was made just now."""
    if len(pairs) == old:
        print("There is nothing to take back; pairs of earlier stay.")
        return
    take_back(file, pairs[-1])
    pairs.pop()
    print("The last pair was taken back.")


def read_files(load: Callable[..., Loaded[Any]], args: argparse.Namespace, files: Sequence[str]) -> Loaded[Any]:
    """Read files by the names of fields that were given; what is dropped is told by the audit, not by warnings."""
    names = {name: getattr(args, name) for name in ("prompt_field", "chosen_field", "rejected_field")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(files, **names)


def tell(found: Loaded[Any]) -> None:
    """Print what was not read, where no audit says it."""
    for told in [*(f"dropped: {place}: {fault}" for place, fault in found.dropped), *found.notes]:
        print(told)


def audit_of(found: Sequence[Any], encoding: tiktoken.Encoding, max_length: int) -> Audit:
    """Audit pairs or labelled answers, as training would."""
    audit: Callable[..., Audit] = audit_labels if isinstance(found[0], LabelledAnswer) else audit_pairs
    return audit(found, encoding, max_length)


# Models


def open_model(name: str) -> GPT:
    """Load a model by a name or a folder, that of a finished training included."""
    final = Path(name) / "final"
    named = name == "pocket" or on_hub(name)
    of_run = not named and final.is_dir()  # a training's folder stands for the model in it
    if not named and not of_run and list_checkpoints(Path(name)):
        raise InputError(
            f"{name}: the training is not finished; go on with --resume, or name a folder in {name}/checkpoints"
        )
    began, finished = record_in(Path(name) / "config.json"), record_in(final / "training.json")
    if of_run and began and finished and began != finished:
        raise InputError(
            f"{name}: the training there is not finished, and {final} is an earlier one's; train again to its end, or"
            f" name {final}"
        )
    return load_model(final if of_run else name)[0]


def open_to_train(args: argparse.Namespace) -> GPT:
    """Load the model to train, with an adapter where asked for."""
    model = open_model(args.model)
    if args.lora:
        add_lora(model, LoRAConfig(rank=args.lora), args.seed)
        trained, every = count_parameters(model)
        print(f"adapter of rank {args.lora}: {trained:,} parameters are trained, of {every:,}")
    return model


def recorded(model: GPT) -> dict[str, Any]:
    """Read what the training of this model wrote of itself: beside the model, or in the folder of the run."""
    if model.source == "pocket" or on_hub(model.source):
        return {}
    folder = Path(model.source).absolute()
    files = (folder / "training.json", *[parent / "config.json" for parent in folder.parents][:2])
    return next((record for record in map(record_in, files) if record.get("start") is not None), {})


def record_in(file: Path) -> dict[str, Any]:
    """Read what a training wrote of itself; nothing if it cannot be read."""
    with suppress(InputError):
        return read_json(file)
    return {}
