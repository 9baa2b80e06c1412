import itertools
import math
import random

import pytest
import tiktoken
import torch

from dpo_core.errors import InputError
from dpo_core.generate import encode_prompt, generate
from dpo_core.model import GPT, GPTConfig
from dpo_core.study.evaluate import _answer_kl, paired_bootstrap, parse_share, sample_kl, wilson_interval, win_rate
from dpo_core.tokenizer import END_OF_TEXT

EOS = 4


def letters() -> tiktoken.Encoding:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"\n": 3}
    return tiktoken.Encoding("letters", pat_str=r"\n|.", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: EOS})


def small_gpt(seed, vocab_size=5) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=vocab_size, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


# Wilson


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_of_newcombes_examples(wins, n, low, high):
    assert wilson_interval(wins, n, z=1.959964) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_the_ends_are_z_standard_errors_away():
    for end in wilson_interval(13, 40, z=1.7):
        assert abs(13 / 40 - end) == pytest.approx(1.7 * math.sqrt(end * (1 - end) / 40))


@pytest.mark.parametrize("n", [1, 3, 50, 100, 243])
def test_a_share_of_0_or_1_is_an_end_of_its_interval(n):
    assert (wilson_interval(0, n)[0], wilson_interval(n, n)[1]) == (0.0, 1.0)


def test_wilson_interval_is_symmetric_and_within_0_and_1():
    for n, wins in itertools.product((1, 5, 50), (0, 0.5, 1)):
        low, high = wilson_interval(wins, n)
        assert 0 <= low <= wins / n <= high <= 1
        assert wilson_interval(n - wins, n) == (pytest.approx(1 - high), pytest.approx(1 - low))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_wilson_interval_covers_the_truth_19_times_in_20(p):
    """Exact coverage at n = 50: a sum over the binomial, and a simulation of it within four standard errors."""
    n, rng, runs = 50, random.Random(0), 4000
    inside = [wilson_interval(wins, n)[0] <= p <= wilson_interval(wins, n)[1] for wins in range(n + 1)]
    exact = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if inside[k])
    assert 0.93 < exact < 0.975
    seen = sum(inside[sum(rng.random() < p for _ in range(n))] for _ in range(runs)) / runs
    assert abs(seen - exact) < 4 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(("wins", "n"), [(0, 0), (5, -1), (-1, 5), (6, 5), (float("nan"), 5)])
def test_wilson_interval_refuses(wins, n):
    with pytest.raises(InputError, match=r"at least one trial|wins must be between"):
        wilson_interval(wins, n)


# Win rate


def test_ties_count_half():
    result = win_rate([1.0, 2.0, 3.0, 4.0, 0.0], [0.0, 2.0, 3.0, 5.0, -1.0])
    assert (result.wins, result.ties, result.losses, result.n) == (2, 2, 1, 5)
    assert result.rate == pytest.approx(0.6)
    assert (result.low, result.high) == wilson_interval(3, 5)
    assert str(result) == "win rate 0.600 [0.231, 0.882] (2 wins, 2 ties, 1 losses, n = 5)"


def test_win_rate_of_the_other_side_is_the_rest():
    rng = random.Random(0)
    a, b = ([rng.randrange(4) for _ in range(60)] for _ in range(2))
    one, other = win_rate(a, b), win_rate(b, a)
    assert one.rate + other.rate == pytest.approx(1)
    assert (one.low, one.high) == (pytest.approx(1 - other.high), pytest.approx(1 - other.low))


@pytest.mark.parametrize("compare", [win_rate, paired_bootstrap])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "no scores"),
        ([1, 2], [1], "2 scores against 1"),
        ([1, float("nan")], [1, 2], "score 1 is not a number"),
        ([1, 2], [float("nan"), 2], "score 0 is not a number"),
    ],
)
def test_scores_that_cannot_be_compared(compare, a, b, message):
    with pytest.raises(InputError, match=message):
        compare(a, b)


# Bootstrap


def test_bootstrap_is_near_the_normal_interval_when_there_is_much_data():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, generator=generator, dtype=torch.float64)
    result = paired_bootstrap((a + 0.5).tolist(), b.tolist(), resamples=4000)
    difference = a + 0.5 - b
    error = (difference.std() / 20).item()
    assert result.mean == pytest.approx(difference.mean().item())
    assert result.low == pytest.approx(result.mean - 1.96 * error, abs=0.15 * error)
    assert result.high == pytest.approx(result.mean + 1.96 * error, abs=0.15 * error)


def test_bootstrap_pairs():
    """What both scores of a prompt share cancels: a constant gain has no spread, however prompts differ."""
    b = [float(i * i) for i in range(30)]
    result = paired_bootstrap([score + 1 for score in b], b, resamples=100)
    assert (result.mean, result.low, result.high) == (1.0, 1.0, 1.0)
    assert str(result) == "+1.000 [+1.000, +1.000]"


