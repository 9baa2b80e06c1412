"""Files that a command reads and writes, and what there is to say about them."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from dpo_core.data import Audit, audit_pairs
from dpo_core.errors import InputError
from dpo_core.formats.pairs import LabelledAnswer, Loaded, PreferencePair, take_back
from dpo_core.runs.checkpoint import writable_folder
from dpo_core.trainers.kto import audit_labels

__all__ = ["audit_of", "read_files", "read_text", "tell", "undo", "writable_file"]


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
