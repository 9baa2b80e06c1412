"""Run all notebooks as other processors would: ``python tools/regimes.py``, or with names of regimes.

Each regime holds torch's libraries to other instructions or threads, and nbval compares every cell by the course's
rules (``tools/compare_outputs.py``). ``benchmarks/results/regimes.json`` gets a row a regime as soon as it is done; a
regime that is there already, of the same commit, is not run again.

``PYTHON tools/regimes.py --versions NAME``, with the Python of another environment, runs the library's tests and three
chapters there instead; ``benchmarks/results/versions.json`` gets a row with what is installed in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.machine import provenance  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "regimes.json"
VERSIONS = ROOT / "benchmarks" / "results" / "versions.json"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
REGIMES = {
    "one thread": {"OMP_NUM_THREADS": "1"},  # as make test
    "two threads": {"OMP_NUM_THREADS": "2"},
    "ATen default": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    "AVX2": {"OMP_NUM_THREADS": "1", **AVX2},
    "as the machine is": {},
}


NBVAL = ("--nbval", "--nbval-current-env", "--nbval-cell-timeout=600")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
LIBRARY = ("-m", "not browser", "--ignore=tests/browser", "--ignore=tests/test_colab.py", "tests", "dpo_core")
CHAPTERS = [f"notebooks/{name}.ipynb" for name in ("05_the_loss_in_code", "06_training", "09_measuring_alignment")]
INSTALLED = (
    "torch numpy tiktoken safetensors huggingface_hub tqdm matplotlib ipywidgets anywidget ipython pytest nbval"
    " nbconvert transformers hypothesis"
).split()


def run(settings: dict[str, str], *what: str) -> dict[str, int]:
    """Run pytest with the environment's settings, and count what passes and what does not."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *what],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    counts = {
        name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout[-2000:])
    }
    if "passed" not in counts:
        raise SystemExit(f"pytest did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print("\n".join(line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))))
    failed = counts.get("failed", 0) + counts.get("error", 0)
    skipped = {"skipped": counts["skipped"]} if "skipped" in counts else {}
    return {"passed": counts["passed"], "failed": failed, **skipped, "seconds": round(time.monotonic() - started)}


def keep(file: Path, commit: str, rows: dict[str, Any], command: str) -> None:
    made = provenance() | {"command": command, "commit": commit}
    file.write_text(json.dumps(made | {"regimes": rows}, indent=2) + "\n", encoding="utf-8")


def regimes(names: list[str], commit: str) -> None:
    """Run all notebooks in each of the regimes."""
    record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    rows = record["regimes"] if record.get("commit") == commit else {}
    for name in names or REGIMES:
        if name in rows and not names:
            continue
        settings = REGIMES[name]
        workers = ("-n", "2", "--dist", "loadfile") if settings.get("OMP_NUM_THREADS") == "1" else ()
        rows[name] = run(settings, *NBVAL, *workers, "notebooks") | {"settings": settings}
        print(f"{name:18} {rows[name]['passed']:4} passed {rows[name]['failed']:3} failed {rows[name]['seconds']:5} s")
        keep(RESULTS, commit, rows, "python tools/regimes.py")


def versions(name: str, commit: str) -> None:
    """Run the library's tests and three chapters in this environment; a row of the record for each environment."""
    rows = json.loads(VERSIONS.read_text(encoding="utf-8"))["regimes"] if VERSIONS.exists() else {}
    row: dict[str, Any] = {"commit": commit, "python": platform.python_version()}
    row["installed"] = {package: version(package) for package in INSTALLED}
    for what, tests in (("library", LIBRARY), ("chapters", (*NBVAL, *CHAPTERS))):
        row[what] = run(ONE_THREAD, *tests)
        print(name, what, row[what], flush=True)
    keep(VERSIONS, commit, rows | {name: row}, "python tools/regimes.py --versions NAME")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="REGIME", help=f"of {', '.join(REGIMES)}; all that are missing if none"
    )
    parser.add_argument("--versions", metavar="NAME", help="test this environment, and call it so")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in REGIMES]:
        raise SystemExit(f"no regime {unknown[0]!r}; there are {', '.join(REGIMES)}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if args.versions:
        versions(args.versions, commit)
    else:
        regimes(args.names, commit)


if __name__ == "__main__":
    main()
