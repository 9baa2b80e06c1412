"""A run of twenty steps whose numbers are committed, so that no change to the trainer passes unseen.

Where the numbers are meant to change, ``python tests/test_golden.py`` writes ``tests/data/golden_run.json`` anew.
"""

import json
import random
from pathlib import Path

import pytest
import torch
from tiny import byte_encoding

from dpo_core.config import DPOConfig
from dpo_core.formats.pairs import PreferencePair
from dpo_core.model import GPT, GPTConfig
from dpo_core.trainers import trainer_for

FILE = Path(__file__).parent / "data" / "golden_run.json"


def model_of_plain_numbers() -> GPT:
    """Weights drawn by Python, since torch's random numbers differ in their last digits between kinds of CPU."""
    model, rng = GPT(GPTConfig(vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=2)), random.Random(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            numbers = [rng.gauss(around, 0.15) for _ in range(parameter.numel())]
            parameter.copy_(torch.tensor(numbers).view_as(parameter))
    return model.eval()


def twenty_steps(**changed) -> dict[str, list[float]]:
    """Loss and length of the gradient of each step, in float32, with settings changed by keyword."""
    pairs = [PreferencePair(f"Ask {i}?", "YES " * (1 + i % 3) + "OK", "no " * (1 + i % 4) + "way") for i in range(10)]
    settings = {
        "steps": 20, "batch_size": 2, "grad_accum": 2, "learning_rate": 1e-3, "warmup_steps": 5, "max_grad_norm": 0.5,
        "weight_decay": 0.01, "val_share": 0.2, "log_every": 1,
    }  # fmt: skip
    config = DPOConfig(**settings | changed)
    trainer = trainer_for(config.loss)(model_of_plain_numbers(), byte_encoding(), pairs, config)
    history = trainer.train(progress=False)
    return {"loss": history.column("loss")[1][1:], "grad_norm": history.column("grad_norm")[1]}


def committed() -> dict[str, list[float]]:
    return json.loads(FILE.read_text(encoding="utf-8"))["run"]


def test_twenty_steps_give_the_committed_numbers():
    """Within a ten-thousandth, which leaves room for the order in which a machine adds."""
    found, expected = twenty_steps(), committed()
    assert {name: len(numbers) for name, numbers in expected.items()} == {"loss": 20, "grad_norm": 20}
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 0.11},
        {"beta_end": 0.11},
        {"label_smoothing": 0.01},
        {"max_grad_norm": 1e9},  # no clipping
        {"weight_decay": 0.0},
        {"warmup_steps": 4},
        {"learning_rate": 1.01e-3},
        {"grad_accum": 1},
        {"seed": 1},
    ],
    ids=str,
)
def test_a_small_change_would_be_seen(change):
    found, expected = twenty_steps(**change), committed()
    assert any(found[name] != pytest.approx(expected[name], rel=1e-4) for name in expected)


if __name__ == "__main__":
    record = {"made_by": "tests/test_golden.py", "versions": {"torch": torch.__version__}, "run": twenty_steps()}
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