def test_bootstrap_covers_the_truth():
    """200 data sets of 40 pairs: 95 % less the percentile method's known shortfall, within four standard errors."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        a, b = torch.randn(2, 40, generator=generator)
        result = paired_bootstrap(a.tolist(), b.tolist(), resamples=300)
        covered += result.low <= 0 <= result.high
    assert abs(covered / 200 - 0.94) < 4 * math.sqrt(0.05 * 0.95 / 200)


def test_bootstrap_repeats_with_its_seed():
    a, b = [1.0, 4.0, 2.0, 8.0], [2.0, 2.0, 2.5, 3.0]
    assert paired_bootstrap(a, b, 200, seed=1) == paired_bootstrap(a, b, 200, seed=1)
    assert paired_bootstrap(a, b, 201, seed=1) != paired_bootstrap(a, b, 201, seed=2)


def test_bootstrap_refuses():
    with pytest.raises(InputError, match="at least two"):
        paired_bootstrap([1.0], [2.0])
    with pytest.raises(InputError, match="resamples must be at least 1, not 0"):
        paired_bootstrap([1.0, 2.0], [2.0, 1.0], resamples=0)


def test_parse_share():
    share, low, high = parse_share(["ab", "b", "ac", "aa"], lambda text: text.startswith("a"))
    assert share == 0.75
    assert (low, high) == wilson_interval(3, 4)
    with pytest.raises(InputError, match="at least one trial"):
        parse_share([], str.isalpha)


# KL


@torch.no_grad()
def exact_kl(policy, reference, prompt, max_new_tokens):
    """Σ p(y) log p(y)/q(y) over every answer: the textbook's sum, by enumeration."""
    start, total = encode_prompt(policy, letters(), prompt), 0.0
    unfinished = [([], 0.0, 0.0)]  # tokens, log p, log q
    for step in range(1, max_new_tokens + 1):
        grown = []
        for tokens, p, q in unfinished:
            ids = torch.tensor([start + tokens])
            next_p, next_q = (model(ids)[0, -1].log_softmax(-1).tolist() for model in (policy, reference))
            grown += [([*tokens, i], p + next_p[i], q + next_q[i]) for i in range(5)]
        ended = [row for row in grown if row[0][-1] == EOS or step == max_new_tokens]
        total += sum(math.exp(p) * (p - q) for _, p, q in ended)
        unfinished = [row for row in grown if row[0][-1] != EOS]
    return total


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3])
def test_sample_kl_is_the_exact_kl_within_its_error(max_new_tokens):
    policy, reference = small_gpt(0), small_gpt(1)
    exact = exact_kl(policy, reference, "ab", max_new_tokens)
    mean, error = sample_kl(policy, reference, letters(), ["ab"] * 2000, max_new_tokens=max_new_tokens, batch_size=500)
    assert exact > 0.05
    assert abs(mean - exact) < 4 * error + 1e-5  # one token: the estimate is exact, and the error 0
    assert error < 0.05 * exact


def test_sample_kl_averages_over_prompts_of_unequal_length():
    policy, reference = small_gpt(2), small_gpt(3)
    prompts = ["a", "cabbac", "bb"]
    exact = sum(exact_kl(policy, reference, prompt, 2) for prompt in prompts) / 3
    mean, error = sample_kl(policy, reference, letters(), prompts * 700, max_new_tokens=2, batch_size=64)
    assert abs(mean - exact) < 4 * error


def test_the_stated_error_is_the_spread_of_the_estimate():
    policy, reference = small_gpt(0), small_gpt(1)
    runs = [
        sample_kl(policy, reference, letters(), ["ab"] * 32, max_new_tokens=3, seed=seed, batch_size=32)
        for seed in range(100)
    ]
    means, errors = torch.tensor(runs).T
    assert means.std().item() == pytest.approx(errors.mean().item(), rel=0.3)  # 100 runs know it to 7 %


def test_it_varies_less_than_the_log_ratio_of_the_samples():
    """The reason for summing over the vocabulary: the log-ratio has the same mean and a larger spread."""
    policy, reference, n = small_gpt(0), small_gpt(1), 500
    _, error = sample_kl(policy, reference, letters(), ["ab"] * n, max_new_tokens=2)
    start, ratios = encode_prompt(policy, letters(), "ab"), []
    with torch.no_grad():
        for answer in generate(policy, letters(), ["ab"] * n, max_new_tokens=2, seed=0):
            ids = torch.tensor([start + answer.ids])
            log_ratio = policy(ids).log_softmax(-1) - reference(ids).log_softmax(-1)  # (1, T, V)
            steps = range(len(start) - 1, ids.shape[1] - 1)
            ratios.append(sum(log_ratio[0, t, ids[0, t + 1]].item() for t in steps))
    assert error < 0.8 * torch.tensor(ratios).std().item() / n**0.5


def test_sample_kl_of_a_model_with_itself_is_zero():
    assert sample_kl(small_gpt(0), small_gpt(0), letters(), ["ab", "c", "ba"] * 5) == (0.0, 0.0)


def test_chunks_of_the_head_change_nothing():
    policy, reference = small_gpt(0), small_gpt(1)
    samples = [([0, 1, 3], [2, 2, EOS]), ([3], [0, 1, 2, 3, 0]), ([1, 3], [EOS])]
    whole = _answer_kl(policy, reference, samples, 5)
    torch.testing.assert_close(_answer_kl(policy, reference, samples, 5, chunk=2), whole, atol=1e-5, rtol=0)
    alone = torch.cat([_answer_kl(policy, reference, [sample], 5) for sample in samples])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)


def test_sample_kl_refuses():
    with pytest.raises(InputError, match="at least two prompts, not 1"):
        sample_kl(small_gpt(0), small_gpt(1), letters(), ["ab"])
    with pytest.raises(InputError, match=r"policy has 5 tokens and the reference 6"):
        sample_kl(small_gpt(0), small_gpt(1, vocab_size=6), letters(), ["ab", "b"])
    with pytest.raises(InputError, match="blank"):
        sample_kl(small_gpt(0), small_gpt(1), letters(), ["ab", ""])
