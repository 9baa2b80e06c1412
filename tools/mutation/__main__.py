"""``python -m tools.mutation planted | pool | chapters``: what was noticed goes into the record."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence

from benchmarks.machine import provenance
from tools.mutation.chapters import CHAPTERS
from tools.mutation.mistake import ROOT, Mistake, mutant, read_module
from tools.mutation.operators import mutants
from tools.mutation.planted import PLANTED
from tools.mutation.run import chapter_failure, check_hook, first_failure

RECORD = ROOT / "benchmarks" / "results" / "mutation.json"
MODULES = {  # the tests that a module's mutants have to get past, besides its own examples
    "dpo_core.losses": ("losses", "properties"),
    "dpo_core.logprobs": ("logprobs", "properties"),
    "dpo_core.data": ("data", "logprobs", "properties"),
    "dpo_core.metrics": ("metrics", "properties", "trainer"),
    "dpo_core.trainer": ("trainer", "mutants_trainer", "trainer_losses", "faults"),
}


def planted(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of the mistakes made by hand, all or those that hold one of these words, each with the test that minds."""
    for mistake in PLANTED:
        if not words or any(word in mistake.name for word in words):
            yield mistake.name, first_failure(mistake, files(mistake.tests))


def pool(modules: Sequence[str], sample: int, seed: int) -> Iterator[tuple[str, str]]:
    """Names of mutants drawn from all that the operators can make, each with the test or example that minds."""
    rng = random.Random(seed)
    for module in modules:
        tests = [module.replace(".", "/") + ".py", *files(MODULES[module])]
        if failed := first_failure(None, tests):
            raise SystemExit(f"{failed} fails without any mistake, so it proves nothing; mend that first")
        every = [mutant(module, (), *place) for place in mutants(read_module(module))]
        for each in rng.sample(every, min(len(every), sample)):
            yield each.name, first_failure(each, tests)


def chapters(numbers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of mistakes with their chapter, each with the first cell whose outputs differ, and how."""
    for chapter, mistakes in CHAPTERS.items():
        number = chapter.split("/")[1][:2]
        if numbers and number not in numbers:
            continue
        if failed := chapter_failure(None, chapter):
            raise SystemExit(f"chapter {number} fails without any mistake: {failed}")
        for mistake in mistakes:
            yield f"{number}: {where(mistake)}{mistake.name}", chapter_failure(mistake, chapter)


def where(mistake: Mistake) -> str:
    """The cell's function that is changed, if it is a cell's."""
    _, _, cell = mistake.places[0][0].partition("#")
    return f"{cell.rstrip(':')}, " if cell else ""


def files(tests: Sequence[str]) -> list[str]:
    return [f"tests/test_{name}.py" for name in tests]


def keep(section: str, found: dict[str, str]) -> None:
    """Write what is known of a section so far; what was found before stays, unless it was tried again."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    known = record.get(section, {}).get("noticed by", {}) | found
    survivors = sorted(name for name, noticed in known.items() if not noticed)
    counts = {"tried": len(known), "noticed": len(known) - len(survivors), "survivors": survivors}
    record[section] = provenance() | counts | {"noticed by": known}
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutation", description=__doc__)
    parser.add_argument("section", choices=("planted", "pool", "chapters"))
    parser.add_argument("which", nargs="*", help="words of planted mistakes, modules of the pool, or chapters' numbers")
    parser.add_argument("--sample", type=int, default=20, help="mutants of each module of the pool")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long, with what there is")
    args = parser.parse_intermixed_args()
    check_hook()
    tried = {
        "planted": lambda: planted(args.which),
        "pool": lambda: pool(args.which or list(MODULES), args.sample, args.seed),
        "chapters": lambda: chapters(args.which),
    }[args.section]()
    found: dict[str, str] = {}
    started = before = time.monotonic()
    for name, noticed in tried:
        found[name] = noticed
        now = time.monotonic()
        print(f"{name}: {noticed or 'SURVIVED'}  ({now - before:.0f} s)", flush=True)
        keep(args.section, found)
        if now - started > 60 * args.minutes:
            break
        before = now
    print(f"{sum(map(bool, found.values()))} of {len(found)} are noticed")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
