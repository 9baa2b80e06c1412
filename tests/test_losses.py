import math

import pytest
import torch

from dpo_core.errors import InputError
from dpo_core.losses import dpo_loss


def four(seed=0, count=5):
    return [-20 + 5 * torch.randn(count, generator=torch.Generator().manual_seed(seed + i)) for i in range(4)]


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_at_the_start_the_loss_is_ln_2_and_rewards_are_zero(beta, label_smoothing):
    chosen, rejected = four()[:2]
    out = dpo_loss(chosen, rejected, chosen, rejected, beta, label_smoothing)
    torch.testing.assert_close(out.loss, torch.full((5,), math.log(2)))
    assert (out.chosen_rewards == 0).all() and (out.rejected_rewards == 0).all()


@pytest.mark.parametrize(
    ("label_smoothing", "loss"),
    # h = (-10 + 11) - (-12 + 11) = 2, times beta 0.5 is 1; sigmoid(1) = 0.7310586, sigmoid(-1) = 0.2689414
    [(0.0, 0.3132617), (0.1, 0.9 * 0.3132617 + 0.1 * 1.3132617), (0.4, 0.6 * 0.3132617 + 0.4 * 1.3132617)],
)
def test_loss_and_rewards_by_hand(label_smoothing, loss):
    out = dpo_loss(*torch.tensor([[-10.0], [-12.0], [-11.0], [-11.0]]), beta=0.5, label_smoothing=label_smoothing)
    assert out.loss.item() == pytest.approx(loss, abs=1e-6)
    assert (out.chosen_rewards.item(), out.rejected_rewards.item()) == (0.5, -0.5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_gradient_is_the_papers(beta, label_smoothing):
    policy = [tensor.requires_grad_() for tensor in four()[:2]]
    reference = four(seed=7)[:2]
    chosen, rejected = torch.autograd.grad(dpo_loss(*policy, *reference, beta, label_smoothing).loss.sum(), policy)
    h = (policy[0] - reference[0] - policy[1] + reference[1]).detach()
    expected = -beta * ((1 - label_smoothing) * torch.sigmoid(-beta * h) - label_smoothing * torch.sigmoid(beta * h))
    torch.testing.assert_close(chosen, expected)
    torch.testing.assert_close(rejected, -expected)


def test_a_constant_on_both_reference_logps_changes_nothing():
    policy_chosen, policy_rejected, chosen, rejected = four()
    before = dpo_loss(policy_chosen, policy_rejected, chosen, rejected)
    after = dpo_loss(policy_chosen, policy_rejected, chosen + 3, rejected + 3)
    torch.testing.assert_close(before.loss, after.loss)
    assert (before.chosen_rewards - after.chosen_rewards).abs().min() > 0.1
    assert not torch.allclose(before.loss, dpo_loss(policy_chosen, policy_rejected, chosen + 3, rejected).loss)


def test_rewards_carry_no_gradient():
    policy = [tensor.requires_grad_() for tensor in four()[:2]]
    out = dpo_loss(*policy, *four(seed=7)[:2])
    assert out.loss.requires_grad
    assert not out.chosen_rewards.requires_grad and not out.rejected_rewards.requires_grad


@pytest.mark.parametrize("h", [-2000.0, 2000.0])
def test_huge_margins_stay_finite(h):
    policy = torch.tensor([h], requires_grad=True)
    zero = torch.zeros(1)
    loss = dpo_loss(policy, zero, zero, zero, beta=1.0, label_smoothing=0.1).loss
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), policy)[0].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        dpo_loss(*four(), **settings)
