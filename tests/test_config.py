"""One set of settings: what the flags are made of, what the trainer fills in, and what a record of before says."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from itertools import pairwise
from types import SimpleNamespace

import pytest

from dpo_core.cli.flags import build_parser
from dpo_core.config import DPOConfig, default_learning_rate, recorded_settings
from dpo_core.errors import InputError
from dpo_core.losses import PairLoss
from dpo_core.methods.family import LOSSES, choose_loss
from dpo_core.methods.lora import LoRAConfig, add_lora
from dpo_core.model import GPT, GPTConfig
from dpo_core.runs.checkpoint import list_checkpoints
from dpo_core.trainers import trainer_for

NAMES = [found.name for found in fields(DPOConfig)]


@pytest.fixture
def make(tiny_model, encoding, pairs):
    """A trainer of a copy of the tiny model on all ten pairs, four a step."""

    def make(output=None, **settings):
        model = GPT(tiny_model.config)
        model.load_state_dict(tiny_model.state_dict())
        usual = {"batch_size": 4, "learning_rate": 1e-3, "val_share": 0.0, "log_every": 1}
        config = DPOConfig(**usual | settings)
        return trainer_for(config.loss)(model, encoding, pairs, config, output)

    return make


def parsed(*flags):
    args = build_parser().parse_args(["train", "--data", "pairs.jsonl", *flags])
    return DPOConfig(**{name: getattr(args, name) for name in NAMES})


# Flags


def test_without_flags_the_command_line_takes_the_librarys_defaults():
    assert parsed() == DPOConfig()


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_is_a_flag_by_its_own_name(name):
    setting = next(found for found in fields(DPOConfig) if found.name == name)
    other = {"loss": "ipo", "gamma": None, "penalty": None, "steps": 7}.get(name, None)
    if setting.metadata["setting"].kind.choices:
        other = other or setting.metadata["setting"].kind.choices[-1]
    loss = {"gamma": "simpo", "penalty": "dpop", "desirable_weight": "kto", "undesirable_weight": "kto"}.get(name)
    flags = ["--loss", loss] if loss else []
    other = other or {"label_smoothing": 0.25, "val_share": 0.25, "metric_for_best_model": "eval_loss/2"}.get(name, 3)
    found = getattr(parsed(*flags, f"--{name.replace('_', '-')}", str(other)), name)
    assert found == other != setting.default


@pytest.mark.parametrize(
    ("flag", "value", "name"),
    [
        ("--lr", 0.5, "learning_rate"),
        ("--lr-schedule", "cosine", "learning_rate_schedule"),
        ("--beta-schedule", 0.2, "beta_end"),
        ("--early-stopping", 3, "patience"),
    ],
)
def test_the_guides_names_are_kept(flag, value, name):
    assert getattr(parsed(flag, str(value)), name) == value


def test_what_a_flag_refuses_the_library_refuses_in_the_same_words():
    for name in NAMES:
        kind = next(found for found in fields(DPOConfig) if found.name == name).metadata["setting"].kind
        if kind.choices:
            continue
        with pytest.raises(InputError, match="is not") as flag:
            parsed(f"--{name.replace('_', '-')}=-1")
        with pytest.raises(InputError, match="must be") as library:
            DPOConfig(**{name: -1})
        assert kind.words in str(flag.value) and kind.words in str(library.value)


def test_the_help_tells_each_loss_with_its_beta_and_each_setting_with_its_default(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "simpo (beta 2, gamma 0.5)" in out and "sigmoid (" not in out
    assert "--learning-rate, --lr X" in out and "(default: the loss's own, 0.1 for dpo)" in out


# What depends on loss, model and data


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_takes_the_losss_own_beta_unless_one_is_given(make, name):
    settings = {"label_smoothing": 0.2} if name in ("cdpo", "robust") else {}
    beta = LOSSES[name].__defaults__[0]
    assert make(loss=name, **settings).config.beta == beta
    assert make(loss=name, beta=0.3, **settings).config.beta == 0.3


@pytest.mark.parametrize(("tokenizer", "rate"), [("pocket", 1e-4), ("gpt2", 1e-6)])
def test_the_rate_is_chosen_by_the_model_and_what_of_it_is_trained(tokenizer, rate):
    model = GPT(GPTConfig(vocab_size=300, n_positions=8, n_embd=4, n_layer=1, n_head=1, tokenizer=tokenizer))
    assert DPOConfig().resolve(model, 10).learning_rate == default_learning_rate(model) == rate
    assert DPOConfig(learning_rate=0.5).resolve(model, 10).learning_rate == 0.5
    add_lora(model, LoRAConfig(rank=2))
    assert DPOConfig().resolve(model, 10).learning_rate == pytest.approx(10 * rate)


def test_epochs_are_passes_over_the_pairs(make):
    trainer = make(epochs=2)  # ten pairs, four a step: 4 + 4 + 2
    seen = []
    update = trainer.step
    trainer.step = lambda indices, *rest: seen.extend(indices) or update(indices, *rest)
    trainer.train(progress=False)
    assert trainer.global_step == trainer.config.steps == 6 and sorted(seen) == sorted(2 * [*range(10)])
    assert make(epochs=0.1).config.steps == 1


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_rate_that_falls_starts_at_its_value_and_ends_above_0(make, schedule):
    config = DPOConfig(steps=12, learning_rate=1.0, warmup_steps=4, learning_rate_schedule=schedule)
    rates = [config.learning_rate_at(step) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(later < earlier for earlier, later in pairwise(rates[4:])) and 0 < rates[-1] < 0.2
    middle = {"linear": 0.5, "cosine": (1 + math.cos(math.pi / 2)) / 2}
    assert rates[8] == pytest.approx(middle[schedule])
    logged = make(steps=12, warmup_steps=4, learning_rate=1.0, learning_rate_schedule=schedule)
    assert logged.train(progress=False).column("learning_rate")[1] == rates


# A loss of one's own


def steep(logps, beta):
    """DPO with a margin twice as long."""
    return choose_loss("dpo")(logps, 2 * beta)


def test_a_function_is_trained_like_a_loss_of_the_family(make, tmp_path):
    own, named = make(tmp_path, loss=steep, beta=0.1, steps=4), make(beta=0.2, steps=4)
    assert own.train(progress=False).column("loss") == named.train(progress=False).column("loss")
    assert json.loads((tmp_path / "config.json").read_text())["loss"] == "steep"


def test_a_run_with_a_function_is_resumed_with_one_of_its_name(make, tmp_path):
    make(tmp_path, loss=steep, steps=2).train(progress=False)

    def gentle(logps, beta):
        return choose_loss("dpo")(logps, beta)

    with pytest.raises(InputError, match="loss is gentle, was steep"):
        make(tmp_path, loss=gentle, steps=3).train(progress=False, resume=True)
    assert len(make(tmp_path, loss=steep, steps=3).train(progress=False, resume=True).rows) == 4


def test_a_function_that_returns_no_losses_is_refused_before_any_work(make):
    with pytest.raises(InputError, match="must return a PairLoss with one loss and two rewards for each pair"):
        make(loss=lambda logps, beta: PairLoss(*[logps.policy_chosen.mean()] * 3))


# Saving and going on


def test_checkpoints_are_written_by_the_clock_and_at_the_end(make, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 240))  # four minutes pass each time it is looked at, once a step and after saving
    monkeypatch.setattr("dpo_core.runs.run.time", SimpleNamespace(monotonic=lambda: next(clock)))
    trainer, saved = make(tmp_path, steps=7), []
    save = trainer.save
    trainer.save = lambda **settings: saved.append(trainer.global_step) or save(**settings)
    trainer.train(progress=False)
    assert saved == [3, 6, 7]


def test_without_a_clock_and_a_count_nothing_is_saved(make, tmp_path):
    make(tmp_path, steps=2, save_minutes=0).train(progress=False)
    assert list_checkpoints(tmp_path) == [] and (tmp_path / "final").is_dir()


def test_auto_goes_on_if_there_is_something_to_go_on_from(make, tmp_path):
    first = make(tmp_path, steps=2).train(progress=False, resume="auto")
    more = make(tmp_path, steps=4).train(progress=False, resume="auto")
    assert first.column("step")[1] == [0, 1, 2] and more.rows[:3] == first.rows and len(more.rows) == 5
    whole = make(steps=4).train(progress=False)
    assert more.rows == whole.rows


def test_a_finished_run_that_is_resumed_is_finished(make, tmp_path):
    first = make(tmp_path, steps=2).train(progress=False)
    assert make(tmp_path, steps=2).train(progress=False, resume=True) == first


# Records of before


def old_record(file):
    """Rewrite a checkpoint's settings as the version before this one wrote them."""
    state = json.loads(file.read_text())
    new = (
        "epochs",
        "gamma",
        "penalty",
        "desirable_weight",
        "undesirable_weight",
        "sft_weight",
        "learning_rate_schedule",
        "save_minutes",
    )
    before = {name: value for name, value in state["config"].items() if name not in new}
    before |= {"loss": "sigmoid", "loss_settings": {"sft_weight": 0.5}}
    file.write_text(json.dumps({name: state[name] for name in state if name != "finished"} | {"config": before}))


