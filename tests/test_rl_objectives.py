"""Losses and KL terms by hand arithmetic and finite differences; what is not to be differentiated is not."""

import math

import pytest
import torch

from dpo_core.rl.objectives import (
    clipped_surrogate,
    k1,
    k3,
    kl_reward,
    masked_sum,
    policy_gradient,
    ratio,
    token_rewards,
    value_loss,
)

MASK = torch.tensor([[True, True, True], [True, True, False]])


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def slope(function, at, step=1e-6):
    """The derivative of the sum of a function of each element, by central differences."""
    moves = torch.eye(at.numel(), dtype=at.dtype).view(-1, *at.shape) * step
    return torch.stack([(function(at + d) - function(at - d)).sum() / (2 * step) for d in moves]).view(at.shape)


def gradient(function, at):
    at = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(at).sum(), at)
    return found


OLD = doubles(-1.0, -2.0, -0.5, -3.0)
NOW = doubles(-0.6, -2.5, -0.45, -3.05)
ADVANTAGES = doubles(2.0, -1.5, -0.5, 1.0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: policy_gradient(x, ADVANTAGES),
        lambda x: clipped_surrogate(x, OLD, ADVANTAGES),
        lambda x: k3(x, OLD),
        lambda x: k1(x, OLD),
        lambda x: ratio(x, OLD),
        lambda x: value_loss(x[None], OLD[None], ADVANTAGES[None], torch.ones(1, 4, dtype=torch.bool), clip=0.3),
    ],
    ids=["policy gradient", "clipped surrogate", "k3", "k1", "ratio", "value loss"],
)
def test_gradients_are_the_finite_differences(loss):
    torch.testing.assert_close(gradient(loss, NOW), slope(loss, NOW), rtol=1e-6, atol=1e-8)


def test_descent_makes_answers_with_a_positive_advantage_likelier():
    assert (gradient(lambda x: policy_gradient(x, ADVANTAGES), NOW) == -ADVANTAGES).all()


def test_before_an_update_the_surrogate_has_the_policy_gradient():
    surrogate = gradient(lambda x: clipped_surrogate(x, OLD, ADVANTAGES), OLD)
    torch.testing.assert_close(surrogate, gradient(lambda x: policy_gradient(x, ADVANTAGES), OLD))


@pytest.mark.parametrize(
    ("ratio_now", "advantage", "loss", "weight"),
    [
        (1.1, 1.0, -1.1, -1.1),  # inside the clip
        (1.5, 1.0, -1.2, 0.0),  # far enough: no more gradient
        (1.5, -1.0, 1.5, 1.5),  # the wrong way: all of it
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_the_clip_stops_what_went_far_enough_and_nothing_else(ratio_now, advantage, loss, weight):
    old, now = doubles(0.25).log(), doubles(0.25 * ratio_now).log()
    found = clipped_surrogate(now, old, doubles(advantage), clip=0.2)
    assert found.item() == pytest.approx(loss)
    assert gradient(lambda x: clipped_surrogate(x, old, doubles(advantage), 0.2), now).item() == pytest.approx(weight)


def test_no_gradient_flows_into_what_was_sampled():
    fixed = [torch.randn(2, 3, requires_grad=True) for _ in range(4)]
    now = torch.randn(2, 3, requires_grad=True)
    losses = [
        policy_gradient(now, fixed[0]),
        clipped_surrogate(now, fixed[1], fixed[0]),
        k3(now, fixed[2]),
        value_loss(now, fixed[1], fixed[3], MASK),
    ]
    sum(loss.sum() for loss in losses).backward()
    assert now.grad is not None and all(each.grad is None for each in fixed)
    assert not kl_reward(torch.zeros(2), now, fixed[0], MASK, 1.0).requires_grad
    assert not token_rewards(torch.zeros(2), now, fixed[0], MASK, 1.0).requires_grad


def test_the_ratio_of_a_policy_to_itself_is_one_and_has_a_gradient():
    logps = OLD.clone().requires_grad_()
    found = ratio(logps, logps)
    found.sum().backward()
    assert (found == 1).all() and (logps.grad == 1).all()


def test_only_an_answers_tokens_are_added_up():
    assert masked_sum(torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 99.0]]), MASK).tolist() == [7.0, 24.0]


