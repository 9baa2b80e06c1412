"""An encoding so small that nothing has to be downloaded."""

import tiktoken

from dpo_core.tokenizer import END_OF_TEXT


def byte_encoding(*merges: bytes) -> tiktoken.Encoding:
    """One token per byte, then the merges, then the end of text."""
    ranks = {token: i for i, token in enumerate([*(bytes([i]) for i in range(256)), *merges])}
    return tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )
