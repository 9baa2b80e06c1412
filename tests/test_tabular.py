"""The solvable world against the definitions, taken at their word in plain loops, and against gradient ascent."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch

from dpo_core.errors import InputError
from dpo_core.study.tabular import (
    ascend,
    deterministic,
    example_world,
    fit_dpo,
    fit_rlhf,
    implied_rewards,
    kl_ceiling,
    kl_divergence,
    log_partition,
    optimal_policy,
    population_loss,
    preference_probs,
    random_world,
    reward_kl_frontier,
    rlhf_objective,
    total_variation,
)

WORLDS = {"example": example_world(), "random": random_world(prompts=2, answers=6, seed=3)}
BETAS = (0.25, 0.5, 1.0, 3.0)


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param]


def other_policies(world, count=200, seed=0):
    """(count, X, Y) log-probabilities, from near the uniform policy to near one-hot ones."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 1, count, dtype=torch.float64)[:, None, None]
    return (scale * torch.randn(count, *world.reference.shape, dtype=torch.float64, generator=generator)).log_softmax(
        -1
    )


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# Worlds


def test_the_example_is_a_world(world):
    close(world.reference.exp().sum(-1), torch.ones(len(world.prompts), dtype=torch.float64))
    assert world.reference.shape == world.rewards.shape == (len(world.prompts), len(world.answers[0]))
    assert world.reference.dtype == world.rewards.dtype == torch.float64
    assert all(len(set(row)) == len(row) for row in world.answers)


def test_the_example_leaves_something_to_win():
    world = example_world()
    best = world.rewards.argmax(-1)
    assert (world.reference.gather(1, best[:, None]).exp() <= 0.2).all()
    assert (best != world.reference.argmax(-1)).all()


def test_a_seed_gives_the_same_world_and_leaves_torchs_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = random_world(seed=1), random_world(seed=1), random_world(seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.reference, same.reference) and torch.equal(one.rewards, same.rewards)
    assert not torch.equal(one.rewards, other.rewards)


# Distances


def test_kl_by_hand_and_its_direction():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.1, 0.9]]).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(0.5 / 0.1) + 0.5 * math.log(0.5 / 0.9), abs=1e-6)
    assert kl_divergence(q, p).item() == pytest.approx(0.1 * math.log(0.1 / 0.5) + 0.9 * math.log(0.9 / 0.5), abs=1e-6)
    assert kl_divergence(p, torch.tensor([[0.0, 1.0]]).log()).item() == math.inf


def test_kl_is_zero_only_for_the_same_policy(world):
    assert (kl_divergence(world.reference, world.reference) == 0).all()
    others = other_policies(world)
    assert (kl_divergence(others, world.reference.expand_as(others)) > 0).all()


def test_total_variation_is_the_largest_gap_over_sets_of_answers(world):
    first, second = other_policies(world, count=2).exp()
    gap = first - second
    subsets = torch.tensor(list(product([0.0, 1.0], repeat=gap.shape[-1])), dtype=torch.float64)  # (2^Y, Y)
    close(total_variation(first.log(), second.log()), (gap @ subsets.T).amax(-1))


# Objective and optimum


@pytest.mark.parametrize("beta", BETAS)
def test_objective_partition_and_optimum_by_definition(world, beta):
    policy = other_policies(world, count=1)[0]
    for x in range(len(world.prompts)):
        p, ref, r = (table[x].tolist() for table in (policy.exp(), world.reference.exp(), world.rewards))
        objective = sum(p[y] * r[y] for y in range(len(p))) - beta * sum(
            p[y] * math.log(p[y] / ref[y]) for y in range(len(p))
        )
        assert rlhf_objective(policy, world.reference, world.rewards, beta)[x].item() == pytest.approx(objective)
        z = sum(ref[y] * math.exp(r[y] / beta) for y in range(len(p)))
        assert log_partition(world.reference, world.rewards, beta)[x].item() == pytest.approx(math.log(z))
        optimum = optimal_policy(world.reference, world.rewards, beta)[x].exp().tolist()
        assert optimum == pytest.approx([ref[y] * math.exp(r[y] / beta) / z for y in range(len(p))])


@pytest.mark.parametrize("beta", BETAS)
def test_the_objective_falls_short_by_beta_times_the_divergence_from_the_optimum(world, beta):
    optimum = optimal_policy(world.reference, world.rewards, beta)
    best = beta * log_partition(world.reference, world.rewards, beta)
    close(rlhf_objective(optimum, world.reference, world.rewards, beta), best)
    for policy in other_policies(world):
        close(
            rlhf_objective(policy, world.reference, world.rewards, beta), best - beta * kl_divergence(policy, optimum)
        )


