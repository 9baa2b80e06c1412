"""Each loss against arithmetic by hand, against TRL's numbers, and against what has to hold for it."""

import json
import math
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dpo_core.errors import InputError
from dpo_core.losses import PairLogps, PairLoss, dpo_loss
from dpo_core.methods.family import LOSSES, choose_loss, loss_name, own_settings
from dpo_core.methods.kto import kto_loss, mismatch, reference_point

TRL = json.loads((Path(__file__).parent / "data" / "trl_losses.json").read_text(encoding="utf-8"))


def four(seed=0, count=5):
    return [-20 + 5 * torch.randn(count, generator=torch.Generator().manual_seed(seed + i)) for i in range(4)]


# dpo_loss


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


# The family


def pair(policy=(-6.0, -9.0), reference=(-7.0, -8.0), lengths=(4, 5), mismatched=(1.0, -0.5), dtype=torch.float64):
    """One pair; c = 1, l = -1, h = 2, c/4 - l/5 = 0.45, z0 = 0.25 unless other numbers are given."""
    numbers = [torch.tensor([value], dtype=dtype) for value in (*policy, *reference)]
    return PairLogps(*numbers, *torch.tensor(lengths)[:, None], torch.tensor(mismatched, dtype=dtype))


def pairs(count=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    policy = -1 - 30 * torch.rand(2, count, generator=generator, dtype=dtype)
    reference = policy + 3 * torch.randn(2, count, generator=generator, dtype=dtype)
    lengths = torch.randint(1, 30, (2, count), generator=generator)
    return PairLogps(*policy, *reference, *lengths, torch.tensor([2.0, -1.0], dtype=dtype))


def gradients(name, logps, beta, **settings):
    """Loss (B,) and its gradient by both policy log-probs."""
    leaves = [logps.policy_chosen.clone().requires_grad_(), logps.policy_rejected.clone().requires_grad_()]
    out = LOSSES[name](replace(logps, policy_chosen=leaves[0], policy_rejected=leaves[1]), beta, **settings)
    return out.loss, *torch.autograd.grad(out.loss.sum(), leaves, materialize_grads=True)


def s(x):
    return 1 / (1 + math.exp(-x))


ODDS = [math.exp(-1.5) / (1 - math.exp(-1.5)), math.exp(-1.8) / (1 - math.exp(-1.8))]  # of -6/4 and -9/5 a token
BY_HAND = [
    ("dpo", {}, 0.5, -math.log(s(1.0))),
    ("cdpo", {"label_smoothing": 0.2}, 0.5, -0.8 * math.log(s(1.0)) - 0.2 * math.log(s(-1.0))),
    ("robust", {"label_smoothing": 0.2}, 0.5, (-0.8 * math.log(s(1.0)) + 0.2 * math.log(s(-1.0))) / 0.6),
    ("hinge", {}, 0.2, 0.6),
    ("hinge", {}, 0.5, 0.0),
    ("ipo", {}, 0.5, (0.45 - 1.0) ** 2),
    ("ipo", {}, 2.0, (0.45 - 0.25) ** 2),
    ("sigmoid_norm", {}, 2.0, -math.log(s(0.9))),
    ("dpop", {"penalty": 7.0}, 0.5, -math.log(s(1.0))),  # c = 1: nothing to punish
    ("apo_zero", {}, 0.5, 1 - s(0.5) + s(-0.5)),
    ("apo_down", {}, 0.5, s(0.5) + 1 - s(1.0)),
    ("kto", {}, 2.0, (1 - s(2 * (1 - 0.25)) + 1 - s(2 * (0.25 + 1))) / 2),
    ("kto", {"desirable_weight": 3.0}, 2.0, (3 * (1 - s(2 * (1 - 0.25))) + 1 - s(2 * (0.25 + 1))) / 2),
    ("kto", {"undesirable_weight": 0.5}, 2.0, (1 - s(2 * (1 - 0.25)) + 0.5 * (1 - s(2 * (0.25 + 1)))) / 2),
    ("simpo", {"gamma": 0.7}, 2.0, -math.log(s(2 * (-1.5 + 1.8) - 0.7))),
    ("orpo", {}, 0.3, 1.5 - 0.3 * math.log(s(math.log(ODDS[0] / ODDS[1])))),
    ("sft", {}, 0.1, 1.5),
]


@pytest.mark.parametrize(("name", "settings", "beta", "expected"), BY_HAND)
def test_each_loss_by_hand(name, settings, beta, expected):
    assert LOSSES[name](pair(), beta, **settings).loss.item() == pytest.approx(expected, abs=1e-12)


def test_no_loss_goes_without_arithmetic_by_hand():
    assert {LOSSES[name] for name, *_ in BY_HAND} == set(LOSSES.values())


def test_dpop_by_hand_when_the_chosen_answer_has_fallen():
    fallen = pair(policy=(-7.5, -12.0))  # c = -0.5, l = -4, h = 3.5
    assert LOSSES["dpop"](fallen, 0.5, penalty=4.0).loss.item() == pytest.approx(-math.log(s(0.5 * (3.5 - 2.0))))
    _, chosen, rejected = gradients("dpop", fallen, 0.5, penalty=4.0)
    pull = 0.5 * s(-0.75)
    assert (chosen.item(), rejected.item()) == (pytest.approx(-5 * pull), pytest.approx(pull))  # 1 + penalty times


@pytest.mark.parametrize("entry", TRL["losses"], ids=lambda entry: f"{entry['name']}-{entry['beta']}")
def test_each_loss_has_trls_numbers(entry):
    logps = PairLogps(*(torch.tensor(TRL["inputs"][f.name], dtype=torch.float64) for f in fields(PairLogps)))
    out = LOSSES[entry["name"]](logps, entry["beta"], **entry["settings"])
    _, *ours = gradients(entry["name"], logps, entry["beta"], **entry["settings"])
    got = dict(zip(("chosen_gradient", "rejected_gradient"), ours)) | vars(out)
    for number, values in got.items():
        torch.testing.assert_close(values, torch.tensor(entry[number], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("entry", TRL["unpaired"], ids=lambda entry: f"{entry['trl']}-{entry['beta']}")
def test_kto_without_pairs_has_trls_numbers(entry):
    policy, reference, mismatched = (
        torch.tensor(TRL["inputs"][name], dtype=torch.float64)
        for name in ("policy_chosen", "reference_chosen", "mismatched")
    )
    assert {True, False} == set(entry["desirable"])
    point = reference_point(mismatched) if entry["trl"].endswith(", kto") else torch.tensor(0.0)
    assert point.item() == pytest.approx(entry["point"])
    ours = kto_loss(policy, reference, torch.tensor(entry["desirable"]), point, entry["beta"], **entry["settings"])
    torch.testing.assert_close(ours, torch.tensor(entry["loss"], dtype=torch.float64), rtol=0, atol=1e-6)


def test_trl_is_compared_wherever_it_has_the_loss():
    assert set(LOSSES.values()) - {LOSSES[entry["name"]] for entry in TRL["losses"]} == {LOSSES["dpop"]}
    assert {entry["beta"] for entry in TRL["losses"]} == {0.05, 0.5, 2.0}


STARTS = {"dpo": math.log(2), "cdpo": math.log(2), "robust": math.log(2), "sigmoid_norm": math.log(2)}
STARTS |= {"dpop": math.log(2), "hinge": 1.0, "ipo": 1 / (2 * 0.3) ** 2, "apo_zero": 1.0, "apo_down": 1.0, "kto": 0.5}


@pytest.mark.parametrize(("name", "expected"), STARTS.items())
def test_where_each_loss_with_a_reference_starts(name, expected):
    start = pairs()
    start = replace(
        start,
        policy_chosen=start.reference_chosen,
        policy_rejected=start.reference_rejected,
        mismatched=torch.zeros(3).double(),
    )
    out = LOSSES[name](start, 0.3)
    torch.testing.assert_close(out.loss, torch.full_like(out.loss, expected))
    assert (out.chosen_rewards == 0).all() and (out.rejected_rewards == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_every_pair_stands_for_itself(name):
    together = pairs()
    alone = [
        LOSSES[name](PairLogps(*(row[None] for row in rows), mismatched=together.mismatched), 0.4)
        for rows in zip(*(getattr(together, f.name) for f in fields(PairLogps)[:-1]))
    ]
    for number, values in vars(LOSSES[name](together, 0.4)).items():
        torch.testing.assert_close(values, torch.cat([getattr(one, number) for one in alone]))


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_pushes_the_wrong_way(name):
    _, chosen, rejected = gradients(name, pairs(count=200), 0.4)
    target = name in ("ipo", "cdpo")  # a margin above their target comes back
    assert (rejected >= 0).all() == (not target)
    assert (chosen <= 0).all() == (not target and name != "apo_down")  # which lowers the chosen answer, too
    assert (rejected == 0).all() == (name == "sft")


@pytest.mark.parametrize("name", LOSSES)
def test_rewards_are_trls_and_carry_no_gradient(name):
    logps = pairs()
    logps.policy_chosen.requires_grad_()
    out = LOSSES[name](logps, 0.4)
    if name in ("simpo", "orpo"):
        chosen, rejected = logps.policy_chosen / logps.chosen_lengths, logps.policy_rejected / logps.rejected_lengths
    else:
        chosen = logps.policy_chosen - logps.reference_chosen
        rejected = logps.policy_rejected - logps.reference_rejected
    torch.testing.assert_close(out.chosen_rewards, 0.4 * chosen.detach())
    torch.testing.assert_close(out.rejected_rewards, 0.4 * rejected)
    assert out.loss.requires_grad and not out.chosen_rewards.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_loss_knows_of_the_reference(name):
    before, after = pairs(), pairs()
    after = replace(after, reference_chosen=after.reference_chosen + 3, reference_rejected=after.reference_rejected + 3)
    same = torch.allclose(LOSSES[name](before, 0.4).loss, LOSSES[name](after, 0.4).loss)
    # Not at all, or only as a difference, in which what depends on the prompt alone cancels.
    assert same == (name in ("simpo", "orpo", "sft", "dpo", "sigmoid", "cdpo", "robust", "hinge"))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("gap", [-3000.0, 3000.0])
def test_the_family_stays_finite(name, gap):
    far = pair(policy=(-3000.0 + min(gap, 0), -3000.0 - max(gap, 0)), reference=(-3000.0, -3000.0), dtype=torch.float32)
    loss, chosen, rejected = gradients(name, far, 1.0)
    assert torch.stack([loss, chosen, rejected]).isfinite().all()


def test_orpo_survives_certainty():
    certain = pair(policy=(0.0, -3.0), dtype=torch.float32)  # probability 1, odds infinite
    assert torch.stack(gradients("orpo", certain, 0.1)).isfinite().all()


def test_one_is_a_special_case_of_the_other():
    logps = pairs()
    plain = LOSSES["sigmoid"](logps, 0.4).loss
    ones = replace(logps, chosen_lengths=torch.ones(6), rejected_lengths=torch.ones(6))
    for other in (
        dpo_loss(*(getattr(logps, f.name) for f in fields(PairLogps)[:4]), beta=0.4),
        LOSSES["cdpo"](logps, 0.4, label_smoothing=0.0),
        LOSSES["robust"](logps, 0.4, label_smoothing=0.0),
        LOSSES["dpop"](logps, 0.4, penalty=0.0),
        LOSSES["sigmoid_norm"](ones, 0.4),
    ):
        torch.testing.assert_close(other.loss, plain)
    assert not torch.allclose(LOSSES["sigmoid_norm"](logps, 0.4).loss, plain)
    assert not torch.allclose(LOSSES["dpop"](logps, 0.4).loss, plain)


def swapped(logps):
    return PairLogps(
        logps.policy_rejected,
        logps.policy_chosen,
        logps.reference_rejected,
        logps.reference_chosen,
        logps.rejected_lengths,
        logps.chosen_lengths,
    )


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_robust_is_right_on_average_over_flipped_labels_and_cdpo_is_not(share):
    logps = pairs()
    clean = LOSSES["sigmoid"](logps, 0.4).loss
    noisy = {
        name: (1 - share) * LOSSES[name](logps, 0.4, label_smoothing=share).loss
        + share * LOSSES[name](swapped(logps), 0.4, label_smoothing=share).loss
        for name in ("robust", "cdpo")
    }
    torch.testing.assert_close(noisy["robust"], clean)
    assert not torch.allclose(noisy["cdpo"], clean, atol=0.01)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_cdpo_wants_the_log_odds_of_a_right_label(share):
    margin = math.log((1 - share) / share)
    at = pair(policy=(-7.0 + margin, -8.0))  # beta 1
    _, chosen, _ = gradients("cdpo", at, 1.0, label_smoothing=share)
    assert abs(chosen.item()) < 1e-12


def test_ipo_is_content_at_its_target_and_hinge_beyond_its_own():
    at = pair(policy=(-7.0 + 8.0, -8.0 - 10.0))  # 8/4 + 10/5 = 4 nats a token
    loss, chosen, rejected = gradients("ipo", at, 1 / 8)
    assert (loss.item(), chosen.item(), rejected.item()) == (0, 0, 0)
    loss, chosen, rejected = gradients("hinge", at, 1 / 8)  # 18/8 > 1
    assert (loss.item(), chosen.item(), rejected.item()) == (0, 0, 0)


def test_an_answer_twice_as_long_changes_only_what_is_averaged():
    logps = pairs()
    longer = replace(logps, chosen_lengths=2 * logps.chosen_lengths)
    changed = {
        name for name in LOSSES if not torch.allclose(LOSSES[name](logps, 0.4).loss, LOSSES[name](longer, 0.4).loss)
    }
    assert changed == {"ipo", "sigmoid_norm", "simpo", "orpo", "sft"}


# KTO


def test_kto_on_pairs_is_the_mean_over_answers_and_with_the_point_at_0_apo_zero():
    logps = pairs()
    point = reference_point(logps.mismatched)
    answers = [
        kto_loss(logps.policy_chosen, logps.reference_chosen, torch.tensor(True), point, 0.4),
        kto_loss(logps.policy_rejected, logps.reference_rejected, torch.tensor(False), point, 0.4),
    ]
    torch.testing.assert_close(LOSSES["kto"](logps, 0.4).loss, torch.stack(answers).mean(0))
    at_zero = replace(logps, mismatched=torch.tensor([-3.0]))
    torch.testing.assert_close(2 * LOSSES["kto"](at_zero, 0.4).loss, LOSSES["apo_zero"](logps, 0.4).loss)


def test_the_reference_point_moves_the_loss_and_takes_no_gradient():
    logps = pairs()
    logps.mismatched.requires_grad_()
    logps.policy_chosen.requires_grad_()
    loss = LOSSES["kto"](logps, 0.4).loss.sum()
    loss.backward()
    assert logps.mismatched.grad is None
    assert not torch.isclose(loss, LOSSES["kto"](replace(logps, mismatched=torch.tensor([4.0])), 0.4).loss.sum())


def test_the_reference_point_sees_drift_and_not_what_was_learned_of_a_prompt():
    """A world in which the KL is known: four prompts and six answers, drawn from the policy."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(4, 6, generator=generator).double().log_softmax(1)
    prompts = torch.arange(4).repeat(5000)

    def points(change):
        policy = (reference + change).log_softmax(1)
        answers = torch.multinomial(policy.exp()[prompts], 1, generator=generator)[:, 0]
        borrowed = answers[torch.tensor(mismatch(prompts.tolist()))]
        ratios = policy - reference
        kl = (policy.exp() * ratios).sum(1).mean().item()
        return kl, reference_point(ratios[prompts, borrowed]).item()

    drift = torch.tensor([2.0, 1.0, 0, 0, 0, -1.0])  # the same answers more likely, whatever was asked
    kl, point = points(drift)
    assert kl > 0.3 and point == pytest.approx(kl, abs=0.05)
    kl, point = points(4.0 * torch.eye(4, 6))  # for each prompt its own
    assert kl > 0.3 and point < 0.1


@pytest.mark.parametrize("prompts", [["a", "b"], ["a", "a", "b", "b"], ["b", "a", "c", "a", "d", "a"], list("abcdefg")])
def test_each_answer_is_lent_once_and_never_to_its_own_prompt(prompts):
    lenders = mismatch(prompts)
    assert sorted(lenders) == list(range(len(prompts)))
    assert all(prompts[i] != prompts[j] for i, j in enumerate(lenders))


def test_borrowing_is_refused_where_there_is_nobody_to_borrow_from():
    with pytest.raises(InputError, match="one prompt has 2 of 3 answers"):
        mismatch(["a", "a", "b"])
    with pytest.raises(InputError, match=r"kto needs PairLogps\.mismatched"):
        LOSSES["kto"](replace(pairs(), mismatched=None))


# Choosing


@pytest.mark.parametrize("name", LOSSES)
def test_a_chosen_loss_is_the_one_by_name(name):
    logps = pairs()
    for number, values in vars(choose_loss(name)(logps, 0.4)).items():
        torch.testing.assert_close(values, getattr(LOSSES[name](logps, 0.4), number))


def test_settings_and_an_sft_term_are_filled_in():
    logps = pairs()
    out = choose_loss("simpo", sft_weight=0.3, gamma=1.2)(logps, 2.0)
    expected = LOSSES["simpo"](logps, 2.0, gamma=1.2)
    torch.testing.assert_close(out.loss, expected.loss - 0.3 * logps.policy_chosen / logps.chosen_lengths)
    torch.testing.assert_close(out.chosen_rewards, expected.chosen_rewards)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ppo", {}, "no loss 'ppo': there are dpo, cdpo, "),
        ("hinge", {"label_smoothing": 0.1}, "'hinge' has no setting 'label_smoothing'; it has only beta"),
        ("simpo", {"margin": 1.0}, "'simpo' has no setting 'margin'; it has gamma"),
        ("cdpo", {"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ("robust", {"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ("dpop", {"penalty": -1.0}, "penalty is -1.0"),
        ("kto", {"desirable_weight": -1.0}, "desirable_weight is -1.0"),
        ("kto", {"undesirable_weight": -0.5}, "undesirable_weight is -0.5"),
        ("dpo", {"sft_weight": -0.1}, "sft_weight is -0.1"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_loss_is_chosen(name, settings, message):
    with pytest.raises(InputError, match=message):
        choose_loss(name, **settings)


@pytest.mark.parametrize("name", LOSSES)
def test_beta_has_to_be_positive(name):
    with pytest.raises(InputError, match="beta is 0"):
        LOSSES[name](pairs(), 0)


# Names, own settings and losses of one's own


def test_sigmoid_is_trls_name_for_dpo():
    assert LOSSES["sigmoid"] is LOSSES["dpo"] and loss_name("sigmoid") == "dpo"
    logps = pairs()
    smoothed = choose_loss("sigmoid", label_smoothing=0.2)(logps, 0.4)
    torch.testing.assert_close(smoothed.loss, LOSSES["cdpo"](logps, 0.4, 0.2).loss)


@pytest.mark.parametrize("name", LOSSES)
def test_the_beta_of_a_loss_is_of_the_size_of_what_it_looks_at(name):
    """Sums over an answer are tens of nats, means over its tokens a fraction of one."""
    means = {"ipo", "sigmoid_norm", "simpo"}
    assert (own_settings(name)["beta"] >= 1) == (name in means)


def test_a_loss_of_your_own_is_chosen_with_its_settings():
    def squared(logps, beta, target=1.0):
        margin = beta * (logps.chosen_ratios - logps.rejected_ratios)
        return PairLoss((margin - target) ** 2, beta * logps.chosen_ratios, beta * logps.rejected_ratios)

    logps = pairs()
    h = 0.4 * (logps.chosen_ratios - logps.rejected_ratios)
    out = choose_loss(squared, sft_weight=0.5, target=2.0)(logps, 0.4)
    torch.testing.assert_close(out.loss, (h - 2) ** 2 - 0.5 * logps.policy_chosen / logps.chosen_lengths)
    assert own_settings(squared) == {"beta": 0.1, "target": 1.0}
    assert loss_name(squared) == loss_name(partial(partial(squared), target=3.0)) == "squared"
    with pytest.raises(InputError, match="'squared' has no setting 'gamma'; it has target"):
        choose_loss(squared, gamma=1.0)


@pytest.mark.parametrize(
    "returned", [lambda logps: logps.policy_chosen, lambda logps: PairLoss(*torch.zeros(3))], ids=["tensor", "mean"]
)
def test_a_loss_of_your_own_that_returns_something_else_is_refused(returned):
    def mine(logps, beta):
        return returned(logps)

    with pytest.raises(InputError, match="'mine' must return a PairLoss with one loss and two rewards for each pair"):
        choose_loss(mine)(pairs(), 0.1)
