import json
import math
import os
import signal

import pytest
import torch
from tiny import byte_encoding

from dpo_core.config import DPOConfig
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair
from dpo_core.metrics import History
from dpo_core.model import GPT, GPTConfig
from dpo_core.runs.checkpoint import list_checkpoints
from dpo_core.tokenizer import load_tokenizer
from dpo_core.trainer import DPOTrainer


@pytest.fixture
def make(tiny_model, encoding, pairs):
    """A trainer of a fresh copy of the tiny model, with settings changed by keyword."""
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}

    def make(output=None, pairs=pairs, val_pairs=None, **settings):
        model = GPT(tiny_model.config)
        model.load_state_dict(start)
        defaults = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0, "val_share": 0.2}
        return DPOTrainer(model, encoding, pairs, DPOConfig(**defaults | settings), output, val_pairs)

    return make


def interrupt_after(trainer, step):
    update = trainer.step

    def interrupting(*args):
        if trainer.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(*args)

    trainer.step = interrupting


def gradient(trainer):
    return torch.cat([parameter.grad.flatten() for parameter in trainer.parameters])


def assert_same_weights(one, other):
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


# What is learned


@pytest.mark.parametrize("reference", ["cached", "live"])
def test_before_any_update_loss_is_ln_2_and_accuracy_zero(make, reference):
    row = make(reference=reference, steps=1).train(progress=False).rows[0]
    for prefix in ("", "eval_"):
        assert row[f"{prefix}loss"] == pytest.approx(math.log(2), abs=1e-6)
        for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen_delta"):
            assert row[prefix + name] == 0.0
    assert row["step"] == 0
    assert row["logps/chosen"] < 0


def test_at_the_start_rounding_is_not_taken_for_a_preference(make):
    trainer = make()
    trainer.reference["training"] += 1e-5 * torch.randn(8, 2)  # as from batches of other shapes, on a larger model
    assert trainer.train(progress=False).rows[0]["rewards/accuracies"] == 0.0


def test_a_policy_that_is_not_the_reference_at_the_start_is_refused(make):
    trainer = make()
    with torch.no_grad():
        trainer.model.wte.weight[:] *= 1.1
    with pytest.raises(InputError, match="policy and reference differ by"):
        trainer.train(progress=False)


def test_twenty_steps_learn_the_preference(make):
    trainer = make(steps=20, eval_every=10)
    history = trainer.train(progress=False)
    first, last = history.rows[0], history.rows[-1]
    assert last["loss"] < 0.6 * first["loss"]
    assert last["eval_loss"] < first["eval_loss"]
    assert last["rewards/accuracies"] == 1.0
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], abs=1e-5)
    assert [row["step"] for row in history.rows] == [0, 10, 20]
    assert {"grad_norm", "learning_rate", "beta"} <= last.keys()


# Six training pairs need two groups of four and two here; in one batch they are one group of six.
@pytest.mark.parametrize(("batch_size", "grad_accum"), [(4, 2), (5, 2), (2, 4), (1, 8)])
def test_accumulation_equals_one_batch(make, pairs, batch_size, grad_accum):
    small = make(pairs=pairs[:6], val_share=0, steps=1, batch_size=batch_size, grad_accum=grad_accum)
    large = make(pairs=pairs[:6], val_share=0, steps=1, batch_size=8)
    rows = [trainer.train(progress=False).rows for trainer in (small, large)]
    torch.testing.assert_close(gradient(small), gradient(large), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(*rows):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_the_gradient_is_that_of_the_mean_loss(make, pairs):
    trainer = make(pairs=pairs[:6], val_share=0, steps=1, batch_size=8, max_grad_norm=1e9)
    loss = trainer.loss(trainer.logps(list(range(6))), 0.1).loss.mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainer.parameters)])
    history = trainer.train(progress=False)
    torch.testing.assert_close(gradient(trainer), expected, rtol=1e-5, atol=1e-6)
    assert history.rows[-1]["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-5)


def test_cached_reference_equals_the_live_one(make):
    cached, live = make(), make(reference="live")
    rows = [trainer.train(progress=False).rows for trainer in (cached, live)]
    for ours, theirs in zip(*rows):
        # While policy and reference are equal, which of two rewards is larger is a matter of rounding.
        assert ours.pop("rewards/accuracies") == pytest.approx(theirs.pop("rewards/accuracies"), abs=0.1)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    for ours, theirs in zip(cached.parameters, live.parameters):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=5e-4
        )  # a key's bias has no slope but rounding, which Adam scales up


