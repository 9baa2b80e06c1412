"""Two processes at one file or folder: the second is told, nothing is mixed, and a killed one leaves nothing locked."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import kills

from dpo_core.course.labeling import LabelSession
from dpo_core.course.verdicts import Comparison
from dpo_core.errors import InputError
from dpo_core.formats.files import NamedLock
from dpo_core.runs.checkpoint import folder_lock


class Holder:
    """A process that does something, says so, and holds still until it is told to go on or killed."""

    def __init__(self, enter) -> None:
        self.said, writing = os.pipe()
        hearing, self.told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.told)
            try:
                with enter():
                    os.write(writing, b"!")
                    os.read(hearing, 1)
            finally:
                os._exit(0)
        os.close(writing)
        os.close(hearing)
        assert os.read(self.said, 1) == b"!"

    def end(self, kill: bool) -> None:
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.told)
        os.close(self.said)
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "ended"])
def test_two_trainers_in_one_folder(tmp_path, kill):
    run = tmp_path / "run"
    run.mkdir()
    trainer = kills.trainer_in(run, lora=False)  # made before the other one began
    before = sorted(path.name for path in run.iterdir())
    holder = Holder(lambda: folder_lock(run))
    try:
        told = rf"run is in use by process {holder.pid}, since .*; wait .* or choose another output folder"
        for attempt in (lambda: trainer.train(progress=False), lambda: kills.trainer_in(run, lora=False)):
            with pytest.raises(InputError, match=told):
                attempt()
        assert sorted(path.name for path in run.iterdir() if path.suffix != ".holder") == before  # nothing was written
        kills.trainer_in(tmp_path / "other", lora=False)
    finally:
        holder.end(kill)
    trainer.train(progress=False)
    assert (run / "final").is_dir() and not (run / ".lock.holder").exists()


def test_a_training_that_failed_or_was_stopped_lets_go(tmp_path):
    trainer = kills.trainer_in(tmp_path, lora=False)
    for stop in (InputError, KeyboardInterrupt):

        def failing(*_, stop=stop):
            raise stop

        trainer._begin, begin = failing, trainer._begin
        with pytest.raises(stop):
            trainer.train(progress=False)
        trainer._begin = begin
    with folder_lock(tmp_path), pytest.raises(InputError, match="in use by process"):
        trainer.train(progress=False)
    trainer.train(progress=False)


def test_a_run_without_a_folder_locks_nothing():
    with folder_lock(None), folder_lock(None):
        pass


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "ended"])
def test_two_labellers_at_one_file(tmp_path, kill):
    path = tmp_path / "labels.jsonl"
    LabelSession(path, [Comparison("Why?", "Because.", "No.")]).close()
    holder = Holder(lambda: LabelSession(path))
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"is open in process {holder.pid}, since .* or label into another file"):
        LabelSession(path)
    holder.end(kill)
    assert path.read_bytes() == before
    with LabelSession(path) as session:
        session.decide("left")
        assert bool(session.notes) == kill


def test_many_processes_take_turns_and_never_meet(tmp_path):
    """Eight processes count up in one file, each behind the lock; without it some of them would overwrite others."""
    counter, lock, children = tmp_path / "count", tmp_path / "lock", []
    counter.write_text("0")
    for _ in range(8):
        child = os.fork()
        if child == 0:
            done = 0
            while done < 5:
                try:
                    held = NamedLock(lock)
                except InputError:
                    time.sleep(0.001)
                    continue
                number = int(counter.read_text())
                time.sleep(0.0005)
                counter.write_text(str(number + 1))
                held.release()
                done += 1
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert counter.read_text() == "40"


def test_a_file_system_without_locks_locks_nothing(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    locks = [NamedLock(tmp_path / "lock") for _ in range(2)]
    for lock in locks:
        lock.release()


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match="cannot write there"), folder_lock(tmp_path):
        pass
