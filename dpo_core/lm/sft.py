"""Supervised fine-tuning: documents for ``train_lm`` in which only the answer counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from dpo_core.errors import InputError
from dpo_core.formats.pairs import read_jsonl, read_pair, shared_length
from dpo_core.lm.pretrain import Document
from dpo_core.tokenizer import END_OF_TEXT, boundary

__all__ = ["Example", "load_examples", "sft_documents"]


@dataclass(frozen=True)
class Example:
    """A prompt and a good answer to it."""

    prompt: str
    completion: str


def load_examples(path: str | Path) -> list[Example]:
    """Read a JSONL file of ``prompt`` and ``completion``, or of preference pairs, whose chosen side is taken.

    Args:
        path: UTF-8, one JSON object a line.
    Returns:
        The examples in the file's order.
    Raises:
        InputError: as ``load_pairs``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "examples.jsonl"
    ...     _ = file.write_text('{"prompt": "Why?", "completion": "Because."}')
    ...     load_examples(file)
    [Example(prompt='Why?', completion='Because.')]
    """
    return [example for example, _ in read_jsonl(path, _read_example)]


def _read_example(record: dict) -> Example:
    if "completion" not in record:
        prompt, chosen, _ = read_pair(record)
        return Example(prompt, chosen)
    if record.get("label") is False:
        raise InputError('"label" is false, so the answer is not a good one; leave the line out')
    for name in ("prompt", "completion"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise InputError(f'"{name}" must be text that is not empty')
    return Example(record["prompt"], record["completion"])


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
        completion = example.completion.removesuffix(END_OF_TEXT)
        gap = boundary(example.prompt, completion)
        whole = encoding.encode_ordinary(example.prompt + gap + completion)
        opening = encoding.encode_ordinary(example.prompt + gap.rstrip(" "))
        # A token that holds letters of both, as where the prompt ends in a space, belongs to the answer.
        start = max(1, shared_length(opening, whole))
        documents.append(Document([*whole, encoding.eot_token][:max_length], start))
    return documents
