"""GPT-2's checkpoints in Hugging Face layout: folders with ``config.json`` and ``model.safetensors``.

The four weight matrices of a block are stored transposed (``Conv1D``), which ``from_hf`` undoes and ``to_hf`` redoes.
No pickle is ever read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_core.errors import InputError, shown
from dpo_core.formats.files import FLOATS, read_json, refuse_pickles

__all__ = [
    "PUBLISHED",
    "TRANSPOSED",
    "check_layout",
    "checkpoint_files",
    "described",
    "from_hf",
    "read_config",
    "to_hf",
]

PUBLISHED = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}

# Stored as (in, out) by GPT-2's Conv1D and as (out, in) by nn.Linear.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

# What our forward pass does; a config.json that asks for something else would load and compute other numbers.
COMPUTED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def checkpoint_files(name: str) -> tuple[Path, Path]:
    """Find the two files of a model, and fetch those of a published one from the Hub.

    Args:
        name: ``pocket``, one of ``PUBLISHED`` or a folder.
    Returns:
        The paths of ``config.json`` and ``model.safetensors``.
    Raises:
        InputError: no such model, no network, a missing file or a pickle.
    """
    if name == "pocket":
        folder = Path(str(resources.files("dpo_core.pocket") / "model"))
    elif name in PUBLISHED:
        return _download(PUBLISHED[name], "config.json"), _download(PUBLISHED[name], "model.safetensors")
    else:
        folder = Path(name)
        if not folder.is_dir():
            known = ", ".join(["pocket", *PUBLISHED])
            raise InputError(f"no model {name!r}: it is neither a folder nor one of {known}")
        refuse_pickles(folder)
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            held = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
            raise InputError(f"{folder}: no {file} (the folder holds {held}); only safetensors checkpoints are read")
    return folder / "config.json", folder / "model.safetensors"


def _download(repo: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, file))
    except Exception as error:  # the client raises a dozen kinds; each means that the file is not to be had
        raise InputError(
            f"{file} of {repo} could not be fetched from the Hugging Face Hub ({type(error).__name__}: {error});"
            " check the network, or take the model pocket, which needs none"
        ) from error


def read_config(file: Path) -> dict[str, Any]:
    """Read a ``config.json``, and refuse one of another architecture.

    Args:
        file: its path.
    Raises:
        InputError: the file is damaged, or asks for what the model does not compute.
    """
    raw = read_json(file)
    if raw.get("model_type") != "gpt2":
        raise InputError(f"{file}: model_type must be 'gpt2'; other architectures are not supported")
    for key, value in COMPUTED.items():
        if raw.get(key, value) != value:
            raise InputError(f"{file}: {key} is {shown(raw[key])}, but only {shown(value)} is supported")
    return raw


def described(config: dict[str, Any]) -> dict[str, Any]:
    """Describe a model as ``config.json`` does.

    Args:
        config: the fields of its ``GPTConfig``.
    """
    eos = config["vocab_size"] - 1
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": COMPUTED["activation_function"],
        "layer_norm_epsilon": COMPUTED["layer_norm_epsilon"],
        "tie_word_embeddings": True,
        "bos_token_id": eos,
        "eos_token_id": eos,
        **{f"{part}_pdrop": config["dropout"] for part in ("attn", "embd", "resid")},
        **{key: value for key, value in config.items() if key != "dropout"},
    }


def _our_name(key: str) -> str | None:
    """Translate the name of a published tensor into ours; None for those that are not kept."""
    name = key.removeprefix("transformer.")
    # The causal mask, stored as a buffer by old files, and the head, which is tied to wte.weight.
    return None if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "lm_head.weight" else name


def check_layout(layout: Mapping[str, tuple[str, tuple[int, ...]]], expected: dict[str, Tensor], file: Path) -> None:
    """Refuse a file of other tensors than the model's, before they are loaded.

    Args:
        layout: of ``tensor_layout``.
        expected: the model's tensors, for their names and shapes.
        file: for the message.
    Raises:
        InputError: a name, kind of number or shape does not fit.
    """
    kept = {name: found for key, found in layout.items() if (name := _our_name(key)) is not None}
    found = {name: shape[::-1] if name.endswith(TRANSPOSED) else shape for name, (_, shape) in kept.items()}
    odd = [f"{name} {kind}" for name, (kind, _) in kept.items() if kind not in FLOATS]
    _require(not odd, file, f"tensors hold other numbers than {', '.join(FLOATS)}", odd)
    _require(not expected.keys() - found.keys(), file, "tensors are missing", expected.keys() - found.keys())
    _require(not found.keys() - expected.keys(), file, "tensors are unknown", found.keys() - expected.keys())
    wrong = [
        f"{key} {found[key]} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if found[key] != tensor.shape
    ]
    _require(not wrong, file, "shapes do not fit config.json", wrong)


def from_hf(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Convert published tensors to our names and orientation, in float32.

    Args:
        tensors: of the file.
        file: for the message.
    Raises:
        InputError: the head is another matrix than the token embedding.
    """
    found = {name: tensor for key, tensor in tensors.items() if (name := _our_name(key)) is not None}
    if not torch.equal(tensors.get("lm_head.weight", found["wte.weight"]), found["wte.weight"]):
        raise InputError(f"{file}: lm_head.weight differs from wte.weight, but only tied heads are supported")
    # A copy of each: what was read lies in the mapped file, all of which would stay in memory beside the weights.
    ours = {name: tensor.t() if name.endswith(TRANSPOSED) else tensor for name, tensor in found.items()}
    return {
        name: tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        for name, tensor in ours.items()
    }


def to_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert our tensors to the published names and orientation.

    Args:
        state: of the model.
    """
    return {
        f"transformer.{key}": (tensor.t() if key.endswith(TRANSPOSED) else tensor).detach().cpu().contiguous()
        for key, tensor in state.items()
    }


def _require(fine: bool, file: Path, what: str, names: Iterable[str]) -> None:
    if not fine:
        listed = sorted(names)
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise InputError(f"{file}: {what}: {', '.join(shown(name, 120)[1:-1] for name in listed[:5])}{more}")
