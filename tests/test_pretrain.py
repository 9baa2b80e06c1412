import copy
import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import regex
import torch
from tiny import byte_encoding

from dpo_core.errors import InputError
from dpo_core.lm.pretrain import Document, LMConfig, _batches, language_model_loss, text_documents, train_lm
from dpo_core.lm.sft import Example, load_examples, sft_documents
from dpo_core.pocket.bpe import learn_bpe
from dpo_core.tokenizer import WORD_PATTERN, load_tokenizer

DOCUMENTS = [Document([5, 6, 7, 8, 9], 3), Document([1, 2, 3]), Document([4] * 12, 11), Document([9, 9])]


def expected_loss(model, documents):
    """One document at a time, one token at a time."""
    total, count = 0.0, 0
    for document in documents:
        log_probs = model(torch.tensor([list(document.ids)]))[0].log_softmax(-1)
        for t in range(document.start, len(document.ids)):
            total, count = total - log_probs[t - 1, document.ids[t]].item(), count + 1
    return total, count


# Loss


def test_loss_is_the_cross_entropy_of_the_tokens_that_count(tiny_model):
    loss, count = language_model_loss(tiny_model, DOCUMENTS)
    expected, tokens = expected_loss(tiny_model, DOCUMENTS)
    assert count == tokens == 2 + 2 + 1 + 1
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_padding_changes_neither_loss_nor_gradient(tiny_model):
    def gradient(groups):
        tiny_model.zero_grad()
        sum(language_model_loss(tiny_model, group)[0] for group in groups).backward()
        return torch.cat([p.grad.flatten() for p in tiny_model.parameters()])

    together, apart = gradient([DOCUMENTS]), gradient([[document] for document in DOCUMENTS])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_a_document_without_a_token_to_predict_adds_nothing(tiny_model):
    loss, count = language_model_loss(tiny_model, [Document([3]), Document([1, 2], start=2)])
    assert (loss.item(), count) == (0, 0)


# Batches


@pytest.mark.parametrize("tokens", [1, 40, 200, 10_000])
def test_batches_hold_every_document_once_and_no_more_than_fits(tokens):
    rng = random.Random(0)
    documents = [Document([i] * rng.randint(1, 60)) for i in range(100)]
    batches = _batches(documents, tokens, random.Random(1))
    assert sorted(d.ids[0] for batch in batches for d in batch) == list(range(100))
    for batch in batches:
        assert len(batch) == 1 or max(len(d.ids) for d in batch) * len(batch) <= tokens


def test_each_epoch_has_an_order_of_its_own_from_the_seed():
    documents = [Document([i] * 5) for i in range(40)]
    rng = random.Random(0)
    first, second = _batches(documents, 20, rng), _batches(documents, 20, rng)
    assert first != second and first == _batches(documents, 20, random.Random(0))


# Training


def test_loss_falls_to_that_of_what_can_be_known(tiny_model, encoding):
    """A text that repeats itself has no surprises; the same settings give the same losses."""
    documents = text_documents(encoding, "\n\n".join(["abcabcabcabc"] * 16), 64)
    config = LMConfig(epochs=60, tokens_per_batch=128, learning_rate=1e-2)
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    seen = []
    losses = train_lm(tiny_model, documents, config, progress=False, on_step=lambda *row: seen.append(row))
    assert losses[-1] < 0.1 < 2 < losses[0]
    assert seen[-1] == (len(losses), len(losses), losses[-1]) and not tiny_model.training
    tiny_model.load_state_dict(start)
    assert train_lm(tiny_model, documents, config, progress=False) == losses


@pytest.mark.parametrize(("epochs", "steps"), [(0.1, 1), (0.5, 2), (1, 4), (2.5, 10)])
def test_steps_follow_from_epochs(tiny_model, epochs, steps):
    documents = [Document([1, 2, 3, 4, 5])] * 8
    config = LMConfig(epochs=epochs, tokens_per_batch=10)
    assert len(train_lm(tiny_model, documents, config, progress=False)) == steps


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "nothing to train on"),
        ([Document([1]), Document([1, 2], start=2)], "nothing to train on"),
        ([Document([1] * 65)], "a document has 65 tokens, the model 64 positions"),
    ],
)
def test_what_cannot_be_learned_is_an_error(tiny_model, documents, message):
    with pytest.raises(InputError, match=message):
        train_lm(tiny_model, documents, LMConfig(), progress=False)


def test_a_run_that_diverges_ends_before_the_step(tiny_model):
    documents, before = [Document([1, 2, 3])], {k: v.clone() for k, v in tiny_model.state_dict().items()}
    tiny_model.wpe.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    with pytest.raises(InputError, match="loss or gradient of step 1 is not finite; lower the learning rate"):
        train_lm(tiny_model, documents, LMConfig(), progress=False)
    assert all(torch.equal(before[k], v) for k, v in tiny_model.state_dict().items())


# Documents


def test_text_documents_lose_nothing(encoding):
    text = "One.\n\n\n Two\nlines. \n\n \n\n" + "x" * 150
    documents = text_documents(encoding, text, max_length=64)
    assert [len(d.ids) for d in documents] == [5, 11, 64, 64, 23]
    whole = encoding.decode([token for d in documents for token in d.ids])
    assert whole == "<|endoftext|>".join(["One.", "Two\nlines.", "x" * 150, ""])
    assert text_documents(encoding, " \n\n ", max_length=64) == []


