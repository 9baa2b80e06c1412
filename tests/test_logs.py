"""Logs as ``python -m dpo_core diagnose`` reads them; those of TRL are real ones, of benchmarks/trl_logs.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpo_core.cli import main
from dpo_core.errors import InputError
from dpo_core.metrics import History
from dpo_core.study.diagnose import diagnose
from dpo_core.study.logs import read_log

TRL = Path(__file__).parent / "data" / "trl"


def state(folder, rows):
    file = folder / "trainer_state.json"
    file.write_text(json.dumps({"log_history": rows}))
    return file


@pytest.mark.parametrize(
    ("name", "found"), {"healthy": [], "still": ["frozen policy"], "swapped": ["swapped labels"]}.items()
)
def test_what_is_wrong_with_a_run_of_trl_is_named(name, found):
    faults = [finding.name for finding in diagnose(read_log(TRL / f"{name}.json").history) if not finding.note]
    assert faults[:1] == found  # the likeliest


def test_beta_and_the_distance_are_worked_out_from_evaluations():
    log = read_log(TRL / "healthy.json")
    assert log.history.rows[0]["beta"] == pytest.approx(0.25, rel=1e-3)  # what the run was given
    assert "beta 0.25, worked out from 4 evaluations" in log.notes[0]
    last = log.history.rows[-1]
    assert last["eval_logps/chosen_delta"] == pytest.approx(last["eval_rewards/chosen"] / 0.25, rel=1e-3)


@pytest.mark.parametrize("rejected", [0.3, -0.2])
def test_a_beta_that_the_two_answers_do_not_agree_on_is_none(tmp_path, rejected):
    rows = [
        {"step": step, "loss": 0.6, "eval_logps/chosen": -9.0 + step, "eval_rewards/chosen": 0.1 * step}
        | {"eval_logps/rejected": -9.0 - step, "eval_rewards/rejected": -rejected * step}
        for step in (10, 20)
    ]
    log = read_log(state(tmp_path, rows))
    assert log.notes == [] and "beta" not in log.history.rows[0]


def test_a_single_evaluation_tells_no_beta():
    assert read_log(TRL / "still.json").notes == []


def test_rows_of_one_step_are_joined_and_the_averages_of_the_run_are_no_row(tmp_path):
    rows = [{"step": 5, "loss": 0.6, "epoch": 1}, {"step": 5, "eval_loss": 0.7}]
    file = state(tmp_path, [*rows, {"step": 5, "train_loss": 0.65, "train_runtime": 9.0}])
    assert read_log(file).history.rows == [{"step": 5, "loss": 0.6, "epoch": 1, "eval_loss": 0.7}]


def test_of_a_folder_of_checkpoints_the_newest_is_read(tmp_path):
    for step in (5, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state(tmp_path / f"checkpoint-{step}", [{"step": step, "loss": 0.5}])
    (tmp_path / "checkpoint-best").mkdir()
    assert read_log(tmp_path).history.rows[-1]["step"] == 100
    History([{"step": 7, "loss": 0.5}]).to_jsonl(tmp_path / "history.jsonl")
    assert read_log(tmp_path).history.rows[-1]["step"] == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", 'no "log_history"; give the trainer_state.json'),
        ('{"log_history": [3]}', "3 is no row of a log"),
        ('{"log_history": [{"loss": 0.5}]}', r'\{"loss": 0.5\} is no row of a log'),
        ("[]", "holds"),
        ("no", "not readable as JSON"),
    ],
)
def test_a_file_that_is_no_log_is_named(tmp_path, content, message):
    file = tmp_path / "trainer_state.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_log(file)


def test_a_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no history\.jsonl and no trainer_state\.json there"):
        read_log(tmp_path)
    with pytest.raises(InputError, match="is not there"):
        read_log(tmp_path / "nothing")


def test_a_loss_that_is_no_number_is_found(tmp_path):
    file = tmp_path / "trainer_state.json"
    file.write_text('{"log_history": [{"step": 5, "loss": 0.6}, {"step": 10, "loss": NaN}]}')
    assert diagnose(read_log(file).history)[0].evidence == "the loss is nan at step 10"


@pytest.mark.parametrize("loss", [25.0, 1.2])
def test_the_level_of_another_loss_of_trl_is_not_judged(tmp_path, loss):
    """IPO's and SimPO's first rows, where policy and reference are nearly equal."""
    rows = [{"step": s, "loss": loss, "rewards/chosen": 0.001 * s, "rewards/rejected": 0.0} for s in (5, 10, 15)]
    assert diagnose(read_log(state(tmp_path, rows)).history) == []


# The command


def test_the_command_prints_findings_with_numbers_and_remedies(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    shutil.copytree(TRL, tmp_path / "trl")
    assert main(["diagnose", str(tmp_path / "trl" / "swapped.json")]) == 0
    out = capsys.readouterr().out
    assert "swapped.json\nbeta 0.25, worked out from" in out
    head, first = (line for line in out.splitlines() if line.startswith(("found ", "swapped labels ")))
    assert head.index("what helps") == first.index("read three")  # a table
    assert "held out" in out and "cannot be known" in out and "half-precision weights: weights/changed" in out


def test_the_command_says_that_nothing_is_found(capsys):
    assert main(["diagnose", str(TRL / "healthy.json")]) == 0
    assert "nothing is found" in capsys.readouterr().out


def test_the_command_refuses_in_words(tmp_path, capsys):
    assert main(["diagnose", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no history.jsonl")
