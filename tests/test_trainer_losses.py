"""The trainer with each loss of the family."""

from __future__ import annotations

import copy
import inspect
from functools import partial

import pytest
import torch

from dpo_core.config import DPOConfig
from dpo_core.data import encode_pair
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair
from dpo_core.losses import PairLogps
from dpo_core.methods.family import LOSSES
from dpo_core.model import GPT
from dpo_core.trainers import KTOTrainer, trainer_for


@pytest.fixture
def make(tiny_model, encoding, pairs):
    """A trainer on all ten pairs at once, of a copy of the tiny model."""

    def make(**settings):
        model = GPT(tiny_model.config)
        model.load_state_dict(tiny_model.state_dict())
        defaults = {"steps": 2, "batch_size": 10, "learning_rate": 1e-3, "warmup_steps": 0, "val_share": 0.0}
        config = DPOConfig(**defaults | {"log_every": 1} | settings)
        return trainer_for(config.loss)(model, encoding, pairs, config)

    return make


def logp(model, encoding, prompt, answer):
    """Of one answer alone, by the definition."""
    encoded = encode_pair(encoding, PreferencePair(prompt, answer, "x"))
    ids = torch.tensor([encoded.prompt + encoded.chosen])
    with torch.no_grad():
        logps = model(ids)[0, :-1].log_softmax(-1)
    at = torch.arange(len(encoded.prompt), ids.shape[1])
    return logps[at - 1, ids[0, at]].sum()


def by_hand(loss, policy, reference, encoding, pairs, beta=0.1, mismatched=None):
    """The mean over pairs, each answer's log-probability computed alone."""
    sides = [
        torch.stack([logp(model, encoding, p.prompt, getattr(p, side)) for p in pairs])
        for model in (policy, reference)
        for side in ("chosen", "rejected")
    ]
    lengths = [
        torch.tensor([len(getattr(encode_pair(encoding, p), side)) for p in pairs]) for side in ("chosen", "rejected")
    ]
    return loss(PairLogps(*sides, *lengths, mismatched), beta).loss.mean()


@pytest.mark.parametrize("name", LOSSES)
def test_the_logged_loss_is_the_one_asked_for(make, tiny_model, encoding, pairs, name):
    settings = {"label_smoothing": 0.2} if name in ("cdpo", "robust") else {}
    trainer = make(loss=name, **settings)
    loss = partial(LOSSES[name], **settings)
    beta = inspect.signature(LOSSES[name]).parameters["beta"].default
    expected = by_hand(loss, trainer.model, tiny_model, encoding, pairs, beta, torch.zeros(1))
    history = trainer.train(progress=False)
    assert history.rows[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"label_smoothing": 0.2}, lambda logps, beta: LOSSES["cdpo"](logps, beta, label_smoothing=0.2)),
        (
            {"loss": "robust", "label_smoothing": 0.2},
            lambda logps, beta: LOSSES["robust"](logps, beta, label_smoothing=0.2),
        ),
        (
            {"loss": "simpo", "gamma": 3.0},
            lambda logps, beta: LOSSES["simpo"](logps, beta, gamma=3.0),
        ),
    ],
)
def test_settings_reach_the_loss_also_where_it_is_evaluated(make, tiny_model, encoding, pairs, settings, loss):
    trainer = make(**settings, steps=3)
    trainer.validation = trainer.training
    trainer.reference["validation"] = trainer.reference["training"]
    trainer.train(progress=False)
    found = trainer.evaluate()["eval_loss"]
    beta = trainer.config.beta
    assert found == pytest.approx(float(by_hand(loss, trainer.model, tiny_model, encoding, pairs, beta)), rel=1e-4)
    assert found != pytest.approx(
        float(by_hand(LOSSES[trainer.config.loss], trainer.model, tiny_model, encoding, pairs, beta))
    )


def test_the_reference_point_of_kto_is_that_of_the_step_however_many_passes_it_takes(make):
    logged = []
    for batch_size, grad_accum in ((10, 1), (2, 5)):
        trainer = make(loss="kto", learning_rate=1e-2, steps=4, batch_size=batch_size, grad_accum=grad_accum)
        logged.append(trainer.train(progress=False).column("loss")[1])
        assert trainer.drift("training", [*range(10)]).mean() > 0.05  # so that the points of parts would differ
    assert logged[0] == pytest.approx(logged[1], abs=1e-5)


def test_an_sft_term_is_added(make):
    plain, tied = make(), make(sft_weight=0.5)
    start = [trainer.train(progress=False).rows[0]["loss"] for trainer in (plain, tied, make(loss="sft"))]
    assert start[1] == pytest.approx(start[0] + 0.5 * start[2], rel=1e-5)


def test_ktos_cached_reference_knows_the_prompts_that_were_lent(tiny_model, encoding, tmp_path):
    """A shorter max_length cuts no pair here, but a lent prompt."""
    odd = [PreferencePair("p" * 30, "a", "b"), PreferencePair("q" * 5, "c" * 25, "d" * 20)]
    for length in (60, 40):
        config = DPOConfig(loss="kto", max_length=length, val_share=0.0, steps=1)
        trainer = KTOTrainer(copy.deepcopy(tiny_model), encoding, odd, config, tmp_path)
        assert all(len(e.chosen) in (2, 26) for e in trainer.training)
        assert trainer.drift("training", [0, 1]) == pytest.approx(torch.zeros(4), abs=1e-5)


def test_kto_measures_how_far_answers_to_other_prompts_have_drifted(make, tiny_model, encoding, pairs):
    trainer = make(loss="kto", learning_rate=1e-2, steps=4)
    assert trainer.drift("training", [0, 1]) == pytest.approx(torch.zeros(4), abs=1e-5)
    trainer.train(progress=False)
    drift = trainer.drift("training", [*range(10)]).view(10, 2)
    assert all(lent.prompt != own.prompt for lent, own in zip(trainer.mismatched["training"], trainer.training))
    for row, lent, own in zip(drift, trainer.mismatched["training"], trainer.training):
        lender = next(e.pair for e in trainer.training if e.prompt == lent.prompt)
        for value, side in zip(row, ("chosen", "rejected")):
            answer = getattr(own.pair, side)
            moved = [logp(model, encoding, lender.prompt, answer) for model in (trainer.model, tiny_model)]
            assert float(value) == pytest.approx(float(moved[0] - moved[1]), abs=1e-4)
    assert drift.abs().max() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "nonsense"}, "no loss 'nonsense': there are dpo"),
        ({"loss": "robust"}, "the loss 'robust' needs label_smoothing, the share of labels assumed wrong"),
        ({"loss": "cdpo", "label_smoothing": 0.0}, "the loss 'cdpo' needs label_smoothing"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "the loss 'ipo' has no setting 'label_smoothing'"),
        ({"penalty": 1.0}, "the loss 'dpo' has no setting 'penalty'"),
        ({"sft_weight": -1.0}, "sft_weight is -1.0"),
    ],
)
def test_what_no_loss_has_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        DPOConfig(**settings)


def test_kto_says_which_pairs_have_too_few_prompts(tiny_model, encoding, pairs):
    one_prompt = [PreferencePair("Why?", "YES", "no"), PreferencePair("Why?", "OK", "no")]
    with pytest.raises(InputError, match=r"validation pairs: one prompt has 2 of 2 answers.*another val_share"):
        KTOTrainer(tiny_model, encoding, pairs, DPOConfig(loss="kto"), val_pairs=one_prompt)
