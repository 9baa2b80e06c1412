"""How a step's time and memory grow: with length, batch, prompt share, vocabulary, model size, and over many steps.

Run as ``python benchmarks/scaling.py``. Every point is a process of its own; results go to
``benchmarks/results/scaling.json``. The largest model takes 16 GB.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
from dataclasses import replace
from pathlib import Path

import torch
from engine import BETA, END, RATE, SHAPES, Work, now, our_trainer, peak_mb
from machine import in_process, provenance

from dpo_core.model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parent.parent
HH = (124, 42, 52)  # mean tokens of prompt, chosen and rejected in HH-RLHF's harmless test pairs
BASE = {"model": "gpt2", "vocab_size": 50257, "batch_size": 2, "lengths": HH}

SWEEPS: dict[str, list[dict]] = {
    "tokens of the prompt": [BASE | {"lengths": (p, 64, 64)} for p in (32, 256, 512, 896)],
    "pairs in a batch": [BASE | {"batch_size": b} for b in (1, 2, 4, 8)],
    "prompt's share of 512 tokens": [BASE | {"lengths": (p, (512 - p) // 2, (512 - p) // 2)} for p in (64, 256, 448)],
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
    """Faster one of two steps after a warm-up, and the most memory the process held."""
    draw = random.Random(0)
    pairs = [[[draw.randrange(END) for _ in range(n)] for n in point["lengths"]] for _ in range(point["batch_size"])]
    work = Work(pairs, "", point["batch_size"], passes=2, precision="auto")
    torch.manual_seed(0)
    trainer, seconds = our_trainer(GPT(shape(point)), work), []
    trainer.reference = {"training": torch.zeros(len(pairs), 2)}
    for _ in work.schedule():
        start = now(work.device)
        trainer.step(list(range(len(pairs))), BETA, RATE)
        seconds.append(now(work.device) - start)
    return {"seconds": min(seconds[1:]), "peak_mb": peak_mb(work.device)}


def endure(steps: int = 1000, every: int = 100) -> dict[str, list[float]]:
    """Memory that the process holds on the way, a small model on pairs of ever new lengths."""
    draw, B = random.Random(0), BASE["batch_size"]
    pairs = [[[draw.randrange(END) for _ in range(draw.randint(1, 200))] for _ in range(3)] for _ in range(B * steps)]
    work = Work(pairs, "", B, passes=1, precision="auto")
    torch.manual_seed(0)
    trainer = our_trainer(GPT(SHAPES["tiny"]), work)
    trainer.reference = {"training": torch.zeros(len(pairs), 2)}
    held: dict[str, list[float]] = {"steps": [], "resident_mb": []}
    for step in range(1, steps + 1):
        trainer.step(list(range(B * (step - 1), B * step)), BETA, RATE)
        if step % every == 0:
            held["steps"].append(step)
            held["resident_mb"].append(held_mb(work.device))
    return held


def held_mb(device: torch.device) -> float:
    """What is held now, of the GPU's memory or by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="gpt2", help="of all points but those of the last sweep")
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--endure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.endure:
        return print("\n" + json.dumps(endure()))
    if options.point:
        return print("\n" + json.dumps(measure(json.loads(options.point))))
    sweeps: dict[str, list[dict]] = {}
    for name in options.sweeps:
        sweeps[name] = []
        for point in SWEEPS[name]:
            if name != "parameters":
                point = point | {"model": options.model}
            found = in_process(__file__, "--point", json.dumps(point))
            sweeps[name].append({"x": AXES[name](point)} | point | found)
            print(name, sweeps[name][-1], flush=True)
    endurance = in_process(__file__, "--endure")
    print(endurance, flush=True)
    record = provenance() | {"base": BASE | {"model": options.model}, "sweeps": sweeps, "endurance": endurance}
    file = options.results / "scaling.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
