"""The runs that a chapter compares, each with three seeds, and what was measured on their way.

Run as ``python -m tools.records.sweep 08``, with names of runs behind it to make only these anew. It writes
``dpo_core/course/records/sweep_08.json`` after every run, and goes on with what is missing there. Runs of another model
than the shipped one are not kept.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.machine import model_hash, provenance, write_runs
from dpo_core.course.records import record_file
from dpo_core.course.sweeps import SEEDS, Run, follow, to_json


def kept(file: Path) -> list[dict]:
    """The runs in a record, if they are of the shipped model."""
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return record["runs"] if record.get("model") == model_hash() else []


def main(chapter: str, anew: list[str]) -> None:
    runs, file = import_module(f"dpo_core.course.sweeps.chapter_{chapter}"), record_file(f"sweep_{chapter}")
    every = runs.RUNS | getattr(runs, "SAMPLED", {})
    done = {(e["seed"], e["name"]): e for e in kept(file) if e["name"] in every and e["name"] not in anew}
    made_on = provenance() | {"command": f"python -m tools.records.sweep {chapter}", "model": model_hash()}
    more_seeds = getattr(runs, "MORE_SEEDS", {})
    wanted = [(seed, name) for name in every for seed in more_seeds.get(name, SEEDS)]
    for seed, name in sorted(wanted, key=lambda one: one[0]):
        if (seed, name) in done:
            continue
        started = time.process_time()
        made = every[name](seed)
        run = made if isinstance(made, Run) else follow(name, seed, made, runs.STATIONS)
        done[seed, name] = to_json(run) | {"cpu_seconds": round(time.process_time() - started)}
        last, cpu = run.stations[-1], done[seed, name]["cpu_seconds"]
        reward = sum(last.rewards) / len(last.rewards)
        print(f"seed {seed}  {name:28} KL {last.kl:7.3f}  reward {reward:6.3f}  {cpu:4} s", flush=True)
        write_runs(file, made_on, [done[key] for key in sorted(done)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2:])
