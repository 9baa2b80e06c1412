"""However a training ends before its time, what was learned is on the disk, and somebody says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import kills

from dpo_core.cli import main
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair, save_pairs
from dpo_core.metrics import History
from dpo_core.model import GPT
from dpo_core.runs.checkpoint import list_checkpoints
from dpo_core.runs.exits import BROKEN_PIPE, Lasting, delayed_interrupt, lasting_output
from dpo_core.tokenizer import ENCODINGS

TESTS = Path(__file__).resolve().parent
# The run of benchmarks/kills.py in a process of its own: 24 steps, a row after each third.
PROGRAM = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent / "benchmarks")!r}]
import kills
trainer = kills.trainer_in(Path(sys.argv[1]), lora=False)
"""
KILLED = """
trainer.config.__dict__.update(save_every=None, save_minutes=1e-9)
trainer.train(callbacks=[lambda t, step, row: os.kill(os.getpid(), signal.SIGKILL) if step == 15 else None])
"""


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    kills.train(folder, lora=False)
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("history.jsonl", "final/model.safetensors", "final/config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def at_step(step, act):
    """A callback that acts at a step; ``kills`` logs each third."""
    return lambda trainer, now, row: act() if now == step else None


def fail():
    raise RuntimeError("mine")


def newest(run):
    return [folder.name for folder in list_checkpoints(run)][-1:]


# Errors


@pytest.mark.parametrize("lora", [False, True])
def test_an_error_is_answered_by_a_checkpoint_from_which_the_run_goes_on_as_if_nothing_had_been(run, lora, capsys):
    plain = run.with_name("plain")
    kills.train(plain, lora)
    trainer = kills.trainer_in(run, lora)
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train(progress=False, callbacks=[at_step(15, fail)])
    assert newest(run) == ["step-000015"]  # save_every is 2
    told = capsys.readouterr().err
    assert "RuntimeError: stopped after step 15; saved as" in told and "train(resume=True), or --resume, goes" in told
    kills.train(run, lora)
    assert_same_run(run, plain)


def test_an_error_while_evaluating_keeps_what_the_next_row_averages(run, whole):
    trainer = kills.trainer_in(run, lora=False)
    evaluate = trainer.evaluate
    trainer.evaluate = lambda: evaluate() if trainer.global_step == 0 else fail()
    with pytest.raises(RuntimeError):
        trainer.train(progress=False)
    assert newest(run) == ["step-000006"]
    resumed = kills.trainer_in(run, lora=False)
    resumed.train(progress=False, resume=True)
    ours, theirs = ({row["step"]: row for row in History.from_jsonl(f / "history.jsonl").rows} for f in (run, whole))
    assert 6 not in ours and ours[9]["loss"] == pytest.approx((theirs[6]["loss"] + theirs[9]["loss"]) / 2)
    assert ours[12] == theirs[12]


def test_weights_that_are_being_moved_are_of_no_step_and_are_not_saved(run, whole, monkeypatch):
    trainer = kills.trainer_in(run, lora=False)
    add = trainer.sums.add
    moved = []

    def failing(self, metrics):  # right after the move, before the step is counted
        if trainer.global_step == 8:
            moved.append(True)
            fail()
        return add.__func__(self, metrics)

    monkeypatch.setattr("dpo_core.metrics.MetricSums.add", failing)
    with pytest.raises(RuntimeError):
        trainer.train(progress=False)
    monkeypatch.undo()
    assert moved and newest(run) == ["step-000008"]  # of the clock of save_every, whole
    kills.train(run, lora=False)
    assert_same_run(run, whole)


def test_before_the_first_step_and_without_a_folder_there_is_nothing_to_save(run, capsys):
    for folder, step in ((run, 0), (None, 3)):
        trainer = kills.trainer_in(folder, lora=False)
        with pytest.raises(RuntimeError):
            trainer.train(progress=False, callbacks=[at_step(step, fail)])
    assert capsys.readouterr().err == "" and list_checkpoints(run) == []


def test_an_error_is_not_hidden_by_a_disk_that_is_full(run, capsys, monkeypatch):
    trainer = kills.trainer_in(run, lora=False)
    monkeypatch.setattr("dpo_core.runs.run.save_checkpoint", lambda *_: fail_to_save())

    def fail_to_save():
        raise InputError("no room")

    trainer.config.__dict__["save_every"] = None
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train(progress=False, callbacks=[at_step(9, fail)])
    assert "RuntimeError: no room" in capsys.readouterr().err


def test_best_weights_survive_an_error_in_a_callback(run, whole):
    """The error comes in the row of an evaluation, the best so far."""
    trainer = kills.trainer_in(run, lora=False)
    with pytest.raises(RuntimeError):
        trainer.train(progress=False, callbacks=[at_step(24, fail)])
    kills.train(run, lora=False)
    assert_same_run(run, whole)


# Signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_ends_the_program_as_that_signal_does(run, whole, name, capsys, request):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # nohup's children ignore SIGHUP
    request.addfinalizer(lambda: signal.signal(number, before))
    trainer = kills.trainer_in(run, lora=False)
    with pytest.raises(SystemExit) as stop:
        trainer.train(progress=False, callbacks=[at_step(9, lambda: signal.raise_signal(number))])
    assert stop.value.code == 128 + number and newest(run) == ["step-000009"]
    assert f"{name}: stopped after step 9; saved as" in capsys.readouterr().err
    assert signal.getsignal(number) is signal.SIG_DFL
    kills.train(run, lora=False)
    assert_same_run(run, whole)


def test_a_second_ctrl_c_ends_at_once_and_saves_nothing(run, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's background jobs lack
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer = kills.trainer_in(run, lora=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(progress=False, callbacks=[at_step(9, twice)])
    assert newest(run) == ["step-000008"]


def test_under_nohup_a_closed_terminal_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with delayed_interrupt() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_terminated_while_the_model_is_written_the_run_is_finished(run, whole, monkeypatch):
    trainer = kills.trainer_in(run, lora=False)
    finish = trainer._finish
    trainer._finish = lambda: (signal.raise_signal(signal.SIGTERM), finish())
    trainer.train(progress=False)
    assert_same_run(run, whole)


def test_killed_without_save_every_the_clock_has_saved(run):
    """By save_minutes alone, here a moment instead of ten minutes."""
    killed = subprocess.run([sys.executable, "-c", PROGRAM + KILLED, run])
    assert killed.returncode == -signal.SIGKILL and newest(run) == ["step-000014"]


# An output that nobody reads


def test_a_pipe_that_is_closed_does_not_end_a_program(run, whole):
    ear, mouth = os.pipe()
    os.close(ear)
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM + "trainer.train()", run], stdout=mouth, stderr=subprocess.PIPE, text=True
    )
    os.close(mouth)
    assert program.returncode == 0 and program.stderr.count("\n") <= 1
    assert_same_run(run, whole)


class Closed:
    """A stream whose reader went away after so many lines."""

    def __init__(self, lines):
        self.left, self.closed = lines, False

    def write(self, text):
        if self.left <= 0:
            raise BrokenPipeError(32, "Broken pipe")
        self.left -= text.count("\n")
        return len(text)

    def flush(self):
        self.write("")


@pytest.mark.parametrize("lines", [0, 2])
def test_rows_that_nobody_reads_and_a_callback_that_prints(run, whole, lines, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream := Closed(lines))
    trainer = kills.trainer_in(run, lora=False)
    trainer.train(progress=True, callbacks=[lambda *_: print("mine")])
    assert sys.stdout is stream
    assert_same_run(run, whole)


def test_a_program_without_output_trains(run, whole, monkeypatch):
    """As under >&-, and as a service."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    kills.trainer_in(run, lora=False).train()
    assert_same_run(run, whole)


def test_a_character_that_cannot_be_written_is_still_an_error():
    with open(os.devnull, "w", encoding="ascii") as nowhere, pytest.raises(UnicodeEncodeError):
        Lasting(nowhere).write("\u00e9")


def test_an_output_on_a_full_disk_is_told_by_the_status(capsys):
    with open("/dev/full", "w", buffering=1) as full, lasting_output():
        stream = Lasting(full)
        stream.write("one\n")
        stream.write("two\n")
        assert stream.status == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # or its end would raise
    assert capsys.readouterr().err.count("cannot be written to") == 1


def test_the_exit_status_of_commands_whose_reader_went_away(tmp_path, monkeypatch):
    """A training goes on to its end; another command ends."""
    monkeypatch.chdir(tmp_path)
    kills.trainer_in(None, lora=False).model.save_pretrained("model")
    monkeypatch.setitem(ENCODINGS, "bytes", kills.byte_encoding)
    config = Path("model/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer": "bytes"}))
    save_pairs("pairs.jsonl", [PreferencePair(f"Ask {i}?", "Yes.", "No.") for i in range(8)])
    train = ["train", "--data", "pairs.jsonl", "--model", "model", "--steps", "2"]
    monkeypatch.setattr(sys, "stdout", Closed(0))
    assert main(train) == BROKEN_PIPE and Path("dpo_checkpoints/final").is_dir()
    assert main(["generate", "--model", "model", "--prompt", "Why?", "--max-new-tokens", "2"]) == BROKEN_PIPE


# Room

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def room(monkeypatch):
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - free, free))


def test_a_disk_on_which_not_even_one_checkpoint_fits_is_refused_before_the_first_step(run, room):
    room(100_000)
    with pytest.raises(
        InputError, match=r"run: no room there .*checkpoint takes 135 kB, the final model 33.8 kB; 100 kB"
    ):
        kills.trainer_in(run, lora=False).train(progress=False)
    assert not (run / "history.jsonl").exists() and not (run / "config.json").exists()


def test_a_disk_that_will_be_full_is_told_at_the_start(run, whole, room):
    room(300_000)
    with pytest.warns(UserWarning, match=r"needs 439 kB there for 3 checkpoints .*300 kB are free.*make room"):
        kills.trainer_in(run, lora=False).train(progress=False)
    assert_same_run(run, whole)


def test_an_adapter_needs_little(run, room):
    room(100_000)
    kills.trainer_in(run, lora=True).train(progress=False)


def test_for_lack_of_room_the_final_model_takes_that_of_the_older_checkpoint(run, whole, monkeypatch):
    save = GPT.save_pretrained

    def full(model, folder):
        if Path(folder).name == "final" and len(list_checkpoints(run)) > 1:
            raise OSError(28, "No space left on device")
        save(model, folder)

    monkeypatch.setattr(GPT, "save_pretrained", full)
    kills.train(run, lora=False)
    assert_same_run(run, whole)
    assert [folder.name for folder in list_checkpoints(run)] == ["step-000024"]


# Too few steps


def test_fewer_steps_than_were_trained_are_refused(run):
    kills.train(run, lora=False)
    trainer = kills.trainer_in(run, lora=False)
    trainer.config.__dict__["steps"] = 5
    with pytest.raises(InputError, match=r"step-000024 is of step 24, and steps is 5: more are taken already"):
        trainer.train(progress=False, resume=True)
