"""Records of runs that the chapters read, as part of the package; ``make records`` makes them anew."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from dpo_core.errors import InputError

__all__ = ["read_record", "record_file"]


def record_file(name: str) -> Path:
    """Locate the file of a record.

    Args:
        name: as ``sweep_08``.
    Returns:
        The path of its JSON file, which a script that makes the record writes.
    """
    return Path(str(resources.files(__package__))) / f"{name}.json"


def read_record(name: str) -> dict[str, Any]:
    """Read a record of runs.

    Args:
        name: ``museum``, ``run_record``, ``sweep_08``, ``sweep_09``, ``sweep_10``, ``start`` or ``trl_losses``.
    Returns:
        What its JSON file holds: the runs, and the command, machine and versions that made them.
    Raises:
        InputError: ``dpo_core`` was installed without it.

    >>> read_record("trl_losses")["dtype"]
    'float64'
    """
    file = record_file(name)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{file}: this record is missing; install dpo_core again or, in the course's folder, run `make records`"
        ) from error
