"""Every exhibit of chapter 07's museum with fresh seeds, and what ``diagnose`` calls it.

Run as ``python -m tools.records.museum``, or with names of exhibits to make only these anew. It writes
``dpo_core/course/records/museum.json`` after every run: the curves, four sampled answers of each run, the judge's
score, and the verdicts, which chapter 07 shows as a table.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from benchmarks.machine import model_hash, provenance, write_runs
from dpo_core.course.museum import EXHIBITS, PROMPTS, expected, score, verdict, visit
from dpo_core.course.records import record_file
from dpo_core.generate import generate
from dpo_core.metrics import History
from dpo_core.study.diagnose import diagnose

SEEDS = (0, 1, 2)
RECORD = record_file("museum")


def run(name: str, seed: int) -> dict[str, object]:
    """One exhibit: its curves to four digits, some answers, and the verdict."""
    started = time.process_time()
    seen = visit(name, seed)
    answers = generate(seen.trainer.model, seen.trainer.encoding, PROMPTS, max_new_tokens=120, seed=0)  # as watch does
    found: dict[str, object] = {
        "name": name,
        "seed": seed,
        "verdict": verdict(seen.history),
        "setup": [finding.name for finding in seen.setup],
        "findings": [finding.name for finding in diagnose(seen.history)],
        "score": round(score(answers), 2),
        "cpu_seconds": round(time.process_time() - started, 1),
        "answers": [{"prompt": answer.prompt, "text": answer.text, "ended": answer.ended} for answer in answers[:4]],
        "history": [{key: float(f"{value:.4g}") for key, value in row.items()} for row in seen.history.rows],
    }
    print(f"seed {seed}  {name:24} is called {found['verdict']:24} {found['cpu_seconds']:6} s", flush=True)
    return found


def kept(names: list[str]) -> dict[tuple[object, object], dict[str, object]]:
    """The record's runs of exhibits other than these, by seed and name, judged by the rules as they are now."""
    runs = json.loads(RECORD.read_text(encoding="utf-8"))["runs"] if RECORD.exists() else []
    found = {(entry["seed"], entry["name"]): entry for entry in runs if entry["name"] not in names}
    for entry in found.values():
        history = History(entry["history"])
        entry |= {"verdict": verdict(history), "findings": [finding.name for finding in diagnose(history)]}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    made_on = provenance() | {"command": "python -m tools.records.museum", "model": model_hash()}
    done = kept(sys.argv[1:] or list(EXHIBITS))
    for seed in SEEDS:
        for name in EXHIBITS:
            if (seed, name) not in done:
                done[seed, name] = run(name, seed)
                order = ((s, n) for s in SEEDS for n in EXHIBITS)
                write_runs(RECORD, made_on, [done[key] for key in order if key in done])
    right = sum(expected(str(entry["name"])) == entry["verdict"] for entry in done.values())
    print(f"{right} of {len(done)} runs are called what they are; {RECORD.stat().st_size // 1024} KiB")
