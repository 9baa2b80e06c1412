"""Each disease is named by its curves, and no other; a healthy run is called healthy; the museum's table holds."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from dpo_core.config import DPOConfig
from dpo_core.data import EncodedPair
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair
from dpo_core.generate import generate
from dpo_core.metrics import History
from dpo_core.study.diagnose import LEARNING, LN2, MACHINERY, NUMBERS, diagnose
from dpo_core.study.evaluate import sample_kl
from dpo_core.study.setup_check import SETUP, check_setup, first_token_tells
from dpo_core.study.watch import watch
from dpo_core.trainer import DPOTrainer

STEPS = (0, 10, 20, 30, 40, 50, 60)


def run(**end: float) -> History:
    """A healthy run whose curves go in straight lines to these ends; a metric that is None is left out."""
    healthy = {
        "loss": 0.45,
        "rewards/margins": 0.9,
        "rewards/accuracies": 0.8,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.8,
        "eval_loss": 0.5,
        "eval_rewards/margins": 0.7,
        "eval_rewards/accuracies": 0.78,
        "eval_rewards/chosen": 0.05,
        "eval_rewards/rejected": -0.65,
        "eval_logps/chosen_delta": 0.5,
        "grad_norm": 3.0,
        "beta": 0.1,
        "weights/changed": 0.95,
        "kl/policy_ref": 2.0,
        "samples/length": 45.0,
        "samples/ended": 1.0,
        "ended/chosen": 1.0,
        "eos/chosen": 0.7,
        "samples/odd": 0.05,
    }
    start = dict.fromkeys(healthy, 0.0) | {
        "loss": LN2, "eval_loss": LN2, "samples/ended": 1.0, "samples/length": 40.0, "samples/odd": 0.05,
        "eos/chosen": 0.7,
    }  # fmt: skip
    ends = {name: value for name, value in (healthy | end).items() if value is not None}
    history = History()
    for step in STEPS:
        row = {name: start.get(name, 0.0) + (value - start.get(name, 0.0)) * step / 60 for name, value in ends.items()}
        if step:
            row |= {
                name: ends[name] for name in ("beta", "weights/changed", "grad_norm", "ended/chosen") if name in ends
            }
        history.log(step, **row)
    return history


def names(history: History) -> list[str]:
    return [finding.name for finding in diagnose(history)]


STILL = dict.fromkeys(["rewards/margins", "rewards/chosen", "rewards/rejected", "rewards/accuracies"], 0.0) | {
    "loss": LN2
}
UNMOVED = (
    STILL
    | dict.fromkeys(
        [
            "eval_rewards/chosen",
            "eval_rewards/rejected",
            "eval_rewards/margins",
            "eval_logps/chosen_delta",
            "kl/policy_ref",
        ],
        0.0,
    )
    | {"eval_loss": LN2, "eval_rewards/accuracies": 0.0}
)


def test_under_a_schedule_evaluations_at_the_first_beta_are_not_compared():
    """Log-ratios of 3 nats, training and held out: 0.0486 at a beta of 1 and 0.664 at 0.02 are no memory of pairs."""
    history = run(loss=0.0486, eval_loss=0.6636, beta=1.0)
    assert "memorised pairs" in names(history)
    for row in history.rows[1:]:
        row["beta"] = row["step"] / 60
    assert "memorised pairs" not in names(history)


SICK = {
    "not finite": {"grad_norm": float("nan"), "loss": float("nan")},
    "frozen policy": UNMOVED | {"weights/changed": 0.0},
    "moving reference": STILL,
    "dropout on": {"loss": 1.8, "rewards/chosen": -3.2, "rewards/rejected": -3.0, "rewards/margins": -0.2},
    "half-precision weights": {"weights/changed": 0.2},
    "swapped labels": {"eval_rewards/margins": -0.7, "eval_rewards/accuracies": 0.22, "eval_loss": 1.1},
    "memorised pairs": {"loss": -0.25, "eval_loss": 0.8, "eval_rewards/accuracies": 0.55},  # late mean 0.02
    "learning rate too high": {"loss": 9.0, "eval_loss": 7.0, "eval_rewards/accuracies": 0.55},
    "no end of text": {"ended/chosen": 0.02, "eos/chosen": 0.2},
    "noisy labels": {
        "loss": 0.69, "eval_loss": 0.7, "rewards/accuracies": 0.58, "eval_rewards/accuracies": 0.52,
        "eval_rewards/margins": 0.02,
    },
    "harmful displacement": {"samples/odd": 9.0, "eval_logps/chosen_delta": -50.0},
    "learning rate too low": {
        "loss": 0.692, "eval_loss": 0.6915, "kl/policy_ref": 0.0004, "eval_logps/chosen_delta": 0.004,
        "rewards/chosen": 1e-3, "rewards/rejected": -1e-3, "eval_rewards/margins": 2e-3,
    },
    "harmless displacement": {
        "eval_logps/chosen_delta": -6.0, "eval_rewards/chosen": -0.6, "eval_rewards/rejected": -1.3,
    },
    "displacement": {
        "eval_logps/chosen_delta": -6.0, "eval_rewards/chosen": -0.6, "eval_rewards/rejected": -1.3,
        "samples/odd": None, "samples/ended": None, "samples/length": None, "kl/policy_ref": None,
    },
}  # fmt: skip


def test_every_rule_has_a_patient():
    assert SICK.keys() == NUMBERS.keys() | MACHINERY.keys() | LEARNING.keys()


@pytest.mark.parametrize("disease", SICK)
def test_a_disease_is_named_and_no_other(disease):
    assert names(run(**SICK[disease])) == [disease]


@pytest.mark.parametrize("disease", SICK)
def test_a_finding_says_numbers_and_what_to_do(disease):
    (finding,) = diagnose(run(**SICK[disease]))
    assert any(character.isdigit() for character in finding.evidence)
    assert len(finding.remedy) > 15
    assert finding.note == ("displacement" in disease and disease != "harmful displacement")


def test_a_healthy_run_is_healthy():
    assert names(run()) == []


# What is like a disease and is none


@pytest.mark.parametrize(
    "near",
    [
        {"eval_rewards/margins": -0.05, "eval_rewards/accuracies": 0.48},  # overfitted, not swapped
        {"eval_rewards/margins": -0.5, "eval_rewards/accuracies": 0.45},  # on average far off, but hardly in more pairs
        {"eval_rewards/margins": -0.7, "eval_rewards/accuracies": 0.7},  # a few pairs far off
        {"loss": 0.02, "eval_loss": 0.06},  # easy pairs
        {"loss": 0.9},  # training batches of a bad hour; held out it is fine
        {"ended/chosen": 0.5},  # cut, but the policy ends as before
        {"eos/chosen": 0.2},  # the language suffered, but the answers have their end
        {"samples/odd": 0.8},
        {"eval_logps/chosen_delta": -0.5},
        {"rewards/chosen": -1.0, "eval_rewards/chosen": -0.9},  # both kinds of pairs alike
        {"rewards/chosen": -4.0},  # only one of the two rewards: no noise
        {"weights/changed": 0.6},
        {"loss": 0.69, "eval_loss": 0.7, "eval_rewards/accuracies": 0.7},  # unsure, yet mostly right
        {"loss": 0.69, "eval_loss": 0.6, "eval_rewards/accuracies": 0.52},
    ],
    ids=str,
)
def test_no_false_alarm(near):
    assert names(run(**near)) == []


@pytest.mark.parametrize(("seen", "held_out", "called"), [(0.55, 0.65, ["noisy labels"]), (0.75, 0.58, [])])
def test_noise_is_told_by_both_accuracies_together(seen, held_out, called):
    noisy = SICK["noisy labels"] | {"rewards/accuracies": seen, "eval_rewards/accuracies": held_out}
    assert names(run(**noisy)) == called


def test_the_reward_at_step_0_is_no_frozen_policy():
    history = run()
    assert history.rows[0]["rewards/chosen"] == 0
    assert "frozen policy" not in names(history)


def test_single_rows_that_jump_are_averaged():
    history = run()
    history.rows[-1]["loss"] = 1.2
    assert names(history) == []


# What can be said without watch, or without held-out pairs

WATCHED = ("weights/changed", "kl/policy_ref", "ended/chosen", "eos/chosen", "samples/length", "samples/ended")
WATCHED += ("samples/odd",)


@pytest.mark.parametrize(
    "disease",
    [name for name in SICK if name not in ("half-precision weights", "no end of text") and not name.startswith("harm")],
)
def test_these_are_named_without_watch(disease):
    assert names(run(**SICK[disease] | dict.fromkeys(WATCHED)))[0] == disease


@pytest.mark.parametrize("disease", SICK)
def test_a_rule_without_its_metrics_is_silent(disease):
    rule = (NUMBERS | MACHINERY | LEARNING)[disease]
    for name in rule.needs:
        if name != "loss":
            assert disease not in names(run(**(SICK[disease] | {name: None})))


def test_the_level_of_another_loss_is_not_judged():
    history = run(**SICK["learning rate too high"])
    assert "learning rate too high" in names(history)
    history.rows[0]["loss"] = 25.0  # IPO's at beta 0.1
    assert "learning rate too high" not in names(history)


def test_a_history_without_steps_is_refused():
    with pytest.raises(InputError, match="train first"):
        diagnose(History([{"step": 0, "loss": LN2}]))


def test_through_a_broken_machine_nothing_else_is_read():
    assert names(run(**(SICK["swapped labels"] | {"weights/changed": 0.2}))) == ["half-precision weights"]


# Before the first step


@pytest.fixture
def make(tiny_model, encoding, pairs):
    def make(pairs=pairs, **settings):
        defaults = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0, "val_share": 0.2}
        defaults |= {"eval_every": 2, "log_every": 1}
        return DPOTrainer(copy.deepcopy(tiny_model), encoding, pairs, DPOConfig(**defaults | settings))

    return make


def found(trainer) -> list[str]:
    return [finding.name for finding in check_setup(trainer)]


def another_optimiser(trainer):
    trainer.optimizer = torch.optim.AdamW(copy.deepcopy(trainer.model).parameters())


def share_reference(trainer):
    trainer.reference_model = trainer.model


def dropout(trainer):
    trainer.model.h[0].attn.dropout = 0.1


def half_precision(trainer):
    trainer.model.h[0].mlp.bfloat16()


def other_weights(trainer):
    with torch.no_grad():
        trainer.model.wte.weight *= 1.1


def no_end(trainer):
    trainer.training = [replace(e, chosen=e.chosen[:-1]) for e in trainer.training]
    trainer.reference = trainer.score_sets()


def empty(trainer):
    trainer.training[0] = replace(trainer.training[0], chosen=[])


SABOTAGE = {
    "frozen policy": another_optimiser,
    "moving reference": share_reference,
    "dropout on": dropout,
    "policy is not the reference": other_weights,
    "no end of text": no_end,
}


@pytest.fixture
def even(encoding) -> list[PreferencePair]:
    """Pairs whose lengths tell nothing."""
    texts = [("YES OK", "no"), ("OK", "no way"), ("YES YES", "no no"), ("YES", "no way no")]
    return [PreferencePair(f"Ask {i}?", *texts[i % 4]) for i in range(12)]


@pytest.mark.parametrize("reference", ["cached", "live"])
def test_a_sound_trainer_has_no_findings(make, even, reference):
    assert found(make(pairs=even, reference=reference)) == []


@pytest.mark.parametrize("disease", SABOTAGE)
def test_what_was_changed_since_is_found(make, even, disease):
    trainer = make(pairs=even, reference="live" if disease == "moving reference" else "cached")
    SABOTAGE[disease](trainer)
    assert found(trainer) == [disease]


def test_half_precision_is_found(make, even):
    trainer = make(pairs=even)
    trainer.model.bfloat16()
    assert "half-precision weights" in found(trainer)


def test_an_empty_answer_is_found(make, even):
    trainer = make(pairs=even)
    empty(trainer)
    assert "empty answers" in found(trainer)


def test_cut_answers_and_identical_pairs_are_counted(make, even):
    pairs = [*even, PreferencePair("Same?", "a", "a"), PreferencePair("Same?", "b", "b")]
    (finding,) = check_setup(make(pairs=pairs))
    assert finding.name == "identical pairs"
    assert "2 of 14 pairs (14.3%)" in finding.evidence
    longer = [PreferencePair(f"Ask {i}?", "YES " * 5, "no") for i in range(10)]
    findings = {f.name: f.evidence for f in check_setup(make(pairs=longer, max_length=20))}
    assert findings == {
        "no end of text": "10 of 10 chosen and 0 rejected answers have no end-of-text token",
        "length tells the label": "the chosen answer is the longer one in 100% of 8 pairs",
    }


def test_a_first_token_that_tells_the_label_is_found(make):
    texts = [("YES", "no"), ("YES ok", "no no"), ("YES", "no no"), ("YES YES", "no")]
    pairs = [PreferencePair(f"Ask {i}?", *texts[i % 4]) for i in range(24)]
    findings = {f.name: f.evidence for f in check_setup(make(pairs=pairs))}
    assert "in 100% of 24 pairs" in findings["first token tells the label"]
    half = [PreferencePair(p.prompt, p.rejected, p.chosen) if i % 2 else p for i, p in enumerate(pairs)]
    assert "first token tells the label" not in found(make(pairs=half))


def test_labels_that_the_first_token_tells_are_found_whichever_kind_is_more():
    def answers(first):
        """Eighty of which one in eight is undesirable and begins with 9; the others begin with ``first``."""
        sides = [([], [9, i]) if i % 8 == 0 else ([first, i], []) for i in range(80)]
        return [EncodedPair([1], *both, PreferencePair(str(i), "", "")) for i, both in enumerate(sides)]

    told = first_token_tells(answers(7))
    assert told == "the first token alone tells desirable answers from undesirable ones in 100% of 80 answers"
    assert first_token_tells(answers(9)) == ""  # that most are desirable tells nothing


def test_every_check_is_tested():
    tested = {*SABOTAGE, "half-precision weights", "empty answers", "identical pairs", "length tells the label"}
    tested |= {"first token tells the label"}
    tested |= {"unbalanced labels"}  # in test_kto_trainer.py
    assert tested == SETUP.keys()


def test_checking_changes_nothing(make, even):
    one, other = make(pairs=even), make(pairs=even)
    check_setup(one)
    for trainer in (one, other):
        trainer.train(progress=False)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])


# Watching


def test_watching_changes_nothing_and_sees_the_weights_move(make, even):
    one, other = make(pairs=even), make(pairs=even)
    history = one.train(progress=False, callbacks=[watch(one, ["Ask 1?", "Ask 2?"], max_new_tokens=12)])
    other.train(progress=False)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])
    steps, changed = history.column("weights/changed")
    assert steps == [0, 1, 2, 3, 4]
    assert changed[0] == 0 and min(changed[1:]) > 0.5
    assert history.column("samples/odd")[0] == [0, 2, 4]
    assert history.column("kl/policy_ref")[1][0] == 0 < history.column("kl/policy_ref")[1][-1]


def test_what_is_watched_is_counted_rightly(make, even, encoding):
    trainer, prompts = make(pairs=even, max_length=11), ["Ask 1?", "Ask 2?", "Ask 3?"]
    trainer.model.ln_f.weight.data *= 8  # sure of itself, so that some tokens are odd to it
    look = watch(trainer, prompts, max_new_tokens=12)
    reference = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    row, answers = (
        look(trainer, 0, {"loss": LN2}),
        generate(trainer.model, encoding, prompts, max_new_tokens=12, seed=0),
    )
    assert row["samples/length"] == sum(len(a.ids) for a in answers) / 3
    assert row["samples/ended"] == sum(a.ids[-1] == encoding.eot_token for a in answers) / 3

    def odd(answer):
        prompt = encoding.encode(answer.prompt + "\n")
        probs = reference(torch.tensor([prompt + answer.ids]))[0].softmax(-1)
        return sum(probs[len(prompt) - 1 + t, token].item() < 1e-3 for t, token in enumerate(answer.ids))

    assert row["samples/odd"] == sum(map(odd, answers)) / 3 > 0
    kl, _ = sample_kl(trainer.model, reference, encoding, prompts, max_new_tokens=12, seed=0)
    assert row["kl/policy_ref"] == pytest.approx(kl, rel=1e-5)

    assert row["ended/chosen"] == sum(e.chosen[-1] == encoding.eot_token for e in trainer.training) / len(
        trainer.training
    )
    assert 0 < row["ended/chosen"] < 1
    ends = [encoding.encode(f"{e.pair.prompt}\n{e.pair.chosen}") for e in trainer.validation]  # whole, not cut
    stops = [trainer.model(torch.tensor([ids]))[0, -1].softmax(-1)[encoding.eot_token].item() for ids in ends]
    assert row["eos/chosen"] == pytest.approx(sum(stops) / len(stops), rel=1e-4)


def test_without_prompts_nothing_is_sampled(make, even):
    trainer = make(pairs=even)
    history = trainer.train(progress=False, callbacks=[watch(trainer)])
    assert not any("samples/odd" in row for row in history.rows)
    assert "weights/changed" in history.rows[-1]
