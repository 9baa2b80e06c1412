"""LoRA: small trainable matrices beside frozen ones (Hu et al. 2021, arXiv:2106.09685).

A linear layer y = W x + b becomes y = W x + b + (alpha / r) B A x with W and b frozen; A of (r, in) is drawn at random
and B of (out, r) is 0, so that at first nothing has changed (section 4.1). So DPO's reference costs nothing: it is the
same model with its adapter switched off. An adapter's folder holds ``adapter_config.json`` and
``adapter_model.safetensors`` in the layout of the library PEFT, which opens ours as we open its.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.formats.files import atomic_write, read_json, read_tensors, refuse_pickles, tensor_layout
from dpo_core.formats.hf_layout import PUBLISHED, TRANSPOSED
from dpo_core.kernels.device import best_device
from dpo_core.model import GPT
from dpo_core.tokenizer import load_tokenizer

__all__ = [
    "LoRAConfig",
    "LoRALinear",
    "adapter_off",
    "adapters",
    "add_lora",
    "count_parameters",
    "load_adapted",
    "load_merged",
    "load_model",
    "merge_lora",
    "merged_copy",
    "read_adapter",
    "save_adapter",
    "unmerge_lora",
]

PREFIX = "base_model.model.transformer."  # of PEFT's keys
# What an adapter may ask for beside its rank, alpha and targets; anything else would load and compute other numbers.
COMPUTED: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


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
    before = {layer: layer.on for layer in _required(model).values()}
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
    adapter = _required(model)
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


# Files


def save_adapter(model: GPT, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Write the adapter alone, with the name of the model that it belongs to.

    Args:
        model: has an adapter, and should come from ``from_pretrained``.
        folder: made if it is missing.
        state: weights to write instead of the model's own.
    Raises:
        InputError: there is no adapter.
    """
    config, folder = next(iter(_required(model).values())).config, Path(folder)
    described = {
        "base_model_name_or_path": model.origin,
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(config.targets),
        "fan_in_fan_out": True,  # PEFT's word for GPT-2's way to store weights; the adapter's own are not concerned
        "inference_mode": True,
        **COMPUTED,
    }
    with atomic_write(folder / "adapter_config.json") as partial:
        partial.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    tensors = {
        f"{PREFIX}{name}.weight": tensor.detach().cpu().contiguous()
        for name, tensor in (model.state_dict() if state is None else state).items()
        if ".lora_" in name
    }
    with atomic_write(folder / "adapter_model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def load_adapted(folder: str | Path, base: GPT | None = None) -> GPT:
    """Load the model that an adapter belongs to, with the adapter.

    Args:
        folder: written by ``save_adapter`` or PEFT.
        base: the model, changed in place, if not the one that the folder names.
    Raises:
        InputError: the model or the adapter cannot be loaded, or they do not fit.

    >>> import tempfile
    >>> model = GPT.from_pretrained("pocket")
    >>> add_lora(model, LoRAConfig(rank=2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(model, folder)
    ...     len(adapters(load_adapted(folder)))
    16
    """
    raw, file = _read_config(Path(folder)), Path(folder) / "adapter_model.safetensors"
    largest = max((side for _, shape in tensor_layout(file).values() for side in shape), default=0)
    if raw["r"] > largest:  # before anything of that size is made
        raise InputError(f"{folder}: r is {raw['r']}, more than any side of a tensor in {file.name}; copy both again")
    if base is None:
        name = raw.get("base_model_name_or_path")
        if not name or not isinstance(name, str):
            raise InputError(f"{folder} does not say which model it belongs to; give it as base")
        if Path(name).resolve() == Path(folder).resolve():
            raise InputError(f"{folder} names itself as the model that it belongs to; give the model as base")
        base = load_merged({repo: short for short, repo in PUBLISHED.items()}.get(name, name))
        base.source = str(folder)
    add_lora(base, LoRAConfig(raw["r"], raw["lora_alpha"], tuple(raw["target_modules"])))
    base.load_state_dict(read_adapter(base, folder), strict=False)
    return base


def load_merged(name_or_path: str | Path) -> GPT:
    """Load a model as ``GPT.from_pretrained`` does, or an adapter's model with the adapter merged.

    Args:
        name_or_path: as of ``GPT.from_pretrained``, or the folder of an adapter.
    Raises:
        InputError: it cannot be loaded.

    >>> load_merged("pocket").source
    'pocket'
    """
    if not (Path(name_or_path) / "adapter_config.json").is_file():
        return GPT.from_pretrained(name_or_path)
    model = load_adapted(name_or_path)
    merge_lora(model)
    model.source = str(name_or_path)
    return model


def load_model(name_or_path: str | Path) -> tuple[GPT, tiktoken.Encoding]:
    """Load a model, on the best device here, and its tokenizer: the first two arguments of ``DPOTrainer``.

    Args:
        name_or_path: as of ``load_merged``.

    >>> load_model("pocket")[1].n_vocab
    4096
    """
    model = load_merged(name_or_path)
    encoding = load_tokenizer(model.config.tokenizer)  # before the model is moved: a name may be unknown
    return model.to(best_device()), encoding


def read_adapter(model: GPT, folder: str | Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter's folder, under our names.

    Args:
        model: has an adapter of the same shape.
        folder: written by ``save_adapter`` or PEFT.
    Raises:
        InputError: a file is missing or damaged, or does not fit the model.
    """
    raw, file = _read_config(Path(folder)), Path(folder) / "adapter_model.safetensors"
    config = next(iter(_required(model).values())).config
    if raw["lora_alpha"] / raw["r"] != config.scale:
        raise InputError(
            f"{folder}: alpha/r is {raw['lora_alpha']}/{raw['r']}, in the model {config.alpha}/{config.rank}"
        )
    tensors = {key.removeprefix(PREFIX).removesuffix(".weight"): t for key, t in read_tensors(file).items()}
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if ".lora_" in name}
    if unlike := sorted(expected.keys() ^ tensors.keys()):
        where = "missing there" if unlike[0] in expected else "unknown to the model"
        raise InputError(f"{file}: {len(unlike)} tensors do not fit; {unlike[0]} is {where}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise InputError(f"{file}: {name} is {tuple(tensors[name].shape)}, in the model it is {tuple(shape)}")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise InputError(f"{file}: cannot be read; name the folder of an adapter")
    refuse_pickles(folder, "adapter_model.safetensors")
    raw = read_json(file)
    kinds: dict[str, Any] = {"r": int, "lora_alpha": (int, float), "target_modules": list}
    fine = all(isinstance(raw.get(key), kind) for key, kind in kinds.items())
    if not fine or not all(isinstance(name, str) for name in raw["target_modules"]):
        raise InputError(f"{file}: needs r and lora_alpha (numbers) and target_modules (a list of names)")
    for key, value in COMPUTED.items():
        if raw.get(key, value) != value:
            raise InputError(f"{file}: {key} is {raw[key]!r}, but only {value!r} is supported")
    return raw


def _required(model: GPT) -> dict[str, LoRALinear]:
    if not (found := adapters(model)):
        raise InputError("the model has no adapter; add_lora(model) gives it one")
    return found
