"""What the tests share: an encoding and a model so small that nothing has to be downloaded or waited for."""

import os
import shutil

import pytest
import tiktoken
import torch
from tiny import byte_encoding

from dpo_core.formats.pairs import PreferencePair
from dpo_core.model import GPT, GPTConfig

# Importing these changes torch for good; --doctest-modules would import them in the process of the other tests.
collect_ignore = ["pretend_cuda.py", "pretended"]


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


@pytest.fixture(scope="session")
def chromium():
    """A real browser without a window; where none is installed the test is skipped, except in CI, where it fails."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not path and not (os.environ.get("CI") or os.environ.get("REQUIRE_BROWSER")):
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    assert path, "CI has to have a Chromium: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
