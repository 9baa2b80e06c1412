"""Training at GPT-2's full size, on the command line: the pocket model is a thirtieth of it, and has another tokenizer.

The weights are random, so that nothing has to be fetched but GPT-2's vocabulary.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from test_tokenizer import gpt2_or_skip

from dpo_core.cli import main
from dpo_core.model import GPT, GPTConfig

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "instruction_prefs.jsonl"


def write_pairs(file: Path) -> None:
    """Eight short pairs: real ones where they lie beside the checkout, else of those that ``data`` writes."""
    if not REAL.is_file():
        assert main(["data", "--pairs", "10", "--output", str(file)]) == 0
    lines = (REAL if REAL.is_file() else file).read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(sorted(lines, key=len)[:8]) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_a_model_of_gpt2s_size_learns_eight_pairs_in_five_steps(tmp_path):
    """From a loss of ln 2 downwards, and no loss on the way is infinite or no number."""
    gpt2_or_skip()
    write_pairs(tmp_path / "pairs.jsonl")
    torch.manual_seed(0)
    GPT(GPTConfig()).save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["tokenizer"] == "gpt2"
    where = ["--model", tmp_path / "model", "--data", tmp_path / "pairs.jsonl", "--output", tmp_path / "run"]
    # Every step is logged, since each is the end of an evaluation of no pairs.
    how = "--steps 5 --batch-size 4 --lr 1e-4 --val-share 0 --eval-every 1 --precision float32".split()
    assert main(["train", *map(str, where), *how]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    shutil.rmtree(tmp_path)  # a gigabyte, which pytest would keep
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert all(map(math.isfinite, losses))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < losses[0]