def test_a_checkpoint_of_before_is_resumed(make, tmp_path):
    make(tmp_path, steps=2, sft_weight=0.5).train(progress=False)
    old_record(tmp_path / "checkpoints" / "step-000002" / "trainer.json")
    with pytest.raises(InputError, match=r"other settings \(sft_weight is 0.0, was 0.5\)"):
        make(tmp_path, steps=4).train(progress=False, resume=True)
    resumed = make(tmp_path, steps=4, sft_weight=0.5).train(progress=False, resume=True)
    assert resumed.rows == make(steps=4, sft_weight=0.5).train(progress=False).rows


def test_a_checkpoint_with_settings_that_are_unknown_is_refused(make, tmp_path):
    make(tmp_path, steps=2).train(progress=False)
    file = tmp_path / "checkpoints" / "step-000002" / "trainer.json"
    state = json.loads(file.read_text())
    state["config"]["temperature"] = 2
    file.write_text(json.dumps(state))
    with pytest.raises(InputError, match="written by another version, with settings unknown here: temperature"):
        make(tmp_path, steps=4).train(progress=False, resume=True)


def test_a_record_is_read_as_it_was_written(make):
    config = make(loss="simpo", epochs=1).config
    assert recorded_settings(json.loads(json.dumps(config.record()))) == asdict(config)
