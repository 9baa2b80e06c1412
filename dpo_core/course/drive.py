"""A copy of a reader's work on Google Drive, for notebooks on Colab, whose own disk vanishes with the runtime.

What is written to Drive is safe there once the file is closed, and a log stays open. So the log lies on Colab's disk,
as on any other, and a copy of it goes to Drive after each event. Nothing here mounts Drive; the reader decides on that.
"""

from __future__ import annotations

import shutil
import sys
from itertools import chain, count
from pathlib import Path

from dpo_core.formats.files import reason

__all__ = ["DriveCopy"]

DRIVE = Path("/content/drive/MyDrive")  # where Colab's button mounts it
FOLDER = "dpo_from_scratch"
VERDICT = b'"event": "verdict"'


class DriveCopy:
    """The copy on Drive of a log that only grows; anywhere but on Colab it does nothing.

    Args:
        path: the log.

    >>> copy = DriveCopy("labels.jsonl")
    >>> copy.fetch(), copy.update(), copy.where()
    (False, None, '')
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.wanted = "google.colab" in sys.modules and not self.path.resolve().is_relative_to(DRIVE)
        self.place: Path | None = None  # of the copy
        self.trouble = ""

    def fetch(self) -> bool:
        """Bring the log back from Drive, unless there are verdicts here that are not in it.

        Returns:
            Whether anything was brought back.
        """
        copy = DRIVE / FOLDER / self.path.name
        try:
            if not self.wanted or not copy.exists():
                return False
            here = self.path.read_bytes() if self.path.exists() else b""
            further = copy.read_bytes()
            if here == further or (VERDICT in here and not further.startswith(here)):
                return False
            shutil.copyfile(copy, self.path)
            return True
        except OSError as error:
            self.trouble = reason(error)
            return False

    def update(self) -> None:
        """Copy the log to Drive as it is now, with the pairs that were exported from it, if Drive is mounted."""
        try:
            if not self.wanted or not DRIVE.is_dir():
                return
            if self.place is None:
                (DRIVE / FOLDER).mkdir(exist_ok=True)
                self.place = self._free_place()
            shutil.copyfile(self.path, self.place)
            if (exported := self.path.with_suffix(".pairs.jsonl")).exists():
                shutil.copyfile(exported, self.place.with_suffix(".pairs.jsonl"))
            self.trouble = ""
        except OSError as error:
            self.trouble = reason(error)

    def where(self) -> str:
        """Describe where the log is and whether it will last; nothing on a machine that keeps its disk."""
        vanishes = f"{self.path.resolve()} is on Colab's disk, which vanishes with the runtime"
        if not self.wanted:
            return ""
        if self.trouble:
            return f"Not copied to Drive ({self.trouble}); {vanishes}, so download it before you leave."
        if self.place is None:
            return f"{vanishes}. To keep it, mount Drive (Files, Mount Drive) and run this cell again."
        return f"A copy is on your Drive: {self.place.relative_to(DRIVE.parent)}."

    def _free_place(self) -> Path:
        """Find a place where no other labels are overwritten: a new file, or one that this log began with."""
        here = self.path.read_bytes()
        names = (f"{self.path.stem}-{number}{self.path.suffix}" for number in count(2))
        places = (DRIVE / FOLDER / name for name in chain([self.path.name], names))
        return next(place for place in places if not place.exists() or here.startswith(place.read_bytes()))
