"""Text to tokens and back, with tiktoken.

There are two encodings: ``pocket`` (4,096 tokens, part of the package) and ``gpt2`` (50,257 tokens, fetched once by
tiktoken). The last id of both is the end-of-text token.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

import tiktoken

from dpo_core.errors import InputError
from dpo_core.formats.files import reason
from dpo_core.formats.hf_tokenizer import vocabulary_key

__all__ = [
    "END_OF_TEXT",
    "boundary",
    "check_encoding",
    "form_of",
    "in_form",
    "load_tokenizer",
    "open_prompt",
    "read_encoding",
    "vocabulary_of",
]

END_OF_TEXT = "<|endoftext|>"
HUMAN, ASSISTANT, SYSTEM = "\n\nHuman:", "\n\nAssistant:", "\n\nSystem:"  # the turns of a dialogue

# GPT-2's tokens before the end of text, and their ``vocabulary_key``: known without a look at the file of tiktoken.
GPT2_VOCABULARY = 50256, "863e4798da5fe838d0b6d469191a9b2761b0b3a792c1ce3b3fa61b7dc58fd3f0"

# How GPT-2 cuts text into words before merging bytes inside each: contractions, letters, digits, signs, space.
WORD_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def read_encoding(name: str, file: Path) -> tiktoken.Encoding:
    """Read an encoding from a file in tiktoken's format; it cuts text into words as GPT-2 does.

    Args:
        name: of the encoding.
        file: one token a line, in base64, and its rank.
    Returns:
        An encoding whose last id is the end-of-text token.
    Raises:
        InputError: the file cannot be read, or is of another format.
    """
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in map(str.split, lines)}
        if not lines or sorted(ranks.values()) != list(range(len(lines))):
            raise InputError("ranks must count from 0, each once")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a tokenizer's file ({reason(error)}); copy it again") from error
    return tiktoken.Encoding(
        name, pat_str=WORD_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )


def _pocket() -> tiktoken.Encoding:
    return read_encoding("pocket", Path(str(resources.files("dpo_core.pocket") / "tokenizer.tiktoken")))


def _gpt2() -> tiktoken.Encoding:
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests' errors, whatever the cause
        raise InputError(
            f"tiktoken could not fetch GPT-2's vocabulary ({type(error).__name__}); it needs the network once,"
            " or TIKTOKEN_CACHE_DIR pointing at a folder that holds it"
        ) from error


ENCODINGS = {"pocket": _pocket, "gpt2": _gpt2}


@lru_cache
def load_tokenizer(name: str) -> tiktoken.Encoding:
    """Load the encoding of this name, which turns text into token ids and back.

    Args:
        name: ``pocket`` or ``gpt2``; a model's is ``model.config.tokenizer``.
    Returns:
        A ``tiktoken.Encoding``; ``encode_ordinary`` never yields the end-of-text token, ``eot_token`` is its id.
    Raises:
        InputError: unknown name, or GPT-2's vocabulary could not be fetched.

    >>> enc = load_tokenizer("pocket")
    >>> enc.decode(enc.encode_ordinary("Why is the sky blue?"))
    'Why is the sky blue?'
    """
    if name not in ENCODINGS:
        raise InputError(f"unknown tokenizer {name!r}: there are {', '.join(ENCODINGS)}")
    return ENCODINGS[name]()


def vocabulary_of(name: str) -> tuple[int, str] | None:
    """Say what identifies an encoding's vocabulary, without the network.

    Args:
        name: as for ``load_tokenizer``.
    Returns:
        The number of its tokens before the end of text, which is the end of text's id, and their ``vocabulary_key``;
        nothing for an encoding that is none of ours.

    >>> vocabulary_of("gpt2")[0], vocabulary_of("pocket")[0], vocabulary_of("bytes")
    (50256, 4095, None)
    """
    if name == "gpt2":
        return GPT2_VOCABULARY
    if name not in ENCODINGS:
        return None
    encoding = load_tokenizer(name)
    return encoding.eot_token, vocabulary_key(map(encoding.decode_single_token_bytes, range(encoding.eot_token)))


def check_encoding(encoding: tiktoken.Encoding, name: str, vocab_size: int) -> None:
    """Refuse an encoding that is not the model's, since its ids would silently mean other tokens to the model.

    Args:
        encoding: to be used with a model.
        name: the model's, ``config.tokenizer``.
        vocab_size: tokens that the model knows.
    Raises:
        InputError: it is another one of ``load_tokenizer``'s, or has more tokens than the model.

    >>> check_encoding(load_tokenizer("pocket"), "pocket", 4096)
    """
    if not isinstance(encoding, tiktoken.Encoding):
        raise InputError(
            f"the tokenizer is a {type(encoding).__name__}, where a tiktoken.Encoding must be; use"
            " load_tokenizer(model.config.tokenizer)"
        )
    if encoding.name in set(ENCODINGS) - {name} or encoding.n_vocab > vocab_size:
        raise InputError(
            f"the encoding is {encoding.name!r} with {encoding.n_vocab} tokens, but the model's is {name!r} with"
            f" {vocab_size}; use load_tokenizer(model.config.tokenizer)"
        )


def boundary(prompt: str, *completions: str) -> str:
    """Choose the text to put between a prompt and its completions, so that words do not run together.

    Args:
        prompt: text before.
        completions: the answers to it.
    Returns:
        Nothing where white space already stands on either side; one space after a colon; otherwise a line break.

    >>> boundary("The sky is", " blue."), boundary("Why?", "Because."), boundary("Assistant:", "Hello!")
    ('', '\\n', ' ')
    """
    if prompt[-1:].isspace() or not prompt or any(text[:1].isspace() for text in completions):
        return ""
    return " " if prompt.endswith(":") else "\n"


def open_prompt(prompt: str) -> str:
    """Add to a prompt the boundary before its answer, so that ``generate`` can continue it.

    After a colon nothing is added: GPT-2 has one token for a space and the word after it, which then begins the answer.

    Args:
        prompt: text without an answer.
    Returns:
        The prompt, on a line of its own unless it ends in a colon or white space.

    >>> open_prompt("Why is the sky blue?"), open_prompt("Assistant:")
    ('Why is the sky blue?\\n', 'Assistant:')
    """
    return prompt if boundary(prompt) == " " else prompt + boundary(prompt)


def form_of(prompts: Sequence[str]) -> str:
    """Tell in what form a model is asked that these prompts train.

    Returns:
        ``dialogue`` if more than half of them end where an answer begins in a dialogue, otherwise ``plain``.

    >>> form_of(["\\n\\nHuman: Why?\\n\\nAssistant:"]), form_of(["Why?"])
    ('dialogue', 'plain')
    """
    asked = sum(prompt.rstrip().endswith(ASSISTANT) for prompt in prompts)
    return "dialogue" if 2 * asked > len(prompts) else "plain"


def in_form(prompt: str, form: str | None) -> str:
    """Put a prompt in the form of those that a model was trained on.

    Args:
        prompt: a question, or a dialogue, of which only what opens the answer may be missing.
        form: of ``form_of``, or what a record says of it; of another one nothing is known.

    >>> in_form("Why is the sky blue?", "dialogue")
    '\\n\\nHuman: Why is the sky blue?\\n\\nAssistant:'
    """
    text = "\n\n" + prompt.strip()
    if form != "dialogue" or not prompt.strip():
        return prompt
    if not text.startswith((HUMAN, SYSTEM)):
        text = f"{HUMAN} {prompt.strip()}"
    return text if text.rfind(ASSISTANT) > text.rfind(HUMAN) else text + ASSISTANT
