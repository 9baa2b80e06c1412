"""How a step's time and memory grow: with length, batch, prompt share, vocabulary and model size.

Run as ``python benchmarks/scaling.py``. Every point is a process of its own; results go to
``benchmarks/results/scaling.json``.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from engine import END, SHAPES, Work, peak_mb, train_ours
from machine import provenance

from dpo_core.model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parent.parent
HH = (124, 42, 52)  # mean tokens of prompt, chosen and rejected in HH-RLHF's harmless test pairs
BASE = {"model": "gpt2", "vocab_size": 50257, "batch_size": 2, "lengths": HH}

SWEEPS: dict[str, list[dict]] = {
    "tokens of the prompt": [BASE | {"lengths": (p, 64, 64)} for p in (32, 128, 256, 512, 896)],
    "pairs in a batch": [BASE | {"batch_size": b} for b in (1, 2, 4, 8, 16)],
    "prompt's share of 512 tokens": [
        BASE | {"lengths": (p, (512 - p) // 2, (512 - p) // 2)} for p in (64, 192, 320, 448)
    ],
    "tokens in the vocabulary": [BASE | {"vocab_size": v} for v in (50257, 100_000, 200_000)],
    "parameters": [BASE | {"model": name} for name in ("gpt2", "gpt2-medium", "gpt2-large")],
}
AXES = {
    "tokens of the prompt": lambda point: point["lengths"][0],
    "pairs in a batch": lambda point: point["batch_size"],
    "prompt's share of 512 tokens": lambda point: point["lengths"][0] / 512,
    "tokens in the vocabulary": lambda point: point["vocab_size"],
    "parameters": lambda point: parameters(shape(point)),
}


def shape(point: dict) -> GPTConfig:
    return replace(SHAPES[point["model"]], vocab_size=point["vocab_size"])


def parameters(config: GPTConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config).parameters())


def measure(point: dict) -> dict[str, float]:
    """Fastest of three steps after one of warm-up, and the most memory the process held."""
    draw = random.Random(0)
    pairs = [[[draw.randrange(END) for _ in range(n)] for n in point["lengths"]] for _ in range(point["batch_size"])]
    work = Work(pairs, "", point["batch_size"], passes=3, precision="auto")
    torch.manual_seed(0)
    log = train_ours(GPT(shape(point)), work)
    return {"seconds": min(log.seconds[1:]), "peak_mb": peak_mb(work.device)}


def main() -> None:
    if len(sys.argv) > 1:
        return print("\n" + json.dumps(measure(json.loads(sys.argv[1]))))
    sweeps = {}
    for name, points in SWEEPS.items():
        sweeps[name] = []
        for point in points:
            command = [sys.executable, __file__, json.dumps(point)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            sweeps[name].append({"x": AXES[name](point)} | point | found)
            print(name, sweeps[name][-1], flush=True)
    record = provenance() | {"base": BASE, "gpt2": asdict(SHAPES["gpt2"]), "sweeps": sweeps}
    file = ROOT / "benchmarks" / "results" / "scaling.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
