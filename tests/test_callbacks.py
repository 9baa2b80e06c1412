"""Functions that are called with each row: what they add, what they stop, and the rows on disk while a run goes on."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from full_disk import disk_of

from dpo_core.config import DPOConfig
from dpo_core.errors import InputError
from dpo_core.metrics import History
from dpo_core.model import GPT
from dpo_core.runs.checkpoint import list_checkpoints
from dpo_core.trainer import DPOTrainer


@pytest.fixture
def make(tiny_model, encoding, pairs):
    """A trainer of a fresh copy of the tiny model, with settings changed by keyword."""
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}

    def make(output=None, **settings):
        model = GPT(tiny_model.config)
        model.load_state_dict(start)
        defaults = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0, "val_share": 0.2}
        return DPOTrainer(model, encoding, pairs, DPOConfig(**defaults | {"log_every": 1} | settings), output)

    return make


def stop_at(step):
    def callback(trainer, now, row):
        trainer.stop = now == step

    return callback


def measure(values):
    """A callback that returns ``eval_own`` at each evaluation, one value after another."""
    left = iter(values)
    return lambda trainer, step, row: {"eval_own": next(left)} if "eval_loss" in row else None


# Metrics of one's own


def test_what_a_callback_returns_is_in_the_row_and_later_callbacks_see_it(make, tmp_path):
    seen = []
    history = make(tmp_path, steps=2).train(
        progress=False,
        callbacks=[
            lambda trainer, step, row: {"twice": 2 * row["loss"]},
            lambda trainer, step, row: seen.append(row["twice"]),
            lambda trainer, step, row: {"thrice": 1.5 * row["twice"]},
        ],
    )
    assert seen == [2 * row["loss"] for row in history.rows]
    assert [row["thrice"] for row in history.rows] == [1.5 * twice for twice in seen]
    assert History.from_jsonl(tmp_path / "history.jsonl") == history


def test_a_callback_is_given_the_trainer_as_it_stands(make):
    seen = []
    trainer = make(steps=2)
    trainer.train(progress=False, callbacks=[lambda *given: seen.append((given[0], given[1], given[0].global_step))])
    assert seen == [(trainer, step, step) for step in (0, 1, 2)]


@pytest.mark.parametrize("value", [torch.tensor(1.0), None, "1.0"], ids=["tensor", "none", "text"])
def test_what_is_not_a_number_is_named(make, value):
    with pytest.raises(InputError, match=rf"the metric 'mine' is a {type(value).__name__}; it must be a number"):
        make().train(progress=False, callbacks=[lambda *_: {"mine": value}])


def test_a_callback_may_return_the_row_itself(make):
    plain = make(steps=2).train(progress=False)
    assert make(steps=2).train(progress=False, callbacks=[lambda trainer, step, row: row]) == plain
    assert make(steps=2).train(progress=False, callbacks=[lambda *_: {"step": 9}]) == plain


def test_callbacks_do_not_change_what_is_learned(make):
    plain, watched = make(), make()
    plain.train(progress=False)
    watched.train(progress=False, callbacks=[lambda trainer, step, row: {"mine": 1.0}])
    for one, other in zip(plain.parameters, watched.parameters):
        assert torch.equal(one, other)


# Stopping


@pytest.mark.parametrize("step", [0, 1, 3])
def test_stop_ends_the_run_after_the_row_and_the_model_is_written(make, tmp_path, step):
    trainer, same = make(tmp_path), make(steps=max(step, 1))
    history = trainer.train(progress=False, callbacks=[stop_at(step)])
    assert [row["step"] for row in history.rows] == [*range(step + 1)] and trainer.global_step == step
    weights = GPT.from_pretrained(tmp_path / "final").state_dict()
    if step:
        same.train(progress=False)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in same.model.state_dict().items())
    assert [folder.name for folder in list_checkpoints(tmp_path)] == [f"step-{step:06d}"]


def test_a_run_that_was_stopped_can_go_on(make, tmp_path):
    whole = make().train(progress=False)
    make(tmp_path).train(progress=False, callbacks=[stop_at(3)])
    assert make(tmp_path).train(progress=False, resume=True) == whole


def test_early_stopping_by_a_metric_of_ones_own_keeps_the_weights_of_the_highest(make, tmp_path):
    settings = {"eval_every": 1, "patience": 2, "metric_for_best_model": "eval_own"}
    trainer = make(tmp_path, **settings)
    history = trainer.train(progress=False, callbacks=[measure([0.1, 0.5, 0.9, 0.3, 0.9, 0.2, 0.1])])
    assert [row["step"] for row in history.rows] == [0, 1, 2, 3, 4]  # 0.9 again is no better
    best = make(steps=2)
    best.train(progress=False)
    for model in (trainer.model, GPT.from_pretrained(tmp_path / "final")):
        weights = model.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in best.model.state_dict().items())


def test_of_a_name_that_ends_in_loss_the_lowest_is_kept(make):
    left = iter([0.9, 0.3, 0.5, 0.6, 0.1])
    trainer = make(eval_every=1, patience=2, metric_for_best_model="eval_own_loss")
    history = trainer.train(progress=False, callbacks=[lambda *_: {"eval_own_loss": next(left)}])
    assert history.rows[-1]["step"] == 3
    assert history.kept_row(2, "eval_own_loss")["step"] == 1


def test_a_metric_that_no_row_has_is_refused_with_those_there_are(make):
    trainer = make(patience=1, metric_for_best_model="eval_f1")
    with pytest.raises(
        InputError, match=r"no metric 'eval_f1' in the row of step 0; it has .*loss, .*eval_loss, .*own"
    ):
        trainer.train(progress=False, callbacks=[lambda *_: {"own": 1.0}])


def test_a_metric_in_every_row_is_not_taken_for_an_evaluation(make):
    trainer = make(eval_every=3, patience=5)
    history = trainer.train(progress=False, callbacks=[lambda *_: {"eval_own": 1.0}])
    assert history.column("eval_own")[0] == [*range(7)] and history.column("eval_loss")[0] == [0, 3, 6]


# Errors and resume


def test_resume_keeps_the_rows_of_callbacks(make, tmp_path):
    def callback(trainer, step, row):
        return {"eval_own": step / 10, "mine": -step}

    settings = {"save_every": 2, "eval_every": 2, "patience": 9, "metric_for_best_model": "eval_own"}
    whole = make(**settings).train(progress=False, callbacks=[callback])
    with pytest.raises(ZeroDivisionError):
        make(tmp_path, **settings).train(
            progress=False, callbacks=[callback, lambda _, step, __: {"x": 0 / (3 - step)}]
        )
    resumed = make(tmp_path, **settings).train(progress=False, resume=True, callbacks=[callback])
    assert [row["step"] for row in resumed.rows] == [*range(7)]
    assert [{name: value for name, value in row.items() if name != "x"} for row in resumed.rows] == whole.rows
    assert [row.get("x") for row in resumed.rows] == [0, 0, 0, None, None, None, None]


def test_an_error_in_a_callback_ends_the_run_and_leaves_a_checkpoint(make, tmp_path, capsys):
    def fails(trainer, step, row):
        if step == 5:
            raise RuntimeError("mine")

    trainer = make(tmp_path, save_every=2)
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train(progress=False, callbacks=[fails])
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000004", "step-000005"]
    assert "RuntimeError: stopped after step 5; saved as" in capsys.readouterr().err
    assert not (tmp_path / "final").exists()
    whole = make().train(progress=False)
    assert trainer.train(progress=False, resume=True) == whole  # the same object, and the folder is not locked
    assert History.from_jsonl(tmp_path / "history.jsonl") == whole


# history.jsonl while a run goes on


def on_disk(folder):
    """A callback that keeps what is on disk before each row is added."""
    found = []

    def callback(trainer, step, row):
        file = folder / "history.jsonl"
        found.append(History.from_jsonl(file).rows if file.exists() else [])

    return callback, found


def test_each_row_is_on_disk_as_soon_as_it_is_logged(make, tmp_path):
    callback, found = on_disk(tmp_path)
    history = make(tmp_path, steps=4).train(progress=False, callbacks=[callback, lambda *_: {"mine": 1.0}])
    assert found == [history.rows[:count] for count in range(5)]


def test_a_resumed_run_goes_on_from_the_rows_of_its_checkpoint(make, tmp_path):
    file = tmp_path / "history.jsonl"
    with pytest.raises(ZeroDivisionError):
        make(tmp_path, save_every=3).train(progress=False, callbacks=[lambda _, step, __: {"x": 0 / (5 - step)}])
    assert len(History.from_jsonl(file).rows) == 6  # steps 0 to 5, and the newest checkpoint is now of step 3
    shutil.rmtree(list_checkpoints(tmp_path)[-1])
    with file.open("a") as opened:
        opened.write('{"step": 6, "lo')  # as of a process that was killed
    callback, found = on_disk(tmp_path)
    history = make(tmp_path, save_every=3).train(
        progress=False, resume=True, callbacks=[lambda *given: callback(*given) if given[1] > 4 else None]
    )
    assert found == [history.rows[:5], history.rows[:6]]
    assert History.from_jsonl(file) == history and "x" not in history.rows[4]


def test_rows_for_which_there_is_no_room_are_written_when_there_is(make, tmp_path):
    """The disk is full from step 2 to step 4: the run goes on, the rows before stay, and later all are there."""
    plain = make(save_minutes=0).train(progress=False)
    file, found, full = tmp_path / "history.jsonl", [], []

    def fill(trainer, step, row):
        found.append(file.read_text() if file.exists() else "")
        if step == 2:
            full.append(disk_of(file.stat().st_size + 100))  # a part of the row would fit
            full[0].__enter__()
        if step == 5:
            full.pop().__exit__(None, None, None)

    with pytest.warns(
        UserWarning, match=r"history.jsonl: a row cannot be written \(File too large\); the training goes"
    ):
        history = make(tmp_path, save_minutes=0).train(progress=False, callbacks=[fill])
    lines = [json.dumps(row) + "\n" for row in history.rows]
    assert found == ["".join(lines[:count]) for count in (0, 1, 2, 2, 2, 2, 6)]
    assert file.read_text() == "".join(lines) and history == plain


def test_a_history_that_was_taken_away_is_written_anew(make, tmp_path):
    def move(trainer, step, row):
        if step == 3:
            (tmp_path / "history.jsonl").rename(tmp_path / "mine.jsonl")

    history = make(tmp_path).train(progress=False, callbacks=[move])
    assert History.from_jsonl(tmp_path / "history.jsonl") == history
    assert History.from_jsonl(tmp_path / "mine.jsonl").rows == history.rows[:3]
