"""The methods' losses by the arithmetic of TRL's source (1.10.0.dev0, f2cd577), number by number; their settings."""

import math
import statistics
from dataclasses import fields, replace

import pytest
import torch

from dpo_core.errors import InputError
from dpo_core.rl.config import RLConfig
from dpo_core.rl.methods import METHODS, Rollout, gae_advantages, method_name

BETA, CLIP, LAMBDA = 0.5, 0.2, 0.9
LENGTHS = [3, 1, 2, 3]  # two prompts with two answers each
SCORES = [2.0, -1.0, 0.5, 3.0]
T = 3


def table(seed, scale=0.3, shift=-1.0):
    draw = torch.randn(4, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (shift + scale * draw) * MASK


MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
OLD, REFERENCE, NOW, VALUES = table(0), table(1), table(2), table(3, shift=0.5)
ROLLOUT = Rollout(
    MASK, torch.tensor(SCORES, dtype=torch.float64), OLD, REFERENCE, VALUES, torch.tensor(math.nan), torch.tensor(9 / 4)
)


def config(method, **settings):
    own = METHODS[method].own | {"beta": BETA, "samples_per_prompt": 2, "inner_epochs": 1}
    return RLConfig(method, **own | settings)


def losses(method, now=NOW, rollout=ROLLOUT, **settings):
    bundle, chosen = METHODS[method], config(method, **settings)
    return bundle.losses(now, rollout, bundle.advantages(rollout, chosen), chosen)


def rows(tensor):
    return [row[:length] for row, length in zip(tensor.tolist(), LENGTHS)]


def clipped(ratio, advantage):
    return -min(ratio * advantage, max(1 - CLIP, min(1 + CLIP, ratio)) * advantage)


KL = [sum(p) - sum(q) for p, q in zip(rows(OLD), rows(REFERENCE))]
PAID = [score - BETA * kl for score, kl in zip(SCORES, KL)]
ACROSS = [1, 0, 3, 2]  # the other answer to the same prompt


def test_rloo_clips_whole_answers_and_pays_for_the_kl_in_the_reward():
    expected = [
        clipped(math.exp(sum(now) - sum(old)), PAID[i] - PAID[ACROSS[i]])
        for i, (now, old) in enumerate(zip(rows(NOW), rows(OLD)))
    ]
    assert losses("rloo").tolist() == pytest.approx(expected)


def test_reinforce_takes_the_baseline_that_was_there_before_the_step():
    logps = [sum(row) for row in rows(NOW)]
    first = [-(paid - statistics.mean(PAID)) * logp for paid, logp in zip(PAID, logps)]
    assert losses("reinforce").tolist() == pytest.approx(first)
    later = replace(ROLLOUT, baseline=torch.tensor(0.25))
    expected = [-(paid - 0.25) * logp for paid, logp in zip(PAID, logps)]
    assert losses("reinforce", rollout=later).tolist() == pytest.approx(expected)


def grpo_advantage(i):
    pair = SCORES[i], SCORES[ACROSS[i]]
    return (pair[0] - statistics.mean(pair)) / (statistics.stdev(pair) + 1e-4)


def test_grpo_has_the_kl_in_the_loss_and_averages_over_the_answer():
    expected = []
    for i, (now, old, ref) in enumerate(zip(rows(NOW), rows(OLD), rows(REFERENCE))):
        tokens = [
            clipped(math.exp(n - o), grpo_advantage(i)) + BETA * (math.exp(r - n) - (r - n) - 1)
            for n, o, r in zip(now, old, ref)
        ]
        expected.append(sum(tokens) / len(tokens))
    assert losses("grpo").tolist() == pytest.approx(expected)


def test_dr_grpo_divides_by_a_constant_and_not_by_deviation_or_length():
    expected = []
    for i, (now, old) in enumerate(zip(rows(NOW), rows(OLD))):
        advantage = PAID[i] - statistics.mean((PAID[i], PAID[ACROSS[i]]))
        expected.append(sum(clipped(math.exp(n - o), advantage) for n, o in zip(now, old)) / 16)
    assert losses("dr_grpo", max_new_tokens=16).tolist() == pytest.approx(expected)


def ppo_by_hand():
    """GAE from rewards of tokens, not yet whitened."""
    found = []
    for i, (old, ref, values) in enumerate(zip(rows(OLD), rows(REFERENCE), rows(VALUES))):
        rewards = [-BETA * (o - r) for o, r in zip(old, ref)]
        rewards[-1] += SCORES[i]
        later, row = 0.0, []
        for t in reversed(range(len(old))):
            after = values[t + 1] if t + 1 < len(old) else 0.0
            later = rewards[t] + after - values[t] + LAMBDA * later
            row.insert(0, later)
        found.append(row)
    return found


def test_ppo_whitens_and_averages_over_all_tokens_of_the_step():
    raw = ppo_by_hand()
    every = [value for row in raw for value in row]
    mean, deviation = statistics.mean(every), math.sqrt(statistics.variance(every) + 1e-8)
    tokens = [
        clipped(math.exp(n - o), (a - mean) / deviation)
        for now, old, row in zip(rows(NOW), rows(OLD), raw)
        for n, o, a in zip(now, old, row)
    ]
    assert losses("ppo", gae_lambda=LAMBDA).mean().item() == pytest.approx(statistics.mean(tokens))


def test_the_critic_learns_advantages_before_they_are_whitened_plus_values():
    found = METHODS["ppo"].returns(ROLLOUT, config("ppo", gae_lambda=LAMBDA))
    expected = [[a + v for a, v in zip(*each)] for each in zip(ppo_by_hand(), rows(VALUES))]
    assert [pytest.approx(row) for row in expected] == rows(found)


def test_online_dpo_is_the_dpo_loss_of_the_better_and_the_worse_answer():
    now, ref = [sum(row) for row in rows(NOW)], [sum(row) for row in rows(REFERENCE)]
    expected = []
    for better, worse in ((0, 1), (3, 2)):  # by the scores
        margin = BETA * ((now[better] - ref[better]) - (now[worse] - ref[worse]))
        expected += [math.log(1 + math.exp(-margin))] * 2
    assert losses("online_dpo").tolist() == pytest.approx(expected)


def test_a_tie_teaches_online_dpo_nothing():
    tied = replace(ROLLOUT, scores=torch.tensor([1.0, 1.0, 0.5, 3.0], dtype=torch.float64))
    found = losses("online_dpo", rollout=tied).tolist()
    assert found[:2] == [0, 0] and found[2] > 0


@pytest.mark.parametrize("name", METHODS)
def test_descent_favours_the_answer_that_scored_better(name):
    now = OLD.clone().requires_grad_()
    rollout = replace(ROLLOUT, reference_logps=OLD, values=torch.zeros_like(OLD))
    losses(name, now, rollout).sum().backward()
    pushed = -(now.grad * MASK).sum(1)
    assert pushed[0] > pushed[1] and pushed[3] > pushed[2]
    assert (now.grad[~MASK] == 0).all()


@pytest.mark.parametrize("name", ["reinforce", "rloo", "dr_grpo", "ppo"])
def test_where_the_kl_stands_in_the_reward_the_loss_does_not_ask_the_reference(name):
    assert METHODS[name].kl == "reward"
    bundle, chosen = METHODS[name], config(name)
    advantages = bundle.advantages(ROLLOUT, chosen)
    other = replace(ROLLOUT, reference_logps=REFERENCE - 1)
    assert torch.equal(bundle.losses(NOW, ROLLOUT, advantages, chosen), bundle.losses(NOW, other, advantages, chosen))
    assert not torch.equal(bundle.advantages(other, chosen), advantages)


@pytest.mark.parametrize("name", ["grpo", "online_dpo"])
def test_where_it_stands_in_the_loss_the_advantages_do_not_ask_it(name):
    assert METHODS[name].kl == "loss"
    bundle, chosen = METHODS[name], config(name)
    other = replace(ROLLOUT, reference_logps=REFERENCE - 1 + OLD)
    assert torch.equal(bundle.advantages(other, chosen), bundle.advantages(ROLLOUT, chosen))
    assert not torch.equal(losses(name), losses(name, rollout=other))


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_a_part_is_the_part_of_the_loss(name):
    bundle, chosen = METHODS[name], config(name)
    advantages = bundle.advantages(ROLLOUT, chosen)
    whole = bundle.losses(NOW, ROLLOUT, advantages, chosen)
    parts = [bundle.losses(NOW[r], ROLLOUT.part(r), advantages[r], chosen) for r in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_prompts_advantages_are_those_of_its_own_answers():
    for name in ("rloo", "grpo", "dr_grpo", "online_dpo"):
        other = replace(ROLLOUT, scores=ROLLOUT.scores + torch.tensor([0.0, 0.0, 5.0, 1.0]))
        found = [METHODS[name].advantages(each, config(name)) for each in (ROLLOUT, other)]
        assert torch.equal(found[0][:2], found[1][:2])


# Settings


def test_each_setting_of_a_method_has_its_value():
    for name, method in METHODS.items():
        assert set(method.own) <= {found.name for found in fields(RLConfig)}, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "trpo"}, "unknown method 'trpo': there are reinforce, rloo, grpo, dr_grpo, ppo, online_dpo"),
        ({"method": "reinforce", "clip": 0.2}, "clip is 0.2, but the method reinforce has no such setting"),
        ({"method": "rloo", "gae_lambda": 0.9}, "gae_lambda is 0.9, but the method rloo has no such setting"),
        ({"method": "reinforce", "inner_epochs": 2}, "inner_epochs is 2; the method reinforce has no ratio"),
        ({"method": "rloo", "samples_per_prompt": 1}, "samples_per_prompt is 1; the method rloo needs at least 2"),
        ({"method": "online_dpo", "samples_per_prompt": 4}, "samples_per_prompt is 4; the method online_dpo needs 2"),
        ({"method": "online_dpo", "beta": 0.0}, "beta is 0; it must be above 0 for online_dpo"),
        ({"beta": -0.1}, "beta is -0.1; it must be a number of at least 0"),
        ({"steps": 0}, "steps is 0; it must be a whole number above 0"),
        ({"method": 3}, "method is 3; it must be the name of a method, or a Method"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        RLConfig(**settings)


def test_a_method_of_ones_own_is_taken_and_named_in_the_record(tiny_model):
    method = replace(METHODS["ppo"], advantages=gae_advantages)
    record = RLConfig(method).resolve(tiny_model).record()
    assert record["method"] == method_name(method) == "gae_advantages, ppo_losses"
    assert (record["gae_lambda"], record["inner_epochs"], record["samples_per_prompt"]) == (0.95, 4, 4)
