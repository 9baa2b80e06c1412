"""Tokenizers in Hugging Face layout: ours is written so that transformers opens it, one in a folder is compared.

Both of our encodings are byte-level BPE cut as GPT-2 cuts, so ``tokenizer.json`` says all of them. In such a file each
byte is written as a printable letter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from dpo_core.errors import InputError, shown
from dpo_core.formats.files import atomic_write, read_json, reason

__all__ = ["CHAT_TEMPLATES", "TOKENIZER_FILES", "added_tokens", "save_tokenizer", "vocabulary_key"]

# What a folder's tokenizer can lie in; the last ones are of kinds that are never GPT-2's.
FOREIGN = ("vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", *FOREIGN)

LARGEST = 2**26  # bytes of a tokenizer's file that are read; GPT-2's has 3.5 million

# How messages become text, by the form of the prompts in training. Both say what ``boundary`` and the reader of
# dialogues do, and end a finished answer in the end-of-text token.
CHAT_TEMPLATES = {
    "plain": """\
{%- set all = namespace(text='') -%}
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if all.text[-1:] | trim and not (content and not content[:1] | trim) -%}
{%- set content = (' ' if all.text[-1:] == ':' else '\\n') + content -%}
{%- endif -%}
{%- set all.text = all.text + content -%}
{{- content -}}
{%- if loop.last and message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and all.text[-1:] | trim and all.text[-1:] != ':' -%}{{- '\\n' -}}{%- endif -%}
""",
    "dialogue": """\
{%- set speakers = {'system': 'System', 'user': 'Human', 'assistant': 'Assistant'} -%}
{%- for message in messages -%}
{%- if message['role'] not in speakers -%}
{{- raise_exception('the roles are system, user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- set bare = message['content'].strip() -%}
{%- set lead = message['content'].rstrip() -%}
{%- set lead = lead[:lead | length - bare | length].split('\\n')[-1] -%}
{%- set lead = lead if lead[:1] == '\\t' or lead | length > 1 else '' -%}
{{- '\\n\\n' + speakers[message['role']] + ': ' + lead + bare -}}
{%- if loop.last and message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n\\nAssistant:' -}}{%- endif -%}
""",
}


def _letters() -> list[str]:
    """List the letter that GPT-2's files write for each byte: its own if that can be printed, otherwise a later one."""
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in own)
    moved = {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(moved.get(byte, byte)) for byte in range(256)]


LETTERS = _letters()
BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


def vocabulary_key(tokens: Iterable[bytes]) -> str:
    """Name a vocabulary by its tokens in the order of their ids, the end of text left out.

    >>> vocabulary_key([b"a", b"b"]) == vocabulary_key([b"b", b"a"])
    False
    """
    digest = hashlib.sha256()
    for token in tokens:
        digest.update(len(token).to_bytes(4, "big") + token)
    return digest.hexdigest()


# Writing


def save_tokenizer(encoding: tiktoken.Encoding, folder: str | Path, longest: int, form: str = "plain") -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, with which transformers gives the encoding's own ids.

    Args:
        encoding: of ``load_tokenizer``: it cuts text as GPT-2 does, and its last token is the end of text.
        folder: made if it is missing.
        longest: tokens that the model takes.
        form: of the prompts in training, a key of ``CHAT_TEMPLATES``.
    Raises:
        InputError: the folder cannot be written.

    >>> import tempfile
    >>> from dpo_core.tokenizer import load_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tokenizer(load_tokenizer("pocket"), folder, longest=512)
    ...     sorted(file.name for file in Path(folder).iterdir())
    ['tokenizer.json', 'tokenizer_config.json']
    """
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    ranks, end = {token: i for i, token in enumerate(tokens)}, encoding.decode([encoding.eot_token])
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": encoding.eot_token, "content": end, **plain, "special": True}],
        "normalizer": None,
        "pre_tokenizer": bytewise,
        "post_processor": None,
        "decoder": bytewise,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": {_written(token): i for token, i in ranks.items()} | {end: encoding.eot_token},
            "merges": [" ".join(map(_written, _parts(token, ranks))) for token in tokens if len(token) > 1],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes the file as it is, in every version
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), end),
        "padding_side": "left",  # an answer begins behind its prompt
        "model_max_length": longest,
        # No types of tokens, which older versions of transformers add and a GPT-2 embeds as if they were words.
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATES[form],
    }
    for name, content in (("tokenizer.json", described), ("tokenizer_config.json", config)):
        with atomic_write(Path(folder) / name) as partial:
            partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _written(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Find the two tokens that were merged into this one: what BPE makes of its bytes before the last merge."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        at = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


# Comparing


def added_tokens(folder: Path, name: str, size: int, key: str) -> dict[int, str]:
    """Read the tokens that a folder's tokenizer has beyond ours; a folder without a tokenizer has none.

    Args:
        folder: of a model.
        name: of our encoding, for messages.
        size: its tokens without the end of text, whose id this is.
        key: ``vocabulary_key`` of its tokens.
    Returns:
        Each such token by its id, as a pad token that was added.
    Raises:
        InputError: the tokenizer is another one, so that its ids would be read as other tokens.
    """
    found: dict[int, str] = {}
    files = [file for file in TOKENIZER_FILES if (folder / file).is_file()]
    readers = {"tokenizer.json": _from_json, "vocab.json": _from_vocabulary, "added_tokens.json": _from_added}
    try:
        if not {"tokenizer.json", "vocab.json"} & {*files} and {*FOREIGN} & {*files}:
            raise ValueError(f"{', '.join(file for file in FOREIGN if file in files)} is of another kind")
        for file in files:
            if reader := readers.get(file):
                vocabulary, merges = reader(folder)
                _compare(vocabulary, merges, size, key, file)
                found |= {i: token for token, i in vocabulary.items() if i > size}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, InputError):
            raise
        what = reason(error) if type(error) is ValueError else f"{file} is of another form than GPT-2's"
        raise InputError(
            f"{folder}: its tokenizer is not {name!r} ({what}), and with the ids of another tokenizer the model would"
            " read other words than were written; only models with the tokenizer of GPT-2 or of pocket can be used"
        ) from error
    return found


Vocabulary = tuple[dict[str, int], list[Any] | None]  # token to id, with those added; merges


def _from_json(folder: Path) -> Vocabulary:
    raw = read_json(folder / "tokenizer.json", LARGEST)
    model, cut = raw["model"], json.dumps(raw.get("pre_tokenizer"))
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"tokenizer.json is of the kind {shown(model['type'])}, not byte-level BPE")
    if raw.get("normalizer") or '"ByteLevel"' not in cut:
        raise ValueError("tokenizer.json changes or cuts the text otherwise")
    added = {token["content"]: token["id"] for token in raw.get("added_tokens") or []}
    return model["vocab"] | added, model["merges"]


def _from_vocabulary(folder: Path) -> Vocabulary:
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    return read_json(folder / "vocab.json", LARGEST), [line for line in lines if line[:9] != "#version:" and line]


def _from_added(folder: Path) -> Vocabulary:
    return read_json(folder / "added_tokens.json", LARGEST), None


def _compare(vocabulary: dict[str, int], merges: Sequence[Any] | None, size: int, key: str, file: str) -> None:
    """Raise ``ValueError`` where tokens or merges differ; without merges these are tokens that were added alone."""
    if merges is None:
        if min(vocabulary.values(), default=size) < size:
            raise ValueError(f"{file} gives other tokens the ids below {size}")
        return
    by_id = {i: token for token, i in vocabulary.items()}
    base = [by_id.get(i) for i in range(size)]
    spelled = [bytes(BYTES.get(letter, 0) for letter in token or "") for token in base]
    if vocabulary_key(spelled) != key or len(by_id) < len(vocabulary):
        raise ValueError(f"{file} has {len(vocabulary):,} tokens, and they are others")
    if by_id.get(size) != "<|endoftext|>":
        raise ValueError(f"{file} has {shown(by_id.get(size))} where the end of text must be, at {size}")
    joined = [pair.replace(" ", "", 1) if isinstance(pair, str) else "".join(pair) for pair in merges]
    if joined != [token for token in base if len(token or "") > 1]:
        raise ValueError(f"{file if file != 'vocab.json' else 'merges.txt'} merges in another order")
