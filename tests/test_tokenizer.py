import base64
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import regex

from dpo_core.errors import InputError
from dpo_core.tokenizer import END_OF_TEXT, WORD_PATTERN, boundary, load_tokenizer, open_prompt, read_encoding

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    "Why is the sky blue?",
    "I'm sure they'll've gone, won't you?",
    "  two  spaces,\ttabs\n\n\nand lines \n",
    "x = 3.14159; y=[1,2]  # 100%",
    "Grüße, 世界! 👩‍🚀 été ½ ﬁ",
    "\n\nHuman: Hello!\n\nAssistant: Hi.",
    "",
]


@pytest.fixture(scope="module", params=["pocket", "gpt2"])
def encoding(request):
    return gpt2_or_skip() if request.param == "gpt2" else load_tokenizer("pocket")


def gpt2_or_skip():
    """GPT-2's encoding; without it the test is skipped, or fails where .ci/run has a copy of it beside the checkout."""
    try:
        return load_tokenizer("gpt2")
    except InputError as error:
        if os.environ.get("REQUIRE_BROWSER") and (ROOT.parent / "shared" / "data").is_dir():
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(encoding, text):
    assert encoding.decode(encoding.encode_ordinary(text)) == text


def test_any_text_comes_back(encoding):
    rng = random.Random(0)
    pools = ["abc XYZ '.,\n\t09", "äßñçøЖ", "漢字かな", "😀🏳️‍🌈", "\x00\x7f\u00a0\u2028"]
    for _ in range(300):
        text = "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(40)))
        assert encoding.decode(encoding.encode_ordinary(text)) == text


def test_the_end_of_text_is_the_last_id_and_never_comes_from_text(encoding):
    assert encoding.eot_token == encoding.n_vocab - 1
    assert encoding.decode([encoding.eot_token]) == END_OF_TEXT
    assert encoding.eot_token not in encoding.encode_ordinary(f"a{END_OF_TEXT}b")
    assert encoding.encode(END_OF_TEXT, allowed_special="all") == [encoding.eot_token]


def test_the_pocket_encoding_is_small_and_knows_its_bytes():
    encoding = load_tokenizer("pocket")
    assert 3500 < encoding.n_vocab <= 4200
    assert sorted(encoding.decode_single_token_bytes(i) for i in range(256)) == [bytes([i]) for i in range(256)]


def test_gpt2s_known_ids():
    assert gpt2_or_skip().encode_ordinary("Hello, world! The sky is blue.") == [
        15496, 11, 995, 0, 383, 6766, 318, 4171, 13,
    ]  # fmt: skip


def test_our_files_are_cut_as_gpt2_cuts(tmp_path):
    """GPT-2's own merges, written in tiktoken's format and read back by us, give GPT-2's ids."""
    gpt2 = gpt2_or_skip()
    lines = [f"{base64.b64encode(gpt2.decode_single_token_bytes(i)).decode()} {i}\n" for i in range(gpt2.eot_token)]
    (tmp_path / "gpt2.tiktoken").write_text("".join(lines))
    ours = read_encoding("copy", tmp_path / "gpt2.tiktoken")
    assert (ours.n_vocab, ours.eot_token) == (50257, 50256)
    for text in TEXTS:
        assert ours.encode_ordinary(text) == gpt2.encode_ordinary(text)
    for text in (*TEXTS, "  two, 22 \n\n", "it's\t\tthe end  "):  # releases of tiktoken spell the pattern otherwise
        assert regex.findall(WORD_PATTERN, text) == regex.findall(gpt2._pat_str, text)


def test_an_encoding_is_made_once():
    assert load_tokenizer("pocket") is load_tokenizer("pocket")


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="unknown tokenizer 'gpt4': there are pocket, gpt2"):
        load_tokenizer("gpt4")


def test_no_network_is_a_clear_error(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    code = (
        "from dpo_core.errors import InputError\n"
        "from dpo_core.tokenizer import load_tokenizer\n"
        "try:\n    load_tokenizer('gpt2')\n"
        "except InputError as error:\n    print(error)\n"
    )
    proxies = {f"{scheme}_proxy": closed for scheme in ("http", "https")}
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environment = kept | proxies | {"TIKTOKEN_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "could not fetch GPT-2's vocabulary" in result.stdout, result.stderr
    assert "TIKTOKEN_CACHE_DIR" in result.stdout


@pytest.mark.parametrize(
    ("prompt", "completions", "expected"),
    [
        ("Why?", ["Because."], "\n"),
        ("Why?", ["Because.", "So."], "\n"),
        ("Why?", [], "\n"),
        ("Why?", [" Because."], ""),
        ("Why?", ["\nBecause."], ""),
        ("Why?\n", ["Because."], ""),
        ("Why? ", ["Because."], ""),
        ("\n\nAssistant:", ["Hi."], " "),
        ("\n\nAssistant:", [" Hi."], ""),
        ("\n\nAssistant:", [], " "),
        ("", ["Hi."], ""),
    ],
)
def test_boundary(prompt, completions, expected):
    assert boundary(prompt, *completions) == expected


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [("Why?", "Why?\n"), ("Why?\n", "Why?\n"), ("Assistant:", "Assistant:"), ("Assistant: ", "Assistant: "), ("", "")],
)
def test_open_prompt(prompt, opened):
    assert open_prompt(prompt) == opened


@pytest.mark.parametrize(
    "prompt", ["Why is the sky blue?", "Name three planets:", "\n\nHuman: Hi\n\nAssistant:", "Say it.\n"]
)
def test_an_opened_prompt_begins_the_text_a_model_is_trained_on(encoding, prompt):
    opened = encoding.encode_ordinary(open_prompt(prompt))
    for answer in ("Because it is.", "- one\n- two", "42"):
        whole = encoding.encode_ordinary(prompt + boundary(prompt, answer) + answer)
        assert whole[: len(opened)] == opened
