"""Preference data from text to tensors.

``audit_pairs`` encodes and filters, ``split_by_prompt`` sets some aside, ``collate`` packs. A pair is one row of
tokens, prompt + chosen + rejected: the prompt is computed once, the attention mask hides the chosen answer from the
rejected one, and the positions of the rejected one start again at the prompt's end.

Shapes: B pairs, T tokens of the longest row, M tokens and N answer tokens in the batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import tiktoken
import torch
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair, shared_length
from dpo_core.tokenizer import END_OF_TEXT, boundary

__all__ = [
    "Audit",
    "EncodedPair",
    "PreferenceBatch",
    "audit_pairs",
    "batches",
    "by_length",
    "collate",
    "encode_pair",
    "same_prompt",
    "split_by_prompt",
]


@dataclass(frozen=True)
class EncodedPair:
    """The token ids of a pair; both answers end in one end-of-text token unless they were truncated."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    pair: PreferencePair
    merged: bool = False  # the prompt's last letters became one token with the answers' first

    def __len__(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


def encode_pair(encoding: tiktoken.Encoding, pair: PreferencePair) -> EncodedPair:
    """Turn a pair's texts into token ids, and divide them into prompt, chosen and rejected answer.

    Prompt and answer are encoded together, as a model meets them, and divided where both answers still agree. Encoding
    them apart would give other tokens wherever BPE merges across the boundary; such a token belongs to the answers.

    Args:
        encoding: as of ``load_tokenizer``.
        pair: text; ``boundary`` is put between prompt and answers.
    Returns:
        Token ids; there is at least one of the prompt, if it is not empty.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> enc = load_tokenizer("pocket")
    >>> encoded = encode_pair(enc, PreferencePair("Why?", "Because.", "No."))
    >>> enc.decode(encoded.prompt), enc.decode(encoded.rejected)
    ('Why?\\n', 'No.<|endoftext|>')
    """
    answers = [text.removesuffix(END_OF_TEXT) for text in (pair.chosen, pair.rejected)]
    gaps = [boundary(pair.prompt, text) for text in answers]
    if gaps == ["\n", "\n"]:  # a line break belongs to the prompt, a space to the answer's first token
        gap = "\n"
    else:
        gap, answers = "", [own + text for own, text in zip(gaps, answers)]
    opening = encoding.encode_ordinary(pair.prompt + gap)
    whole = [encoding.encode_ordinary(pair.prompt + gap + text) for text in answers]
    cut = min(shared_length(opening, ids) for ids in whole)
    merged = cut < len(opening)
    if cut == 0:  # all merged away, but something has to stay that predicts the first token
        cut, whole = len(opening), [opening + encoding.encode_ordinary(text) for text in answers]
    chosen, rejected = ([*ids[cut:], encoding.eot_token] for ids in whole)
    return EncodedPair(opening[:cut], chosen, rejected, pair, merged)


@dataclass(frozen=True)
class Audit:
    """What ``audit_pairs`` found; ``dropped`` and ``noted`` say why about which pair."""

    kept: list[EncodedPair]
    dropped: list[tuple[PreferencePair, str]]
    noted: list[tuple[PreferencePair, str]]  # kept, but worth knowing

    def findings(self) -> list[str]:
        """Describe what was dropped and noted: one line for each reason, with its first three places."""
        return [*_grouped("dropped", self.dropped), *_grouped("noted", self.noted)]

    def report(self) -> str:
        """Summarise the audit in a few lines of text: counts, findings and lengths."""
        count = len(self.kept)
        chosen, rejected = (sum(len(getattr(e, name)) for e in self.kept) / count for name in ("chosen", "rejected"))
        longer = sum(len(e.chosen) > len(e.rejected) for e in self.kept) / count
        return "\n".join(
            [
                f"{count} pairs kept, {len(self.dropped)} dropped",
                *self.findings(),
                f"mean length: chosen {chosen:.1f} tokens, rejected {rejected:.1f}; chosen is longer in {longer:.0%}",
            ]
        )


def _grouped(title: str, findings: list[tuple[PreferencePair, str]]) -> Iterator[str]:
    for reason in dict.fromkeys(reason for _, reason in findings):
        places = [pair.source for pair, other in findings if other == reason]
        yield f"{title}: {len(places)} x {reason} ({', '.join(places[:3])}{', ...' if len(places) > 3 else ''})"


def audit_pairs(pairs: Sequence[PreferencePair], encoding: tiktoken.Encoding, max_length: int) -> Audit:
    """Encode pairs, shorten long answers, and drop the pairs from which nothing can be learned.

    An exact repeat is dropped as a copying mistake, unless the opposite label is there, too: then repeats are votes.

    Args:
        pairs: what ``load_pairs`` gave.
        encoding: as of ``load_tokenizer``.
        max_length: tokens that prompt and one answer may have together; an answer cut there has no end-of-text token.
    Returns:
        The kept pairs, encoded, and what was dropped or noted.
    Raises:
        InputError: nothing is left.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> pairs = [PreferencePair("Why?", "Because.", "No."), PreferencePair("Why?", "Yes.", "Yes.")]
    >>> audit_pairs(pairs, load_tokenizer("pocket"), max_length=64).report().splitlines()[:2]
    ['1 pairs kept, 1 dropped', 'dropped: 1 x the answers are the same (pair 2)']
    """
    named = [pair if pair.source else replace(pair, source=f"pair {i}") for i, pair in enumerate(pairs, start=1)]
    every = {(pair.prompt, pair.chosen, pair.rejected) for pair in named}
    seen: set[PreferencePair] = set()
    kept: list[EncodedPair] = []
    dropped: list[tuple[PreferencePair, str]] = []
    noted: list[tuple[PreferencePair, str]] = []
    for pair in named:
        encoded = encode_pair(encoding, pair)
        contested = pair.chosen != pair.rejected and (pair.prompt, pair.rejected, pair.chosen) in every
        room = max_length - len(encoded.prompt)
        short = replace(encoded, chosen=encoded.chosen[: max(room, 0)], rejected=encoded.rejected[: max(room, 0)])
        reasons = {
            "repeats an earlier pair": pair in seen and not contested,
            "the prompt is empty": not encoded.prompt,
            "an answer is empty": min(len(encoded.chosen), len(encoded.rejected)) < 2,  # the end of text alone
            "the answers are the same": encoded.chosen == encoded.rejected,
            f"the prompt leaves no room for answers in {max_length} tokens": room < 2,
            f"the answers are the same within {max_length} tokens": short.chosen == short.rejected,
        }
        seen.add(pair)
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason:
            dropped.append((pair, reason))
            continue
        kept.append(short)
        notes = {
            f"an answer was cut at {max_length} tokens": len(short) < len(encoded),
            "the same answers are also there the other way round": contested,
            "an answer holds a further turn of the user": any("\n\nHuman:" in a for a in (pair.chosen, pair.rejected)),
            "prompt and answer merge into one token at their boundary": encoded.merged,
        }
        noted += [(pair, note) for note, holds in notes.items() if holds]
    if not kept:
        found = "\n".join(_grouped("dropped", dropped)) or "no pairs were given"
        raise InputError(f"no preference pair is left to train on:\n{found}\ngive other pairs or a larger max_length")
    return Audit(kept, dropped, noted)


def split_by_prompt(
    encoded: Sequence[EncodedPair], share: float, seed: int
) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """Set a share of the prompts aside, with all their pairs, so that no prompt is on both sides.

    Prompts that differ only in case or in the punctuation at their end count as one.

    Args:
        encoded: all pairs.
        share: of the prompts, in [0, 1); above 0 it is at least one prompt.
        seed: of the draw.
    Returns:
        Pairs to train on and pairs to validate on.
    Raises:
        InputError: share out of range, or too few prompts to divide.

    >>> pairs = [PreferencePair(prompt, "a", "b") for prompt in ("x", "x", "y")]
    >>> train, held_out = split_by_prompt([EncodedPair([1], [2], [3], pair) for pair in pairs], share=0.5, seed=0)
    >>> {e.pair.prompt for e in train} & {e.pair.prompt for e in held_out}
    set()
    """
    if not 0 <= share < 1:
        raise InputError(f"share of validation prompts is {share}; it must be at least 0 and below 1")
    prompts = list(dict.fromkeys(same_prompt(e.pair.prompt) for e in encoded))
    count = max(1, round(share * len(prompts))) if share else 0
    if count and count >= len(prompts):
        raise InputError(
            f"{len(prompts)} different prompts cannot be divided; give validation pairs of their own or a share of 0"
        )
    held_out = set(random.Random(seed).sample(prompts, count))
    train = [e for e in encoded if same_prompt(e.pair.prompt) not in held_out]
    return train, [e for e in encoded if same_prompt(e.pair.prompt) in held_out]


def same_prompt(prompt: str) -> str:
    """Reduce a prompt to what it has in common with prompts that ask the same, so that these compare equal.

    Args:
        prompt: as written.
    Returns:
        The prompt in small letters, without white space at its ends and without marks at its end.

    >>> same_prompt("Why is the sky blue?") == same_prompt(" why is the sky blue")
    True
    """
    return prompt.strip().casefold().rstrip(" .?!")


# Batches


@dataclass(frozen=True)
class PreferenceBatch:
    """Pairs as tensors, one row each: prompt, chosen, rejected, padding.

    The last four fields say what to compute: nothing for padding, and logits only where they predict an answer's token.
    """

    ids: Tensor  # (B, T) token ids; padding is 0, which nothing attends to or predicts
    positions: Tensor  # (B, T) those of the rejected answer start again at the prompt's end
    segments: Tensor  # (B, T) 0 prompt, 1 chosen, 2 rejected, -1 padding
    chosen_lengths: Tensor  # (B,) tokens
    rejected_lengths: Tensor  # (B,)
    unpadded: Tensor  # (M,) where in B*T there is a token and not padding
    predicts: Tensor  # (N,) which of the M tokens predicts; the prompt's last does so for both answers
    targets: Tensor  # (N,) the token id to be predicted
    scatter_to: Tensor  # (N,) where in 2B*T its log-prob goes: chosen answers in the first B rows, rejected in the last

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        """(B,) tokens of the chosen and (B,) of the rejected answers."""
        return self.chosen_lengths, self.rejected_lengths

    def mask(self) -> Tensor:
        """Mark which tokens each token may attend to: earlier ones of the prompt and of its own answer, and itself.

        Returns:
            (B, 1, T, T) bool, True where attention is allowed.
        """
        T = self.ids.shape[1]
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        causal = torch.ones(T, T, dtype=torch.bool, device=self.ids.device).tril()
        return (causal & ((query == key) | (key == 0)))[:, None]

    def to(self, device: torch.device | str) -> PreferenceBatch:
        """Copy the batch to a device."""
        return PreferenceBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def collate(encoded: Sequence[EncodedPair]) -> PreferenceBatch:
    """Pack encoded pairs into one batch, padded on the right.

    Args:
        encoded: B pairs.
    Returns:
        A batch on the CPU.

    >>> batch = collate([EncodedPair([5, 6], [7, 9], [8, 9], PreferencePair("", "", ""))])
    >>> batch.ids.tolist(), batch.positions.tolist()
    ([[5, 6, 7, 9, 8, 9]], [[0, 1, 2, 3, 2, 3]])
    >>> list(zip(batch.predicts.tolist(), batch.targets.tolist()))
    [(1, 7), (2, 9), (1, 8), (4, 9)]
    """
    B, T = len(encoded), max(map(len, encoded))
    numbers = partial(torch.tensor, dtype=torch.long, device="cpu")  # whatever torch's default device is
    ids, positions, segments = (torch.full((B, T), fill, device="cpu") for fill in (0, 0, -1))
    unpadded: list[int] = []
    predicts, targets, scatter_to = [], [], []
    for row, e in enumerate(encoded):
        p, c, r = len(e.prompt), len(e.chosen), len(e.rejected)
        ids[row, : p + c + r] = numbers(e.prompt + e.chosen + e.rejected)
        positions[row, : p + c + r] = numbers([*range(p + c), *range(p, p + r)])
        segments[row, : p + c + r] = numbers([0] * p + [1] * c + [2] * r)
        before_chosen, before_rejected = [*range(p - 1, p + c)][:c], [p - 1, *range(p + c, p + c + r)][:r]
        predicts += [len(unpadded) + t for t in before_chosen + before_rejected]
        unpadded += range(row * T, row * T + p + c + r)
        targets += e.chosen + e.rejected
        scatter_to += [row * T + t for t in range(p, p + c)] + [(B + row) * T + t for t in range(p + c, p + c + r)]
    return PreferenceBatch(
        ids=ids,
        positions=positions,
        segments=segments,
        chosen_lengths=numbers([len(e.chosen) for e in encoded]),
        rejected_lengths=numbers([len(e.rejected) for e in encoded]),
        unpadded=numbers(unpadded),
        predicts=numbers(predicts),
        targets=numbers(targets),
        scatter_to=numbers(scatter_to),
    )


def batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield the indices of one batch after another, without end.

    Each epoch has a new order, and its last batch may be smaller.

    Args:
        count: pairs there are.
        size: pairs in a batch.
        seed: of the orders.

    >>> from itertools import islice
    >>> first_epoch = list(islice(batches(count=5, size=2, seed=0), 3))
    >>> [len(batch) for batch in first_epoch], sorted(sum(first_epoch, []))
    ([2, 2, 1], [0, 1, 2, 3, 4])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator, device="cpu").tolist()
        yield from (order[start : start + size] for start in range(0, count, size))


def by_length(encoded: Sequence[EncodedPair], indices: Iterable[int], size: int) -> list[list[int]]:
    """Divide indices into groups of pairs of similar length, the longest pairs first.

    So there is little padding, and the first group shows whether the memory suffices.

    Args:
        encoded: all pairs.
        indices: of the pairs to divide.
        size: pairs in a group.
    Returns:
        Lists of indices.

    >>> pairs = [EncodedPair([1] * n, [2], [3], PreferencePair("", "", "")) for n in (1, 9, 2, 8)]
    >>> by_length(pairs, range(4), size=2)
    [[1, 3], [2, 0]]
    """
    order = sorted(indices, key=lambda i: -len(encoded[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]
