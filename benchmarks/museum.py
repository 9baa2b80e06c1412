"""Every exhibit of chapter 07's museum with fresh seeds, and what ``diagnose`` calls it.

Run as ``python benchmarks/museum.py``. It writes ``benchmarks/results/museum.json``: the curves, four sampled answers
of each run, and the verdicts, which chapter 07 shows as a table.
"""

from __future__ import annotations

import hashlib
import json
import time
from importlib import resources
from pathlib import Path

import torch
from machine import provenance

from dpo_core.course.museum import EXHIBITS, PROMPTS, RECORD, expected, verdict, visit
from dpo_core.diagnose import diagnose
from dpo_core.generate import generate

SEEDS = (0, 1, 2)


def model_hash() -> str:
    """The first digits of the shipped model's SHA-256, so that a record of another model shows itself."""
    file = Path(str(resources.files("dpo_core.pocket") / "model")) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def run(name: str, seed: int) -> dict[str, object]:
    """One exhibit: its curves to four digits, some answers, and the verdict."""
    started = time.process_time()
    seen = visit(name, seed)
    answers = generate(seen.trainer.model, seen.trainer.encoding, PROMPTS[:4], max_new_tokens=120, seed=0)
    found: dict[str, object] = {
        "name": name,
        "seed": seed,
        "verdict": verdict(seen.history),
        "setup": [finding.name for finding in seen.setup],
        "findings": [finding.name for finding in diagnose(seen.history)],
        "cpu_seconds": round(time.process_time() - started, 1),
        "answers": [{"prompt": answer.prompt, "text": answer.text, "ended": answer.ended} for answer in answers],
        "history": [{key: float(f"{value:.4g}") for key, value in row.items()} for row in seen.history.rows],
    }
    print(f"seed {seed}  {name:24} is called {found['verdict']:24} {found['cpu_seconds']:6} s", flush=True)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    runs = [run(name, seed) for seed in SEEDS for name in EXHIBITS]
    record = provenance() | {"model": model_hash(), "runs": runs}
    lines = ",\n  ".join(json.dumps(entry) for entry in runs)
    head = json.dumps({**record, "runs": []}, indent=1).removesuffix("[]\n}")
    RECORD.write_text(f"{head}[\n  {lines}\n ]\n}}\n", encoding="utf-8")
    right = sum(expected(entry["name"]) == entry["verdict"] for entry in runs)
    print(f"{right} of {len(runs)} runs are called what they are; {RECORD.stat().st_size // 1024} KiB")
