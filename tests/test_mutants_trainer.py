"""What planted mistakes found unguarded in the trainer."""

from __future__ import annotations

import math

import pytest
import torch

from dpo_core.config import DPOConfig
from dpo_core.errors import InputError
from dpo_core.trainer import DPOTrainer


@pytest.mark.parametrize("batch_size", [8, 3])
def test_the_optimiser_gets_the_clipped_gradient_and_the_log_its_length_before(tiny_model, encoding, pairs, batch_size):
    config = DPOConfig(steps=3, batch_size=batch_size, grad_accum=1, val_share=0, log_every=1, max_grad_norm=1e-3)
    trainer = DPOTrainer(tiny_model, encoding, pairs, config)
    lengths, step = [], trainer.optimizer.step

    def watched(*arguments, **settings):
        lengths.append(sum(float(p.grad.square().sum()) for p in trainer.parameters) ** 0.5)
        return step(*arguments, **settings)

    trainer.optimizer.step = watched
    _, logged = trainer.train(progress=False).column("grad_norm")
    assert lengths == pytest.approx([1e-3] * 3, rel=1e-2)
    assert min(logged) > 1e-2


def test_a_gradient_too_large_for_fp16_is_scaled_down_to_1_and_then_refused(tiny_model, encoding, pairs):
    trainer = DPOTrainer(tiny_model, encoding, pairs, DPOConfig(steps=1, val_share=0))
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    passes = []

    def too_large(gradient):
        passes.append(trainer.precision.scaler.get_scale())
        return torch.full_like(gradient, math.inf)

    tiny_model.wpe.weight.register_hook(too_large)
    with pytest.raises(InputError, match="not finite"):
        trainer.train(progress=False)
    assert passes == [4.0, 2.0, 1.0]
