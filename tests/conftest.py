"""What the tests share: an encoding and a model so small that nothing has to be downloaded or waited for."""

import pytest
import tiktoken
import torch

from dpo_core.data import PreferencePair
from dpo_core.model import GPT, GPTConfig
from dpo_core.tokenizer import END_OF_TEXT


def byte_encoding(*merges: bytes) -> tiktoken.Encoding:
    """One token per byte, then the merges, then the end of text."""
    ranks = {token: i for i, token in enumerate([*(bytes([i]) for i in range(256)), *merges])}
    return tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )


@pytest.fixture(scope="session")
def encoding() -> tiktoken.Encoding:
    return byte_encoding()


@pytest.fixture
def tiny_model(encoding) -> GPT:
    """Random weights, large enough that every position and every token matters to the output."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=encoding.n_vocab, n_positions=64, n_embd=16, n_layer=2, n_head=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.eval()


@pytest.fixture
def pairs() -> list[PreferencePair]:
    """Ten pairs with ten prompts and answers of unlike lengths; the chosen ones are capitals."""
    return [
        PreferencePair(f"Ask {i}?", "YES " * (1 + i % 3) + "OK", "no " * (1 + i % 4) + "way", f"pairs.jsonl:{i + 1}")
        for i in range(10)
    ]