def test_the_live_reference_stays_as_it_was(make):
    trainer = make(reference="live")
    before = GPT(trainer.model.config)
    before.load_state_dict(trainer.model.state_dict())
    trainer.train(progress=False)
    assert_same_weights(trainer.reference_model, before)
    assert not torch.equal(trainer.model.wte.weight, before.wte.weight)


def test_runs_repeat_with_their_seed(make):
    one, same, other = make(seed=1), make(seed=1), make(seed=2)
    rows = [trainer.train(progress=False).rows for trainer in (one, same, other)]
    assert rows[0] == rows[1] != rows[2]
    assert_same_weights(one.model, same.model)


@pytest.mark.parametrize(
    ("settings", "betas"),
    [
        ({"beta": 0.1}, [0.1, 0.1, 0.1]),
        ({"beta": 0.1, "beta_end": 0.5}, [0.1, 0.3, 0.5]),
        ({"beta": 0.5, "beta_end": 0.1}, [0.5, 0.3, 0.1]),
    ],
)
def test_beta_moves_in_a_straight_line(make, settings, betas):
    assert [DPOConfig(steps=3, **settings).beta_at(step) for step in range(3)] == pytest.approx(betas)
    history = make(steps=3, log_every=1, **settings).train(progress=False)
    assert history.column("beta")[1] == pytest.approx(betas)


def test_beta_of_a_single_step_is_the_first():
    assert DPOConfig(steps=1, beta=0.1, beta_end=0.5).beta_at(0) == 0.1


def test_evaluations_are_comparable_under_a_schedule(make):
    trainer = make(beta=0.1, beta_end=5.0)
    trainer.train(progress=False)
    row = trainer.evaluate()
    assert row["eval_rewards/chosen"] == pytest.approx(0.1 * row["eval_logps/chosen_delta"], rel=1e-4)


