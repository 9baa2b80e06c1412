"""The shipped model's rewards on the questions that chapter 09 compares with: three answers to each.

Run as ``python -m tools.records.start``. It writes ``dpo_core/course/records/start.json``, so that every gain in the
chapter is measured from the same baseline on every processor.
"""

from __future__ import annotations

import json

import torch

from benchmarks.machine import model_hash, provenance
from dpo_core.course.records import record_file
from dpo_core.course.sweeps import sample_start


def main() -> None:
    record = provenance() | {
        "command": "python -m tools.records.start",
        "model": model_hash(),
        "rewards": sample_start(),
    }
    record_file("start").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
