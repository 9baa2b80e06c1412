"""Check the course on a GPU: ``python tools/gpu_check.py``, at most eight minutes, the network once for GPT-2.

Every way to train has to give the CPU's numbers, both benchmarks of the engine have to run, and three chapters have to
say what is stored in them. One JSON goes to ``benchmarks/results/``, ``gpu_check_`` and the device's name: machine,
versions, command, what was found and what failed. A failure does not stop the rest. ``--quick`` takes a tiny model and
one chapter; the tests run it on a GPU that they pretend to have. Please send us the file, whatever is in it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.machine import provenance  # noqa: E402
from dpo_core.config import DPOConfig  # noqa: E402
from dpo_core.formats.pairs import PreferencePair  # noqa: E402
from dpo_core.generate import generate  # noqa: E402
from dpo_core.kernels.device import best_device  # noqa: E402
from dpo_core.lm.pretrain import LMConfig, train_lm  # noqa: E402
from dpo_core.lm.sft import Example, sft_documents  # noqa: E402
from dpo_core.methods.family import LOSSES  # noqa: E402
from dpo_core.methods.lora import LoRAConfig, add_lora  # noqa: E402
from dpo_core.model import GPT, GPTConfig  # noqa: E402
from dpo_core.study.evaluate import answer_kl  # noqa: E402
from dpo_core.tokenizer import load_tokenizer  # noqa: E402
from dpo_core.trainers import trainer_for  # noqa: E402

SECONDS = 480  # for all of it
EXACT, HALF = 1e-3, 5e-2  # how far a loss may be from the CPU's, in parts of it, in float32 and in 16 bits
LENGTHS = {"short pairs": "instruction_pairs.jsonl", "long prompts": "preference_lengths.json"}
CHAPTERS = ("01_language_models", "05_the_loss_in_code", "06_training")  # 01 and 06 have a cell with GPT-2 on the GPU


def attempt(until: float, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What came of it and how long it took, or why nothing did, so that the rest is checked all the same."""
    started = time.monotonic()
    try:
        if started > until:
            raise TimeoutError(f"the {SECONDS // 60} minutes are over")
        found = work(*arguments)
    except Exception as error:  # whatever a GPU may raise
        found = {"failed": f"{type(error).__name__}: {error}"[-1000:]}
    return {"seconds": round(time.monotonic() - started, 1)} | found


# Ways to train and to use a model

PAIRS = [PreferencePair(f"Ask {i}?", "YES " * (1 + i % 3) + "OK", "no " * (1 + i % 4) + "way") for i in range(10)]
SMOOTHED = {"label_smoothing": 0.1}


