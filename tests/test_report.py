"""What TensorBoard and Weights & Biases are told, by stand-ins for their libraries."""

from __future__ import annotations

import copy
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tiny import byte_encoding

from dpo_core.cli import main
from dpo_core.config import DPOConfig
from dpo_core.errors import InputError
from dpo_core.formats.pairs import save_pairs
from dpo_core.model import GPT, GPTConfig
from dpo_core.study.report import REPORTS
from dpo_core.tokenizer import ENCODINGS
from dpo_core.trainer import DPOTrainer


@pytest.fixture
def told(monkeypatch):
    """What the libraries were called with, in order."""
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append(("writer", folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append(("scalar", name, value, step))

        def flush(self):
            calls.append(("flush",))

    board = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    library = ModuleType("wandb")
    library.run = None

    def init(**settings):
        calls.append(("init", settings))
        library.run = SimpleNamespace(finish=finish)
        return library.run

    def finish():
        calls.append(("finish",))
        library.run = None

    library.init = init
    library.log = lambda metrics, step: calls.append(("log", metrics, step))
    monkeypatch.setitem(sys.modules, "wandb", library)
    return calls


@pytest.fixture
def make(tiny_model, encoding, pairs, tmp_path):
    def make(**settings):
        defaults = {"steps": 4, "batch_size": 4, "log_every": 2, "eval_every": 4, "val_share": 0.2}
        return DPOTrainer(
            copy.deepcopy(tiny_model), encoding, pairs, DPOConfig(**defaults | settings), tmp_path / "run"
        )

    return make


def without_step(row):
    return {name: value for name, value in row.items() if name != "step"}


def test_tensorboard_gets_each_metric_of_each_row_with_its_step(make, told, tmp_path):
    rows = make().train(progress=False, callbacks=[REPORTS["tensorboard"](tmp_path / "run")]).rows
    assert told[0] == ("writer", str(tmp_path / "run" / "tensorboard"), 0)
    scalars = [call[1:] for call in told if call[0] == "scalar"]
    assert scalars == [(name, value, row["step"]) for row in rows for name, value in without_step(row).items()]
    assert [call for call in told if call[0] == "flush"] == [("flush",)] * len(rows) and told[-1] == ("flush",)


def test_what_a_resume_repeats_replaces_what_was_written_before(make, told, tmp_path):
    make(steps=2).train(progress=False)
    make(steps=4).train(progress=False, resume=True, callbacks=[REPORTS["tensorboard"](tmp_path / "run")])
    assert told[0][-1] == 4 and {call[-1] for call in told if call[0] == "scalar"} == {4}


def test_wandb_gets_settings_rows_and_an_end(make, told, tmp_path):
    trainer = make()
    rows = trainer.train(progress=False, callbacks=[REPORTS["wandb"](tmp_path / "run")]).rows
    settings = {"dir": str(tmp_path / "run"), "name": "run", "config": trainer.config.record()}
    assert told == [("init", settings), *[("log", without_step(row), row["step"]) for row in rows], ("finish",)]
    assert json.dumps(settings["config"])


@pytest.mark.parametrize("how", ["patience", "callback"])
def test_a_training_that_stops_early_does_not_leave_its_run_open(make, told, tmp_path, how):
    def worse(trainer, step, row):
        trainer.stop = how == "callback" and step == 1
        return {"eval_loss": float(step)}

    for _ in range(2):  # the second one begins a run of its own
        told.clear()
        trainer = make(eval_every=1, log_every=1, patience=1 if how == "patience" else None)
        trainer.train(progress=False, callbacks=[worse, REPORTS["wandb"](tmp_path / "run")])
        assert [(call[0], call[-1]) for call in told if call[0] == "log"] == [("log", 0), ("log", 1)]
        assert [call[0] for call in told] == ["init", "log", "log", "finish"]


def test_a_run_that_the_user_began_is_gone_on_with(make, told, tmp_path):
    sys.modules["wandb"].run = mine = SimpleNamespace()
    make().train(progress=False, callbacks=[REPORTS["wandb"](tmp_path / "run")])
    assert [call[0] for call in told] == ["log"] * 3 and sys.modules["wandb"].run is mine


@pytest.mark.parametrize("name", REPORTS)
def test_only_the_first_process_reports(told, tmp_path, name):
    report = REPORTS[name](tmp_path)
    report(SimpleNamespace(processes=SimpleNamespace(first=False)), 4, {"step": 4, "loss": 0.5})
    assert told == []


# The command line


@pytest.fixture
def argv(tmp_path, monkeypatch, pairs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENCODINGS, "bytes", byte_encoding)
    torch.manual_seed(0)
    GPT(GPTConfig(byte_encoding().n_vocab, 64, 16, 1, 2, tokenizer="bytes")).save_pretrained(tmp_path / "model")
    save_pairs("pairs.jsonl", pairs)
    return ["train", "--data", "pairs.jsonl", "--model", "model", "--steps", "1", "--output", "run"]


def test_both_can_be_asked_for_and_one_twice_is_once(argv, told):
    assert main([*argv, *["--report-to", "wandb", "--report-to", "tensorboard", "--report-to", "wandb"]]) == 0
    names = [call[0] for call in told if call[0] != "scalar"]
    assert names == ["init", "log", "writer", "flush", "log", "finish", "flush"]


@pytest.mark.parametrize("name", REPORTS)
def test_a_library_that_is_not_there_is_named_before_any_work(argv, monkeypatch, capsys, tmp_path, name):
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(name, name), None)
    with pytest.raises(InputError, match=f"{name} is not installed; pip install {name}"):
        REPORTS[name](tmp_path)
    assert main([*argv, "--report-to", name]) == 2
    assert capsys.readouterr().err == f"error: {name} is not installed; pip install {name}\n"
    assert not (tmp_path / "run").exists()
