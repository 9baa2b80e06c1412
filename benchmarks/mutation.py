"""Plant small mistakes in the core, one at a time, and see whether a test minds: ``python benchmarks/mutation.py``.

A mistake is another comparison, operator, constant or condition, a statement left out or an argument dropped, found in
the syntax tree. A sample of all of them is planted in a copy of the package, and the tests of that module run there.
``tests/mutants.py`` holds mistakes made by hand; these are the many that nobody thought of.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from machine import provenance

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
MODULES = {  # the tests to ask, the quickest first
    "losses": ["test_losses", "test_properties"],
    "logprobs": ["test_logprobs", "test_properties"],
    "data": ["test_data", "test_logprobs", "test_properties"],
    "metrics": ["test_metrics", "test_properties", "test_trainer"],
    "trainer": ["test_trainer", "test_mutants_trainer", "test_trainer_losses", "test_faults"],
}
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
COMPUTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def mutants(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """What a node could be by mistake, each with its name; None leaves a statement out."""
    new = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        new.ops[0] = COMPARED[type(node.ops[0])]()  # type: ignore[attr-defined]
        yield "comparison", new
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        new.op = COMPUTED[type(node.op)]()  # type: ignore[attr-defined]
        yield "operator", new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield "sign", node.operand
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()  # type: ignore[attr-defined]
        yield "and or", new
    elif isinstance(node, ast.IfExp):
        new.body, new.orelse = node.orelse, node.body  # type: ignore[attr-defined]
        yield "choice", new
    elif isinstance(node, ast.If):
        new.test = ast.UnaryOp(ast.Not(), node.test)  # type: ignore[attr-defined]
        yield "condition", new
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        new.value = not node.value if isinstance(node.value, bool) else node.value + 1  # type: ignore[attr-defined]
        yield "constant", new
    elif isinstance(node, (ast.AugAssign, ast.Raise)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "statement left out", ast.Pass()
    elif isinstance(node, ast.Call) and node.keywords and node.keywords[-1].arg:
        del new.keywords[-1]  # type: ignore[attr-defined]
        yield "argument dropped", new


def plant(source: str) -> list[tuple[str, int, str]]:
    """Every mutant of a module: what it is, its line, and the module's text with it."""
    tree = ast.parse(source)
    spared = set()  # annotations, defaults of settings that only tests choose, and what only types need
    for node in ast.walk(tree):
        for name in ("annotation", "returns", "decorator_list"):
            part = getattr(node, name, None)
            for each in part if isinstance(part, list) else [part] if part else []:
                spared.update(map(id, ast.walk(each)))
        if isinstance(node, ast.AnnAssign):
            spared.update(map(id, ast.walk(node)))
        if isinstance(node, ast.JoinedStr):
            spared.update(map(id, ast.walk(node)))  # the words of messages
    found = []
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or id(child) in spared:
                    continue
                for kind, changed in mutants(child):
                    if place is None:
                        setattr(node, field, changed)
                    else:
                        value[place] = changed
                    text = ast.unparse(ast.fix_missing_locations(tree))
                    if place is None:
                        setattr(node, field, child)
                    else:
                        value[place] = child
                    found.append((f"{kind}: {ast.unparse(child).splitlines()[0][:90]}", child.lineno, text))
    return found


def survives(copy_: Path, tests: list[str], limit: float) -> bool:
    """Whether no test minds; one that takes much too long does mind."""
    for test in tests:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}.py"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy_), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(command, cwd=copy_, env=environment, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode:
            assert re.search(r"\d+ (failed|error)|rror", done.stdout + done.stderr), done.stdout[-2000:]
            return False
    return True


def keep(seed: int, modules: dict[str, dict[str, int]], survivors: list[dict[str, object]]) -> None:
    """Write what there is so far."""
    tried, killed = (sum(score[key] for score in modules.values()) for key in ("tried", "killed"))
    results = {
        **provenance(), "seed": seed, "tried": tried, "killed": killed, "score": round(killed / max(1, tried), 3),
        "modules": modules, "survivors": survivors,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=100, help="mutants in all, the same number of each module")
    parser.add_argument("--modules", nargs="+", default=list(MODULES), choices=MODULES)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long, with what there is")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start, rng = time.monotonic(), random.Random(args.seed)
    # What is known of modules that are not asked for now is kept.
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"modules": {}, "survivors": []}
    scores: dict[str, dict[str, int]] = {n: score for n, score in known["modules"].items() if n not in args.modules}
    planted = {name: plant((ROOT / "dpo_core" / f"{name}.py").read_text("utf-8")) for name in args.modules}
    chosen = {name: rng.sample(every, min(len(every), args.sample // len(planted))) for name, every in planted.items()}
    survivors: list[dict[str, object]] = [s for s in known["survivors"] if s["module"] not in args.modules]
    with TemporaryDirectory() as folder:
        copy_ = Path(folder)
        for part in ("dpo_core", "tests", "benchmarks"):
            shutil.copytree(ROOT / part, copy_ / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy_)
        for name in args.modules:
            file = copy_ / "dpo_core" / f"{name}.py"
            right, tried, killed = file.read_text("utf-8"), 0, 0
            assert survives(copy_, MODULES[name], limit=600), f"the tests of {name} fail without any mutant"
            for kind, line, text in chosen[name]:
                if time.monotonic() - start > 60 * args.minutes:
                    break
                file.write_text(text, encoding="utf-8")
                tried += 1
                if survives(copy_, MODULES[name], limit=600):
                    survivors.append({"module": name, "line": line, "mutant": kind})
                    print(f"survived: {name}.py:{line} {kind}", flush=True)
                else:
                    killed += 1
                    print(f"noticed: {name}.py:{line} {kind}", flush=True)
            file.write_text(right, encoding="utf-8")
            scores[name] = {"possible": len(planted[name]), "tried": tried, "killed": killed}
            print(name, scores[name], flush=True)
            keep(args.seed, scores, survivors)


if __name__ == "__main__":
    main()
