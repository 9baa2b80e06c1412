"""Where each method ends in the exactly solvable world: at the closed form, or, as GRPO, elsewhere, and where."""

import pytest
import torch

from dpo_core.rl.config import RLConfig
from dpo_core.rl.methods import METHODS
from dpo_core.study.tabular import example_world, kl_divergence, optimal_policy, random_world, rlhf_objective
from dpo_core.study.tabular_rl import (
    TABULAR_METHODS,
    distance_to_optimum,
    every_group,
    expected_loss,
    fit_method,
    implied_beta,
)

BETA = 0.5


@pytest.fixture(scope="module")
def world():
    return example_world()


@pytest.fixture(scope="module")
def ends(world):
    """The policies at which the methods end, one update per sampling."""
    return {name: fit_method(method, world.reference, world.rewards, BETA) for name, method in TABULAR_METHODS.items()}


@pytest.mark.parametrize("name", ["reinforce", "rloo", "dr_grpo", "ppo"])
def test_with_the_kl_in_the_reward_the_end_is_the_closed_form(world, ends, name):
    assert distance_to_optimum(ends[name], world.reference, world.rewards, BETA) < 1e-5


@pytest.mark.parametrize("name", ["rloo", "dr_grpo", "ppo"])
def test_the_clip_moves_no_end(name):
    world = random_world(prompts=2, answers=4, seed=3)
    policy = fit_method(
        TABULAR_METHODS[name], world.reference, world.rewards, 1.0, inner_epochs=4, samples=2, steps=150
    )
    assert distance_to_optimum(policy, world.reference, world.rewards, 1.0) < 1e-5


def test_standard_grpo_ends_elsewhere_and_its_beta_depends_on_the_prompt(world, ends):
    assert distance_to_optimum(ends["grpo"], world.reference, world.rewards, BETA) > 0.2
    betas = implied_beta(ends["grpo"], world.reference, world.rewards)
    assert betas.max() > 1.5 * betas.min()
    best = optimal_policy(world.reference, world.rewards, BETA)
    gaps = [rlhf_objective(each, world.reference, world.rewards, BETA) for each in (best, ends["grpo"])]
    assert (gaps[0] > gaps[1] + 0.05).all()


def test_grpo_ends_where_its_own_gradient_is_zero(world, ends):
    policy = ends["grpo"].clone().requires_grad_()
    config = RLConfig("grpo", beta=BETA, clip=0.2, samples_per_prompt=3)
    loss = expected_loss(METHODS["grpo"], policy.log_softmax(-1), ends["grpo"], world.reference, world.rewards, config)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert gradient.abs().max() < 1e-6


def test_with_scaling_a_prompts_rewards_can_be_stretched_and_grpo_does_not_notice(world, ends):
    stretched = world.rewards * torch.tensor([[1.0], [3.0], [1.0]])
    policy = fit_method(METHODS["grpo"], world.reference, stretched, BETA)
    assert (policy.exp() - ends["grpo"].exp()).abs().max() < 1e-3
    assert (optimal_policy(world.reference, stretched, BETA)[1] - optimal_policy(world.reference, world.rewards, BETA)[
        1
    ]).abs().max() > 1  # fmt: skip


def test_k3_in_the_loss_ends_at_the_optimum_of_the_other_divergence(world, ends):
    """Of the mean reward less beta KL(reference || policy): pi = beta ref / (c - r), with c so that it adds up to 1.

    The group's mean holds the answer itself, which shortens advantages by 1 - 1/K and so lengthens beta.
    """
    beta = BETA / (1 - 1 / 3)
    low, high = world.rewards.amax(-1, keepdim=True), world.rewards.amax(-1, keepdim=True) + 10 * beta
    for _ in range(100):
        middle = (low + high) / 2
        too_much = (beta * world.reference.exp() / (middle - world.rewards)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    expected = beta * world.reference.exp() / (low - world.rewards)
    assert (ends["k3 in the loss"].exp() - expected).abs().max() < 1e-4
    assert distance_to_optimum(ends["k3 in the loss"], world.reference, world.rewards, BETA) > 0.1


def test_the_expected_update_of_rloo_is_the_gradient_of_the_objective(world):
    old = (world.reference + 0.3 * world.rewards).log_softmax(-1)
    config = RLConfig("rloo", beta=BETA, clip=0.2, samples_per_prompt=3)
    start = old.clone().requires_grad_()
    loss = expected_loss(METHODS["rloo"], start.log_softmax(-1), old, world.reference, world.rewards, config)
    (found,) = torch.autograd.grad(-loss.sum(), start)
    logits = old.clone().requires_grad_()
    value = rlhf_objective(logits.log_softmax(-1), world.reference, world.rewards, BETA)
    (expected,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(found, expected)


def test_the_groups_have_all_the_probability(world):
    answers, probs = every_group(world.reference, samples=3)
    assert answers.shape == (125, 3)
    torch.testing.assert_close(probs.sum(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_the_beta_of_an_optimal_policy_is_found_again(world, beta):
    policy = optimal_policy(world.reference, world.rewards, beta)
    assert implied_beta(policy, world.reference, world.rewards).tolist() == pytest.approx([beta] * 3, rel=1e-6)
    assert (kl_divergence(policy, world.reference) > 0).all()
