"""LoRA: small trainable matrices beside frozen ones (Hu et al. 2021, arXiv:2106.09685).

A linear layer y = W x + b becomes y = W x + b + (alpha / r) B A x with W and b frozen; A of (r, in) is drawn at random
and B of (out, r) is 0, so that at first nothing has changed (section 4.1). So DPO's reference costs nothing: it is the
same model with its adapter switched off. ``adapter_files`` writes and reads adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.formats.hf_layout import TRANSPOSED
from dpo_core.model import GPT

__all__ = [
    "LoRAConfig",
    "LoRALinear",
    "adapter_off",
    "adapters",
    "add_lora",
    "count_parameters",
    "merge_lora",
    "merged_copy",
    "required_adapters",
    "unmerge_lora",
]


@dataclass(frozen=True)
class LoRAConfig:
    """The shape of an adapter.

    >>> LoRAConfig(rank=4).scale
    4.0
    """

    rank: int = 8  # r: more can learn more, and takes more memory
    alpha: float = 16.0  # strength; divided by the rank, so that another rank needs no other learning rate
    targets: tuple[str, ...] = tuple(name.removesuffix(".weight") for name in TRANSPOSED)  # the ends of layers' names

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"rank is {self.rank!r}; it must be a whole number above 0")
        if not self.alpha > 0:
            raise InputError(f"alpha is {self.alpha!r}; it must be above 0")
        if not self.targets:
            raise InputError("targets names no layer; an adapter needs at least one")

    @property
    def scale(self) -> float:
        """By what the adapter's product is multiplied."""
        return self.alpha / self.rank


class LoRALinear(nn.Linear):
    """A linear layer, frozen, and its adapter; made by ``add_lora``."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig, generator: torch.Generator) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.config, self.on = config, True
        A = torch.randn(config.rank, self.in_features, generator=generator, device="cpu") * self.in_features**-0.5
        self.lora_A = nn.Parameter(A.to(self.weight.device))
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to outputs, with what the adapter adds unless it is off.

        Args:
            x: (..., in_features).
        Returns:
            (..., out_features).
        """
        y = super().forward(x)
        return y + self.config.scale * F.linear(F.linear(x, self.lora_A), self.lora_B) if self.on else y


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """Find the layers that have an adapter, by name; a plain model has none.

    Args:
        model: any.
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the numbers of a model that are trained, and all of its numbers.

    Args:
        model: any.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def add_lora(model: GPT, config: LoRAConfig = LoRAConfig(), seed: int = 0) -> None:
    """Give linear layers an adapter, and freeze all else.

    Args:
        model: changed in place.
        config: rank, strength, and the layers: all whose name is or ends in one of ``targets``.
        seed: of the random half.
    Raises:
        InputError: there is an adapter already, or no such layer.

    >>> model = GPT.from_pretrained("pocket")
    >>> add_lora(model, LoRAConfig(rank=4, targets=("attn.c_attn", "h.0.mlp.c_fc")))
    >>> len(adapters(model)), count_parameters(model)
    (5, (18816, 3471552))
    """
    if adapters(model):
        raise InputError("the model has an adapter already; merge it first: merge_lora(model)")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in config.targets}
    for target, names in chosen.items():
        if not names:
            kinds = ", ".join(sorted({name.split(".", 2)[-1] for name in linear}))
            raise InputError(f"no linear layer is called {target!r}; there are {kinds}, each as in h.0.mlp.c_fc, too")
    model.requires_grad_(False)
    generator = torch.Generator("cpu").manual_seed(seed)
    for name in linear:
        if any(name in names for names in chosen.values()):
            model.set_submodule(name, LoRALinear(linear[name], config, generator))


@contextmanager
def adapter_off(model: GPT) -> Iterator[None]:
    """Switch the adapter off inside this context, so that the model computes as before it was added.

    That is DPO's reference if the adapter was new when DPO began. If it was fine-tuned before, the model without it has
    lost the fine-tuning too and is the wrong reference: merge it first, and add a new one.

    Args:
        model: has an adapter.
    Raises:
        InputError: there is no adapter.

    >>> model = GPT.from_pretrained("pocket")
    >>> add_lora(model)
    >>> with adapter_off(model):
    ...     any(layer.on for layer in adapters(model).values())
    False
    """
    before = {layer: layer.on for layer in required_adapters(model).values()}
    for layer in before:
        layer.on = False
    try:
        yield
    finally:
        for layer, on in before.items():
            layer.on = on


@torch.no_grad()
def merge_lora(model: GPT) -> dict[str, LoRALinear]:
    """Add the adapter's product to the weights, so that a plain, trainable model computes the same.

    Args:
        model: changed in place.
    Returns:
        The layers taken out, with the weights as they were, for ``unmerge_lora``.
    Raises:
        InputError: there is no adapter.

    >>> model = GPT.from_pretrained("pocket")
    >>> add_lora(model)
    >>> adapter = merge_lora(model)
    >>> adapters(model)
    {}
    """
    adapter = required_adapters(model)
    for name, layer in adapter.items():
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
        plain.weight = nn.Parameter(layer.weight + layer.config.scale * layer.lora_B @ layer.lora_A)
        plain.bias = layer.bias
        model.set_submodule(name, plain)
    model.requires_grad_()
    model.source = ""  # no folder holds this model
    return adapter


def unmerge_lora(model: GPT, adapter: dict[str, LoRALinear]) -> None:
    """Undo ``merge_lora``: the model is as it was, to the last bit.

    Args:
        model: changed in place.
        adapter: what ``merge_lora`` returned.
    """
    model.requires_grad_(False)
    for name, layer in adapter.items():
        layer.lora_A.requires_grad_()
        layer.lora_B.requires_grad_()
        model.set_submodule(name, layer)


def merged_copy(model: GPT, state: dict[str, Tensor] | None = None) -> GPT:
    """Make a plain model, with the adapter merged if there is one, that shares all other weights with the given one.

    Args:
        model: stays as it is.
        state: weights to take instead of the model's own.

    >>> model = GPT.from_pretrained("pocket")
    >>> add_lora(model)
    >>> copy = merged_copy(model)
    >>> adapters(copy), copy.wte.weight.data_ptr() == model.wte.weight.data_ptr()
    ({}, True)
    """
    with torch.device("meta"):
        copy = GPT(model.config)
    for layer in list(adapters(model).values())[:1]:
        add_lora(copy, layer.config)
    copy.load_state_dict(model.state_dict() if state is None else state, assign=True)
    if adapters(copy):
        merge_lora(copy)
    return copy.requires_grad_().eval()


def required_adapters(model: GPT) -> dict[str, LoRALinear]:
    """Find the layers that have an adapter, by name.

    Args:
        model: any GPT.
    Raises:
        InputError: there is none.
    """
    if not (found := adapters(model)):
        raise InputError("the model has no adapter; add_lora(model) gives it one")
    return found
