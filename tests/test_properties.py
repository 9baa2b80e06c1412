"""What holds for any input, tried on inputs that hypothesis draws; the draws are the same each time."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny import byte_encoding

from dpo_core.data import EncodedPair, audit_pairs, batches, by_length, collate, encode_pair, split_by_prompt
from dpo_core.errors import InputError, printable, shown
from dpo_core.formats.dialogues import shared_length
from dpo_core.formats.marks import without_end
from dpo_core.formats.pairs import PreferencePair, load_pairs, save_pairs
from dpo_core.formats.readers import read_pair
from dpo_core.generate import encode_prompt, filter_logits, generate
from dpo_core.kernels.head import head_logps
from dpo_core.logprobs import pair_logps, reference_logps, sequence_logps, token_logps
from dpo_core.losses import PairLogps, dpo_loss
from dpo_core.methods.family import LOSSES
from dpo_core.metrics import History, MetricSums, preference_metrics
from dpo_core.model import GPT, GPTConfig
from dpo_core.tokenizer import load_tokenizer

SETTINGS = {"derandomize": True, "deadline": None, "database": None}
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], **SETTINGS)
MANY = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], **SETTINGS)

ANY = st.text(st.characters(), max_size=30)  # any character, halves of characters included
TEXT = ANY.filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY, inner, max_size=4),
    max_leaves=8,
)
RECORD = st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "role", "content", "x"]), JSON, max_size=5)
TOKENS = st.lists(st.integers(0, 10), min_size=1, max_size=6)
ENCODED = st.builds(lambda p, c, r: EncodedPair(p, c, r, PreferencePair("", "", "")), TOKENS, TOKENS, TOKENS)
LOGP = st.floats(-300, 0, width=32)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, n_positions=32, n_embd=8, n_layer=2, n_head=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


# Text and files


@MANY
@given(st.lists(st.builds(PreferencePair, TEXT, TEXT, TEXT), min_size=1, max_size=4), st.booleans())
def test_pairs_of_any_text_come_back_from_the_disk(tmp_path, pairs, packed):
    file = tmp_path / "pairs.jsonl"
    save_pairs(file, pairs)
    if packed:
        content, file = gzip.compress(file.read_bytes()), tmp_path / "pairs.jsonl.gz"
        file.write_bytes(content)
    assert load_pairs(file) == pairs


@MANY
@given(st.binary(max_size=200) | st.lists(RECORD.map(json.dumps), max_size=3).map(lambda r: "\n".join(r).encode()))
def test_any_bytes_are_pairs_or_refused_with_a_remedy(tmp_path, content):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content)
    try:
        assert all(pair.prompt.strip() and pair.chosen.strip() and pair.rejected.strip() for pair in load_pairs(file))
    except InputError as error:
        assert str(file) in str(error) and ";" in str(error)


@MANY
@given(TEXT.map(str.strip).filter(bool), TEXT.map(str.strip).filter(bool), TEXT.map(str.strip).filter(bool))
def test_a_dialogue_says_the_same_in_every_format(prompt, chosen, rejected):
    assume(all("\n\nAssistant:" not in text and "\n\nHuman:" not in text for text in (prompt, chosen, rejected)))
    asked = {"role": "user", "content": prompt}
    answers = [{"role": "assistant", "content": text} for text in (chosen, rejected)]
    hh = f"\n\nHuman: {prompt}\n\nAssistant:"
    expected = (hh, chosen, rejected)
    assert read_pair({"prompt": [asked], "chosen": [answers[0]], "rejected": [answers[1]]}) == expected
    assert read_pair({"chosen": [asked, answers[0]], "rejected": [asked, answers[1]]}) == expected
    assert read_pair({"prompt": prompt, "chosen": [answers[0]], "rejected": [answers[1]]}) == expected
    assert read_pair({"chosen": f"{hh} {chosen}", "rejected": f"{hh} {rejected}"}) == expected


@MANY
@given(ANY)
def test_what_is_shown_cannot_steer_a_terminal(text):
    assert not set(map(ord, printable(text))) & {*range(9), *range(11, 32), 127, *range(128, 160), 0x202E}
    assert len(shown(text)) <= 40 * 10 and "\n" not in shown(text)
    printable(text).encode()


@MANY
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_from_tokens(text):
    encoding = load_tokenizer("pocket")
    ids = encoding.encode_ordinary(text)
    assert encoding.decode(ids) == text and encoding.eot_token not in ids


@MANY
@given(TEXT, TEXT, TEXT, st.sampled_from([b"", b" b", b"?\n"]))
def test_prompt_and_answer_are_encoded_as_the_model_meets_them(prompt, chosen, rejected, merge):
    encoding = byte_encoding(*[merge][: len(merge)])
    encoded = encode_pair(encoding, PreferencePair(prompt, chosen, rejected))
    other = encode_pair(encoding, PreferencePair(prompt, rejected, chosen))
    assert (other.prompt, other.chosen, other.rejected) == (encoded.prompt, encoded.rejected, encoded.chosen)
    assert encoded.prompt
    for text, ids in ((chosen, encoded.chosen), (rejected, encoded.rejected)):
        assert ids[-1] == encoding.eot_token and ids.count(encoding.eot_token) == 1
        whole = encoding.decode(encoded.prompt + ids[:-1])
        start, end = (encoding.decode(encoding.encode_ordinary(t)) for t in (prompt, without_end(text).strip()))
        assert whole.startswith(start) and whole.rstrip().endswith(end)
        assert not whole[len(start) :].rstrip().removesuffix(end).strip()


@MANY
@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_the_shared_length_is_the_longest(one, other):
    n = shared_length(one, other)
    assert one[:n] == other[:n] and (n == min(len(one), len(other)) or one[n] != other[n])


# Pairs that teach, order and batches


@MANY
@given(
    st.lists(st.builds(PreferencePair, *[st.sampled_from(["a", "b", "a b", "abc", "x" * 30])] * 3), min_size=1),
    st.integers(2, 40),
)
def test_an_audit_keeps_what_teaches_and_accounts_for_the_rest(pairs, max_length):
    encoding = byte_encoding()
    try:
        audit = audit_pairs(pairs, encoding, max_length)
    except InputError as error:
        assert "no preference pair is left" in str(error)
        return
    assert len(audit.kept) + len(audit.dropped) == len(pairs)
    times = Counter((e.pair.prompt, e.pair.chosen, e.pair.rejected) for e in audit.kept)
    every = {(pair.prompt, pair.chosen, pair.rejected) for pair in pairs}
    assert all(n == 1 or (prompt, rejected, chosen) in every for (prompt, chosen, rejected), n in times.items())
    for e in audit.kept:
        assert e.chosen != e.rejected and max(len(e.chosen), len(e.rejected)) + len(e.prompt) <= max_length
    for pair, reason in audit.dropped:
        assert pair.source and reason


@MANY
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 9))
def test_every_epoch_takes_every_pair_once(count, size, seed):
    epoch = math.ceil(count / size)
    drawn = list(islice(batches(count, size, seed), 2 * epoch))
    for part in (drawn[:epoch], drawn[epoch:]):
        assert sorted(i for batch in part for i in batch) == list(range(count))
    assert list(islice(batches(count, size, seed), epoch, 2 * epoch)) == drawn[epoch:]


@MANY
@given(st.lists(ENCODED, min_size=1, max_size=7), st.integers(1, 4))
def test_groups_by_length_lose_nothing_and_put_the_longest_first(encoded, size):
    groups = by_length(encoded, range(len(encoded)), size)
    lengths = [len(encoded[i]) for group in groups for i in group]
    assert sorted(i for group in groups for i in group) == list(range(len(encoded)))
    assert lengths == sorted(lengths, reverse=True) and all(len(group) == size for group in groups[:-1])


@MANY
@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=12), st.floats(0, 0.9), st.integers(0, 5))
def test_no_prompt_is_on_both_sides_of_a_split(prompts, share, seed):
    encoded = [EncodedPair([1], [2], [i], PreferencePair(prompt, "", "")) for i, prompt in enumerate(prompts)]
    try:
        train, held_out = split_by_prompt(encoded, share, seed)
    except InputError:
        assert len(set(prompts)) == 1 or round(share * len(set(prompts))) == len(set(prompts))
        return
    assert not {e.pair.prompt for e in train} & {e.pair.prompt for e in held_out}
    assert sorted([*train, *held_out], key=lambda e: e.rejected[0]) == encoded


# Log-probabilities


@torch.no_grad()
@FEW
@given(st.lists(ENCODED, min_size=1, max_size=4), st.randoms(use_true_random=False), st.integers(1, 40))
def test_one_row_a_pair_equals_two_rows_in_any_order_padding_and_chunk(model, encoded, random, chunk):
    expected = torch.zeros(len(encoded), 2)
    for i, e in enumerate(encoded):
        for side, answer in enumerate((e.chosen, e.rejected)):
            mask = torch.tensor([[0] * len(e.prompt) + [1] * len(answer)])
            expected[i, side] = sequence_logps(model, torch.tensor([e.prompt + answer]), mask)[0]
    assert (expected <= 1e-6).all()
    close(torch.stack(pair_logps(model, collate(encoded), chunk), 1), expected)
    order = list(range(len(encoded)))
    random.shuffle(order)
    close(torch.stack(pair_logps(model, collate([encoded[i] for i in order])), 1), expected[order])
    close(reference_logps(model, encoded, batch_size=random.randint(1, 5)), expected)


@torch.no_grad()
@FEW
@given(ENCODED, st.integers(0, 4), st.integers(0, 10))
def test_padding_and_what_stands_in_it_change_nothing(model, e, width, filling):
    ids = e.prompt + e.chosen
    mask = [0] * len(e.prompt) + [1] * len(e.chosen)
    plain = sequence_logps(model, torch.tensor([ids]), torch.tensor([mask]))
    close(sequence_logps(model, torch.tensor([ids + [filling] * width]), torch.tensor([mask + [0] * width])), plain)


@FEW
@given(st.integers(1, 9), st.integers(2, 12), st.integers(1, 20), st.integers(0, 99))
def test_the_head_in_chunks_has_the_same_values_and_gradients(count, vocabulary, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    states, weight = (torch.randn(n, 4, generator=generator, requires_grad=True) for n in (count, vocabulary))
    targets = torch.randint(vocabulary, (count,), generator=generator)
    found, plain = head_logps(states, weight, targets, chunk), token_logps(states @ weight.T, targets)
    close(found, plain)
    scale = torch.randn(count, generator=generator)
    for one, other in zip(*(torch.autograd.grad((out * scale).sum(), (states, weight)) for out in (found, plain))):
        close(one, other)
    every = torch.stack([token_logps(states @ weight.T, torch.full((count,), t)) for t in range(vocabulary)])
    close(every.exp().sum(0), torch.ones(count))  # a distribution


# Losses


def logps(four: list[float], lengths: tuple[int, int] = (3, 4)) -> PairLogps:
    values = [torch.tensor([value], dtype=torch.float64) for value in (*four, *lengths, 0.5)]
    return PairLogps(*values)


FOUR = st.lists(LOGP, min_size=4, max_size=4)
BETA = st.floats(0.01, 2)


@MANY
@given(FOUR, BETA, st.floats(-50, 50), st.floats(0, 0.49))
def test_a_constant_of_the_prompt_in_the_reference_changes_no_dpo_loss(four, beta, constant, smoothing):
    moved = [*four[:2], four[2] + constant, four[3] + constant]
    one, other = (
        dpo_loss(*(torch.tensor([v], dtype=torch.float64) for v in f), beta, smoothing) for f in (four, moved)
    )
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-9, atol=1e-9)
    margins = [out.chosen_rewards - out.rejected_rewards for out in (one, other)]
    torch.testing.assert_close(*margins, rtol=1e-9, atol=1e-9)


@MANY
@given(FOUR, BETA, st.floats(0, 0.49))
def test_the_identities_of_the_dpo_loss(four, beta, smoothing):
    def loss(f, *rest):
        return dpo_loss(*(torch.tensor(v, dtype=torch.float64) for v in f), *rest)

    right, wrong = loss(four, beta), loss([four[1], four[0], four[3], four[2]], beta)
    margin = (right.chosen_rewards - right.rejected_rewards).item()
    # log s(-m) = log s(m) - m: exchanging the answers adds the margin
    assert wrong.loss.item() - right.loss.item() == pytest.approx(margin, abs=1e-9)
    smooth = loss(four, beta, smoothing).loss.item()
    assert smooth == pytest.approx((1 - smoothing) * right.loss.item() + smoothing * wrong.loss.item(), abs=1e-9)
    assert smooth >= right.loss.item() + smoothing * margin - 1e-9
    half = loss([v / 2 for v in four], 2 * beta)  # only beta times the log-ratio counts
    assert half.loss.item() == pytest.approx(right.loss.item(), abs=1e-9)
    assert loss([four[2], four[3], *four[2:]], beta).loss.item() == pytest.approx(math.log(2))


@MANY
@given(FOUR, BETA, st.sampled_from(sorted(LOSSES)))
def test_every_loss_is_finite_judges_pairs_alone_and_has_the_rewards_of_its_kind(four, beta, name):
    one = LOSSES[name](logps(four), beta)
    both = LOSSES[name](PairLogps(*(torch.cat([getattr(logps(four), f), getattr(logps([-1.0, -2.0, -3.0, -1.0]), f)])
                                    for f in PairLogps.__dataclass_fields__)), beta)  # fmt: skip
    assert one.loss.isfinite().all() and not one.chosen_rewards.requires_grad
    torch.testing.assert_close(both.loss[:1], one.loss, rtol=1e-9, atol=1e-9)
    ratios = logps(four).chosen_ratios, logps(four).rejected_ratios
    if name not in ("simpo", "orpo"):
        torch.testing.assert_close(one.chosen_rewards, beta * ratios[0])
        torch.testing.assert_close(one.rejected_rewards, beta * ratios[1])


@MANY
@given(st.lists(FOUR, min_size=1, max_size=6), st.integers(1, 5), BETA)
def test_means_do_not_depend_on_how_pairs_are_divided(fours, cut, beta):
    columns = torch.tensor(fours, dtype=torch.float64).T
    whole, parts = MetricSums(), MetricSums()

    def metrics(c):
        logps = PairLogps(*c, *torch.ones(2, c.shape[1]))
        return preference_metrics(logps, LOSSES["dpo"](logps, beta))

    whole.add(metrics(columns))
    for part in (columns[:, :cut], columns[:, cut:]):
        if part.shape[1]:
            parts.add(metrics(part))
    assert set(parts.counts.values()) == set(whole.counts.values()) == {len(fours)}
    assert parts.means() == pytest.approx(whole.means(), rel=1e-6, abs=1e-6)


@MANY
@given(st.dictionaries(st.integers(0, 99), st.dictionaries(st.sampled_from(["loss", "a/b"]), st.floats()), max_size=5))
def test_a_history_comes_back_from_the_disk(tmp_path, rows):
    history = History()
    for step, metrics in sorted(rows.items()):
        history.log(step, **metrics)
    history.to_jsonl(tmp_path / "history.jsonl")
    assert repr(History.from_jsonl(tmp_path / "history.jsonl")) == repr(history)  # nan is not nan


# Sampling


@FEW
@given(st.lists(st.integers(-60, 60), min_size=2, max_size=8, unique=True), st.integers(1, 8), st.floats(0.05, 1))
def test_filters_keep_the_likeliest_and_nothing_else(values, top_k, top_p):
    logits = torch.tensor([values]) / 10
    kept = filter_logits(logits.clone(), 1.0, top_k, None).isfinite()[0]
    likeliest = logits[0].topk(min(top_k, len(values))).indices
    assert set(kept.nonzero().flatten().tolist()) == set(likeliest.tolist())
    kept = filter_logits(logits.clone(), 1.0, None, top_p).isfinite()[0]
    probs = logits[0].double().softmax(-1)
    order = probs.argsort(descending=True)
    mass, count = probs[kept].sum().item(), int(kept.sum())
    assert set(order[:count].tolist()) == set(kept.nonzero().flatten().tolist())
    assert mass >= top_p - 1e-5 and probs[order[: count - 1]].sum() < top_p + 1e-5


def test_samples_have_the_models_distribution(model):
    """Chi-square over the first token of 4,000 answers: wrong with a probability of 0.001 if the two are the same."""
    encoding = byte_encoding()
    torch.manual_seed(1)
    small = GPT(replace(model.config, vocab_size=encoding.n_vocab))
    with torch.no_grad():
        small.wte.weight.mul_(40)
        expected = small(torch.tensor([[*b"Q\n"]]))[0, -1].double().softmax(-1)
    count = 4000
    drawn = torch.tensor([a.ids[0] for a in generate(small, encoding, ["Q\n"] * count, max_new_tokens=1, seed=3)])
    seen = torch.bincount(drawn, minlength=encoding.n_vocab).double()
    often = count * expected >= 5  # the rest is one cell
    cells = [torch.cat([t[often], t[~often].sum()[None]]) for t in (seen, count * expected)]
    freedom = len(cells[0]) - 1
    statistic = ((cells[0] - cells[1]) ** 2 / cells[1]).sum().item()
    # Wilson and Hilferty (1931): the cube root of chi-square over its degrees is nearly normal.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert freedom >= 10 and abs(z) < 3.29


@torch.no_grad()
@FEW
@given(st.lists(st.binary(min_size=1, max_size=6).filter(bytes.strip), min_size=1, max_size=3), st.integers(1, 6))
def test_generating_with_the_cache_equals_without(prompts, longest):
    encoding = byte_encoding()
    torch.manual_seed(2)
    small = GPT(GPTConfig(encoding.n_vocab, 24, 8, 2, 2)).eval()
    for parameter in small.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    texts = [prompt.decode("latin-1") for prompt in prompts]
    assume(all(text.strip() for text in texts))
    answers = generate(small, encoding, texts, max_new_tokens=longest, temperature=0.0)
    for answer in answers:
        alone = generate(small, encoding, [answer.prompt], max_new_tokens=longest, temperature=0.0)[0]
        assert alone.ids == answer.ids  # nor do the neighbours matter
        ids = encode_prompt(small, encoding, answer.prompt)
        for token in answer.ids:
            assert small(torch.tensor([ids]))[0, -1].argmax().item() == token
            ids = [*ids, token]
