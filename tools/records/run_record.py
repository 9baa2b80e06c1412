"""The failure museum's healthy run, recorded on the way: its curves, and every ten steps what its model writes.

Run as ``python -m tools.records.run_record``. It writes ``dpo_core/course/records/run_record.json``, from which the
step through a training run is drawn.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from benchmarks.machine import provenance
from dpo_core.course.museum import PROMPTS, pairs, trainer
from dpo_core.course.records import record_file
from dpo_core.generate import generate
from dpo_core.pocket.judge import PocketJudge
from dpo_core.study.watch import watch
from dpo_core.trainer import DPOTrainer

RECORD = record_file("run_record")
SEED = 0
# Else as museum.healthy: 400 short pairs, each met once
SETTINGS: dict[str, Any] = {"steps": 50, "eval_every": 10, "log_every": 2}
SHOWN = 4  # of the sixteen prompts, none of whose topics occurs in a pair: those whose answers change most often
KEPT = {  # of each row, by the name under which the explorer has it
    "loss": "loss",
    "eval_loss": "eval_loss",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "kl/policy_ref": "kl",
}


def record() -> dict[str, Any]:
    """The run, with four digits of each figure."""
    judge = PocketJudge()
    run = trainer(SEED, *pairs(SEED), **SETTINGS)
    look = watch(run, PROMPTS)  # also measures the KL
    stations: list[dict[str, Any]] = []

    def keep(run: DPOTrainer, step: int, row: dict[str, float]) -> None:
        if "kl/policy_ref" not in row:
            return
        answers = generate(run.model, run.encoding, PROMPTS, max_new_tokens=120, seed=0)
        told: list[dict[str, Any]] = [
            {"text": a.text, "reward": round(judge.score(a.prompt, a.text), 2)} for a in answers
        ]
        stations.append({"step": step, "answers": told})
        print(f"step {row['step']:4}  KL {row['kl/policy_ref']:.2f}  {told[0]['text'][:60]!r}", flush=True)

    history = run.train(progress=False, callbacks=[look, keep])
    rows = [
        {"step": int(row["step"])} | {new: float(f"{row[old]:.4g}") for old, new in KEPT.items() if old in row}
        for row in history.rows
    ]
    changes = [len({station["answers"][i]["text"] for station in stations}) for i in range(len(PROMPTS))]
    shown = sorted(sorted(range(len(PROMPTS)), key=lambda i: -changes[i])[:SHOWN])
    for station in stations:
        station["answers"] = [station["answers"][i] for i in shown]
    prompts = [PROMPTS[i] for i in shown]
    return {"seed": SEED, "beta": run.config.beta, **SETTINGS, "prompts": prompts, "rows": rows, "stations": stations}


if __name__ == "__main__":
    started = time.process_time()
    torch.set_num_threads(1)
    found = provenance() | {"command": "python -m tools.records.run_record"} | record()
    found["cpu_seconds"] = round(time.process_time() - started)
    RECORD.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {RECORD.name}, {RECORD.stat().st_size // 1024} KiB, {found['cpu_seconds']} s of CPU")
