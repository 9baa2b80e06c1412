"""Folders of models as people have them, made by hand: tokenizers, parts, pickles beside, ids, names on the Hub."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_tokenizer import gpt2_or_skip

from dpo_core.errors import InputError
from dpo_core.formats.hf_layout import find_checkpoint, on_hub
from dpo_core.formats.hf_tokenizer import added_tokens, save_tokenizer, vocabulary_key
from dpo_core.model import GPT, GPTConfig
from dpo_core.runs.checkpoint import save_trained
from dpo_core.tokenizer import ENCODINGS, load_tokenizer, vocabulary_of

POCKET = load_tokenizer("pocket")
KNOWN = ("pocket", *vocabulary_of("pocket"))


def small(**shape) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{"vocab_size": 4096, "n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2,
                            "tokenizer": "pocket"} | shape)).eval()  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model with its tokenizer."""
    small().save_pretrained(tmp_path / "model")
    save_tokenizer(POCKET, tmp_path / "model", 128)
    return tmp_path / "model"


def change(file: Path, edit) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def as_two_files(folder: Path) -> None:
    """The older form of a tokenizer."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *model["merges"], ""]), encoding="utf-8")
    (folder / "tokenizer.json").unlink()


# Tokenizers


def test_gpt2s_vocabulary_is_known_without_its_files():
    encoding = gpt2_or_skip()
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    assert (
        vocabulary_of("gpt2") == (len(tokens), vocabulary_key(tokens)) == (encoding.eot_token, vocabulary_key(tokens))
    )


def test_gpt2s_tokenizer_is_written_as_it_was_published(tmp_path):
    """The very tokens and merges, from the files of which tiktoken keeps a copy."""
    from tiktoken.load import read_file_cached

    gpt2_or_skip()
    save_tokenizer(load_tokenizer("gpt2"), tmp_path, 1024)
    written = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    at = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    merges = read_file_cached(at + "vocab.bpe").decode().splitlines()[1:]
    assert written["merges"] == merges and written["vocab"] == json.loads(read_file_cached(at + "encoder.json"))
    assert added_tokens(tmp_path, "gpt2", *vocabulary_of("gpt2")) == {}


def test_our_own_tokenizer_is_accepted_in_both_forms(folder):
    assert added_tokens(folder, *KNOWN) == {}
    as_two_files(folder)
    assert added_tokens(folder, *KNOWN) == {}
    assert GPT.from_pretrained(folder).config.tokenizer == "pocket"


def test_a_folder_without_a_tokenizer_is_taken_at_its_word(tmp_path):
    assert added_tokens(tmp_path, *KNOWN) == {}


def test_added_tokens_are_accepted_and_named(folder, caplog):
    change(folder / "tokenizer.json", lambda t: t["added_tokens"].append({"id": 4096, "content": "[PAD]\x1b"}))
    (folder / "added_tokens.json").write_text('{"<|im_start|>": 4097}')
    GPT.from_pretrained(folder)
    assert "its tokenizer has 2 tokens of its own that are not used: [PAD]\\u001b, <|im_start|>" in caplog.text


def swap(vocabulary: dict[str, int]) -> None:
    vocabulary["the"], vocabulary["and"] = vocabulary["and"], vocabulary["the"]


def two_files(edit):
    def changed(folder: Path) -> None:
        as_two_files(folder)
        edit(folder)

    return changed


def only(name: str):
    def changed(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / name).write_bytes(b"[PAD]\n[UNK]\n")

    return changed


def in_json(edit):
    return lambda folder: change(folder / "tokenizer.json", edit)


def fewer(tokenizer: dict) -> None:
    tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items())[:300])
    del tokenizer["model"]["merges"][44:]


FOREIGN = {
    "tokens at other ids": (in_json(lambda t: swap(t["model"]["vocab"])), "tokenizer.json has 4,096 tokens, and they"),
    "fewer tokens": (in_json(fewer), "has 301 tokens, and they are others"),
    "merges in another order": (in_json(lambda t: t["model"]["merges"].reverse()), "json merges in another order"),
    "another kind": (in_json(lambda t: t["model"].update(type="WordPiece")), 'of the kind "WordPiece"'),
    "letters made small": (in_json(lambda t: t.update(normalizer={"type": "Lowercase"})), "changes or cuts the text"),
    "cut at white space": (in_json(lambda t: t.update(pre_tokenizer={"type": "Whitespace"})), "cuts the text other"),
    "another end of text": (
        in_json(lambda t: (t["added_tokens"].clear(), t["model"]["vocab"].pop("<|endoftext|>"))),
        "has null where the end of text must be, at 4095",
    ),
    "no model in it": (in_json(lambda t: t.pop("model")), "tokenizer.json is of another form"),
    "a list for a model": (in_json(lambda t: t.update(model=[])), "tokenizer.json is of another form"),
    "ids as text": (
        in_json(lambda t: t["model"].update(vocab={token: str(i) for token, i in t["model"]["vocab"].items()})),
        "tokenizer.json is of another form|they are others",
    ),
    "two files, other ids": (two_files(lambda f: change(f / "vocab.json", swap)), "vocab.json has 4,096 tokens, and"),
    "two files, other merges": (
        two_files(lambda f: (f / "merges.txt").write_text("#version: 0.2\nt h\n")), "merges.txt merges in another",
    ),
    "two files, one lost": (two_files(lambda f: (f / "merges.txt").unlink()), "vocab.json is of another form"),
    "added in the midst": (
        lambda f: (f / "added_tokens.json").write_text('{"[PAD]": 7}'), "other tokens the ids below 4095",
    ),
    "words of BERT": (only("vocab.txt"), "vocab.txt is of another kind"),
    "pieces of sentences": (only("spiece.model"), "spiece.model is of another kind"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_tokenizer_of_its_own_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        GPT.from_pretrained(folder)
    assert str(folder) in str(caught.value) and "not 'pocket'" in str(caught.value)
    assert "only models with the tokenizer of GPT-2 or of pocket" in str(caught.value)


def test_a_tokenizer_that_is_no_json_is_refused(folder):
    (folder / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match=r"tokenizer\.json: not readable as JSON"):
        GPT.from_pretrained(folder)


# Parts


def in_parts(folder: Path) -> None:
    """The weights in three files, with their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    told = {key: names[i % 3] for i, key in enumerate(tensors)} | {LN: names[1]}
    for name in names:
        save_file({key: tensors[key] for key in tensors if told[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": told}))


def test_weights_in_parts_are_read(folder):
    whole = GPT.from_pretrained(folder).state_dict()
    in_parts(folder)
    parts = GPT.from_pretrained(folder).state_dict()
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def index(edit):
    return lambda folder: change(folder / "model.safetensors.index.json", edit)


LN = "transformer.ln_f.bias"
PARTS = {
    "a part lost": (
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        r"no model-00002-of-00003\.safetensors, which model\.safetensors\.index\.json names; copy all parts",
    ),
    "a part cut off": (
        lambda f: (f / "model-00002-of-00003.safetensors").write_bytes(b"\x00"), "00002-of-00003.safetensors: not a",
    ),
    "a path out of the folder": (
        index(lambda i: i["weight_map"].update({LN: "../model.safetensors"})),
        r'names "\.\./model\.safetensors", which is no safetensors file beside it',
    ),
    "a pickle as a part": (
        index(lambda i: i["weight_map"].update({LN: "pytorch_model.bin"})), 'names "pytorch_model.bin", which is no',
    ),
    "a tensor elsewhere": (
        index(lambda i: i["weight_map"].update({LN: "model-00001-of-00003.safetensors"})),
        "tensors lie elsewhere than it says: transformer.ln_f.bias$",
    ),
    "a tensor that is not told of": (index(lambda i: i["weight_map"].pop(LN)), "elsewhere than it says: .*ln_f.bias$"),
    "no map": (index(lambda i: i.pop("weight_map")), "has no weight_map of tensors and files"),
    "a map of numbers": (index(lambda i: i.update(weight_map={LN: 1})), "has no weight_map of tensors and files"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), PARTS.values(), ids=PARTS)
def test_parts_that_do_not_fit_are_refused(folder, damage, message):
    in_parts(folder)
    damage(folder)
    with pytest.raises(InputError, match=message):
        GPT.from_pretrained(folder)


# The end of text


def ids_in(folder: Path) -> dict[str, object]:
    raw = json.loads((folder / "config.json").read_text())
    return {name: raw[f"{name}_token_id"] for name in ("bos", "eos", "pad")}


@pytest.mark.parametrize("vocab_size", [50257, 50258, 50304])
def test_the_end_of_text_is_the_encodings_whatever_the_vocabulary(tmp_path, vocab_size):
    small(vocab_size=vocab_size, n_embd=2, n_head=1, tokenizer="gpt2").save_pretrained(tmp_path)
    assert ids_in(tmp_path) == {"bos": 50256, "eos": 50256, "pad": 50256}


def test_ids_of_the_loaded_model_are_handed_on_and_the_end_is_the_one_that_was_trained(folder, tmp_path):
    change(folder / "config.json", lambda c: c.update(pad_token_id=7, bos_token_id=5, eos_token_id=9))
    GPT.from_pretrained(folder).save_pretrained(tmp_path / "next")
    assert ids_in(tmp_path / "next") == {"bos": 5, "eos": 4095, "pad": 7}


@pytest.mark.parametrize("odd", [-1, 4096, "7", [7], None, True, 7.0])
def test_ids_that_are_none_are_not_handed_on(folder, tmp_path, odd):
    change(folder / "config.json", lambda c: c.update(pad_token_id=odd))
    GPT.from_pretrained(folder).save_pretrained(tmp_path / "next")
    assert ids_in(tmp_path / "next")["pad"] == 4095


def test_of_an_encoding_that_is_not_ours_the_models_own_end_is_kept(tmp_path):
    small(tokenizer="bytes", vocab_size=300, eos_token_id=256).save_pretrained(tmp_path)
    assert ids_in(tmp_path) == {"bos": None, "eos": 256, "pad": None}


# Names


def test_a_name_on_the_hub_is_no_path_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert on_hub("gpt2-xl") and on_hub("openai-community/gpt2") and on_hub("some.one/gpt_2-small.v1")
    for name in ("pocket", "one/final", "one/adapter", "a/b/c", "./one", "../one", "one", "", "/one", "one/", "a b/c"):
        assert not on_hub(name), name
    (tmp_path / "one").mkdir()
    assert not on_hub("one/two"), "a folder of that name is there"


def test_a_mistaken_path_asks_nobody(tmp_path, monkeypatch):
    """Where the first folder is there, or the last one is named as ours are, no network is asked."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/two", "elsewhere/final"):
        with pytest.raises(InputError, match=rf"no model '{name}': .* nor the full id of a model on the Hub"):
            find_checkpoint(name)


def test_another_gpt2_of_the_hub_is_read_by_its_full_id(folder, monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def snapshot_download(repo, allow_patterns):
        asked[repo] = allow_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    model = GPT.from_pretrained("someone/gpt2-tiny")
    assert model.origin == "someone/gpt2-tiny" and list(asked) == ["someone/gpt2-tiny"]
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked["someone/gpt2-tiny"])
    swapped = folder / "tokenizer.json"
    change(swapped, lambda t: swap(t["model"]["vocab"]))
    with pytest.raises(InputError, match="its tokenizer is not 'pocket'"):  # as of any folder
        GPT.from_pretrained("someone/gpt2-tiny")


def test_a_model_that_the_hub_does_not_have_is_named(monkeypatch, tmp_path):
    import huggingface_hub

    def snapshot_download(repo, allow_patterns):
        raise OSError("404 Client Error")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"nobody/none is no folder here, .* could not be fetched .*404.*check the spelling"
    ):
        GPT.from_pretrained("nobody/none")


# A final folder


def test_without_gpt2s_vocabulary_a_trained_model_is_written_all_the_same(tmp_path, monkeypatch, caplog):
    def unreachable() -> None:
        raise InputError("tiktoken could not fetch GPT-2's vocabulary")

    monkeypatch.setitem(ENCODINGS, "gpt2", unreachable)
    load_tokenizer.cache_clear()
    save_trained(small(vocab_size=50257, tokenizer="gpt2"), tmp_path / "final", tmp_path / "adapter", {})
    assert "has no tokenizer for other programs (tiktoken could not fetch" in caplog.text
    assert ids_in(tmp_path / "final")["eos"] == 50256 and (tmp_path / "final" / "training.json").exists()


def test_an_encoding_that_is_not_ours_gets_no_tokenizer(tmp_path):
    model = small(tokenizer="bytes", vocab_size=300)
    save_trained(model, tmp_path / "final", tmp_path / "adapter", {"form": "plain"})
    assert {file.name for file in (tmp_path / "final").iterdir()} == {
        "config.json",
        "model.safetensors",
        "training.json",
    }
