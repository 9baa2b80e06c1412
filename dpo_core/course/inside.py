"""What chapter 01 needs beside its lesson: the inputs and outputs of a model's modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpo_core.model import GPT

__all__ = ["record"]


@torch.no_grad()
def record(model: GPT, ids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Run a model once and keep what each of its modules receives and returns.

    Args:
        model: any GPT.
        ids: (T,), the tokens of one text.
    Returns:
        The first input of each module by its name, its output by its name, and the logits (T, V).

    >>> from dpo_core.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2))
    >>> received, returned, logits = record(model, torch.tensor([1, 2, 3]))
    >>> received["h.0.mlp"].shape, returned["h.0.mlp.c_fc"].shape, logits.shape
    (torch.Size([3, 4]), torch.Size([3, 16]), torch.Size([3, 11]))
    """
    received: dict[str, Tensor] = {}
    returned: dict[str, Tensor] = {}

    def listener(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            received[name] = inputs[0][0]
            returned[name] = output[0][0] if isinstance(output, tuple) else output[0]

        return hook

    hooks = [module.register_forward_hook(listener(name)) for name, module in model.named_modules() if name]
    try:
        logits = model(ids[None])[0]
    finally:
        for hook in hooks:
            hook.remove()
    return received, returned, logits
