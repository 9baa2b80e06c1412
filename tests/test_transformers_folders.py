"""Folders as transformers writes them, read by us, and ours, opened by transformers; without it, all is skipped."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_tokenizer import gpt2_or_skip

from dpo_core.data import encode_pair
from dpo_core.errors import InputError
from dpo_core.formats.hf_tokenizer import save_tokenizer
from dpo_core.formats.pairs import PreferencePair, load_pairs
from dpo_core.generate import encode_prompt, generate
from dpo_core.model import GPT, GPTConfig
from dpo_core.pocket.corpus import dialogues
from dpo_core.runs.checkpoint import save_trained
from dpo_core.tokenizer import in_form, load_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

SHAPE = {"n_positions": 64, "n_embd": 4, "n_layer": 2, "n_head": 2}
IDS = torch.randint(50257, (2, 24), generator=torch.Generator().manual_seed(1))


def theirs(vocab_size: int = 50257, **changed: object):
    """A small random GPT-2 of transformers."""
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=vocab_size, **SHAPE | changed)).eval()


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory) -> Path:
    """GPT-2's tokenizer in the two files in which it was published; tiktoken keeps a copy of them."""
    from tiktoken.load import read_file_cached

    gpt2_or_skip()
    folder, at = tmp_path_factory.mktemp("gpt2"), "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    (folder / "vocab.json").write_bytes(read_file_cached(at + "encoder.json"))
    (folder / "merges.txt").write_bytes(read_file_cached(at + "vocab.bpe"))
    return folder


@pytest.fixture
def gpt2_tokenizer(gpt2_files):
    return transformers.GPT2TokenizerFast.from_pretrained(gpt2_files)


def own_tokenizer():
    """A byte-level BPE of a user's own, as trained with the library tokenizers."""
    import tokenizers

    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["to be or not to be, that is the question"] * 9, 400, special_tokens=["<|endoftext|>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")


@torch.no_grad()
def same_logits(folder: Path, model, atol: float = 1e-5) -> GPT:
    ours = GPT.from_pretrained(folder)
    torch.testing.assert_close(ours(IDS), model(IDS).logits, atol=atol, rtol=0)
    return ours


def trained(folder: Path, to: Path, form: str = "plain") -> Path:
    """What a training of that model would leave, but for the weights."""
    save_trained(GPT.from_pretrained(folder), to / "final", to / "adapter", {"form": form})
    return to / "final"


# Nine kinds of folders


def test_gpt2_with_its_own_tokenizer_is_read_without_a_word(tmp_path, gpt2_tokenizer, caplog):
    model = theirs()
    model.save_pretrained(tmp_path)
    gpt2_tokenizer.save_pretrained(tmp_path)
    same_logits(tmp_path, model)
    assert not caplog.records


def test_gpt2_with_the_published_files_is_read(tmp_path, gpt2_files):
    model = theirs()
    model.save_pretrained(tmp_path)
    for file in gpt2_files.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    same_logits(tmp_path, model)


def test_a_pad_token_that_was_added_stays_and_the_end_is_the_encodings(tmp_path, gpt2_tokenizer, caplog):
    model = theirs()
    gpt2_tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(gpt2_tokenizer))
    model.config.pad_token_id = gpt2_tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "m")
    gpt2_tokenizer.save_pretrained(tmp_path / "m")
    same_logits(tmp_path / "m", model)
    assert "1 tokens of its own that are not used: [PAD]" in caplog.text
    config = transformers.AutoConfig.from_pretrained(trained(tmp_path / "m", tmp_path))
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (50256, 50256, 50257)


def test_a_vocabulary_padded_to_a_round_number_keeps_gpt2s_end(tmp_path):
    """As nanoGPT's, without a tokenizer."""
    model = theirs(50304)
    model.save_pretrained(tmp_path / "m")
    same_logits(tmp_path / "m", model)
    final = trained(tmp_path / "m", tmp_path)
    assert transformers.GenerationConfig.from_model_config(
        transformers.AutoConfig.from_pretrained(final)
    ).eos_token_id == 50256  # fmt: skip


def test_a_tokenizer_of_its_own_is_refused(tmp_path):
    theirs(50257).save_pretrained(tmp_path)
    own_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"its tokenizer is not 'gpt2' \(tokenizer.json has \d+ tokens, and they are"):
        GPT.from_pretrained(tmp_path)


def test_a_vocabulary_of_bert_is_refused(tmp_path):
    theirs().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]))
    with pytest.raises(InputError, match=r"its tokenizer is not 'gpt2' \(vocab.txt is of another kind"):
        GPT.from_pretrained(tmp_path / "m")


def test_weights_in_shards_are_read(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    same_logits(tmp_path, model)


def test_training_args_beside_the_weights_are_left_alone(tmp_path, caplog):
    model = theirs()
    model.save_pretrained(tmp_path)
    torch.save({"learning_rate": 1e-5}, tmp_path / "training_args.bin")
    same_logits(tmp_path, model)
    assert "training_args.bin was not opened, as it can be a pickle" in caplog.text


def test_weights_in_a_pickle_are_refused(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds pytorch_model.bin and no safetensors; .* save the model as"):
        GPT.from_pretrained(tmp_path)


def test_bfloat16_is_read(tmp_path):
    model = theirs().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    same_logits(tmp_path, model.float())


@pytest.mark.parametrize(("change", "message"), [
    ({"activation_function": "relu"}, 'activation_function is "relu", but only'),
    ({"n_inner": 8}, "shapes do not fit config.json"),
    ({"add_cross_attention": True}, "tensors are unknown"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
])  # fmt: skip
def test_gpt2_that_computes_otherwise_is_refused(tmp_path, change, message):
    theirs(**change).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        GPT.from_pretrained(tmp_path)


# Ours in transformers


def prompts() -> list[tuple[str, str]]:
    """200 prompts with answers: of the pocket world, and of letters, signs and white space of all kinds."""
    pools = [
        "abc XYZ '.,:\n\t09",
        "don't we'll I'M",
        "äßñçøЖ",
        "漢字かな",
        "😀🏳️‍🌈½",
        "\u00a0\u2028\u3000x",
        "  \n\n  y",
    ]
    rng, made = random.Random(0), []
    while len(made) < 100:
        prompt, answer = ("".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 40))) for _ in "ab")
        if prompt.strip() and answer.strip():
            made.append((prompt + rng.choice(["", ":", "\n", " "]), answer))
    return [(dialogue.prompt, dialogue.answer) for dialogue in islice(dialogues(seed=0), 100)] + made


