"""Supervised fine-tuning: documents for ``train_lm`` in which only the answer counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import tiktoken

from dpo_core.formats.dialogues import shared_length
from dpo_core.formats.fields import Fields
from dpo_core.formats.marks import without_end
from dpo_core.formats.pairs import Loaded, Source, load_records
from dpo_core.formats.readers import read_example
from dpo_core.lm.pretrain import Document
from dpo_core.tokenizer import boundary

__all__ = ["Example", "load_examples", "sft_documents"]


@dataclass(frozen=True)
class Example:
    """A prompt and a good answer to it."""

    prompt: str
    completion: str


def load_examples(
    source: Source, *, prompt_field: str | Sequence[str] = (), chosen_field: str = "", rejected_field: str = ""
) -> Loaded[Example]:
    """Read good answers: ``prompt`` and ``completion``, Alpaca's fields, messages, text, or pairs' chosen side.

    Of messages the last turn is the answer; text alone is an answer to nothing.

    Args:
        source: as of ``load_pairs``.
        prompt_field: as of ``load_pairs``.
        chosen_field: the field of the answer.
        rejected_field: of pairs, whose other answer it is.
    Returns:
        The examples in the files' order.
    Raises:
        InputError: as ``load_pairs``.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "examples.jsonl"
    ...     _ = file.write_text('{"prompt": "Why?", "completion": "Because."}')
    ...     load_examples(file)
    [Example(prompt='Why?', completion='Because.')]
    """
    prompt = (prompt_field,) if isinstance(prompt_field, str) else tuple(prompt_field)
    found = load_records(source, read_example, Fields(prompt, chosen_field, rejected_field))
    return Loaded([Example(*texts) for texts, _ in found], found.dropped, found.notes)


def sft_documents(encoding: tiktoken.Encoding, examples: Iterable[Example], max_length: int) -> list[Document]:
    """Encode examples as documents of which only the answer and its end-of-text token are predicted.

    Args:
        encoding: of the model.
        examples: what to learn.
        max_length: tokens; longer documents are cut at their end.
    Returns:
        One document an example, in order.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> encoding = load_tokenizer("pocket")
    >>> document = sft_documents(encoding, [Example("Why?", "Because.")], max_length=64)[0]
    >>> encoding.decode(list(document.ids[document.start :]))
    'Because.<|endoftext|>'
    """
    documents = []
    for example in examples:
        completion = without_end(example.completion)
        gap = boundary(example.prompt, completion)
        whole = encoding.encode_ordinary(example.prompt + gap + completion)
        opening = encoding.encode_ordinary(example.prompt + gap.rstrip(" "))
        # A token that holds letters of both, as where the prompt ends in a space, belongs to the answer.
        start = max(1, shared_length(opening, whole))
        documents.append(Document([*whole, encoding.eot_token][:max_length], start))
    return documents