# The critic


def test_the_value_loss_is_half_the_larger_square_as_in_trl():
    values, old, returns = [1.0, 0.3, -0.1], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0]
    expected = []
    for v, o, r in zip(values, old, returns):
        clipped = min(max(v, o - 0.2), o + 0.2)
        expected.append(0.5 * max((v - r) ** 2, (clipped - r) ** 2))
    found = value_loss(*(torch.tensor([each]) for each in (values, old, returns)), torch.ones(1, 3).bool(), clip=0.2)
    assert found[0].tolist() == pytest.approx(expected)


def test_the_value_loss_leaves_padding_alone():
    values = torch.full((2, 3), 5.0, requires_grad=True)
    found = value_loss(values, torch.zeros(2, 3), torch.zeros(2, 3), MASK)
    found.sum().backward()
    assert found[1, 2] == 0 and values.grad[1, 2] == 0 and (values.grad[MASK] == 5).all()


# KL

POLICY, REFERENCE = doubles(0.5, 0.3, 0.2), doubles(0.2, 0.2, 0.6)
KL = sum(p * math.log(p / q) for p, q in zip(POLICY.tolist(), REFERENCE.tolist()))


@pytest.mark.parametrize("estimate", [k1, k3])
def test_both_estimates_have_the_divergence_as_their_mean(estimate):
    assert (POLICY * estimate(POLICY.log(), REFERENCE.log())).sum().item() == pytest.approx(KL)


def test_k3_is_never_negative_and_k1_is_positive_where_the_policy_finds_it_likelier():
    assert (k3(POLICY.log(), REFERENCE.log()) >= 0).all()
    assert ((k1(POLICY.log(), REFERENCE.log()) > 0) == (POLICY > REFERENCE)).all()


def test_k3s_gradient_on_the_policys_samples_is_that_of_the_other_divergence():
    logits = POLICY.log().requires_grad_()
    policy = logits.log_softmax(0)
    (found,) = torch.autograd.grad((POLICY * k3(policy, REFERENCE.log())).sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, POLICY - REFERENCE)  # of KL(reference || policy)
    (right,) = torch.autograd.grad((policy.exp() * (policy - REFERENCE.log())).sum(), logits)
    torch.testing.assert_close(right, POLICY * ((POLICY / REFERENCE).log() - KL))  # of KL(policy || reference)
    assert not torch.allclose(found, right, atol=0.05)


LOGPS = torch.tensor([[-1.0, -2.0, -0.5], [-0.25, -1.5, 0.0]])
REFERENCE_LOGPS = torch.tensor([[-1.5, -1.0, -2.0], [-1.25, -2.0, 0.0]])
SCORES = torch.tensor([3.0, -1.0])


def test_the_reward_pays_for_what_the_policy_finds_likelier_than_the_reference():
    found = kl_reward(SCORES, LOGPS, REFERENCE_LOGPS, MASK, beta=0.5)
    assert found.tolist() == pytest.approx([3 - 0.5 * (0.5 - 1 + 1.5), -1 - 0.5 * (1 + 0.5)])


def test_the_rewards_of_the_tokens_add_up_to_the_answers_and_the_score_stands_at_its_end():
    found = token_rewards(SCORES, LOGPS, REFERENCE_LOGPS, MASK, beta=0.5)
    expected = [[-0.25, 0.5, -0.75 + 3], [-0.5, -0.25 - 1, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(found.sum(1), kl_reward(SCORES, LOGPS, REFERENCE_LOGPS, MASK, beta=0.5))


def test_without_beta_the_reward_is_the_score():
    assert kl_reward(SCORES, LOGPS, REFERENCE_LOGPS, MASK, beta=0.0).tolist() == SCORES.tolist()
