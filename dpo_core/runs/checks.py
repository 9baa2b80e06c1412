"""The checks of ``DPOTrainer``: models, folders and checkpoints that fit, and steps that are finite."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor

from dpo_core.config import DPOConfig, recorded_settings
from dpo_core.errors import InputError, shown
from dpo_core.formats.pairs import LabelledAnswer, Loaded, PreferencePair, load_labels
from dpo_core.formats.readers import read_pair
from dpo_core.methods.lora import adapters
from dpo_core.model import GPT
from dpo_core.runs.processes import world_size
from dpo_core.tokenizer import check_encoding

__all__ = [
    "check_folder",
    "check_metric",
    "check_model",
    "check_resumable",
    "check_room",
    "check_start",
    "not_finite",
    "pairs_from",
]

# What may differ when a run is resumed; of the precision, how it was asked for.
CHANGEABLE = ("steps", "learning_rate", "patience", "save_every", "save_minutes", "parallel", "precision")


def check_folder(output: Path, start: str) -> None:
    """Refuse a folder in which a run would mix with a model's files.

    Args:
        output: the run's folder.
        start: the model that training begins from, ``model.origin``.
    Raises:
        InputError: a model is there, this one or another.
    """
    if (output / "model.safetensors").exists():
        raise InputError(f"{output} holds a model, whose files the run would mix with; choose another output folder")
    if Path(start).is_absolute() and Path(start).resolve().is_relative_to(output.resolve()):
        raise InputError(f"{output} holds the model that training starts from; choose another output folder")


def pairs_from(given: Any) -> list[Any]:
    """Take preferences as people have them at hand: ours, dicts as lines of a file, or the path of a file.

    Args:
        given: ``PreferencePair``, ``LabelledAnswer`` or dicts, in a list or another iterable such as a ``Dataset``; or
            a path.
    Returns:
        ``PreferencePair`` or ``LabelledAnswer``.
    Raises:
        InputError: it is something else.

    >>> pairs_from([{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}])[0].chosen
    'Because.'
    """
    if isinstance(given, (str, Path)):
        return load_labels(given)
    if isinstance(given, Loaded):  # with what was dropped and not used
        return given
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise InputError(
            f"pairs are {shown(given)}; give a list of PreferencePair or of dicts with prompt, chosen and rejected, or"
            " what load_pairs(path) returns"
        )
    return [_pair_from(item, number) for number, item in enumerate(given, start=1)]


def _pair_from(item: Any, number: int) -> Any:
    if isinstance(item, Mapping) and "completion" in item:
        item = LabelledAnswer(*(item.get(name) for name in ("prompt", "completion", "label")))  # type: ignore[arg-type]
    elif isinstance(item, Mapping):
        try:
            return PreferencePair(*read_pair(dict(item)), f"pair {number}")
        except InputError as error:
            raise InputError(f"pair {number}: {error}") from error
    texts = [getattr(item, name, None) for name in ("prompt", "chosen", "rejected")]
    wanted = "a PreferencePair or a dict, with text as prompt, chosen and rejected"
    if isinstance(item, LabelledAnswer):
        texts = [item.prompt, item.completion if isinstance(item.label, bool) else None]
        wanted = "a LabelledAnswer or a dict, with text as prompt and completion, and a label, True or False"
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"pair {number} is {item!r:.60}; it must be {wanted}")
    return item


def check_model(model: GPT, encoding: tiktoken.Encoding, config: DPOConfig) -> None:
    """Refuse a model that cannot be trained with these settings.

    Args:
        model: to be trained.
        encoding: its tokenizer.
        config: the settings, resolved or not.
    Raises:
        InputError: it has dropout, is not in float32 or all frozen, its adapter or encoding does not fit, the length is
            more than it has positions, or there are more processes than pairs in a step.
    """
    if not isinstance(model, GPT):
        raise InputError(
            f"the model is {model!r:.60}, not a GPT of dpo_core; load one: GPT.from_pretrained(name or folder)"
        )
    positions = model.config.n_positions
    if model.config.dropout:
        raise InputError(f"the model has dropout {model.config.dropout}; DPO compares log-probs, so it must be 0")
    check_encoding(encoding, model.config.tokenizer, model.config.vocab_size)
    if config.max_length and config.max_length > positions:
        raise InputError(f"max_length is {config.max_length}, but the model has {positions} positions; lower it")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise InputError("the model is not in float32, in which small updates survive; call model.float() first")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("no parameter of the model requires a gradient; call model.requires_grad_() first")
    if adapters(model) and any(p.requires_grad and ".lora_" not in name for name, p in model.named_parameters()):
        raise InputError(
            "the model has an adapter, and other weights require a gradient, too, which no checkpoint of it would hold;"
            " freeze them, or merge_lora(model) to train all"
        )
    if config.reference == "adapter_off":
        if not adapters(model):
            raise InputError("reference is adapter_off, but the model has no adapter; add_lora(model) gives it one")
        if any(layer.lora_B.any() for layer in adapters(model).values()):
            raise InputError(
                "reference is adapter_off, but the adapter is trained already: without it the model is not what"
                " training starts from; merge it and add a new one (merge_lora, add_lora), or take the cached reference"
            )
    if config.batch_size * config.grad_accum < world_size():
        raise InputError(
            f"{world_size()} processes for the {config.batch_size * config.grad_accum} pairs of a step (batch_size x"
            " grad_accum); start fewer processes, or raise batch_size"
        )


def check_room(folder: Path, checkpoint: int, final: int, kept: int) -> None:
    """Compare the room on the disk with what a run will write.

    Args:
        folder: the run's.
        checkpoint: bytes of one.
        final: bytes of the model at the end.
        kept: how many checkpoints will be added to those that are there; 0 if none is asked for.
    Raises:
        InputError: not even the final model fits, with one checkpoint if there is to be any.
    """
    free = shutil.disk_usage(folder).free
    needed = kept * checkpoint + final
    if free >= needed:
        return
    sizes = f"a checkpoint takes {_size(checkpoint)}, the final model {_size(final)}; {_size(free)} are free"
    remedy = "make room, choose another output folder, or train an adapter (LoRA), whose checkpoints are small"
    if free < min(kept, 1) * checkpoint + final:
        raise InputError(f"{folder}: no room there for this run ({sizes}); {remedy}")
    warnings.warn(
        f"{folder}: the run needs {_size(needed)} there for {kept} checkpoints and the final model ({sizes});"
        f" it begins, and may find no room later; {remedy}",
        stacklevel=2,
    )


def _size(count: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count >= unit), (1e3, "kB"))
    return f"{count / unit:.3g} {name}"


def check_resumable(folder: Path, state: dict[str, Any], config: DPOConfig, precision: str, key: str) -> None:
    """Refuse a checkpoint from which a run with these settings cannot go on.

    Args:
        folder: the checkpoint, for the message.
        state: what ``read_state`` found in it.
        config: the settings now; steps, rate, patience and what is saved may be others.
        precision: in which would be computed now.
        key: of weights and data now, ``fingerprint``.
    Raises:
        InputError: the checkpoint is of another run.
    """
    before, now = recorded_settings(state["config"]), config.record()
    if unknown := sorted(before.keys() - now.keys()):
        raise InputError(f"{folder} was written by another version, with settings unknown here: {', '.join(unknown)}")
    # The way of beta and of the learning rate depends on the number of steps.
    fixed = config.beta_end is not None or config.learning_rate_schedule != "constant"
    changed = [
        f"{name} is {value}, was {before[name]}"
        for name, value in now.items()
        if value != before[name] and (name not in CHANGEABLE or (name == "steps" and fixed))
    ]
    if changed:
        raise InputError(f"{folder} was written with other settings ({'; '.join(changed)}); resume with the same")
    if (computed := state.get("precision", precision)) != precision:
        raise InputError(f"{folder} was computed in {computed}, this would be {precision}; resume with the same")
    if state["step"] > config.steps:
        raise InputError(
            f"{folder} is of step {state['step']}, and steps is {config.steps}: more are taken already; raise steps, or"
            " leave it as it was"
        )
    if state["key"] != key:
        raise InputError(f"{folder} was trained from other weights or on other data; resume with the same")


def check_start(metrics: dict[str, Tensor], precision: str) -> None:
    """Refuse a policy that is not the reference before the first step.

    Args:
        metrics: (B,) nats: ``logps/chosen`` and ``logps/rejected`` of the reference, and by how much the policy's
            differ from them, ``chosen`` and ``rejected``; what is not finite is reported with its pair, later.
        precision: in which they were computed.
    Raises:
        InputError: they differ by more than rounding does.
    """
    tolerance = 1e-4 if precision == "float32" else 2e-2
    gaps = torch.stack([metrics["chosen"], metrics["rejected"]]).abs()
    sizes = torch.stack([metrics["logps/chosen"], metrics["logps/rejected"]]).abs()
    if (gaps > tolerance * (1 + sizes)).any():
        raise InputError(
            f"policy and reference differ by {gaps.max():.4f} nats before the first step, where they must be the"
            " same; the model was changed after the trainer was made: make a new trainer"
        )


def check_metric(config: DPOConfig, row: dict[str, float]) -> None:
    """Refuse the row of an evaluation that lacks the metric by which patience compares evaluations.

    Args:
        config: the settings.
        row: just logged.
    Raises:
        InputError: it is not there.
    """
    metric = config.metric_for_best_model
    if config.patience and metric not in row and "eval_loss" in row:
        raise InputError(f"no metric {metric!r} in the row of step {row['step']:.0f}; it has {', '.join(row)}")


def not_finite(step: int, pairs: Sequence[PreferencePair], saved: str) -> InputError:
    """Make the error of a step whose loss or gradient is not finite.

    Args:
        step: its number.
        pairs: those with such a loss; all of the step, if it is the gradient alone.
        saved: what became of the run.
    """
    places = [pair.source for pair in pairs]
    more = [f"... and {len(places) - 20} more"] if len(places) > 20 else []
    first = ", ".join(f"{name} {shown(getattr(pairs[0], name), 60)}" for name in ("prompt", "chosen", "rejected"))
    return InputError(
        f"loss or gradient of step {step} is not finite, at {', '.join(places[:20] + more)}; the step was not taken;"
        f" {saved}; lower the learning rate, or look at these pairs; the first one is {first}"
    )