@pytest.mark.parametrize("prompt", ["Why?", "Why?\n", "Answer:", "Assistant: "])
def test_only_the_answer_and_its_end_count(prompt):
    encoding = load_tokenizer("pocket")
    document = sft_documents(encoding, [Example(prompt, "Because it is.")], max_length=64)[0]
    assert encoding.decode(list(document.ids[document.start :])).lstrip(" ") == "Because it is.<|endoftext|>"
    assert encoding.decode(list(document.ids[: document.start])).rstrip() == prompt.rstrip()
    assert document.ids[-1] == encoding.eot_token


def test_an_example_ends_in_one_end_of_text():
    encoding = load_tokenizer("pocket")
    given = [Example("Why?", "Because."), Example("Why?", "Because.<|endoftext|>")]
    plain, marked = sft_documents(encoding, given, max_length=64)
    assert plain == marked and plain.ids[-2:].count(encoding.eot_token) == 1


def test_long_examples_are_cut_at_their_end():
    encoding = load_tokenizer("pocket")
    whole, cut = (sft_documents(encoding, [Example("Why?", "Because. " * 20)], n)[0] for n in (500, 10))
    assert cut == replace(whole, ids=whole.ids[:10])


def test_examples_in_either_format(tmp_path):
    records = [
        {"prompt": "A?", "completion": "Yes."},
        {"prompt": "B?", "chosen": "Sure.", "rejected": "No."},
        {"chosen": "\n\nHuman: C?\n\nAssistant: Yes.", "rejected": "\n\nHuman: C?\n\nAssistant: No."},
    ]
    file = tmp_path / "examples.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    expected = [Example("A?", "Yes."), Example("B?", "Sure."), Example("\n\nHuman: C?\n\nAssistant:", "Yes.")]
    assert load_examples(file) == expected


@pytest.mark.parametrize(
    "record", [{"completion": "Yes."}, {"prompt": 1, "completion": "Yes."}, {"prompt": "A?", "completion": " "}]
)
def test_bad_examples_are_named(tmp_path, record):
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({"prompt": "A?", "completion": "Yes."}) + f"\n{json.dumps(record)}" * 2)
    with pytest.raises(InputError, match=r'examples.jsonl:2: (no )?"(prompt|completion)" '):
        load_examples(file)


def test_an_answer_marked_as_bad_is_not_learned(tmp_path):
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "completion": "Shut up.", "label": False}))
    with pytest.raises(InputError, match=r'examples.jsonl:1: "label" is false'):
        load_examples(file)


def test_a_document_with_nothing_to_predict_changes_nothing(tiny_model):
    documents, other = [Document([1, 2, 3, 4])] * 4, copy.deepcopy(tiny_model)
    losses = train_lm(tiny_model, documents, LMConfig(tokens_per_batch=10), progress=False)
    more = [*documents, Document([1] * 40, start=40)]
    assert train_lm(other, more, LMConfig(tokens_per_batch=10), progress=False) == losses
    assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), other.parameters()))


# Byte-pair encoding


def slow_bpe(words, size):
    """The definition: count all pairs anew for each merge."""
    ranks = {bytes([i]): i for i in range(256)}
    split = {word: [bytes([b]) for b in word.encode()] for word in words}
    while len(ranks) < size:
        counts = Counter()
        for word, tokens in split.items():
            for pair in pairwise(tokens):
                counts[pair] += words[word]
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        for word, tokens in split.items():
            merged = []
            for token in tokens:
                if merged and (merged[-1], token) == best:
                    merged[-1] += token
                else:
                    merged.append(token)
            split[word] = merged
    return ranks


@pytest.mark.parametrize("seed", range(5))
def test_bpe_learns_what_the_definition_says(seed):
    rng = random.Random(seed)
    words = {"".join(rng.choices("abcä", k=rng.randint(1, 8))): rng.randint(1, 9) for _ in range(40)}
    assert learn_bpe(words, size=300) == slow_bpe(words, size=300)


def test_bpe_ends_when_no_pair_is_left():
    assert len(learn_bpe({"abc": 1}, size=1000)) == 258
    assert len(learn_bpe({}, size=1000)) == 256


def test_any_text_survives_a_learnt_vocabulary():
    rng = random.Random(0)
    text = "Why is the sky blue? Because air scatters blue light; größer, 東京, 🙂! " * 3
    ranks = learn_bpe(Counter(regex.findall(WORD_PATTERN, text)), size=340)
    encoding = byte_encoding(*sorted(ranks, key=ranks.get)[256:])
    learnt = encoding.encode_ordinary(text)
    assert len(learnt) < len(text.encode()) / 2 and encoding.decode(learnt) == text
    letters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for encode in (encoding, load_tokenizer("pocket")):
        for _ in range(200):
            sample = "".join(rng.choices(letters, k=30)) + " ".join(rng.choices(text.split(), k=5))
            assert encode.decode(encode.encode_ordinary(sample)) == sample