@pytest.mark.parametrize("beta", [1e-4, 1e4])
def test_extreme_betas_stay_finite(world, beta):
    optimum = optimal_policy(world.reference, world.rewards, beta)
    close(optimum.exp().sum(-1), torch.ones(len(world.prompts), dtype=torch.float64))
    limit = torch.nn.functional.one_hot(world.rewards.argmax(-1), optimum.shape[-1]) if beta < 1 else None
    close(optimum.exp(), world.reference.exp() if limit is None else limit.double(), atol=1e-3)


def test_a_higher_beta_stays_closer_to_the_reference(world):
    kl, reward = reward_kl_frontier(world.reference, world.rewards, betas=[0.01, 0.1, 0.5, 1, 2, 10, 100])
    assert (kl.diff() < 0).all() and (reward.diff() < 0).all()
    close(kl[0], kl_ceiling(world.reference, world.rewards).mean(), atol=1e-3)


def test_rewards_shifted_by_a_function_of_the_prompt_give_the_same_policy(world):
    shift = torch.tensor([3.0, -7.0, 0.5], dtype=torch.float64)[: len(world.prompts), None]
    optimum = optimal_policy(world.reference, world.rewards, 0.5)
    close(optimal_policy(world.reference, world.rewards + shift, 0.5), optimum)
    assert not torch.allclose(optimal_policy(world.reference, world.rewards + shift[:1] * world.rewards, 0.5), optimum)


def test_implied_rewards_are_the_true_ones_less_beta_log_z(world):
    for beta in BETAS:
        implied = implied_rewards(optimal_policy(world.reference, world.rewards, beta), world.reference, beta)
        close(implied + beta * log_partition(world.reference, world.rewards, beta)[:, None], world.rewards)


# Preferences and the loss


def test_preferences_of_both_sides_add_up_to_one(world):
    preferences = preference_probs(world.rewards)
    close(preferences + preferences.mT, torch.ones_like(preferences))
    assert preferences[0, 0, 1].item() == pytest.approx(
        1 / (1 + math.exp(world.rewards[0, 1].item() - world.rewards[0, 0].item()))
    )


def test_deterministic_labels_keep_ties():
    labels = deterministic(preference_probs(torch.tensor([[2.0, 1.0, 1.0]])))
    assert labels.tolist() == [[[0.5, 1, 1], [0, 0.5, 0.5], [0, 0.5, 0.5]]]


def test_the_population_loss_is_the_mean_over_pairs_each_counted_once(world):
    beta, policy = 0.7, other_policies(world, count=1)[0]
    preferences = preference_probs(world.rewards)
    total, pairs = 0.0, 0
    for x, i, j in product(range(len(world.prompts)), *[range(policy.shape[1])] * 2):
        if i < j:
            h = (policy[x, i] - world.reference[x, i] - policy[x, j] + world.reference[x, j]).item()
            p = preferences[x, i, j].item()
            total += p * math.log1p(math.exp(-beta * h)) + (1 - p) * math.log1p(math.exp(beta * h))
            pairs += 1
    assert population_loss(policy, world.reference, preferences, beta).item() == pytest.approx(total / pairs)


def test_weights_count_by_their_ratio_and_not_on_the_diagonal(world):
    policy, preferences = other_policies(world, count=1)[0], preference_probs(world.rewards)
    weights = world.reference.exp()[:, :, None] * world.reference.exp()[:, None]
    loss = population_loss(policy, world.reference, preferences, 1.0, weights)
    close(population_loss(policy, world.reference, preferences, 1.0, 5 * weights), loss)
    close(population_loss(policy, world.reference, preferences, 1.0, weights + 9 * torch.eye(policy.shape[1])), loss)
    assert abs(population_loss(policy, world.reference, preferences, 1.0) - loss) > 1e-3
    only = torch.zeros_like(weights)
    only[0, 0, 1] = only[0, 1, 0] = 1.0  # a single pair is left
    h = (policy - world.reference)[0, 0] - (policy - world.reference)[0, 1]
    p = preferences[0, 0, 1]
    expected = p * torch.log1p((-h).exp()) + (1 - p) * torch.log1p(h.exp())
    close(population_loss(policy, world.reference, preferences, 1.0, only), expected)


@pytest.mark.parametrize("beta", BETAS)
def test_the_optimum_reaches_the_entropy_of_the_labels_and_nothing_lies_below(world, beta):
    preferences = preference_probs(world.rewards)
    first, second = torch.triu_indices(*preferences.shape[1:], 1)
    p = preferences[:, first, second]
    floor = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    optimum = optimal_policy(world.reference, world.rewards, beta)
    close(population_loss(optimum, world.reference, preferences, beta), floor)
    losses = [population_loss(policy, world.reference, preferences, beta) for policy in other_policies(world)]
    assert min(losses) > floor


# Three roads to one policy


@pytest.mark.parametrize("beta", BETAS)
def test_gradient_ascent_closed_form_and_dpo_agree(world, beta):
    optimum = optimal_policy(world.reference, world.rewards, beta)
    climbed = fit_rlhf(world.reference, world.rewards, beta, steps=6_000)
    fitted = fit_dpo(world.reference, preference_probs(world.rewards), beta, steps=1_000)
    assert total_variation(climbed, optimum).max() < 1e-4
    assert total_variation(fitted, optimum).max() < 1e-8
    assert total_variation(world.reference, optimum).min() > 0.01  # it had a way to go


