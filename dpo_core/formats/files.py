"""Safe files: written whole or not at all, read without running code, and changed by one process at a time.

What is written goes to another name first, is brought to the disk, and takes its place in one step; so a crash or a
full disk leaves the file that was there before.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dpo_core.errors import InputError, shown

__all__ = [
    "FLOATS",
    "NamedLock",
    "atomic_write",
    "now",
    "read_json",
    "read_tensors",
    "reason",
    "refuse_pickles",
    "sync",
    "tensor_layout",
]

log = logging.getLogger(__name__)

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
NO_LOCKS = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)  # what a file system without locks answers
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def reason(error: Exception) -> str:
    """Extract from an error its reason alone, without number and path.

    Args:
        error: any, best an ``OSError``.
    """
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, onto the disk.

    Args:
        path: of the file or folder.
    """
    if sys.platform == "win32" and path.is_dir():  # has no such thing
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all.

    The block writes to the name that it is given. When it ends well, that file is on the disk and takes the place of
    ``path``.

    Args:
        path: the file; its folder is made if it is missing.
    Raises:
        InputError: it cannot be written; an old file is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder) / "note.txt") as partial:
    ...         _ = partial.write_text("whole")
    ...     (Path(folder) / "note.txt").read_text()
    'whole'
    """
    path = Path(os.path.realpath(path))  # a link stays one
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: cannot be written (it is no ordinary file); choose another place")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be written ({reason(error)}); make room there, or choose another place"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


# Reading what others wrote


def read_json(file: Path, largest: int = 2**20) -> dict[str, Any]:
    """Read the object in a small JSON file.

    Args:
        file: its path.
        largest: bytes that it may have.
    Raises:
        InputError: it cannot be read, is larger than ``largest`` bytes, or holds something else.
    """
    try:
        if file.stat().st_size > largest:
            size = file.stat().st_size
            raise InputError(f"{file}: has {size:,} bytes, and more than {largest:,} are not read; give another")
        content = json.loads(file.read_text(encoding="utf-8"))
    except InputError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON ({reason(error)}); copy or write it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds {shown(content)} where {{...}} must be; copy or write it again")
    return content


def refuse_pickles(folder: Path, instead_of: str) -> None:
    """Refuse a folder in which only a pickle could hold what is read; beside a good file, say that it is left alone.

    Args:
        folder: where to look.
        instead_of: the file that is read, a pattern; where one is there, no pickle is needed.
    Raises:
        InputError: there are pickles, and no such file.
    """
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
    if not found:
        return
    listed = ", ".join(shown(name)[1:-1] for name in found[:3]) + ", ..." * (len(found) > 3)
    if not any(folder.glob(instead_of)):
        raise InputError(
            f"{folder}: holds {listed} and no safetensors; such a file can be a pickle, which runs code when it is"
            " opened, and only safetensors and JSON are read: save the model as safetensors"
        )
    log.warning("%s: %s was not opened, as it can be a pickle; %s is read", folder, listed, instead_of)


def tensor_layout(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Read from its header alone each tensor's kind of number (as ``F32``) and shape in a safetensors file.

    The library compares the header with the file's length, so a shape for which there is no data is found out here,
    and no memory is taken for it.

    Args:
        file: its path.
    Raises:
        InputError: the file is not whole.
    """
    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _not_whole(file, error) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Args:
        file: its path.
    Returns:
        The tensors by name, on the CPU.
    Raises:
        InputError: the file is not whole, or there is no room for them.
    """
    try:
        with torch.device("cpu"):  # old releases of safetensors would load to torch's default device
            return load_file(file)
    except (SafetensorError, OSError, MemoryError, RuntimeError) as error:
        raise _not_whole(file, error) from error


def _not_whole(file: Path, error: Exception) -> InputError:
    return InputError(f"{file}: not a whole safetensors file ({reason(error)}); copy or download it again")


# One process at a time


class NamedLock:
    """A file that one process at a time can hold, with a note beside it that names the process.

    The operating system holds the lock and drops it when the process ends, however it ends; so a note that is still
    there, though the lock is free, is that of a process that was killed. Where a file system has no locks, nothing is
    locked.

    Args:
        path: the file; it is made, and stays.
    Raises:
        InputError: another process holds it, which the message names.
        OSError: it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = NamedLock(Path(folder) / "lock")
    ...     lock.release()
    ...     lock.cut_off
    ''
    """

    def __init__(self, path: Path) -> None:
        self.lock, self.note = FileLock(path, blocking=False), path.with_name(path.name + ".holder")
        try:
            self.lock.acquire()
        except Timeout as error:
            raise InputError(self._holder() or "another process") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        self.cut_off = self._holder()  # the process that was killed as it held the lock
        try:
            self.note.write_text(f"process {os.getpid()}, since {now()}", encoding="utf-8")
        except OSError:  # a full disk
            self.lock.release()
            raise

    def _holder(self) -> str:
        with suppress(FileNotFoundError):  # it may go at any moment
            return self.note.read_text("utf-8", "replace")
        return ""

    def release(self) -> None:
        """Release the lock."""
        self.note.unlink(missing_ok=True)
        self.lock.release()
