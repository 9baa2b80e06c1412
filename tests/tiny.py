"""An encoding and a model so small that nothing has to be downloaded, and nothing takes long."""

from pathlib import Path

import tiktoken
import torch

from dpo_core.model import GPT, GPTConfig
from dpo_core.tokenizer import END_OF_TEXT, load_tokenizer


def byte_encoding(*merges: bytes) -> tiktoken.Encoding:
    """One token per byte, then the merges, then the end of text."""
    ranks = {token: i for i, token in enumerate([*(bytes([i]) for i in range(256)), *merges])}
    return tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )


def save_small_model(folder: Path) -> Path:
    """A folder with a small random model that speaks the pocket vocabulary."""
    torch.manual_seed(0)
    GPT(GPTConfig(load_tokenizer("pocket").n_vocab, 256, 16, 1, 2, tokenizer="pocket")).save_pretrained(folder)
    return folder
