"""Train alike in two checkouts and compare every weight and every number logged, to the last bit.

``python tools/same_bits.py OLD [NEW]`` with folders of checkouts; NEW is this one if not given. Only the command line
is used, with this interpreter, so the checkouts may differ in everything else. Each kind of training is stopped after
half its steps and resumed, in OLD, in NEW, and in NEW from OLD's checkpoint. Names that only one of the two logs are
told and not compared. The status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

STEPS = 12
# Of 43 training pairs in steps of 8, so that the last step of an epoch has 3, in a group of its own.
SETTINGS = (
    "--batch-size 4 --grad-accum 2 --log-every 2 --eval-every 2 --save-every 3 --warmup-steps 2 --lr 3e-4".split()
)
ALONE = {
    "dpo": "",
    "kto": "--loss kto",
    "lora": "--lora 4",
    "lora, adapter off": "--lora 4 --reference adapter_off",
    "live reference": "--reference live",
    "early stopping": "--early-stopping 3 --lr 3e-3",  # a rate that overshoots: it stops after the half, at step 8
    "simpo": "--loss simpo",
    "dpo with sft": "--sft-weight 0.5",
}
TOGETHER = {f"{loss}, {how}": f"--loss {loss} --parallel {how}" for loss in ("dpo", "kto") for how in ("ddp", "fsdp")}
KINDS = ALONE | TOGETHER


@dataclass
class Result:
    """A run's weights and rows, or how it failed."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    fault: str = ""


def command(checkout: Path, arguments: list[str], processes: int = 1) -> str:
    """Run a command of a checkout; return the end of what it said if it failed, else nothing."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(several if processes > 1 else []), "-m", "dpo_core", *arguments]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as elsewhere:  # python -m looks for packages where it stands, too
        done = subprocess.run(start, cwd=elsewhere, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return next((line for line in said if line.startswith("error")), " | ".join(said[-2:])) if done.returncode else ""


def train(checkout: Path, data: Path, output: Path, kind: str, precision: str, resume: bool) -> Result:
    """Train to half the steps, or resume from there to all of them."""
    steps = ["--steps", str(STEPS), "--resume"] if resume else ["--steps", str(STEPS // 2)]
    where = ["--data", str(data), "--output", str(output), "--precision", precision]
    settings = [*SETTINGS, *KINDS[kind].split()]  # of a flag that is given twice the last counts
    fault = command(checkout, ["train", *where, *steps, *settings], processes=2 if kind in TOGETHER else 1)
    if fault:
        return Result(fault=fault)
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    files = sorted(output.glob("final/*.safetensors")) + sorted(output.glob("adapter/*.safetensors"))
    return Result({f"{f.name}: {name}": t for f in files for name, t in load_file(f).items()}, rows)


def differences(old: Result, new: Result) -> Iterator[str]:
    """Say what differs, the first things first."""
    if old.fault or new.fault:
        yield from (f"{which} failed: {r.fault}" for which, r in (("old", old), ("new", new)) if r.fault)
        return
    if len(old.rows) != len(new.rows):
        yield f"{len(old.rows)} and {len(new.rows)} rows"
    for ours, theirs in zip(old.rows, new.rows):
        for name in ours.keys() & theirs.keys():
            if ours[name] != theirs[name] and not (ours[name] != ours[name] and theirs[name] != theirs[name]):
                yield f"step {ours['step']:.0f}, {name}: {ours[name]!r} and {theirs[name]!r}"
    if old.tensors.keys() != new.tensors.keys():
        yield f"tensors of one only: {sorted(old.tensors.keys() ^ new.tensors.keys())}"
    for name in old.tensors.keys() & new.tensors.keys():
        a, b = old.tensors[name], new.tensors[name]
        if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a, b):
            yield f"weights {name}"


def names(rows: list[dict[str, float]]) -> set[str]:
    return {name for row in rows for name in row}


def compare(old: Path, new: Path, data: Path, folder: Path, kind: str, precision: str) -> tuple[str, bool]:
    """Train in both; a line for the table, and whether all is equal."""
    ran = folder / f"{kind} {precision}"
    halves = [
        train(old, data, ran / "old", kind, precision, False),
        train(new, data, ran / "new", kind, precision, False),
    ]
    if not halves[0].fault:
        shutil.copytree(ran / "old", ran / "crossed")
    ends = [train(checkout, data, ran / run, kind, precision, True) for checkout, run in ((old, "old"), (new, "new"))]
    crossed = train(new, data, ran / "crossed", kind, precision, True)
    stages = {"half": halves, "resumed": ends, "old checkpoint in new": [ends[0], crossed]}
    found = [f"{stage}: {difference}" for stage, pair in stages.items() for difference in differences(*pair)]
    changed = [
        f"{sign}{n}" for sign, a, b in (("+", 1, 0), ("-", 0, 1)) for n in names(ends[a].rows) - names(ends[b].rows)
    ]
    numbers = sum(map(len, ends[0].rows)) + sum(t.numel() for t in ends[0].tensors.values())
    verdict = f"{found[0]} (and {len(found) - 1} more)" if found else f"equal, {numbers:,} numbers"
    shutil.rmtree(ran, ignore_errors=True)
    return " | ".join([f"{kind:18} | {precision:8} | {verdict}", *sorted(changed)]), not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=[*KINDS], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--jobs", type=int, default=1, help="kinds at the same time")
    options = parser.parse_args()
    old, new = options.old.resolve(), options.new.resolve()
    for checkout in (old, new):  # else an installed dpo_core would be run in its place
        if not (checkout / "dpo_core" / "__main__.py").is_file():
            raise SystemExit(f"{checkout} is no checkout: it has no dpo_core/__main__.py")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        data = Path(name) / "pairs.jsonl"
        if fault := command(old, ["data", "--pairs", "48", "--seed", "1", "--output", str(data)]):
            raise SystemExit(f"no pairs: {fault}")
        cases = [(kind, precision) for precision in options.precisions for kind in options.only]
        same = True
        for line, equal in pool.map(lambda case: compare(old, new, data, Path(name), *case), cases):
            print(line, flush=True)
            same &= equal
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
