"""Train with TRL, briefly and on purpose badly, and keep its logs: ``python benchmarks/trl_logs.py``.

``tests/test_logs.py`` reads what it writes, ``tests/data/trl/*.json``, as ``python -m dpo_core diagnose`` does. It
needs ``pip install trl``, which nothing else here does. The logs that are kept are of TRL 1.16.0, transformers 5.23.0
and torch 2.13.0 on a CPU.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

KEPT = Path(__file__).resolve().parent.parent / "tests" / "data" / "trl"
END = "<|endoftext|>"


@dataclass(frozen=True)
class Run:
    """What differs between the runs."""

    learning_rate: float
    steps: int
    swapped: bool = False  # the labels of the training pairs, not of those held out


RUNS = {"healthy": Run(3e-3, 40), "still": Run(1e-9, 20), "swapped": Run(3e-3, 40, swapped=True)}


def start(folder: Path) -> None:
    """Write a small random GPT-2 with a tokenizer of one token a byte."""
    torch.manual_seed(0)
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters | {END: len(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)
    shape = {"vocab_size": len(letters) + 1, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2}
    end = {"bos_token_id": len(letters), "eos_token_id": len(letters)}
    GPT2LMHeadModel(GPT2Config(**shape, **end, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).save_pretrained(folder)


def train(folder: Path, run: Run) -> Path:
    """Train, and return the path of the log."""
    start(folder / "start")
    rows = [{"prompt": f"Ask {i}?", "chosen": " YES" * (1 + i % 3), "rejected": " no" * (1 + i % 4)} for i in range(48)]
    if run.swapped:
        rows[:36] = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:36]]
    data = Dataset.from_list(rows)
    settings = DPOConfig(
        output_dir=str(folder), max_steps=run.steps, learning_rate=run.learning_rate, beta=0.25, logging_steps=5,
        eval_strategy="steps", eval_steps=10, save_steps=run.steps, per_device_train_batch_size=4, report_to=[],
        lr_scheduler_type="constant", use_cpu=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=GPT2LMHeadModel.from_pretrained(folder / "start"),
        args=settings,
        train_dataset=data.select(range(36)),
        eval_dataset=data.select(range(36, 48)),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "start"),
    )
    trainer.train()
    return folder / f"checkpoint-{run.steps}" / "trainer_state.json"


def main() -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, run in RUNS.items():
        with TemporaryDirectory() as folder:
            shutil.copy(train(Path(folder), run), KEPT / f"{name}.json")


if __name__ == "__main__":
    main()
