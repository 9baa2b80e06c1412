import itertools
import sys
from collections import Counter

import pytest
import tiktoken
import torch

from dpo_core.errors import InputError
from dpo_core.generate import Generation, _answer, encode_prompt, filter_logits, generate
from dpo_core.model import GPT, GPTConfig
from dpo_core.tokenizer import END_OF_TEXT, load_tokenizer

LETTERS = {b"a": 0, b"b": 1, b"c": 2, b"\n": 3}
EOS = 4
PROMPTS = ["a", "cabba", "bb", "abcabcabc", "c", "bcacb"]


def letters() -> tiktoken.Encoding:
    """Three letters, a line break and the end of text: small enough to enumerate every answer."""
    return tiktoken.Encoding("letters", pat_str=r"\n|.", mergeable_ranks=LETTERS, special_tokens={END_OF_TEXT: EOS})


def small_gpt(seed=0, **shape) -> GPT:
    """Weights large enough that the next-token distributions are far from flat."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{"vocab_size": 5, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2} | shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@torch.no_grad()
def greedy(model, ids, max_new_tokens):
    """Greedy decoding without cache or batch."""
    new = []
    while len(new) < max_new_tokens and EOS not in new:
        new.append(int(model(torch.tensor([ids + new]))[0, -1].argmax()))
    return new


# Greedy


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_the_argmax_without_cache_alone_and_in_a_batch(seed):
    model, encoding = small_gpt(seed), letters()
    expected = [greedy(model, encode_prompt(model, encoding, prompt), 12) for prompt in PROMPTS]
    batched = generate(model, encoding, PROMPTS, temperature=0, max_new_tokens=12)
    alone = [generate(model, encoding, [prompt], temperature=0, max_new_tokens=12)[0] for prompt in PROMPTS]
    by_two = generate(model, encoding, PROMPTS, temperature=0, max_new_tokens=12, batch_size=2)
    assert [answer.ids for answer in batched] == expected
    assert batched == alone == by_two
    assert [answer.prompt for answer in batched] == PROMPTS


def test_rows_of_a_batch_end_at_different_times():
    """The seeds above do exercise the batch from which rows have left."""
    lengths = set()
    for seed in range(4):
        answers = generate(small_gpt(seed), letters(), PROMPTS, temperature=0, max_new_tokens=12)
        lengths |= {len(answer.ids) for answer in answers}
    assert len(lengths) >= 3, lengths


def test_log_probs_with_cache_and_padding_equal_those_without():
    model, encoding, seen = small_gpt(1), letters(), []
    prompts = [encode_prompt(model, encoding, prompt) for prompt in PROMPTS]
    script = torch.tensor([[0, 1, 2, 3, 0, 1, EOS, 0]] * len(PROMPTS))
    script[1, 2] = script[4, 5] = EOS  # two rows leave early

    def choose(logits):
        seen.append(logits.log_softmax(-1))
        return next(rows)

    running = [[r for r in range(len(PROMPTS)) if EOS not in script[r, :t]] for t in range(7)]
    rows = (script[running[t], t] for t in range(7))
    answers = [Generation("", [], False, prompt) for prompt in PROMPTS]
    _answer(model, encoding, prompts, answers, choose, 8, ())
    assert len(seen) == 7
    for step, log_probs in enumerate(seen):
        for row, got in zip(running[step], log_probs, strict=True):
            alone = model(torch.tensor([prompts[row] + script[row, :step].tolist()]))[0, -1].log_softmax(-1)
            torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)


def test_a_real_tokenizer_and_any_text():
    encoding = load_tokenizer("pocket")
    model = small_gpt(vocab_size=encoding.n_vocab, n_positions=64, tokenizer="pocket")
    prompts = ["Why is the sky blue?", "Human: Hello!\n\nAssistant:", "Grüße, 世界"]
    answers = generate(model, encoding, prompts, temperature=0, max_new_tokens=6)
    for prompt, answer in zip(prompts, answers):
        assert answer == generate(model, encoding, [prompt], temperature=0, max_new_tokens=6)[0]
        assert answer.text == encoding.decode([i for i in answer.ids if i != encoding.eot_token])


# Sampling


def filtered(model, ids, **settings):
    with torch.no_grad():
        return filter_logits(model(torch.tensor([ids]))[0, -1], **settings).softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.8},
        {"temperature": 1.5, "top_k": 4, "top_p": 0.9},
    ],
    ids=str,
)
def test_two_sampled_tokens_follow_the_filtered_distribution(settings):
    """Total variation over all two-token answers; for n samples of k outcomes its mean is below sqrt(k/n)/2."""
    model, encoding, n = small_gpt(3), letters(), 20_000
    start = encode_prompt(model, encoding, "ab")
    first = filtered(model, start, **settings)
    expected = {(EOS,): float(first[EOS])}
    for a, b in itertools.product(range(4), range(5)):
        expected[a, b] = float(first[a] * filtered(model, [*start, a], **settings)[b])
    assert sum(expected.values()) == pytest.approx(1)

    answers = generate(model, encoding, ["ab"] * n, max_new_tokens=2, seed=0, batch_size=5_000, **settings)
    counts = Counter(tuple(answer.ids) for answer in answers)
    assert all(expected[outcome] > 0 for outcome in counts)
    distance = sum(abs(counts[outcome] / n - p) for outcome, p in expected.items()) / 2
    assert distance < (len(expected) / n) ** 0.5  # 0.032


def test_the_same_seed_gives_the_same_answers_and_leaves_the_global_state():
    model, encoding = small_gpt(), letters()
    state = torch.get_rng_state()
    first = generate(model, encoding, PROMPTS, seed=5)
    assert generate(model, encoding, PROMPTS, seed=5) == first
    assert generate(model, encoding, PROMPTS, seed=6) != first
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    free = generate(model, encoding, PROMPTS)
    torch.manual_seed(1)
    assert generate(model, encoding, PROMPTS) == free


def test_top_k_one_and_a_tiny_temperature_are_greedy():
    model, encoding = small_gpt(), letters()
    expected = generate(model, encoding, PROMPTS, temperature=0)
    assert generate(model, encoding, PROMPTS, top_k=1) == expected
    assert generate(model, encoding, PROMPTS, temperature=1e-30) == expected
    assert generate(model, encoding, PROMPTS, top_p=1e-6) == expected


# filter_logits


def test_temperature_divides_the_logits():
    logits = torch.tensor([[1.0, 2.0, 5.0], [0.0, 0.0, -4.0]])
    torch.testing.assert_close(filter_logits(logits, 2.0).softmax(-1), (logits / 2).softmax(-1))


def test_top_k_keeps_k_and_renormalises():
    probs = filter_logits(torch.tensor([0.1, 0.4, 0.2, 0.3]).log(), top_k=2).softmax(-1)
    torch.testing.assert_close(probs, torch.tensor([0, 4 / 7, 0, 3 / 7]))
    assert filter_logits(torch.zeros(4), top_k=100).isfinite().all()


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, 1), (0.45, 2), (0.69, 2), (0.75, 3), (0.95, 4), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_hold_the_share(top_p, kept):
    probs = torch.tensor([0.1, 0.4, 0.2, 0.3])
    got = filter_logits(probs.log(), top_p=top_p).softmax(-1)
    chosen = probs >= probs.sort(descending=True).values[kept - 1]
    torch.testing.assert_close(got, probs * chosen / probs[chosen].sum())


def test_top_p_counts_what_top_k_left():
    # Of 0.5 and 0.3, renormalised, the first alone holds 0.625.
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert filter_logits(logits, top_k=2, top_p=0.6).isfinite().tolist() == [True, False, False]
    assert filter_logits(logits, top_p=0.6).isfinite().tolist() == [True, True, False]


def test_top_p_of_one_cuts_nothing_of_a_large_vocabulary():
    logits = torch.randn(50_257, generator=torch.Generator().manual_seed(0)) * 5
    assert filter_logits(logits, top_p=1.0).isfinite().all()


# Ends


def test_the_end_of_text_is_in_ids_and_not_in_text():
    answers = generate(small_gpt(), letters(), ["ab"] * 200, seed=0, max_new_tokens=5)
    assert {answer.ended for answer in answers} == {True, False}
    for answer in answers:
        assert answer.ended == (answer.ids[-1] == EOS)
        assert EOS not in answer.ids[:-1]
        assert len(answer.text) == len(answer.ids) - answer.ended
        assert answer.ended or len(answer.ids) == 5


@pytest.mark.parametrize("stop", [["b"], ["ca", "bb"], ["\n"], ["bc", "abc", "b\n"]], ids=str)
def test_an_answer_is_cut_before_the_first_stop(stop):
    free = generate(small_gpt(), letters(), ["ab"] * 100, seed=0, temperature=2.0, max_new_tokens=20, batch_size=1)
    cut = generate(small_gpt(), letters(), ["ab"], seed=0, temperature=2.0, max_new_tokens=20, batch_size=1, stop=stop)
    at = min((free[0].text.index(text) for text in stop if text in free[0].text), default=None)
    assert cut[0].text == free[0].text[:at]

    answers = generate(small_gpt(), letters(), ["ab"] * 300, seed=0, temperature=2.0, max_new_tokens=20, stop=stop)
    stopped = [answer for answer in answers if answer.ended and answer.ids[-1] != EOS]
    assert len(stopped) > 30
    encoding = letters()
    for answer in answers:
        assert not any(text in answer.text for text in stop)
    for answer in stopped:
        whole = encoding.decode(answer.ids)
        assert answer.text == whole[: min(whole.index(text) for text in stop if text in whole)]
        assert any(whole.endswith(text) for text in stop)


def test_an_answer_ends_where_the_context_does():
    model, encoding = small_gpt(n_positions=12), letters()
    prompts = ["abcabcabca", "a", "abcabc"]  # 11, 2 and 7 tokens with the line break
    answers = generate(model, encoding, prompts, temperature=0, max_new_tokens=100)
    for prompt, answer in zip(prompts, answers):
        ids = encode_prompt(model, encoding, prompt)
        assert answer.ids == greedy(model, ids, 12 - len(ids))
        assert answer.ended == (EOS in answer.ids)


# The model


def test_dropout_is_off_and_the_mode_comes_back():
    model, encoding = small_gpt(dropout=0.5), letters()
    expected = generate(model, encoding, PROMPTS, temperature=0)
    assert not model.training
    model.train()
    assert generate(model, encoding, PROMPTS, temperature=0) == expected
    assert model.training and model.h[0].training


def test_no_gradient_is_kept():
    model = small_gpt()
    generate(model, letters(), ["ab"], seed=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tokens_that_only_the_model_knows_are_not_sampled():
    answers = generate(small_gpt(vocab_size=9), letters(), ["ab"] * 100, seed=0, temperature=3.0)
    assert max(max(answer.ids) for answer in answers) <= EOS


def test_no_prompts_no_answers():
    assert generate(small_gpt(), letters(), []) == []


@pytest.mark.parametrize(("count", "terminal", "shown"), [(3, True, True), (2, True, False), (3, False, False)])
def test_a_bar_is_for_terminals_and_several_batches(capsys, monkeypatch, count, terminal, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    generate(small_gpt(), letters(), ["a"] * count, batch_size=2, max_new_tokens=2)
    assert ("batch" in capsys.readouterr().err) is shown


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ["ab", ""]}, "blank"),
        ({"prompts": ["ab", " \n"]}, "blank"),
        ({"prompts": ["ab", "c" * 31]}, "32 tokens.*32 positions"),
        ({"prompts": "ab"}, "prompts is the text 'ab'"),
        ({"stop": "ab"}, "stop is the text 'ab'"),
        ({"stop": ["a", ""]}, "stop is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -0.1}, "temperature must be 0 .* not -0.1"),
        ({"temperature": float("nan")}, "temperature .* not nan"),
        ({"temperature": float("inf")}, "temperature .* not inf"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.1}, "top_p .* not 1.1"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    ],
    ids=str,
)
def test_what_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        generate(small_gpt(), letters(), **{"prompts": ["ab"]} | change)


def test_an_encoding_with_more_tokens_than_the_model_is_refused():
    with pytest.raises(InputError, match=r"'letters' with 5 tokens, but the model's is .* with 4; use load_tokenizer"):
        generate(small_gpt(vocab_size=4), letters(), ["ab"])


def test_the_longest_prompt_that_fits_gets_one_token():
    assert len(generate(small_gpt(), letters(), ["c" * 30])[0].ids) == 1
