"""Run all notebooks as other processors would: ``python tools/regimes.py``, or with names of regimes.

Each regime holds torch's libraries to other instructions or threads, and nbval compares every cell by the course's
rules (``tools/compare_outputs.py``). ``benchmarks/results/regimes.json`` gets a row a regime as soon as it is done; a
regime that is there already, of the same commit, is not run again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.machine import provenance  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "regimes.json"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
REGIMES = {
    "one thread": {"OMP_NUM_THREADS": "1"},  # as make test
    "two threads": {"OMP_NUM_THREADS": "2"},
    "ATen default": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    "AVX2": {"OMP_NUM_THREADS": "1", **AVX2},
    "as the machine is": {},
}


def run(settings: dict[str, str]) -> dict[str, int]:
    """Run nbval on all notebooks and count the cells that agree and those that do not."""
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=600"]
    workers = ["-n", "2", "--dist", "loadfile"] if settings.get("OMP_NUM_THREADS") == "1" else []
    done = subprocess.run(
        [*command, *workers, "notebooks"], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
    )
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|error)", done.stdout[-2000:])}
    if "passed" not in counts:
        raise SystemExit(f"nbval did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print("\n".join(line for line in done.stdout.splitlines() if line.startswith("FAILED")))
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return {"passed": counts["passed"], "failed": failed, "seconds": round(time.monotonic() - started)}


def main(names: list[str]) -> None:
    if unknown := [name for name in names if name not in REGIMES]:
        raise SystemExit(f"no regime {unknown[0]!r}; there are {', '.join(REGIMES)}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    rows = record["regimes"] if record.get("commit") == commit else {}
    for name in names or REGIMES:
        if name in rows and not names:
            continue
        rows[name] = run(REGIMES[name]) | {"settings": REGIMES[name]}
        print(f"{name:18} {rows[name]['passed']:4} passed {rows[name]['failed']:3} failed {rows[name]['seconds']:5} s")
        made = provenance() | {"command": "python tools/regimes.py", "commit": commit}
        RESULTS.write_text(json.dumps(made | {"regimes": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
