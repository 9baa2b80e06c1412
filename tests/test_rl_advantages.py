"""Advantages by hand arithmetic; where TRL has the formula, by the arithmetic of its source (1.10.0.dev0, f2cd577)."""

import math
import statistics

import pytest
import torch

from dpo_core.errors import InputError
from dpo_core.rl.advantages import (
    gae,
    grpo_advantages,
    moving_baseline,
    reinforce_advantages,
    rloo_advantages,
    whiten,
)

GROUPS = [[1.0, 2.0, 6.0, 3.0], [0.5, -1.0, 0.0, 4.5]]
REWARDS = torch.tensor(GROUPS, dtype=torch.float64)


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), **tolerance)


def test_a_better_answer_has_the_greater_advantage_whatever_the_method():
    for found in (
        reinforce_advantages(REWARDS),
        rloo_advantages(REWARDS),
        grpo_advantages(REWARDS),
        grpo_advantages(REWARDS, scale=False),
    ):
        assert (found.argsort(1) == REWARDS.argsort(1)).all()
        assert found[0, 2] > 0 > found[0, 0]


def test_the_batch_baseline_is_the_mean_of_all_rewards():
    mean = 16 / 8
    close(reinforce_advantages(REWARDS), [[r - mean for r in row] for row in GROUPS])
    close(reinforce_advantages(REWARDS, 0.5), [[r - 0.5 for r in row] for row in GROUPS])


def test_the_running_baseline_begins_at_the_first_mean_and_keeps_its_share():
    assert moving_baseline(None, torch.tensor([1.0, 3.0]), 0.9) == 2.0
    assert moving_baseline(2.0, torch.tensor([12.0]), 0.9) == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert moving_baseline(2.0, torch.tensor([12.0]), 0.0) == 12.0


def test_rloo_leaves_the_answer_itself_out_of_its_baseline():
    expected = [
        [r - statistics.mean(row[:i] + row[i + 1 :]) for i, r in enumerate(row)] for row in GROUPS
    ]  # TRL: rewards - (sum - rewards) / (K - 1)
    close(rloo_advantages(REWARDS), expected)
    close(rloo_advantages(REWARDS), 4 / 3 * grpo_advantages(REWARDS, scale=False))


def test_an_answers_own_baseline_does_not_move_with_its_reward():
    higher = REWARDS.clone()
    higher[0, 1] += 5
    close((rloo_advantages(higher) - rloo_advantages(REWARDS))[0, 1], 5.0)


def test_grpo_divides_by_the_standard_deviation_of_the_group_as_trl_does():
    expected = [[(r - statistics.mean(row)) / (statistics.stdev(row) + 1e-4) for r in row] for row in GROUPS]
    close(grpo_advantages(REWARDS), expected)
    close(grpo_advantages(REWARDS, scale=False), [[r - statistics.mean(row) for r in row] for row in GROUPS])


def test_with_scaling_the_distance_of_the_rewards_does_not_count():
    close(grpo_advantages(10 * REWARDS), grpo_advantages(REWARDS), rtol=1e-3, atol=1e-3)
    close(grpo_advantages(10 * REWARDS, scale=False), 10 * grpo_advantages(REWARDS, scale=False))


def test_a_group_of_equal_rewards_teaches_nothing():
    same = torch.full((2, 3), 7.0)
    for found in (rloo_advantages(same), grpo_advantages(same), grpo_advantages(same, scale=False)):
        assert (found == 0).all()


def test_a_prompts_advantages_do_not_depend_on_other_prompts():
    for advantages in (rloo_advantages, grpo_advantages):
        close(advantages(REWARDS)[1:], advantages(REWARDS[1:]))


@pytest.mark.parametrize("rewards", [torch.ones(3, 1), torch.ones(4)])
def test_one_answer_has_nothing_to_be_compared_with(rewards):
    for advantages in (rloo_advantages, grpo_advantages):
        with pytest.raises(InputError, match="raise samples_per_prompt"):
            advantages(rewards)


# GAE

TOKENS, VALUES = [[0.5, -0.25, 4.0], [1.0, 2.0, 0.0]], [[1.0, 2.0, 3.0], [0.5, 1.5, 0.0]]
LENGTHS = (3, 2)
MASK = torch.tensor([[True, True, True], [True, True, False]])


def by_hand(gamma, lam):
    """The sum of arXiv:1506.02438, Eq. 16, term by term."""
    rows = []
    for rewards, values, length in zip(TOKENS, VALUES, LENGTHS):
        after = [*values[1:length], 0.0]
        deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(length)]
        row = [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, length)) for t in range(length)]
        rows.append(row + [0.0] * (3 - length))
    return rows


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_gae_is_the_sum_of_later_surprises(gamma, lam):
    rewards, values = torch.tensor(TOKENS, dtype=torch.float64), torch.tensor(VALUES, dtype=torch.float64)
    close(gae(rewards, values, MASK, gamma, lam), by_hand(gamma, lam))


def test_at_lambda_one_advantage_plus_value_is_what_was_still_to_come():
    found = gae(torch.tensor(TOKENS), torch.tensor(VALUES), MASK, lam=1.0)
    close((found + torch.tensor(VALUES)) * MASK, [[4.25, 3.75, 4.0], [3.0, 2.0, 0.0]])


def test_gae_does_not_look_at_padding():
    filled = torch.where(MASK, torch.tensor(TOKENS), 99.0), torch.where(MASK, torch.tensor(VALUES), -99.0)
    close(gae(*filled, MASK), gae(torch.tensor(TOKENS), torch.tensor(VALUES), MASK))


def test_whitened_advantages_have_mean_0_and_deviation_1_over_the_tokens():
    values = [1.0, 2.0, 6.0, -3.0, 0.5]
    table = torch.tensor([values[:3], [*values[3:], 99.0]], dtype=torch.float64)
    mean, variance = statistics.mean(values), statistics.variance(values)  # TRL: unbiased, and 1e-8 below the root
    expected = [(v - mean) / math.sqrt(variance + 1e-8) for v in values]
    close(whiten(table, MASK), [expected[:3], [*expected[3:], 0.0]])


def test_no_gradient_flows_into_advantages():
    rewards = REWARDS.clone().requires_grad_()
    mask = torch.ones(2, 4, dtype=torch.bool)
    for found in (
        reinforce_advantages(rewards),
        rloo_advantages(rewards),
        grpo_advantages(rewards),
        gae(rewards, rewards, mask),
        whiten(rewards, mask),
    ):
        assert not found.requires_grad
