"""Runs the library on the pretended GPU and on the CPU, and prints how far their losses are apart, a mode a line.

``tests/test_pretended_gpu.py`` starts it in a process of its own, because pretending changes torch for good.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pretend_cuda
import torch
from tiny import byte_encoding

from dpo_core.config import DPOConfig
from dpo_core.formats.pairs import PreferencePair
from dpo_core.generate import generate
from dpo_core.lm.pretrain import LMConfig, train_lm
from dpo_core.lm.sft import Example, sft_documents
from dpo_core.methods.family import LOSSES
from dpo_core.methods.lora import LoRAConfig, add_lora
from dpo_core.model import GPT, GPTConfig
from dpo_core.study.evaluate import answer_kl
from dpo_core.trainers import trainer_for

PAIRS = [PreferencePair(f"Ask {i}?", "YES " * (1 + i % 3) + "OK", "no " * (1 + i % 4) + "way") for i in range(10)]
SMOOTHED = {"label_smoothing": 0.1}
MODES: dict[str, dict] = {
    **{f"loss {name}": {"loss": name} | (SMOOTHED if name in ("cdpo", "robust") else {}) for name in LOSSES},
    "live reference": {"reference": "live"},
    "LoRA": {"rank": 4},
    "adapter off": {"rank": 4, "reference": "adapter_off"},
    "accumulation": {"batch_size": 2, "grad_accum": 3},
    "patience": {"patience": 1, "eval_every": 2},
    "auto precision": {"precision": "auto"},
}


def model(device: str, rank: int | None = None) -> GPT:
    """The tests' tiny model, the same each time."""
    torch.manual_seed(0)
    made = GPT(GPTConfig(vocab_size=byte_encoding().n_vocab, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()
    if rank:
        add_lora(made, LoRAConfig(rank=rank))
    return made.to(device)


def train(device: str, output: Path | None = None, resume: bool = False, steps: int = 6, **settings) -> list[float]:
    """Losses of a run."""
    rank = settings.pop("rank", None)
    defaults = {
        "steps": steps,
        "batch_size": 3,
        "learning_rate": 3e-4,
        "log_every": 1,
        "eval_every": 3,
        "val_share": 0.2,
    }
    config = DPOConfig(**defaults | settings)
    trainer = trainer_for(config.loss)(model(device, rank), byte_encoding(), PAIRS, config, output)
    return trainer.train(progress=False, resume=resume).column("loss")[1]


def resumed(device: str) -> list[float]:
    """Losses of a run that was ended after three steps and gone on with."""
    with tempfile.TemporaryDirectory() as folder:
        train(device, Path(folder), steps=3, save_every=3, warmup_steps=0)
        return train(device, Path(folder), resume=True, save_every=3, warmup_steps=0)


def fine_tuned(device: str) -> list[float]:
    """Losses of fine-tuning on the chosen answers."""
    examples = [Example(pair.prompt, pair.chosen) for pair in PAIRS]
    return train_lm(model(device), sft_documents(byte_encoding(), examples, 64), LMConfig(tokens_per_batch=64))


def sampled(device: str) -> list[float]:
    """Token ids of greedy and of drawn answers, and a KL on them."""
    made, prompts = model(device), ["Ask 1?", "Why?"]
    answers = [
        answer
        for temperature in (0.0, 1.0)
        for answer in generate(made, byte_encoding(), prompts, max_new_tokens=12, temperature=temperature, seed=0)
    ]
    kl = answer_kl(made, model(device, rank=2), byte_encoding(), answers)
    return [float(i) for answer in answers for i in answer.ids] + kl.tolist()


def main() -> None:
    results = {name: [train(device, **settings) for device in ("cpu", "cuda")] for name, settings in MODES.items()}
    for work in (resumed, fine_tuned, sampled):
        results[work.__name__] = [list(work(device)) for device in ("cpu", "cuda")]
    gaps = {
        name: max(abs(a - b) for a, b in zip(*both)) if len(both[0]) == len(both[1]) else float("inf")
        for name, both in results.items()
    }
    json.dump({"gaps": gaps, "operations": sum(pretend_cuda.CALLS.values())}, sys.stdout)


if __name__ == "__main__":
    main()
