"""The file under a labelling session: one process at a time, and every line on disk before it counts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from dpo_core.errors import InputError
from dpo_core.formats.files import NamedLock, sync

__all__ = ["LockedLog"]

BEGINNING = b'{"event": "session", '


class LockedLog:
    """A JSONL file that is only added to, with a lock file beside it that names the process.

    Opening the file again in the same process closes it where it was open before, as running a notebook's cell again
    does.
    """

    held: ClassVar[dict[Path, LockedLog]] = {}  # by this process

    def __init__(self, path: Path) -> None:
        self.path, self.key, self.notes = path, path.resolve(), []
        if earlier := self.held.get(self.key):
            earlier.close()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("ab+", buffering=0)
            sync(path.parent)
            self.lock = NamedLock(path.with_name(path.name + ".lock"))
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
        except InputError as holder:
            self.file.close()
            raise InputError(
                f"{path} is open in {holder}; shut that notebook's kernel down, or label into another file"
            ) from holder
        if self.lock.cut_off:
            self.notes.append(f"An earlier session ({self.lock.cut_off}) was cut off; all that it saved is here.")
        self.held[self.key] = self

    def read(self) -> list[bytes]:
        """Read the file's lines, without half a line at the end, which a crash may leave; ``mend`` removes that."""
        self.file.seek(0)
        content = self.file.read()
        self.whole = content.rfind(b"\n") + 1  # bytes
        lines, self.tail = content[: self.whole].splitlines(), content[self.whole :]
        try:
            json.loads(self.tail)
            self.counts = True  # only the line break is missing
            return [*lines, self.tail]
        except (ValueError, RecursionError):
            if not lines and not self.tail.startswith(BEGINNING) and not BEGINNING.startswith(self.tail.rstrip(b"\0")):
                raise InputError(f"{self.path}:1: not a line of a labelling session; choose another file") from None
            self.counts = False
            return lines

    def mend(self) -> None:
        """End the file in a whole line, now that those before are known to be a session's."""
        if self.tail:
            if self.counts:
                self.file.write(b"\n")
            else:
                self.file.truncate(self.whole)
                self.notes.append(f"The last line was incomplete ({len(self.tail)} bytes) and was removed.")
            os.fsync(self.file.fileno())

    def append(self, events: Iterable[dict[str, Any]]) -> None:
        """Append events, a line each; all are on disk when this returns, or none of them is in the file.

        Args:
            events: as JSON can hold them.
        """
        if self.file.closed:
            raise InputError(f"{self.path} was closed here, perhaps as it was opened again; use the newest labeller")
        if not os.fstat(self.file.fileno()).st_nlink:
            raise InputError(f"{self.path} was deleted, so nothing more is saved; open it again under another name")
        # Half a character, as in cut-off text, has no UTF-8; its backslash form is what JSON writes for it.
        lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
        left = memoryview(lines.encode("utf-8", "backslashreplace"))
        end = self.file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[self.file.write(left) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            self.file.truncate(end)
            raise InputError(f"{self.path}: not saved ({error.strerror}); make room there and decide again") from error

    def close(self) -> None:
        """Close the file, and let other processes open it."""
        if self.held.get(self.key) is self:
            del self.held[self.key]
            self.file.close()
            self.lock.release()
