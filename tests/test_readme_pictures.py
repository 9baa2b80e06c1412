"""The README's pictures say what is so: the shapes on a pair's way, and the files and rooms of the tree."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
import torch

from dpo_core import PairLogps, collate, pair_logps, preference_metrics
from dpo_core.losses import dpo

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHAPTER = nbformat.read(ROOT / "notebooks" / "05_the_loss_in_code.ipynb", as_version=4).cells
WAY, TREE = re.findall(r"```text\n(.*?)```", README, re.DOTALL)


def test_the_way_of_a_pair_has_the_shapes_of_the_chapter():
    here: dict = {}
    exec(next(cell.source for cell in CHAPTER if cell.id == "loss-003"), here)
    batch, first = collate(here["encoded"]), here["encoded"][0]
    B, T = batch.ids.shape
    widths = (len(first.prompt), len(first.chosen), len(first.rejected))
    with torch.no_grad():
        logps = PairLogps(*pair_logps(here["model"], batch) * 2, *batch.lengths)
    out = dpo(logps)
    metrics = {name: values.mean().item() for name, values in preference_metrics(logps, out).items()}
    said = [
        first.pair.prompt,
        "prompt {}, chosen {}, rejected {},".format(*widths),
        f"padding {T - sum(widths)}: T = {T} tokens",
        f"ids ({B}, {T}): B = {B} pairs",
        f"pair_logps over {len(batch.targets)} tokens",
        f"policy    ({B},) ({B},)",
        f"reference ({B},) ({B},)",
        f"loss {tuple(out.loss.shape)}, chosen_rewards {tuple(out.chosen_rewards.shape)},",
        f"rejected_rewards {tuple(out.rejected_rewards.shape)}",
        f"loss {metrics['loss']:.4f}, rewards/margins {metrics['rewards/margins']:.1f}",
    ]
    assert [words for words in said if words not in WAY] == []


def test_the_chapter_has_the_same_picture():
    assert [cell.id for cell in CHAPTER if WAY in cell.source] == ["loss-040b"]


@pytest.mark.parametrize("name", ["dpo", "pair_logps", "encode_pair", "collate", "preference_metrics"])
def test_each_step_stands_in_the_file_that_the_picture_names(name):
    (file,) = re.findall(rf"\b{name}\b.*?\b(\w+\.py)$", WAY, re.MULTILINE)
    assert f"def {name}(" in (ROOT / "dpo_core" / file).read_text(encoding="utf-8")


def test_the_tree_is_the_folder():
    core = ROOT / "dpo_core"
    there = {path.name for path in core.glob("*.py") if not path.name.startswith("__")}
    there |= {f"{path.parent.name}/" for path in core.glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w[\w.]*/?) ", TREE, re.MULTILINE)) == there
    assert all((ROOT / folder).is_dir() for folder in re.findall(r"^(\w+)/", TREE, re.MULTILINE))