@dataclass(frozen=True)
class Bench:
    """A start model, on any device."""

    tiny: bool = False

    def model(self, device: torch.device, rank: int | None = None) -> GPT:
        """The same weights each time: the pocket model's, or a few random ones."""
        torch.manual_seed(0)
        small = GPTConfig(4096, n_positions=64, n_embd=16, n_layer=2, n_head=2, tokenizer="pocket")
        made = GPT(small).eval() if self.tiny else GPT.from_pretrained("pocket")
        if rank:
            add_lora(made, LoRAConfig(rank=rank))
        return made.to(device)

    def train(
        self, device: torch.device, output: Path | None = None, resume: bool = False, **settings: Any
    ) -> list[float]:
        """The losses of a short run."""
        rank = settings.pop("rank", None)
        defaults = {
            "steps": 6,
            "batch_size": 3,
            "learning_rate": 1e-4,
            "log_every": 1,
            "eval_every": 3,
            "val_share": 0.2,
        }
        config = DPOConfig(**defaults | settings)
        trainer = trainer_for(config.loss)(self.model(device, rank), load_tokenizer("pocket"), PAIRS, config, output)
        return trainer.train(progress=False, resume=resume).column("loss")[1]

    def resumed(self, device: torch.device) -> list[float]:
        """The losses of a run that was ended after three steps and gone on with."""
        with tempfile.TemporaryDirectory() as folder:
            self.train(device, Path(folder), steps=3, save_every=3, warmup_steps=0)
            return self.train(device, Path(folder), resume=True, save_every=3, warmup_steps=0)

    def fine_tuned(self, device: torch.device) -> list[float]:
        """The losses of fine-tuning on the chosen answers."""
        examples = [Example(pair.prompt, pair.chosen) for pair in PAIRS]
        documents = sft_documents(load_tokenizer("pocket"), examples, 64)
        return list(train_lm(self.model(device), documents, LMConfig(tokens_per_batch=64), progress=False))

    def answered(self, device: torch.device) -> list[float]:
        """The tokens of the likeliest answers, and how far another model is from giving them."""
        made, encoding = self.model(device), load_tokenizer("pocket")
        answers = generate(made, encoding, ["Ask 1?", "Why is the sky blue?"], max_new_tokens=12, temperature=0.0)
        kl = answer_kl(made, self.model(device, rank=2), encoding, answers)
        return [float(token) for answer in answers for token in answer.ids] + kl.tolist()

    def drawn_again(self, device: torch.device) -> list[float]:
        """How many tokens differ between two draws of the same seed."""
        made, encoding = self.model(device), load_tokenizer("pocket")
        one, other = (
            [answer.ids for answer in generate(made, encoding, ["Why?"] * 4, max_new_tokens=12, seed=0)]
            for _ in range(2)
        )
        return [float(a != b) for a, b in zip(one, other)]


def gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference, in parts of the second number where that is above 1.

    >>> gap([0.5, 22.0], [0.0, 20.0])
    0.5
    >>> gap([1.0], [1.0, 2.0])
    inf
    """
    apart = [abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours, theirs)]
    return max(apart) if len(ours) == len(theirs) and all(map(math.isfinite, apart)) else math.inf


def ways(bench: Bench) -> dict[str, tuple[Callable[[torch.device], list[float]], float]]:
    """What is done on both devices, and how far the two may lie apart."""
    settings: dict[str, dict[str, Any]] = {
        **{f"loss {name}": {"loss": name} | (SMOOTHED if name in ("cdpo", "robust") else {}) for name in LOSSES},
        "live reference": {"reference": "live"},
        "LoRA": {"rank": 4},
        "adapter off": {"rank": 4, "reference": "adapter_off"},
        "accumulation": {"batch_size": 2, "grad_accum": 3},
        "patience": {"patience": 1, "eval_every": 2},
    }

    def trained(own: dict[str, Any]) -> Callable[[torch.device], list[float]]:
        return lambda device: bench.train(device, **own)

    def in_half(device: torch.device) -> list[float]:
        return bench.train(device, precision="float32" if device.type == "cpu" else "auto")

    works = {"resumed": bench.resumed, "fine-tuned": bench.fine_tuned, "answered": bench.answered}
    return {
        **{name: (trained(own), EXACT) for name, own in settings.items()},
        **{name: (work, EXACT) for name, work in works.items()},
        "drawn again": (bench.drawn_again, 0.0),
        "auto precision": (in_half, HALF),
    }


def compared_with_cpu(work: Callable[[torch.device], list[float]], allowed: float) -> dict[str, Any]:
    """Do something on the device and on the CPU, and say how far the numbers lie apart."""
    distance = gap(work(best_device()), work(torch.device("cpu")))
    far = {"failed": f"{distance:.2g} from the CPU's numbers, {allowed:g} is allowed"}
    return {"gap": distance} | ({} if distance <= allowed else far)


def check_ways(quick: bool, until: float) -> dict[str, Any]:
    """Compare every way to train and to use a model with the CPU's."""
    works = ways(Bench(tiny=quick))
    return {name: attempt(until, compared_with_cpu, work, allowed) for name, (work, allowed) in works.items()}


# The engine and the chapters, in processes of their own


