"""What a kill, Ctrl-C, a full disk or a file in the way leaves behind: all that was there, and a clear message."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from full_disk import disk_of
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import kills

from dpo_core.cli import main
from dpo_core.errors import InputError
from dpo_core.formats.files import atomic_write, sync
from dpo_core.formats.pairs import PreferencePair, load_pairs, save_pairs
from dpo_core.model import GPT
from dpo_core.runs.checkpoint import KEPT, list_checkpoints, read_state
from dpo_core.tokenizer import ENCODINGS

PAIR = PreferencePair("Why?", "Because.", "No.")


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


# Kills (benchmarks/kills.py does the same two hundred times)


def test_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    found = kills.kill_training(tmp_path, kills=6, seed=0)
    assert (found["kills"], found["states_lost"], found["runs_that_differ"]) == (6, 0, 0)


def test_killed_labelling_loses_nothing(tmp_path):
    found = kills.kill_labelling(tmp_path, kills=5, seed=0)
    assert (found["kills"], found["actions_lost"], found["sessions_that_differ"]) == (5, 0, 0)


def train_to_a_deadly_call(run, call, fatal, say):
    """Train, but end the process at the call of that number."""
    module = shutil if call == "rmtree" else os
    real, left = getattr(module, call), [fatal]

    def deadly(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(module, call, deadly)
    kills.train(run, False, say)


@pytest.mark.parametrize("call", ["replace", "fsync", "rmtree"])
def test_killed_at_calls_that_change_the_disk_a_whole_checkpoint_is_there(run, whole, call):
    """The process ends at the first, fourth, ... such call of a run; each time the newest checkpoint is whole."""
    for fatal in (1, 4, 9, 16):
        shutil.rmtree(run, ignore_errors=True)
        killed, lines = kills.in_child(None, train_to_a_deadly_call, run, call, fatal)
        said = [int(line) for line in lines]
        newest = list_checkpoints(run)[-1:]
        assert (read_state(newest[0])["step"] if newest else 0) >= max(said, default=0)
        if killed and fatal == 9:
            kills.train(run, lora=False)
            assert_same_run(run, whole)


def test_writing_a_checkpoint_again_never_leaves_the_run_without_it(run, monkeypatch):
    """Ctrl-C right after a checkpoint writes the same step again; there the only one is replaced."""
    trainer = kills.trainer_in(run, lora=False)
    trainer.save()
    replace, seen = os.replace, []
    monkeypatch.setattr(os, "replace", lambda a, b: (replace(a, b), seen.append(len(list_checkpoints(run)))))
    trainer.save()
    assert len(seen) >= 2 and min(seen) == 1
    assert [folder.name for folder in list_checkpoints(run)] == ["step-000000"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000000"]


def test_a_checkpoint_that_was_being_replaced_is_gone_on_from(run, whole):
    kills.train(run, lora=False)
    newest = list_checkpoints(run)[-1]
    newest.rename(newest.with_name(f"{newest.name}.old"))
    shutil.rmtree(run / "final")
    kills.train(run, lora=False)
    assert_same_run(run, whole)


def test_checkpoints_are_ordered_by_step_and_nothing_else_is_taken_for_one(run):
    names = ["step-000002", "step-1000000", "step-999999", "step-by-step", "step-000002.old", "partial"]
    for name in names:
        (run / "checkpoints" / name).mkdir(parents=True)
    found = [folder.name for folder in list_checkpoints(run)]
    assert found == ["step-000002.old", "step-000002", "step-999999", "step-1000000"]


def test_a_folder_of_the_users_is_never_removed(run):
    (run / "checkpoints" / "step-by-step").mkdir(parents=True)
    kills.train(run, lora=False)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert len(names) == KEPT + 1 and names[-1] == "step-by-step"


def test_what_is_written_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    for call in ("fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *args, call=call, real=real: (done.append(call), real(*args))[1])
    save_pairs(tmp_path / "pairs.jsonl", [PAIR])
    assert done == ["fsync", "replace", "fsync"]  # text, name, folder
    done.clear()
    trainer = kills.trainer_in(tmp_path / "run", lora=False)
    done.clear()
    trainer.save()
    assert done[-2:] == ["replace", "fsync"] and done[:-2].count("fsync") >= 5  # four files and their folder


# Ctrl-C


def test_ctrl_c_saves_and_says_how_to_go_on(run, whole):
    trainer = kills.trainer_in(run, lora=False)
    update = trainer.step

    def interrupted(*args):
        if trainer.global_step == 6:
            signal.raise_signal(signal.SIGINT)
        return update(*args)

    trainer.step = interrupted
    with pytest.raises(
        KeyboardInterrupt, match=r"after step 7; saved as .*step-000007, from where train\(resume=True\) goes on"
    ):
        trainer.train(progress=False)
    kills.train(run, lora=False)
    assert_same_run(run, whole)


def test_ctrl_c_while_the_model_is_written_waits_until_it_is(run, whole, monkeypatch):
    trainer = kills.trainer_in(run, lora=False)
    save = GPT.save_pretrained

    def interrupted(model, folder):
        if Path(folder).name == "final":
            signal.raise_signal(signal.SIGINT)
        save(model, folder)

    monkeypatch.setattr(GPT, "save_pretrained", interrupted)
    trainer.train(progress=False)
    assert_same_run(run, whole)


# A full disk, and things in the way


@pytest.mark.parametrize("size", [200, 20_000, 60_000])  # stops at the settings, the weights, the moments
def test_a_full_disk_leaves_the_checkpoint_before_and_training_can_go_on(run, whole, size):
    trainer = kills.trainer_in(run, lora=False)
    trainer.config.__dict__["steps"] = 4
    trainer.train(progress=False)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    trainer.config.__dict__["steps"] = kills.STEPS
    with disk_of(size), pytest.raises(InputError, match=r"cannot be written \(.*File too large.*\); make room there"):
        trainer.save() if size > 200 else trainer.train(progress=False)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before
    trainer.train(progress=False)
    assert json.loads((run / "history.jsonl").read_text().splitlines()[-1])["step"] == kills.STEPS


def test_no_room_for_the_last_checkpoint_does_not_cost_the_model(run, whole):
    trainer = kills.trainer_in(run, lora=False)
    trainer.config.__dict__["save_every"] = None  # the only checkpoint is the one at the end
    with disk_of(60_000), pytest.raises(InputError, match=r"step-\d+: cannot be written"):
        trainer.train(progress=False)
    assert list_checkpoints(run) == []
    ours, theirs = (load_file(folder / "final" / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_full_disk_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer = kills.trainer_in(tmp_path / "first", lora=False)
    trainer.model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    monkeypatch.setitem(ENCODINGS, "bytes", kills.byte_encoding)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"tokenizer": "bytes"}))
    save_pairs("pairs.jsonl", [PreferencePair(f"Ask {i}?", "Yes.", "No.") for i in range(8)])
    argv = ["train", "--data", "pairs.jsonl", "--model", "model", "--steps", "4", "--save-every", "2"]
    assert main([*argv[:-4], "--steps", "2", "--save-every", "2"]) == 0
    capsys.readouterr()
    with disk_of(60_000):
        assert main([*argv, "--resume"]) == 2
    err = capsys.readouterr().err
    assert "step-000004: cannot be written" in err and "step-000002 is whole, and --resume goes on from it" in err
    assert main([*argv, "--resume"]) == 0


def test_a_file_in_the_way_of_checkpoints_is_named(run):
    run.mkdir()
    (run / "checkpoints").write_text("mine")
    with pytest.raises(InputError, match=r"step-000002: cannot be written .*make room there$"):
        kills.train(run, lora=False)
    assert (run / "checkpoints").read_text() == "mine"


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    file = tmp_path / "pairs.jsonl"
    save_pairs(file, [PAIR])
    with disk_of(100), pytest.raises(InputError, match=r"pairs.jsonl: cannot be written \(File too large\); make room"):
        save_pairs(file, [PAIR] * 100)
    assert load_pairs(file) == [PAIR] and [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_link_stays_one_and_a_device_is_left_alone(tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "pairs.jsonl")
    save_pairs(tmp_path / "link.jsonl", [PAIR])
    assert (tmp_path / "link.jsonl").is_symlink() and load_pairs(tmp_path / "pairs.jsonl") == [PAIR]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no ordinary file"):
        save_pairs(tmp_path / "pipe", [PAIR])


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    (tmp_path / "note").write_text("old")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "note") as partial:
        partial.write_text("ne")
        raise RuntimeError
    assert (tmp_path / "note").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    sync(tmp_path / "note")


# Damaged checkpoints


def change_state(folder: Path, **change) -> None:
    state = json.loads((folder / "trainer.json").read_text())
    (folder / "trainer.json").write_text(json.dumps(state | change))


def change_moments(folder: Path, change) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "optimizer.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "optimizer.safetensors")


DAMAGE = {
    "a list": lambda f: (f / "trainer.json").write_text("[]"),
    "nested without end": lambda f: (f / "trainer.json").write_text("[" * 100_000),
    "no step": lambda f: change_state(f, step="4"),
    "no config": lambda f: change_state(f, config=None),
    "other sums": lambda f: change_state(f, sums={"sums": {}, "count": 0, "more": 1}),
    "sums of text": lambda f: change_state(f, sums={"sums": [], "count": 0}),
    "no count": lambda f: change_state(f, sums={"sums": {}, "count": None}),
    "history of numbers": lambda f: change_state(f, history=[1]),
    "history without steps": lambda f: change_state(f, history=[{"loss": 1}]),
    "a moment too many": lambda f: change_moments(f, lambda t: t.update({"99.exp_avg": torch.zeros(2)})),
    "a moment of no number": lambda f: change_moments(f, lambda t: t.update({"x.exp_avg": torch.zeros(2)})),
    "a moment of another shape": lambda f: change_moments(f, lambda t: t.update({"0.exp_avg": torch.zeros(3, 16)})),
    "a moment in whole numbers": lambda f: change_moments(f, lambda t: t.update({"0.exp_avg": t["0.exp_avg"].long()})),
    "a moment missing": lambda f: change_moments(f, lambda t: t.pop("0.exp_avg")),
    "a parameter missing": lambda f: change_moments(f, lambda t: [t.pop(n) for n in list(t) if n.startswith("0.")]),
    "no moments": lambda f: change_moments(f, dict.clear),
    "moments of one kind missing": lambda f: change_moments(
        f, lambda t: [t.pop(n) for n in list(t) if n.endswith("exp_avg")]
    ),
    "a moment that is no number": lambda f: change_moments(f, lambda t: t["0.exp_avg"].fill_(torch.nan)),
    "a step before the first": lambda f: change_state(f, step=-1),
    "a step after the last": lambda f: change_state(f, step=10**6),
    "best of another model": lambda f: save_file({"wte.weight": torch.zeros(2)}, f / "best.safetensors"),
    "trainer.json missing": lambda f: (f / "trainer.json").unlink(),
    "config.json missing": lambda f: (f / "config.json").unlink(),
    "model.safetensors missing": lambda f: (f / "model.safetensors").unlink(),
    "optimizer.safetensors missing": lambda f: (f / "optimizer.safetensors").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_changes_nothing_and_is_named(whole, run, damage):
    shutil.copytree(whole, run)
    newest = list_checkpoints(run)[-1]
    damage(newest)
    trainer = kills.trainer_in(run, lora=False)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(
        InputError, match=rf"{newest.name} is damaged .*; delete it to resume from the checkpoint before"
    ):
        trainer.train(progress=False, resume=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    shutil.rmtree(newest)  # what the message says
    trainer.train(progress=False, resume=True)
    assert (run / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapters_checkpoint_that_lacks_a_file_is_named(run, file):
    kills.train(run, lora=True)
    newest = list_checkpoints(run)[-1]
    (newest / file).unlink()
    with pytest.raises(InputError, match=rf"{newest.name} is damaged .*{file}.*; delete it to resume from the checkp"):
        kills.train(run, lora=True)
