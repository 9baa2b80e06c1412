"""GPT-2's checkpoints in Hugging Face layout: folders with ``config.json`` and ``model.safetensors``,
or its parts with their index.

The four weight matrices of a block are stored transposed (``Conv1D``), which ``from_hf`` undoes and ``to_hf`` redoes.
No pickle is ever read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_core.errors import InputError, shown
from dpo_core.formats.files import FLOATS, read_json, read_tensors, refuse_pickles, tensor_layout
from dpo_core.formats.hf_tokenizer import TOKENIZER_FILES

__all__ = [
    "PUBLISHED",
    "TRANSPOSED",
    "Checkpoint",
    "check_layout",
    "described",
    "find_checkpoint",
    "from_hf",
    "on_hub",
    "read_config",
    "to_hf",
]

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
WEIGHTS = "model.safetensors"
SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)  # a plain name
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # owner and name

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


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files lie."""

    config: Path  # config.json
    weights: tuple[Path, ...]  # safetensors, of which a large model has several
    index: Path | None = None  # which tensor is in which of them

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Read the kind of number and the shape of each tensor, by its name.

        Raises:
            InputError: a file is not whole, or holds other tensors than the index says.
        """
        found = {file: tensor_layout(file) for file in self.weights}
        if self.index:
            told = _weight_map(self.index)
            odd = {name for file, layout in found.items() for name in layout if told.get(name) != file.name}
            _require(not odd, self.index, "tensors lie elsewhere than it says", odd)
        return {name: shape for layout in found.values() for name, shape in layout.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Read all tensors, as they are in the files."""
        return {name: tensor for file in self.weights for name, tensor in read_tensors(file).items()}

    def size(self) -> int:
        """Count the bytes of all weights."""
        return sum(file.stat().st_size for file in self.weights)


def find_checkpoint(name: str) -> Checkpoint:
    """Find a model's files; those of a model on the Hub are fetched, if they are not here yet.

    Args:
        name: pocket, one of ``PUBLISHED``, a folder, or the full id of a model on the Hub, ``owner/name``.
    Returns:
        Where its files lie.
    Raises:
        InputError: there is no such model, or it is not there in whole, or its weights are in a pickle alone.
    """
    published = dict.fromkeys(PUBLISHED.values()) | PUBLISHED
    if name in published:
        repo = published[name] or name
        return Checkpoint(_download(repo, "config.json"), (_download(repo, "model.safetensors"),))
    if name == "pocket":
        folder = Path(str(resources.files("dpo_core.pocket") / "model"))
    elif on_hub(name):
        folder = _snapshot(name)
    else:
        folder = Path(name)
    if not folder.is_dir():
        known = ", ".join(["pocket", *PUBLISHED])
        raise InputError(
            f"no model {name!r}: it is neither a folder nor one of {known}, nor the full id of a model on the Hub"
            " (owner/name)"
        )
    refuse_pickles(folder, "model*.safetensors")
    index = folder / "model.safetensors.index.json"
    whole = (folder / WEIGHTS).is_file() or not index.is_file()
    shards = [WEIGHTS] if whole else sorted(set(_weight_map(index).values()))
    for file in ("config.json", *shards):
        if not (folder / file).is_file():
            held = ", ".join(shown(p.name)[1:-1] for p in sorted(folder.iterdir())[:20]) or "nothing"
            asked = "" if whole or file == "config.json" else f", which {index.name} names; copy all parts"
            raise InputError(
                f"{folder}: no {file}{asked} (the folder holds {held}); only safetensors checkpoints are read"
            )
    return Checkpoint(folder / "config.json", tuple(folder / shard for shard in shards), None if whole else index)


def _weight_map(index: Path) -> dict[str, str]:
    """Read which tensor lies in which file beside the index."""
    told = read_json(index, largest=2**24).get("weight_map")
    if not isinstance(told, dict) or not told or not all(isinstance(file, str) for file in told.values()):
        raise InputError(f"{index}: has no weight_map of tensors and files; copy it again")
    if odd := [file for file in told.values() if not SHARD.fullmatch(file)]:
        raise InputError(f"{index}: names {shown(odd[0])}, which is no safetensors file beside it; copy it again")
    return told


def on_hub(name: str) -> bool:
    """Tell whether a name is that of a model on the Hub: published by OpenAI, or ``owner/name`` and no folder of ours.

    >>> on_hub("gpt2"), on_hub("distilbert/distilgpt2"), on_hub("runs/one/final"), on_hub("checkpoints/final")
    (True, True, False, False)
    """
    owner, _, repo = name.partition("/")
    ours = repo in ("final", "adapter", "checkpoints") or Path(owner).exists()
    return name in PUBLISHED or (REPO.fullmatch(name) is not None and not ours)


def _download(repo: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, file))
    except Exception as error:  # the client raises a dozen kinds; each means that the file is not to be had
        raise _not_fetched(f"{file} of {repo}", error) from error


def _snapshot(repo: str) -> Path:
    """Fetch config, safetensors and the tokenizer's files of any other repository, and nothing else."""
    from huggingface_hub import snapshot_download

    wanted = ["config.json", WEIGHTS, "model.safetensors.index.json", "model-*.safetensors", *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted))
    except Exception as error:
        raise _not_fetched(f"{repo} is no folder here, and", error) from error


def _not_fetched(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what} could not be fetched from the Hugging Face Hub ({type(error).__name__}: {error});"
        " check the spelling, check the network, or take the model pocket, which needs none"
    )


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


def described(config: dict[str, Any], end_of_text: int | None) -> dict[str, Any]:
    """Describe a model as ``config.json`` does.

    Args:
        config: fields of ``GPTConfig``.
        end_of_text: the token with which answers ended in training, so that others stop there; if it is not known, the
            model's own.
    """
    special = {name: config[name] for name in SPECIAL}
    if end_of_text is not None:
        kept = {name: token for name, token in special.items() if token is not None}
        special = dict.fromkeys(SPECIAL, end_of_text) | kept | {"eos_token_id": end_of_text}
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": COMPUTED["activation_function"],
        "layer_norm_epsilon": COMPUTED["layer_norm_epsilon"],
        "tie_word_embeddings": True,
        **special,
        **{f"{part}_pdrop": config["dropout"] for part in ("attn", "embd", "resid")},
        **{key: value for key, value in config.items() if key not in ("dropout", *SPECIAL)},
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
