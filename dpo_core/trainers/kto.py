"""KTO's trainer: answers judged one by one, or pairs, and a point to measure their rewards from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor

from dpo_core.config import DPOConfig
from dpo_core.data import Audit, EncodedPair, encode_pair, unread
from dpo_core.errors import InputError
from dpo_core.formats.marks import marks_in
from dpo_core.formats.pairs import LabelledAnswer, PreferencePair
from dpo_core.losses import PairLogps
from dpo_core.methods.kto import mismatch
from dpo_core.model import GPT
from dpo_core.runs.checkpoint import fingerprint
from dpo_core.runs.checks import pairs_from
from dpo_core.trainer import Callback, DPOTrainer

__all__ = ["KTOTrainer", "LabelAudit", "audit_labels", "mismatched_pairs"]

Answers = Sequence[PreferencePair] | Sequence[LabelledAnswer]


class KTOTrainer(DPOTrainer):
    """Train by KTO (Ethayarajh et al. 2024, arXiv:2402.01306) on labelled answers or on pairs.

    It is ``DPOTrainer`` with the loss ``kto`` and one thing more: in each step the policy is also asked about answers
    under prompts that are not theirs, which gives ``reference_point``. A labelled answer is a pair of which one side
    is missing. What is logged of chosen answers averages the desirable ones, of rejected answers the others, and the
    margin is the difference of their mean rewards.

    Args:
        pairs: ``PreferencePair`` or ``LabelledAnswer``, all of one kind; the other arguments are ``DPOTrainer``'s.
    Raises:
        InputError: as ``DPOTrainer``; or the settings name another loss, or one prompt has more than half of the
            answers.

    >>> from dpo_core.config import DPOConfig
    >>> from dpo_core.model import GPT
    >>> from dpo_core.tokenizer import load_tokenizer
    >>> answers = [LabelledAnswer("Why?", "Because it is.", True), LabelledAnswer("Who?", "No.", False)]
    >>> config = DPOConfig(loss="kto", steps=1, val_share=0)
    >>> trainer = KTOTrainer(GPT.from_pretrained("pocket"), load_tokenizer("pocket"), answers, config)
    >>> round(trainer.train(progress=False).rows[0]["loss"], 4)  # s(0), as nothing has moved
    0.5
    """

    def __init__(
        self,
        model: GPT,
        encoding: tiktoken.Encoding,
        pairs: Answers,
        config: DPOConfig,
        output: str | Path | None = None,
        val_pairs: Answers | None = None,
    ) -> None:
        if isinstance(config.loss, str) and config.loss != "kto":
            raise InputError(
                f"KTOTrainer trains by the loss 'kto', but the settings have {config.loss!r}; give loss='kto', or take"
                " DPOTrainer"
            )
        given: Any = pairs, val_pairs  # ``encode`` below takes both kinds
        super().__init__(model, encoding, given[0], config, output, given[1])

    def encode(self, pairs: Answers) -> Audit:
        """Encode pairs or labelled answers, and weed out."""
        pairs = pairs_from(pairs)
        labelled: Any = pairs if all(isinstance(answer, LabelledAnswer) for answer in pairs) else []
        if not labelled and any(isinstance(answer, LabelledAnswer) for answer in pairs):
            raise InputError("pairs and labelled answers are mixed; give one kind, or label each answer of the pairs")
        return audit_labels(labelled, self.encoding, self.max_length) if labelled else super().encode(pairs)

    def example(self) -> PairLogps:
        """Make log-probs of one pair, to try the loss on."""
        return replace(super().example(), mismatched=torch.zeros(1, device=self.model.device))

    @cached_property
    def mismatched(self) -> dict[str, list[EncodedPair]]:
        """The training and validation pairs under prompts that are not theirs."""
        sets = {"training": self.training, "validation": self.validation}
        return {name: mismatched_pairs(name, encoded, self.max_length) for name, encoded in sets.items()}

    def key(self) -> str:
        """Name weights, data and settings: what was computed from others is stale."""
        settings = (self.precision.name, self.config.batch_size, self.config.reference, *self.mismatched)
        return fingerprint(self.model, [self.training, self.validation, *self.mismatched.values()], settings)

    def scored_sets(self) -> dict[str, Sequence[EncodedPair]]:
        """Name the pairs whose log-probs under the reference are computed once."""
        return super().scored_sets() | {f"mismatched {name}": pairs for name, pairs in self.mismatched.items()}

    def drift(self, name: str, indices: Sequence[int]) -> Tensor:
        """Measure how far the policy has moved on answers under prompts that are not theirs.

        Args:
            name: of the set.
            indices: of its pairs.
        Returns:
            (M,) log-ratios in nats, on the CPU.
        """
        pairs = [self.mismatched[name][i] for i in indices]
        moved = self.score(pairs) - self.reference[f"mismatched {name}"][[*indices]]
        there = torch.tensor([[bool(e.chosen), bool(e.rejected)] for e in pairs], device="cpu")
        return moved[there]

    def passes(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Measure the drift on all of the step's pairs, then divide them as ``DPOTrainer`` does."""
        self.moved = self.drift("training", indices).to(self.model.device)
        return super().passes(indices)

    def logps(self, group: list[int]) -> PairLogps:
        """Add the drift to the log-probs of training pairs."""
        return replace(super().logps(group), mismatched=self.moved)

    def validation_logps(self) -> PairLogps:
        """Add the drift to the log-probs of validation pairs."""
        drift = self.drift("validation", range(len(self.validation)))
        return replace(super().validation_logps(), mismatched=drift)

    def averaged(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose the pairs that have the answer of which a metric tells."""
        wanted, unwanted = metrics["length/chosen"] > 0, metrics["length/rejected"] > 0
        every = torch.ones_like(wanted)

        def of(name: str) -> Tensor:
            if name == "loss":
                return every
            return wanted if "chosen" in name else unwanted if "rejected" in name else wanted & unwanted

        return {name: values[of(name)] for name, values in metrics.items()}

    def _log(self, row: dict[str, float], progress: bool, callbacks: Sequence[Callback]) -> None:
        super()._log(with_margins(row), progress, callbacks)


def with_margins(row: dict[str, float]) -> dict[str, float]:
    """Add the difference of mean rewards to a row of labelled answers, of which no two make a pair; TRL does the same.

    >>> with_margins({"rewards/chosen": 0.5, "rewards/rejected": 0.25, "eval_rewards/chosen": 0.5})["rewards/margins"]
    0.25
    """
    margins = {
        f"{prefix}rewards/margins": row[f"{prefix}rewards/chosen"] - row[f"{prefix}rewards/rejected"]
        for prefix in ("", "eval_")
        if {f"{prefix}rewards/chosen", f"{prefix}rewards/rejected"} <= row.keys()
    }
    return row | {name: margin for name, margin in margins.items() if name not in row}


def mismatched_pairs(name: str, encoded: Sequence[EncodedPair], max_length: int) -> list[EncodedPair]:
    """Exchange the prompts of pairs; of one for which there is no room the beginning is left out.

    Args:
        name: of the set, for the message.
        encoded: pairs.
        max_length: tokens that prompt and one answer may have together.
    Raises:
        InputError: as ``mismatch``.
    """
    try:
        lenders = mismatch([e.pair.prompt for e in encoded])
    except InputError as error:
        raise InputError(f"{name} pairs: {error}; give more prompts, or another val_share") from error
    rooms = [max(1, max_length - max(len(e.chosen), len(e.rejected))) for e in encoded]
    return [replace(e, prompt=encoded[j].prompt[-room:]) for e, j, room in zip(encoded, lenders, rooms)]


@dataclass(frozen=True)
class LabelAudit(Audit):
    """What ``audit_labels`` found."""

    def report(self) -> str:
        """Put the findings in lines for people."""
        wanted = [len(e.chosen) for e in self.kept if e.chosen]
        unwanted = [len(e.rejected) for e in self.kept if e.rejected]
        means = [f"{sum(n) / len(n):.1f} tokens" if n else "none" for n in (wanted, unwanted)]
        return "\n".join(
            [
                f"{len(self.kept)} answers kept, {len(self.dropped)} dropped",
                *self.findings(),
                f"desirable: {len(wanted)}, on average {means[0]}; undesirable: {len(unwanted)}, {means[1]}",
            ]
        )


def audit_labels(answers: Sequence[LabelledAnswer], encoding: tiktoken.Encoding, max_length: int) -> LabelAudit:
    """Encode labelled answers, shorten long ones, and drop those from which nothing can be learned.

    Args:
        answers: as of ``load_labels``.
        encoding: as of ``load_tokenizer``.
        max_length: tokens that prompt and answer may have together; one cut there has no end-of-text token.
    Returns:
        The kept ones as pairs of which one side is missing, and what was dropped or noted.
    Raises:
        InputError: nothing is left.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> answers = [LabelledAnswer("Why?", "Because.", True), LabelledAnswer("Why?", "", False)]
    >>> print(audit_labels(answers, load_tokenizer("pocket"), max_length=64).report())
    1 answers kept, 1 dropped
    dropped: 1 x the answer is empty (answer 2)
    desirable: 1, on average 5.0 tokens; undesirable: 0, none
    """
    kept, noted = [], []
    dropped, of_files = unread(answers)
    labels = {(answer.prompt, answer.completion, answer.label) for answer in answers}
    for number, answer in enumerate(answers, start=1):
        text = answer.completion
        place = PreferencePair(
            answer.prompt, text * answer.label, text * (not answer.label), answer.source or f"answer {number}"
        )
        encoded = encode_pair(encoding, PreferencePair(answer.prompt, text, text))
        room = max_length - len(encoded.prompt)
        reasons = {
            "the prompt is empty": not encoded.prompt,
            "the answer is empty": len(encoded.chosen) < 2,  # the end of text alone
            f"the prompt leaves no room for the answer in {max_length} tokens": room < 2,
        }
        if found := next((reason for reason, holds in reasons.items() if holds), None):
            dropped.append((place, found))
            continue
        ids = encoded.chosen[:room]
        sides = (ids, []) if answer.label else ([], ids)
        kept.append(EncodedPair(encoded.prompt, *sides, place, encoded.merged))
        notes = {
            f"the answer was cut at {max_length} tokens": len(ids) < len(encoded.chosen),
            "the same answer is also there with the other label": (answer.prompt, text, not answer.label) in labels,
            **{note: True for note in marks_in(answer.prompt, text)},
        }
        noted += [(place, note) for note, holds in notes.items() if holds]
    audit = LabelAudit(kept, dropped, noted, of_files)
    if not kept:
        found = "\n".join(audit.findings()) or "no answers were given"
        raise InputError(f"no labelled answer is left to train on:\n{found}\ngive others or a larger max_length")
    return audit
