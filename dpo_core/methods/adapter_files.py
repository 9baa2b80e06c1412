"""An adapter's folder, and models loaded with or without one.

The folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` in the layout of the library PEFT, which
opens ours as we open its.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiktoken
from safetensors.torch import save_file
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.formats.files import atomic_write, read_json, read_tensors, refuse_pickles, tensor_layout
from dpo_core.formats.hf_layout import PUBLISHED
from dpo_core.kernels.device import best_device
from dpo_core.methods.lora import LoRAConfig, add_lora, merge_lora, required_adapters
from dpo_core.model import GPT
from dpo_core.tokenizer import load_tokenizer

__all__ = ["load_adapted", "load_merged", "load_model", "read_adapter", "save_adapter"]

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


def save_adapter(model: GPT, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Write the adapter alone, with the name of the model that it belongs to.

    Args:
        model: has an adapter, and should come from ``from_pretrained``.
        folder: made if it is missing.
        state: weights to write instead of the model's own.
    Raises:
        InputError: there is no adapter.
    """
    config, folder = next(iter(required_adapters(model).values())).config, Path(folder)
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
    >>> from dpo_core.methods.lora import adapters
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
    config = next(iter(required_adapters(model).values())).config
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
