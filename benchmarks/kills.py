"""Kill training and labelling at random moments, go on, and count what was lost: ``python benchmarks/kills.py``.

The model is tiny, so that most of a run's time goes to writing checkpoints and the kills fall there as well as between.
A killed run goes on from its newest checkpoint, is killed again, and so on to its end; its weights and history must
then be those of a run that nothing disturbed, bit for bit. ``tests/test_faults.py`` runs a short version.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any

import torch
from machine import provenance
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from tiny import byte_encoding

from dpo_core.config import DPOConfig
from dpo_core.course.labeling import LabelSession
from dpo_core.course.verdicts import VERDICTS, Comparison
from dpo_core.formats.pairs import PreferencePair
from dpo_core.methods.lora import LoRAConfig, add_lora
from dpo_core.model import GPT, GPTConfig
from dpo_core.runs.checkpoint import list_checkpoints, read_state
from dpo_core.trainer import DPOTrainer

# Not forks of this process: where torch sees an accelerator, they could not train once this process has.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["dpo_core.trainer"])
RESULTS = Path(__file__).with_name("results") / "kills.json"
STEPS = 24


def trainer_in(folder: Path, lora: bool) -> DPOTrainer:
    """The same run each time: random weights, ten pairs, a checkpoint after every other step."""
    encoding = byte_encoding()
    torch.manual_seed(0)
    model = GPT(GPTConfig(encoding.n_vocab, 64, 16, 1, 2))
    if lora:
        add_lora(model, LoRAConfig(rank=2))
    pairs = [PreferencePair(f"Ask {i}?", "YES " * (1 + i % 3), "no " * (1 + i % 4)) for i in range(10)]
    config = DPOConfig(
        steps=STEPS, batch_size=4, learning_rate=1e-3, val_share=0.2, eval_every=6, log_every=3, save_every=2,
        patience=100,
    )  # fmt: skip
    return DPOTrainer(model, encoding, pairs, config, folder)


def train(folder: Path, lora: bool, say: Callable[[str], None] = lambda step: None) -> None:
    """Begin the run or go on with it, and say each step whose checkpoint is written."""
    trainer = trainer_in(folder, lora)
    save = trainer.save

    def saying(**settings: bool) -> str:
        text = save(**settings)
        say(str(trainer.global_step))
        return text

    trainer.save = saying  # type: ignore[method-assign]
    trainer.train(progress=False, resume=bool(list_checkpoints(folder)))


def _say_to(mouth: Any, work: Callable[..., None], arguments: tuple) -> None:
    tqdm.set_lock(RLock())  # tqdm's own is shared by processes, and one that is killed may hold it
    torch.set_num_threads(1)
    mouth.send("ready")
    work(*arguments, mouth.send)


def in_child(after: float | None, work: Callable[..., None], *arguments: Any) -> tuple[bool, list[str]]:
    """Do some work in a process of its own, and kill it ``after`` so many seconds.

    Args:
        after: None lets it end.
        work: a module's function; is given the arguments, and a function to say something with.
        arguments: for the work.
    Returns:
        Whether it was killed, and what it said.
    """
    ear, mouth = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=_say_to, args=(mouth, work, arguments))
    child.start()
    mouth.close()
    said = []
    with ear, suppress(EOFError):
        ear.recv()  # that it is ready
        if after is not None:
            time.sleep(after)
            child.kill()
        while True:
            said.append(ear.recv())
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"the child failed by itself: {child.exitcode}"
    return child.exitcode != 0, said


def remains(folder: Path) -> str:
    """What a kill cut off, seen from the files it left."""
    if (folder / "checkpoints" / "partial").exists():
        return "a checkpoint being written or removed"
    if any((folder / "checkpoints").glob("*.old")):
        return "a checkpoint being replaced"
    if any(folder.rglob("*.partial")):
        return "another file being written"
    return "between two writes" if list_checkpoints(folder) else "before the first checkpoint"


def kill_training(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Kill runs until there were so many kills, and compare each run that came to its end."""
    rng, moments = random.Random(seed), Counter[str]()
    started = time.monotonic()
    for lora in (False, True):
        train(folder / f"whole-{lora}", lora)
    lasting = (time.monotonic() - started) / 2
    done = lost = different = finished = 0
    while done < kills:
        lora, run = bool(finished % 2), folder / f"run-{finished}"
        said: list[int] = []
        while True:
            after = rng.uniform(0, lasting) if done < kills else None
            killed, lines = in_child(after, train, run, lora)
            said += map(int, lines)
            if not killed:
                break
            done += 1
            moments[remains(run)] += 1
            print(f"\r{done} kills", end="", file=sys.stderr)
            newest = list_checkpoints(run)[-1:]
            at = read_state(newest[0])["step"] if newest else 0
            lost += at < max(said, default=0)
        finished += 1
        files = ["history.jsonl", "final/model.safetensors", "final/config.json"]
        files += ["adapter/adapter_model.safetensors"] if lora else []
        whole = folder / f"whole-{lora}"
        different += any((whole / file).read_bytes() != (run / file).read_bytes() for file in files)
    return {"kills": done, "runs": finished, "states_lost": lost, "runs_that_differ": different, "moments": moments}


def label(path: Path, seed: int, say: Callable[[str], None]) -> None:
    """Judge as fast as the disk allows, and say each action once it is acknowledged."""
    with LabelSession(path) as session:
        rng = random.Random(seed)
        while session.turn:
            action = rng.choice([*VERDICTS, "undo"]) if session.verdicts else "left"
            session.undo() if action == "undo" else session.decide(action)
            say(action)


def actions(path: Path) -> list[str]:
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [event.get("verdict", "undo") for event in events if event["event"] in ("verdict", "undo")]


def kill_labelling(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Kill labellers, and compare each file with what was acknowledged, and with a session that nothing disturbed."""
    rng, done, sessions, lost, different, written, mended = random.Random(seed), 0, 0, 0, 0, 0, 0
    while done < kills:
        path = folder / f"labels-{sessions}.jsonl"
        asked = [Comparison(f"Ask {i}?", f"good {i}", f"bad {i}") for i in range(1500)]
        LabelSession(path, asked).close()
        acknowledged: list[str] = []
        for _ in range(min(20, kills - done)):
            after = rng.uniform(0, 0.3)
            killed, said = in_child(after, label, path, len(acknowledged))
            done += killed
            with LabelSession(path) as session:
                mended += any("incomplete" in note for note in session.notes)
            found = actions(path)
            lost += found[: len(acknowledged) + len(said)] != acknowledged + said
            lost += len(found) > len(acknowledged) + len(said) + 1  # one may be written and not yet acknowledged
            acknowledged = found
        whole = folder / f"whole-{sessions}.jsonl"
        with LabelSession(whole, asked) as undisturbed, LabelSession(path) as session:
            for action in acknowledged:
                undisturbed.undo() if action == "undo" else undisturbed.decide(action)
            judged = [[replace(verdict, at="") for verdict in each.verdicts] for each in (undisturbed, session)]
        different += judged[0] != judged[1]
        written += len(acknowledged)
        sessions += 1
    return {
        "kills": done, "sessions": sessions, "actions": written, "half_lines_mended": mended,
        "actions_lost": lost, "sessions_that_differ": different,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of training, and as many of labelling")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a kill loses nothing that a disk would keep
    with TemporaryDirectory(dir=memory) as folder:
        results = {
            **provenance(),
            "training": kill_training(Path(folder) / "training", args.kills, args.seed),
            "labelling": kill_labelling(Path(folder), args.kills, args.seed),
        }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