def test_which_pairs_are_compared_how_often_does_not_matter_on_soft_labels():
    world = example_world()
    drawn = world.reference.exp()[:, :, None] * world.reference.exp()[:, None]  # both answers from the reference
    preferences, optimum = preference_probs(world.rewards), optimal_policy(world.reference, world.rewards, 0.5)
    assert total_variation(fit_dpo(world.reference, preferences, 0.5, drawn, steps=4_000), optimum).max() < 1e-4


def test_no_step_of_fit_dpo_overshoots():
    world = random_world(prompts=2, answers=4, seed=5)
    weights = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    weights = weights + weights.mT
    preferences = preference_probs(5 * world.rewards)
    policies = [fit_dpo(world.reference, preferences, 0.5, weights, steps=steps) for steps in range(40)]
    losses = [population_loss(policy, world.reference, preferences, 0.5, weights) for policy in policies]
    assert all(later < earlier for earlier, later in pairwise(losses))


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_deterministic_labels_drive_the_kl_to_the_ceiling_at_any_beta(beta):
    world = example_world()
    labels = deterministic(preference_probs(world.rewards))
    kl = torch.tensor(
        [
            kl_divergence(fit_dpo(world.reference, labels, beta, steps=steps), world.reference).mean()
            for steps in (10, 100, 1_000, 2_000)
        ]
    )
    ceiling = kl_ceiling(world.reference, world.rewards).mean()
    assert (kl.diff() > -1e-9).all() and kl[-1] < ceiling + 1e-9
    if beta < 1:  # a margin of beta h grows like the logarithm of the steps, so h takes longest where beta is high
        assert ceiling - kl[-1] < 0.01
    soft = kl_divergence(optimal_policy(world.reference, world.rewards, beta), world.reference).mean()
    assert kl[-1] > soft + 0.01


def test_ascend_follows_the_gradient(world):
    start = world.reference
    one = ascend(lambda policy: (policy.exp() * world.rewards).sum(-1), start, steps=1, lr=0.3)
    mean = (start.exp() * world.rewards).sum(-1, keepdim=True)
    close(one, (start + 0.3 * start.exp() * (world.rewards - mean)).log_softmax(-1))
    assert not start.requires_grad and not one.requires_grad


# Frontier and ceiling


def test_the_frontiers_slope_is_beta_and_no_policy_lies_above(world):
    betas = torch.linspace(0.3, 3, 400, dtype=torch.float64)
    kl, reward = reward_kl_frontier(world.reference, world.rewards, betas.tolist())
    close((reward.diff() / kl.diff()), (betas[1:] + betas[:-1]) / 2, atol=1e-3)
    for policy in other_policies(world):
        spent, earned = kl_divergence(policy, world.reference).mean(), (policy.exp() * world.rewards).sum(-1).mean()
        bound = torch.stack([r + beta * (spent - k) for beta, k, r in zip(betas, kl, reward)]).min()  # tangents
        assert earned < bound


def test_the_ceiling_is_the_divergence_of_the_best_answers():
    reference = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]], dtype=torch.float64).log()
    rewards = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    close(kl_ceiling(reference, rewards), -torch.tensor([0.1, 0.6], dtype=torch.float64).log())


# Refusals


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_a_beta_that_is_not_above_zero_is_refused(beta):
    world = random_world()
    reference, rewards, preferences = world.reference, world.rewards, preference_probs(world.rewards)
    for call in (
        lambda: rlhf_objective(reference, reference, rewards, beta),
        lambda: log_partition(reference, rewards, beta),
        lambda: optimal_policy(reference, rewards, beta),
        lambda: implied_rewards(reference, reference, beta),
        lambda: population_loss(reference, reference, preferences, beta),
        lambda: fit_rlhf(reference, rewards, beta),
        lambda: fit_dpo(reference, preferences, beta),
        lambda: reward_kl_frontier(reference, rewards, [1.0, beta]),
    ):
        with pytest.raises(InputError, match=f"beta is {beta}"):
            call()


def test_tables_that_do_not_fit_are_refused():
    world, wide = random_world(), random_world(answers=6)
    with pytest.raises(InputError, match=r"\[\(3, 5\), \(3, 6\)\]"):
        optimal_policy(world.reference, wide.rewards, 1.0)
    with pytest.raises(InputError, match="must be alike"):
        kl_divergence(world.reference, world.reference[0])


def test_weights_that_leave_no_pair_are_refused():
    world = random_world()
    with pytest.raises(InputError, match="nothing is compared"):
        fit_dpo(world.reference, preference_probs(world.rewards), 1.0, torch.eye(5).double().expand(3, 5, 5))
