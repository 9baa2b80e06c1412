"""What a result was measured on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import torch

__all__ = ["in_process", "model_hash", "provenance", "write_runs"]


def provenance() -> dict[str, object]:
    """Command, machine, versions and commit, to be stored with every result."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit,
        "machine": {
            "processor": processor or platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "large pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def in_process(script: str, *arguments: str, **environment: str) -> Any:
    """What a script prints last, as JSON, run in a process of its own with these arguments and variables."""
    command = [sys.executable, str(Path(script).resolve()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def model_hash() -> str:
    """The first digits of the shipped model's SHA-256, so that a record of another model shows itself."""
    file = Path(str(resources.files("dpo_core.pocket") / "model")) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def write_runs(file: Path, made_on: dict[str, object], runs: Iterable[dict[str, object]]) -> None:
    """One run a line, under what they were made on."""
    head = json.dumps({**made_on, "runs": []}, indent=1).removesuffix("[]\n}")
    lines = ",\n  ".join(json.dumps(entry) for entry in runs)
    file.write_text(f"{head}[\n  {lines}\n ]\n}}\n", encoding="utf-8")