def test_the_learning_rate_warms_up(make):
    config = DPOConfig(learning_rate=1.0, warmup_steps=4)
    assert [config.learning_rate_at(step) for step in (0, 1, 3, 4, 100)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    for few in (0, 1):  # no rise
        assert DPOConfig(learning_rate=1.0, warmup_steps=few).learning_rate_at(0) == 1.0
    history = make(learning_rate=1e-3, warmup_steps=2, log_every=1).train(progress=False)
    assert history.column("learning_rate")[1] == [5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]


def test_rows_average_the_pairs_since_the_last_row(make):
    fine = make(log_every=1).train(progress=False).column("loss")[1][1:]  # batches of 4 and 4 pairs: equal weights
    coarse = make(log_every=3).train(progress=False).column("loss")[1][1:]
    assert coarse == pytest.approx([sum(fine[:3]) / 3, sum(fine[3:]) / 3])


def test_early_stopping_stops(make, pairs):
    swapped = [PreferencePair(p.prompt, p.rejected, p.chosen) for p in pairs]  # what is learned is wrong there
    history = make(val_pairs=swapped, steps=50, eval_every=2, patience=3).train(progress=False)
    assert [row["step"] for row in history.rows] == [0, 2, 4, 6]
    patient = make(steps=12, eval_every=2, patience=3).train(progress=False)
    assert patient.rows[-1]["step"] == 12


@pytest.fixture
def swapped(pairs):
    """What is learned is wrong there: the start is the best."""
    return [PreferencePair(p.prompt, p.rejected, p.chosen) for p in pairs]


def test_patience_keeps_the_best_weights(make, swapped, tmp_path):
    start = make().model
    trainer = make(tmp_path, val_pairs=swapped, steps=50, eval_every=2, patience=3)
    trainer.train(progress=False)
    assert_same_weights(GPT.from_pretrained(tmp_path / "final"), start)
    assert_same_weights(trainer.model, start)
    assert trainer.history.kept_row(trainer.config.patience)["step"] == 0
    plain = make(val_pairs=swapped, eval_every=2)
    plain.train(progress=False)
    assert plain.history.kept_row(plain.config.patience)["step"] == 6 and not torch.equal(
        plain.model.wte.weight, start.wte.weight
    )


def test_the_best_weights_survive_a_resume(make, swapped, tmp_path):
    settings = {"val_pairs": swapped, "steps": 50, "eval_every": 2, "patience": 3}
    stopped = make(tmp_path, **settings)
    interrupt_after(stopped, 3)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(progress=False)
    resumed = make(tmp_path, **settings)
    resumed.train(progress=False, resume=True)
    assert resumed.history.rows[-1]["step"] == 6
    assert_same_weights(resumed.model, make().model)
    (tmp_path / "checkpoints" / "step-000006" / "best.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="step-000006 is damaged"):
        make(tmp_path, **settings).train(progress=False, resume=True)


def test_patience_needs_the_weights_from_before(make, checkpointed):
    with pytest.raises(InputError, match="was written without patience"):
        make(checkpointed, patience=2).train(progress=False, resume=True)


def test_with_the_best_weights_missing_a_run_goes_on_without_patience_only(make, swapped, tmp_path):
    """The error says so, and is right."""
    settings = {"val_pairs": swapped, "eval_every": 2, "save_every": 2}
    make(tmp_path, **settings, steps=4, patience=9).train(progress=False)
    (tmp_path / "checkpoints" / "step-000004" / "best.safetensors").unlink()
    with pytest.raises(InputError, match=r"step-000004 .*best.safetensors is lost; resume without"):
        make(tmp_path, **settings, patience=9).train(progress=False, resume=True)
    assert make(tmp_path, **settings).train(progress=False, resume=True).rows[-1]["step"] == 6


def test_best_weights_that_were_not_kept_up_do_not_come_back(make, swapped, tmp_path):
    settings = {"val_pairs": swapped, "eval_every": 2, "save_every": 2}
    make(tmp_path, **settings, steps=4, patience=9).train(progress=False)
    make(tmp_path, **settings, steps=6).train(progress=False, resume=True)
    with pytest.raises(InputError, match=r"step-000006 was written without patience"):
        make(tmp_path, **settings, steps=8, patience=9).train(progress=False, resume=True)


def test_a_trained_model_is_no_longer_what_was_loaded(make, tiny_model):
    tiny_model.source = "pocket"
    trainer = make(steps=1)
    trainer.model.source = "pocket"
    trainer.train(progress=False)
    assert trainer.model.source == ""


def test_validation_pairs_are_audited(make, pairs):
    same = PreferencePair("Same?", "Yes.", "Yes.")
    assert [pair.prompt for pair, _ in make(val_pairs=[*pairs, same]).val_audit.dropped] == ["Same?"]
    assert make().val_audit is None


def test_all_of_a_prompt_is_held_out_or_none(make):
    trainer = make()
    prompts = [{e.pair.prompt for e in encoded} for encoded in (trainer.training, trainer.validation)]
    assert [len(p) for p in prompts] == [8, 2]
    assert not prompts[0] & prompts[1]


def test_without_validation_nothing_is_evaluated(make):
    trainer = make(val_share=0)
    assert trainer.evaluate() == {}
    assert not any(name.startswith("eval_") for row in trainer.train(progress=False).rows for name in row)


def test_rows_are_printed(make, capsys):
    make(steps=1).train()
    assert capsys.readouterr().out.splitlines()[0].startswith("step     0 | loss: 0.6931 | reward_margin: +0.0000 | ")
    make(steps=1).train(progress=False)
    assert capsys.readouterr().out == ""


def test_each_row_is_shown_to_who_asks(make):
    seen = []
    history = make(log_every=2, eval_every=6).train(
        progress=False, callbacks=[lambda *found: seen.append(dict(found[2]))]
    )
    assert seen == history.rows and [row["step"] for row in seen] == [0, 2, 4, 6]


# Files


def test_a_run_leaves_model_history_and_settings(make, tmp_path):
    trainer = make(tmp_path)
    history = trainer.train(progress=False)
    assert_same_weights(GPT.from_pretrained(tmp_path / "final"), trainer.model)
    assert History.from_jsonl(tmp_path / "history.jsonl") == history
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lock", "checkpoints", "config.json", "final", "history.jsonl", "reference.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_equals_one_that_never_stopped(make, tmp_path, stop, reference):
    settings = {"steps": 8, "log_every": 2, "eval_every": 4, "grad_accum": 2, "batch_size": 2, "reference": reference}
    whole = make(tmp_path / "whole", **settings)
    whole.train(progress=False)
    first = make(tmp_path / "run", **settings)
    interrupt_after(first, stop)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {stop}; saved as .*step-00000{stop}"):
        first.train(progress=False)
    second = make(tmp_path / "run", **settings)
    second.train(progress=False, resume=True)
    assert_same_weights(second.model, whole.model)
    assert second.history == whole.history
    files = [(tmp_path / run / "final" / "model.safetensors").read_bytes() for run in ("whole", "run")]
    assert files[0] == files[1]


def test_an_interrupted_trainer_goes_on_by_itself(make):
    whole, stopped = make(), make()
    whole.train(progress=False)
    interrupt_after(stopped, 2)
    with pytest.raises(KeyboardInterrupt, match="nothing was saved, as the run has no output folder"):
        stopped.train(progress=False)
    assert stopped.train(progress=False) == whole.history
    assert_same_weights(stopped.model, whole.model)


def test_a_crash_loses_nothing_that_was_done(make, tmp_path):
    whole = make(tmp_path / "whole")
    whole.train(progress=False)
    crashing = make(tmp_path / "run", save_every=2)
    update = crashing.step
    crashing.step = lambda *args: update(*args) if crashing.global_step < 5 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        crashing.train(progress=False)
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-000005"
    (tmp_path / "run" / "checkpoints" / "partial").mkdir()  # as a kill in the middle of writing leaves it
    resumed = make(tmp_path / "run", save_every=2)
    resumed.train(progress=False, resume=True)
    assert_same_weights(resumed.model, whole.model)
    assert resumed.history == whole.history


def test_the_last_two_checkpoints_are_kept_and_open_as_models(make, tmp_path):
    trainer = make(tmp_path, steps=7, save_every=2)
    trainer.train(progress=False)
    folders = sorted((tmp_path / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-000006", "step-000007"]
    assert_same_weights(GPT.from_pretrained(folders[-1]), trainer.model)


def test_a_finished_run_can_be_made_longer(make, tmp_path):
    whole = make(tmp_path / "whole", steps=9, log_every=3)
    whole.train(progress=False)
    make(tmp_path / "run", steps=6, log_every=3, save_every=6).train(progress=False)
    longer = make(tmp_path / "run", steps=9, log_every=3, save_every=6)
    longer.train(progress=False, resume=True)
    assert_same_weights(longer.model, whole.model)


def test_the_reference_is_computed_once(make, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("dpo_core.trainer.DPOTrainer.score_sets", lambda self: calls.append(1) or zeros)
    zeros = {"training": torch.zeros(8, 2), "validation": torch.zeros(2, 2)}
    make(tmp_path), make(tmp_path, seed=0, steps=99)
    assert len(calls) == 1
    make(tmp_path, max_length=20)  # cuts answers
    assert len(calls) == 2
    (tmp_path / "reference.safetensors").write_bytes(b"damaged")
    make(tmp_path, max_length=20)
    assert len(calls) == 3


def test_other_weights_need_another_reference(make, tmp_path, encoding, pairs):
    trained = make(tmp_path)
    trained.train(progress=False)
    again = DPOTrainer(trained.model, encoding, pairs, trained.config, tmp_path)
    assert not torch.equal(again.reference["training"], trained.reference["training"])
    assert again.evaluate()["eval_rewards/chosen"] == 0.0


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number above 0"),
        ({"steps": 1e3}, "steps is 1000.0; it must be a whole number"),
        ({"batch_size": None}, "batch_size is None; it must be a whole number"),
        ({"steps": 3, "epochs": 2}, "steps is 3 and epochs is 2; one follows from the other, so give one"),
        ({"epochs": 0}, "epochs is 0; it must be a number above 0"),
        (
            {"learning_rate_schedule": "wave"},
            "learning_rate_schedule is 'wave'; it must be constant or linear or cosine",
        ),
        ({"save_minutes": -1}, "save_minutes is -1"),
        ({"loss": 3}, "loss is 3; it must be the name of a loss, or a function"),
        ({"beta": "0.1"}, "beta is '0.1'; it must be a number above 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"grad_accum": 0}, "grad_accum is 0"),
        ({"eval_every": 0}, "eval_every is 0"),
        ({"log_every": 0}, "log_every is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"save_every": 0}, "save_every is 0"),
        ({"beta": 0}, "beta is 0; it must be a number above 0"),
        ({"beta_end": -1.0}, "beta_end is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"max_grad_norm": 0}, "max_grad_norm is 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"val_share": 1.0}, "val_share is 1.0"),
        ({"precision": "fp8"}, "precision is 'fp8'; it must be float32 or bf16 or fp16 or auto"),
        ({"reference": "none"}, "reference is 'none'; it must be cached or live"),
        ({"max_length": 65}, "max_length is 65, but the model has 64 positions"),
        ({"max_length": 7}, "no preference pair is left"),
        ({"val_share": 0, "patience": 2}, "patience needs validation pairs"),
        ({"val_share": 0.99}, "10 different prompts cannot be divided"),
        ({"pairs": []}, "no pairs were given"),
        ({"val_pairs": []}, "no pairs were given"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, settings, message):
    with pytest.raises(InputError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: setattr(model, "config", GPT(model.config).config.__class__(dropout=0.1)), "has dropout 0.1"),
        (lambda model: model.half(), "not in float32"),
        (lambda model: model.requires_grad_(False), "no parameter of the model requires a gradient"),
    ],
)
def test_models_that_do_not_fit_are_refused(tiny_model, encoding, pairs, spoil, message):
    spoil(tiny_model)
    with pytest.raises(InputError, match=message):
        DPOTrainer(tiny_model, encoding, pairs, DPOConfig())


def test_an_encoding_of_another_model_is_refused(tiny_model, pairs):
    with pytest.raises(InputError, match=r"'bytes' with 258 tokens, but the model's is .* 257; use load_tok"):
        DPOTrainer(tiny_model, byte_encoding(b"ab"), pairs, DPOConfig())


def test_nor_is_a_smaller_one_taken_for_the_models(pairs):
    """Ids below the vocabulary's size would be read as other tokens, and nothing would show it."""
    encoding = load_tokenizer("pocket")
    model = GPT(GPTConfig(encoding.n_vocab + 1, 64, 16, 1, 2, tokenizer="gpt2"))
    with pytest.raises(InputError, match=r"the encoding is 'pocket' with 4096 tokens, but the model's is 'gpt2'"):
        DPOTrainer(model, encoding, pairs, DPOConfig())


def test_an_unwritable_folder_is_found_out_before_any_work(make, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("dpo_core.trainer.audit_pairs", lambda *_: pytest.fail("worked before"))
    with pytest.raises(InputError, match="file/run: cannot write there"):
        make(tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_stops_before_the_step(make, tmp_path):
    trainer = make(tmp_path, val_share=0, batch_size=10)
    place = next(i for i, e in enumerate(trainer.training) if e.pair.source == "pairs.jsonl:7")
    trainer.reference["training"][place, 0] = float("nan")
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(
        InputError, match=r"step 1 is not finite, at pairs.jsonl:7; .* saved as .*step-000000.* is prompt \"Ask 6\?\""
    ):
        trainer.train(progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_before_the_step_though_the_loss_is(make, monkeypatch):
    trainer = make(val_share=0, batch_size=10)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(InputError, match=r"step 1 is not finite, at pairs.jsonl:\d+, .*nothing was saved"):
        trainer.train(progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


@pytest.fixture
def checkpointed(make, tmp_path):
    make(tmp_path, save_every=3).train(progress=False)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 5, "seed": 1}, r"other settings \(batch_size is 5, was 4; seed is 1, was 0\)"),
        ({"pairs": [PreferencePair(f"Q{i}", "a", "b") for i in range(10)]}, "other weights or on other data"),
    ],
)
def test_only_the_same_run_is_resumed(make, checkpointed, settings, message):
    with pytest.raises(InputError, match=message):
        make(checkpointed, **settings).train(progress=False, resume=True)


def test_steps_are_fixed_under_a_schedule(make, tmp_path):
    settings = {"beta_end": 0.5, "save_every": 3}
    make(tmp_path, **settings).train(progress=False)
    with pytest.raises(InputError, match=r"other settings \(steps is 9, was 6\)"):
        make(tmp_path, steps=9, **settings).train(progress=False, resume=True)


@pytest.mark.parametrize("file", ["trainer.json", "model.safetensors", "optimizer.safetensors", "config.json"])
def test_a_damaged_checkpoint_is_named(make, checkpointed, file):
    (checkpointed / "checkpoints" / "step-000006" / file).write_bytes(b"\x00")
    with pytest.raises(InputError, match=r"step-000006 is damaged .*; delete it"):
        make(checkpointed).train(progress=False, resume=True)


def test_the_model_that_training_starts_from_is_not_overwritten(make, tiny_model, encoding, pairs, tmp_path):
    tiny_model.save_pretrained(tmp_path / "run" / "final")
    model = GPT.from_pretrained(tmp_path / "run" / "final")
    with pytest.raises(InputError, match="run holds the model that training starts from"):
        DPOTrainer(model, encoding, pairs, DPOConfig(), tmp_path / "run")


def test_an_earlier_run_is_not_overwritten_unless_it_is_finished(make, tmp_path):
    stopped = make(tmp_path)
    interrupt_after(stopped, 2)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(progress=False)
    with pytest.raises(InputError, match="holds checkpoints of an earlier run that is not finished; resume it, or"):
        make(tmp_path).train(progress=False)
    make(tmp_path).train(progress=False, resume=True)
    make(tmp_path, steps=3, beta=0.2).train(progress=False)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000003"]


def test_a_run_is_resumed_in_the_precision_it_was_computed_in(make, checkpointed):
    file = checkpointed / "checkpoints" / "step-000006" / "trainer.json"
    state = json.loads(file.read_text())
    assert state["precision"] == "float32"
    file.write_text(json.dumps(state | {"precision": "bf16"}))
    with pytest.raises(InputError, match=r"was computed in bf16, this would be float32; resume with the same"):
        make(checkpointed).train(progress=False, resume=True)


@pytest.mark.parametrize("folder", [True, False])
def test_nothing_to_resume_is_an_error(make, tmp_path, folder):
    with pytest.raises(InputError, match=r"no checkpoint.* to resume from"):
        make(tmp_path if folder else None).train(progress=False, resume=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_what_float32_learns(make, precision):
    full, low = (make(precision=setting).train(progress=False) for setting in ("float32", precision))
    for name in ("loss", "rewards/margins", "eval_loss"):
        assert low.rows[-1][name] == pytest.approx(full.rows[-1][name], abs=0.02)
    assert low.rows[-1]["loss"] < low.rows[0]["loss"] - 0.02


def test_a_step_too_large_for_fp16_is_taken_again_at_a_smaller_scale(make):
    calm, wild = make(precision="fp16"), make(precision="fp16")
    wild.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    rows = [trainer.train(progress=False).rows[-1] for trainer in (calm, wild)]
    assert wild.precision.scaler.get_scale() < 2.0**40
    assert rows[1] == pytest.approx(rows[0], abs=2e-2)
    assert math.isfinite(rows[1]["grad_norm"])


def test_fp16_resumes_exactly(make, tmp_path):
    whole, first = make(precision="fp16"), make(tmp_path, precision="fp16", save_every=3)
    interrupt_after(first, 3)
    with pytest.raises(KeyboardInterrupt):
        first.train(progress=False)
    second = make(tmp_path, precision="fp16", save_every=3)
    expected, got = whole.train(progress=False), second.train(progress=False, resume=True)
    assert got.rows[-1] == expected.rows[-1]
    assert second.precision.scaler.state_dict() == whole.precision.scaler.state_dict()