def command(arguments: Sequence[object], until: float, folder: Path = ROOT) -> None:
    """Run Python with these arguments, not longer than until then.

    Raises:
        RuntimeError: it failed; the end of what it said is in the message.
        subprocess.TimeoutExpired: it took longer.
    """
    run = [sys.executable, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as said:  # a pipe would wait for what the process has started itself
        left = max(1.0, until - time.monotonic())
        done = subprocess.run(run, cwd=folder, stdout=said, stderr=subprocess.STDOUT, timeout=left)
        said.seek(0)
        if done.returncode:
            raise RuntimeError(f"python {' '.join(run[1:])} failed:\n{said.read()[-900:]}")


def check_engine(quick: bool, until: float) -> dict[str, Any]:
    """Time a step on both lengths, beside what else is installed."""
    others = ["textbook"] if find_spec("transformers") else []
    others += ["TRL default", "TRL best"] if find_spec("trl") and not quick else []
    size = ["--passes", 1, "--rounds", 1, "--no-profile", *(["--model", "tiny", "--pairs", 4] if quick else [])]

    def timed(data: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            what = ["--data", ROOT / "benchmarks" / "data" / data, "--variants", *others, "dpo_core"]
            command([ROOT / "benchmarks" / "engine.py", *what, *size, "--results", folder, "--name", "gpu"], until)
            return dict(json.loads((Path(folder) / "engine_gpu.json").read_text(encoding="utf-8")))

    return {name: attempt(until, timed, data) for name, data in LENGTHS.items()}


def check_chapters(quick: bool, until: float) -> dict[str, Any]:
    """Run chapters and compare their outputs with those stored, as the tests do."""
    sanitize = (ROOT / "tests" / "sanitize.cfg").read_text(encoding="utf-8")

    def compared(chapter: str) -> dict[str, Any]:
        from tools.compare_outputs import notebook_differences  # needs nbval, which may be missing

        stored = ROOT / "notebooks" / f"{chapter}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            copy, executed = Path(folder) / "chapter.ipynb", Path(folder) / "executed.ipynb"
            copy.write_bytes(stored.read_bytes())
            execute = ["-m", "nbconvert", "--to", "notebook", "--execute", "--allow-errors", "--output", executed.name]
            command([*execute, copy.name], until, Path(folder))
            problems = notebook_differences(stored, executed, sanitize)
            cells = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
        errors = [f"{o.ename}: {o.evalue}" for cell in cells for o in cell.outputs if o.output_type == "error"]
        said = [o.text for cell in cells if "on_gpu(" in cell.source for o in cell.outputs if "text" in o]
        failed = {"failed": "\n".join([*errors, *problems])} if errors or problems else {}
        return {"on the GPU": "".join(said)} | failed

    return {name: attempt(until, compared, name) for name in CHAPTERS[: 1 if quick else None]}


PARTS = {"ways": check_ways, "engine": check_engine, "chapters": check_chapters}


def main(arguments: Sequence[str] | None = None) -> int:
    """Check all parts, write the record and say what failed; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, few pairs, one chapter")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    device, started = best_device(), time.monotonic()
    if device.type == "cpu":
        print("no GPU here: the CPU is compared with itself")
    record = provenance() | {"device": device.type}
    name = record["machine"]["gpu"] or device.type  # type: ignore[index]
    file = options.results / f"gpu_check_{re.sub(r'[^a-z0-9]+', '_', name.lower())}.json"
    failures: dict[str, str] = {}
    for part in options.only:
        found = PARTS[part](options.quick, started + SECONDS)
        failures |= {f"{part}, {what}": entry["failed"] for what, entry in found.items() if "failed" in entry}
        seconds = round(time.monotonic() - started)
        record |= {part: found, "failures": failures, "seconds": seconds}
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {len(found)} checked, {sum('failed' in entry for entry in found.values())} failed, {seconds} s")
    print("\n".join(f"FAILED {what}: {why}" for what, why in failures.items()) or "nothing failed")
    print(file)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
