"""With this folder and the one above on PYTHONPATH, Python and all that it starts have the pretended GPU.

At its end a process adds to the file PRETEND_CALLS how many operations ran there.
"""

import atexit
import os
from pathlib import Path

import pretend_cuda


def count() -> None:
    with Path(os.environ["PRETEND_CALLS"]).open("a") as file:
        file.write(f"{sum(pretend_cuda.CALLS.values())}\n")


if "PRETEND_CALLS" in os.environ:
    atexit.register(count)