@pytest.fixture(scope="module", params=["pocket", "gpt2"])
def encoding(request):
    return gpt2_or_skip() if request.param == "gpt2" else load_tokenizer("pocket")


@pytest.mark.parametrize("form", ["plain", "dialogue"])
def test_the_chat_template_gives_the_very_ids_of_our_encoding(tmp_path, encoding, form):
    """Of 200 prompts with their answers, and of the prompts alone, as generate asks them."""
    save_tokenizer(encoding, tmp_path, 1024, form)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (len(tokenizer), tokenizer.eos_token_id) == (encoding.n_vocab, encoding.eot_token)
    assert [*tokenizer("Why?")] == ["input_ids", "attention_mask"]
    turns = [
        ([{"role": "user", "content": prompt}], {"role": "assistant", "content": answer})
        for prompt, answer in prompts()
    ]
    if form == "dialogue":  # as they come from a file of messages
        other = [{"role": "assistant", "content": "Another."}]
        lines = [{"prompt": asked, "chosen": [answer], "rejected": other} for asked, answer in turns]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        pairs = load_pairs(tmp_path / "pairs.jsonl")
    else:
        pairs = [PreferencePair(asked[0]["content"], answer["content"], answer["content"]) for asked, answer in turns]
    assert len(pairs) == 200
    model = GPT(GPTConfig(encoding.n_vocab, 1024, 2, 1, 1, tokenizer=encoding.name))
    for pair, (asked, answer) in zip(pairs, turns):
        own = encode_pair(encoding, pair)
        ids = tokenizer.apply_chat_template([*asked, answer], tokenize=True, return_dict=True)["input_ids"]
        assert ids == own.prompt + own.chosen, pair
        opened = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert opened == encode_prompt(model, encoding, in_form(pair.prompt, form)), pair


def test_any_text_has_the_same_ids(tmp_path, encoding):
    save_tokenizer(encoding, tmp_path, 1024)
    tokenizer, rng = transformers.AutoTokenizer.from_pretrained(tmp_path), random.Random(1)
    for _ in range(500):
        text = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xD000), 32, 10])) for _ in range(30))
        assert tokenizer(text)["input_ids"] == encoding.encode_ordinary(text), text
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_dialogue_of_several_turns_has_the_ids_of_training(tmp_path, encoding):
    save_tokenizer(encoding, tmp_path, 1024, "dialogue")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    roles = ["system", "user", "assistant", "user"]
    asked = [{"role": role, "content": f" Say {i}. "} for i, role in enumerate(roles)]
    line = {name: [*asked, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line))
    own = encode_pair(encoding, load_pairs(tmp_path / "pairs.jsonl")[0])
    ids = tokenizer.apply_chat_template(line["rejected"], return_dict=True)["input_ids"]
    assert ids == own.prompt + own.rejected


def test_a_role_that_training_does_not_know_is_refused(tmp_path):
    save_tokenizer(load_tokenizer("pocket"), tmp_path, 1024, "dialogue")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(Exception, match="the roles are system, user and assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "3"}], tokenize=False)


def test_the_pipeline_says_what_generate_says_and_stops_where_it_does(tmp_path):
    """The shipped model, with tokens added that no text has, so that the end of text is not the last one."""
    model, encoding = GPT.from_pretrained("pocket"), load_tokenizer("pocket")
    state = model.state_dict()
    state["wte.weight"] = torch.cat([state["wte.weight"], state["wte.weight"][:64]])  # bytes that are never said
    wide = GPT(GPTConfig(**{**vars(model.config), "vocab_size": 4160, "eos_token_id": None}))
    wide.load_state_dict(state)
    save_trained(wide, tmp_path / "final", tmp_path / "adapter", {"form": "plain"})
    asked = ["Why is the sky blue?", "What is a river?", "How do birds fly?"]
    pipeline = transformers.pipeline("text-generation", model=str(tmp_path / "final"))
    own = generate(model, encoding, asked, temperature=0, max_new_tokens=160)
    assert all(answer.ended for answer in own)
    chats = [[{"role": "user", "content": prompt}] for prompt in asked]
    said = pipeline(chats, do_sample=False, max_new_tokens=160, batch_size=3)
    assert [answer[0]["generated_text"][-1]["content"] for answer in said] == [answer.text for answer in own]
    plain = pipeline("Why is the sky blue?\n", do_sample=False, max_new_tokens=160, return_full_text=False)
    assert plain[0]["generated_text"] == own[0].text

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path / "final")(
        "Why is the sky blue?\n", return_tensors="pt"
    )
    ids = theirs.generate(**inputs, do_sample=False, max_new_tokens=160)[0, inputs["input_ids"].shape[1] :].tolist()
    assert ids == own[0].ids and ids[-1] == encoding.eot_token
