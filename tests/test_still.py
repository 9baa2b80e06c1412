"""A loss that stays at ln 2 is named while the run goes on, by the rule of ``diagnose``."""

from __future__ import annotations

import pytest

from dpo_core.config import DPOConfig
from dpo_core.metrics import History
from dpo_core.runs.still import LN2, console_lines, unmoved
from dpo_core.study.diagnose import diagnose
from dpo_core.trainer import DPOTrainer


@pytest.mark.parametrize("val_share", [0, 0.2])
@pytest.mark.parametrize(("rate", "told"), [(1e-6, 1), (3e-3, 0)])
def test_a_run_that_does_not_move_says_so_once_halfway(tiny_model, encoding, pairs, capsys, rate, told, val_share):
    settings = {"learning_rate": rate, "warmup_steps": 0, "val_share": val_share, "eval_every": 2, "log_every": 1}
    trainer = DPOTrainer(tiny_model, encoding, pairs, DPOConfig(steps=10, batch_size=4, **settings))
    history = trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("the policy has hardly moved: after 5 steps") for line in lines) == told
    found = [finding.name for finding in diagnose(history)]
    assert ("learning rate too low" in found) == bool(told)


def rows(*losses, **more):
    return History([{"step": 10 * i, "loss": loss} | more for i, loss in enumerate(losses, start=1)])


@pytest.mark.parametrize(
    "history",
    [
        rows(0.6931, 0.6932),  # two rows say little
        rows(0.6931, 0.6932, 0.68),
        rows(0.6931, 0.6932, float("nan")),
        rows(0.5, 0.5, 0.5),
        rows(0.6931, 0.6932, 0.6931, **{"rewards/chosen": -0.5, "rewards/rejected": -0.5}),  # it moved, both alike
        History([{"step": 0, "loss": 1.0}, *rows(LN2, LN2, LN2).rows]),  # another loss, which fell there
    ],
    ids=str,
)
def test_what_is_no_standstill(history):
    assert unmoved(history) is None


def test_the_line_comes_at_the_row_that_passes_the_half_and_no_other():
    history = rows(*[0.6931] * 8)
    told = [
        step for step in range(1, 9) if "hardly moved" in console_lines(History(history.rows[:step]), steps=80)
    ]  # fmt: skip
    assert told == [4]
