"""What ails a run before its first step, by looking at the trainer; ``diagnose`` reads the curves after it.

Each rule is a small function that says what it saw, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch

from dpo_core.data import EncodedPair, batches
from dpo_core.errors import InputError
from dpo_core.study.diagnose import Finding
from dpo_core.study.evaluate import wilson_interval
from dpo_core.trainer import DPOTrainer
from dpo_core.trainers.kto import LabelAudit

__all__ = ["SETUP", "check_setup"]

LABEL_LEAD = 2.0  # weight of one kind of labelled answers over the other; beyond it the rarer one hardly counts
LENGTH_LEAD = 0.65  # share of pairs: a rule that only counts tokens would beat many a reward model


def _optimiser_elsewhere(trainer: DPOTrainer) -> str | None:
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    own = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    if any(id(parameter) in held for parameter in own):
        return None
    return "the optimiser holds no parameter of the model that requires a gradient, so no step will change it"


def _shared_reference(trainer: DPOTrainer) -> str | None:
    if trainer.reference_model is None:
        return None
    held = {parameter.data_ptr() for parameter in trainer.model.parameters() if parameter.requires_grad}
    shared = sum(parameter.data_ptr() in held for parameter in trainer.reference_model.parameters())
    return f"{shared} tensors of the reference are the policy's own, and will move with it" if shared else None


def _dropout_on(trainer: DPOTrainer) -> str | None:
    found = {float(p) for module in trainer.model.modules() if (p := getattr(module, "dropout", 0.0))}
    found |= {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout) and module.p}
    return f"the model has dropout {max(found)}, which makes the log-ratio noisy" if found else None


def _not_float32(trainer: DPOTrainer) -> str | None:
    kinds = {str(parameter.dtype) for parameter in trainer.model.parameters()} - {"torch.float32"}
    return f"weights in {', '.join(sorted(kinds))}, in which small updates are rounded away" if kinds else None


def _differs_at_start(trainer: DPOTrainer) -> str | None:
    try:
        with torch.no_grad():
            trainer.first_row(next(batches(len(trainer.training), trainer.config.batch_size, trainer.config.seed)))
    except InputError as error:
        return str(error)
    return None


def _pairs(trainer: DPOTrainer) -> list[EncodedPair]:
    return [*trainer.training, *trainer.validation]


def _labelled(trainer: DPOTrainer) -> bool:
    """Whether one side of each pair is missing on purpose."""
    return isinstance(trainer.audit, LabelAudit)


def _empty(trainer: DPOTrainer) -> str | None:
    wanted = 1 if _labelled(trainer) else 2
    empty = sum(bool(pair.chosen) + bool(pair.rejected) < wanted for pair in _pairs(trainer))
    return f"{empty} pairs have an answer of which no token counts" if empty else None


def _endless(trainer: DPOTrainer) -> str | None:
    end = trainer.encoding.eot_token
    sides = [[ids for e in _pairs(trainer) if (ids := getattr(e, name))] for name in ("chosen", "rejected")]
    chosen, rejected = (sum(ids[-1] != end for ids in side) for side in sides)
    if chosen + rejected == 0:
        return None
    return f"{chosen} of {len(sides[0])} chosen and {rejected} rejected answers have no end-of-text token"


def _identical(trainer: DPOTrainer) -> str | None:
    audits = [audit for audit in (trainer.audit, trainer.val_audit) if audit]
    dropped = list(chain.from_iterable(audit.dropped for audit in audits))
    same = sum(reason.startswith("the answers are the same") for _, reason in dropped)
    given = len(dropped) + sum(len(audit.kept) for audit in audits)
    return f"{same} of {given} pairs ({same / given:.1%}) had the same answer twice and were dropped" if same else None


def _longer(trainer: DPOTrainer) -> str | None:
    unequal = [len(e.chosen) > len(e.rejected) for e in trainer.training if len(e.chosen) != len(e.rejected)]
    if not unequal or _labelled(trainer):
        return None
    share, (low, high) = sum(unequal) / len(unequal), wilson_interval(sum(unequal), len(unequal))
    if max(share, 1 - share) < LENGTH_LEAD or low <= 0.5 <= high:
        return None
    return f"the chosen answer is the longer one in {share:.0%} of {len(unequal)} pairs"


def _unbalanced(trainer: DPOTrainer) -> str | None:
    if not _labelled(trainer):
        return None
    counts = [sum(bool(getattr(e, name)) for e in trainer.training) for name in ("chosen", "rejected")]
    config = trainer.config
    weights = [1.0 if found is None else found for found in (config.desirable_weight, config.undesirable_weight)]
    shares = [weight * count for weight, count in zip(weights, counts)]
    if max(shares) <= LABEL_LEAD * min(shares):
        return None
    weighed = f", which weigh {shares[0]:g} to {shares[1]:g} in the loss"
    return f"{counts[0]} answers are desirable and {counts[1]} undesirable{weighed}"


SETUP: dict[str, tuple[Callable[[DPOTrainer], str | None], str]] = {
    "frozen policy": (_optimiser_elsewhere, "make the trainer anew with the model that is to learn"),
    "moving reference": (_shared_reference, "keep a copy made before training, or the default reference='cached'"),
    "dropout on": (_dropout_on, "set every dropout to 0"),
    "half-precision weights": (
        _not_float32,
        "model.float() before the trainer is made; precision='bf16' is for computing",
    ),
    "policy is not the reference": (_differs_at_start, "make the trainer last, after every change to the model"),
    "empty answers": (_empty, "leave these pairs out"),
    "no end of text": (_endless, "end each answer in one end-of-text token; raise max_length where answers are cut"),
    "identical pairs": (_identical, "look where they come from; where only the beginnings agree, raise max_length"),
    "unbalanced labels": (_unbalanced, "raise the rarer kind's weight, desirable_weight or undesirable_weight"),
    "length tells the label": (_longer, "even the lengths out, or watch samples/length; the policy will learn length"),
}


def check_setup(trainer: DPOTrainer) -> list[Finding]:
    """Find what is wrong with a run before its first step.

    The constructor of ``DPOTrainer`` refuses what can never be right: dropout, half-precision weights, nothing to
    train, no pair left. This looks at the trainer as it stands now, so it sees what was changed since then, and it
    judges what may be meant but seldom is: cut answers, identical pairs, a length that tells the label.

    Args:
        trainer: before its first step.
    Returns:
        Findings; nothing if all seems well.

    >>> from dpo_core.formats.pairs import PreferencePair
    >>> from dpo_core.model import GPT
    >>> from dpo_core.tokenizer import load_tokenizer
    >>> from dpo_core.config import DPOConfig
    >>> model, pairs = GPT.from_pretrained("pocket"), [PreferencePair("Why?", "Because it is so.", "No.")]
    >>> trainer = DPOTrainer(model, load_tokenizer("pocket"), pairs, DPOConfig(val_share=0))
    >>> model.h[0].attn.dropout = 0.1
    >>> [finding.name for finding in check_setup(trainer)]
    ['dropout on']
    """
    return [Finding(name, evidence, remedy) for name, (look, remedy) in SETUP.items() if (evidence := look(trainer))]
