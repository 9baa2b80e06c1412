import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_trainer import assert_same_weights, interrupt_after
from torch.utils._python_dispatch import TorchDispatchMode

from dpo_core.config import DPOConfig
from dpo_core.data import collate, encode_pair
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair
from dpo_core.logprobs import pair_logps
from dpo_core.methods.adapter_files import load_adapted, read_adapter, save_adapter
from dpo_core.methods.lora import LoRAConfig, adapter_off, adapters, add_lora, merge_lora, merged_copy, unmerge_lora
from dpo_core.model import GPT
from dpo_core.trainer import DPOTrainer

IDS = torch.randint(257, (2, 9), generator=torch.Generator().manual_seed(1))
SMALL = LoRAConfig(rank=4)
LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@pytest.fixture
def base(tiny_model, tmp_path):
    """The tiny model as it comes from a folder."""
    tiny_model.save_pretrained(tmp_path / "base")
    return GPT.from_pretrained(tmp_path / "base")


def trained(model, config=SMALL, seed=0):
    """The model with an adapter that is not zero, as after training."""
    add_lora(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters(model).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)
    return model


def differ(one, other):
    return (one - other).abs().max().item()


@torch.no_grad()
def test_at_first_the_adapter_changes_nothing(base):
    before = base(IDS)
    add_lora(base)
    assert torch.equal(base(IDS), before)


@torch.no_grad()
@pytest.mark.parametrize("target", [*LAYERS, "h.1.mlp.c_fc", "c_proj"])
def test_a_layer_chosen_by_name_computes_the_equation(base, target):
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    plain = base(IDS)
    trained(base, LoRAConfig(rank=3, alpha=6.0, targets=(target,)))
    found = adapters(base)
    assert list(found) == [name.removesuffix(".weight") for name in state if f".{name}".endswith(f".{target}.weight")]
    for name, layer in found.items():
        state[f"{name}.weight"] += 6.0 / 3 * layer.lora_B @ layer.lora_A
    expected = GPT(base.config)
    expected.load_state_dict(state)
    assert differ(base(IDS), expected(IDS)) < 1e-5 < 1e-2 < differ(base(IDS), plain)


def test_the_adapter_alone_is_trained(base):
    add_lora(base, LoRAConfig(rank=4, targets=("mlp.c_fc",)))
    assert sum(p.numel() for p in base.parameters() if p.requires_grad) == 2 * 4 * (16 + 64)
    base(IDS).sum().backward()
    assert {name for name, p in base.named_parameters() if p.grad is not None} == {
        f"h.{i}.mlp.c_fc.lora_{half}" for i in (0, 1) for half in "AB"
    }


def test_the_random_half_repeats_with_its_seed(tiny_model):
    halves = []
    for seed in (1, 1, 2):
        model = GPT(tiny_model.config)
        add_lora(model, seed=seed)
        halves.append(torch.cat([layer.lora_A.flatten() for layer in adapters(model).values()]))
    assert torch.equal(halves[0], halves[1]) and not torch.equal(halves[0], halves[2])


@torch.no_grad()
def test_merged_computes_the_same_and_unmerged_is_what_was(base):
    model = trained(base)
    before, logits = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model(IDS)
    adapter = merge_lora(model)
    assert not adapters(model) and all(p.requires_grad for p in model.parameters())
    assert differ(model(IDS), logits) < 1e-5
    unmerge_lora(model, adapter)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {n for n in before if ".lora_" in n}
    assert torch.equal(model(IDS), logits)


@torch.no_grad()
def test_a_merged_copy_is_a_checkpoint_like_any_other(base, tmp_path):
    model = trained(base)
    logits = model(IDS)
    with pytest.raises(InputError, match="an adapter is no part of a GPT-2 checkpoint; write merged_copy"):
        model.save_pretrained(tmp_path / "merged")
    merged_copy(model).save_pretrained(tmp_path / "merged")
    assert differ(GPT.from_pretrained(tmp_path / "merged")(IDS), logits) < 1e-5
    assert len(adapters(model)) == 8 and torch.equal(model(IDS), logits)


@torch.no_grad()
def test_the_adapter_is_off_within_only(base):
    plain = base(IDS)
    model = trained(base)
    logits = model(IDS)
    with adapter_off(model):
        with adapter_off(model):
            assert torch.equal(model(IDS), plain)
        assert torch.equal(model(IDS), plain)
    with pytest.raises(ZeroDivisionError), adapter_off(model):
        1 / 0  # noqa: B018
    assert torch.equal(model(IDS), logits) and not torch.equal(logits, plain)


# Files


@torch.no_grad()
def test_an_adapter_finds_its_model(base, tmp_path, monkeypatch):
    model = trained(base, LoRAConfig(rank=2, alpha=5.0, targets=("attn.c_attn", "h.0.mlp.c_proj")))
    save_adapter(model, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_adapted("../adapter")
    assert_same_weights(again, model)
    assert torch.equal(again(IDS), model(IDS))
    assert again.source == "../adapter" and model.source == str(tmp_path / "base")


def test_the_keys_are_those_of_peft(base, tmp_path):
    save_adapter(trained(base, LoRAConfig(rank=2, targets=("attn.c_attn",))), tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == {
        f"base_model.model.transformer.h.{i}.attn.c_attn.lora_{half}.weight": shape
        for i in (0, 1)
        for half, shape in (("A", (2, 16)), ("B", (48, 2)))
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["fan_in_fan_out"] is True


@torch.no_grad()
def test_peft_computes_the_same(base, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = trained(base)
    save_adapter(model, tmp_path / "adapter")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert differ(adapted(IDS).logits, model(IDS)) < 1e-4
    adapted.save_pretrained(tmp_path / "again")
    assert torch.equal(load_adapted(tmp_path / "again")(IDS), model(IDS))


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def retensor(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


KEY = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "adapter_config.json").unlink(),
            "adapter_config.json: cannot be read; name the folder of an",
        ),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json: not readable as JSON"),
        (
            lambda f: (f / "adapter_config.json").write_text("[]"),
            r"adapter_config.json: holds \[\] where {...} must be",
        ),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "needs r and lora_alpha"),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            "holds adapter_model.bin and no safetensors; such a file can be a pickle",
        ),
        (lambda f: edit(f, base_model_name_or_path=str(f)), "names itself as the model that it belongs to"),
        (lambda f: edit(f, r="two"), r"needs r and lora_alpha \(numbers\) and target_modules"),
        (lambda f: edit(f, target_modules="all-linear"), "needs r and lora_alpha"),
        (lambda f: edit(f, target_modules=["lm_head"]), "no linear layer is called 'lm_head'; there are attn.c_attn, "),
        (lambda f: edit(f, use_dora=True), "use_dora is True, but only False is supported"),
        (lambda f: edit(f, peft_type="IA3"), "peft_type is 'IA3', but only 'LORA' is supported"),
        (lambda f: edit(f, base_model_name_or_path=None), "does not say which model it belongs to; give it as base"),
        (lambda f: edit(f, base_model_name_or_path="nowhere"), "no model 'nowhere'"),
        (
            lambda f: edit(f, r=10**12),
            "r is 1000000000000, more than any side of a tensor in adapter_model.safetensors",
        ),
        (lambda f: edit(f, base_model_name_or_path=5), "does not say which model it belongs to; give it as base"),
        (lambda f: edit(f, target_modules=[["a"]]), "needs r and lora_alpha"),
        (lambda f: edit(f, r=3), r"h.0.attn.c_attn.lora_A is \(4, 16\), in the model it is \(3, 16\)"),
        (lambda f: edit(f, target_modules=["attn.c_attn"]), "12 tensors do not fit; .* is unknown to the model"),
        (lambda f: retensor(f, lambda t: {k: v for k, v in t.items() if k != KEY}), "c_attn.lora_A is missing there"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x00"), "adapter_model.safetensors: not a whole"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: not a whole"),
    ],
)
def test_a_spoilt_adapter_is_named(base, tmp_path, spoil, message):
    save_adapter(trained(base), tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(InputError, match=message):
        load_adapted(tmp_path / "adapter")


def test_a_merged_model_is_no_longer_what_was_loaded(base, tmp_path):
    """A second adapter's base is not the file that the first one's was."""
    model = trained(base)
    model.source = "pocket"
    merge_lora(model)
    add_lora(model)
    save_adapter(model, tmp_path)
    with pytest.raises(InputError, match="does not say which model it belongs to"):
        load_adapted(tmp_path)


def test_other_weights_beside_an_adapter_are_not_trained(base, encoding, pairs):
    add_lora(base)
    base.requires_grad_()
    with pytest.raises(InputError, match="other weights require a gradient, too"):
        DPOTrainer(base, encoding, pairs, DPOConfig())


def test_another_strength_is_not_the_same_adapter(base, tmp_path):
    save_adapter(trained(base, LoRAConfig(rank=4, alpha=8)), tmp_path)
    for layer in adapters(base).values():
        layer.config = LoRAConfig(rank=4, alpha=16)
    with pytest.raises(InputError, match="alpha/r is 8/4, in the model 16/4"):
        read_adapter(base, tmp_path)


# Training


@pytest.fixture
def make(base, encoding, pairs):
    """A trainer of the tiny model with a new adapter, or with none, with settings changed by keyword."""

    def make(output=None, lora=SMALL, val_pairs=None, **settings):
        model = GPT.from_pretrained(base.source)
        if lora:
            add_lora(model, lora)
        defaults = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0, "val_share": 0.2}
        return DPOTrainer(model, encoding, pairs, DPOConfig(**defaults | settings), output, val_pairs)

    return make


@pytest.mark.parametrize("reference", ["cached", "live", "adapter_off"])
def test_the_adapter_learns_the_preference_and_nothing_else_moves(make, base, reference):
    trainer = make(reference=reference, steps=20)
    history = trainer.train(progress=False)
    first, last = history.rows[0], history.rows[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["rewards/accuracies"] == 0.0
    assert last["loss"] < 0.6 * first["loss"] and last["rewards/accuracies"] == 1.0
    ours, start = trainer.model.state_dict(), base.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in start.items())
    assert sum(p.numel() for p in trainer.parameters) == sum(t.numel() for n, t in ours.items() if n not in start)


def test_the_adapter_off_is_the_cached_reference(make):
    cached, off = make(), make(reference="adapter_off")
    rows = [trainer.train(progress=False).rows for trainer in (cached, off)]
    batch = collate(off.training)
    theirs = torch.stack(list(off.reference_logps(list(range(8)), batch)), 1)
    torch.testing.assert_close(theirs, cached.reference["training"], rtol=1e-6, atol=0)
    assert differ(torch.stack(pair_logps(off.model, batch), 1), theirs) > 1  # it has moved, the reference has not
    assert "training" not in off.reference
    for ours, others in zip(*rows):
        # In the first step both are equal, and which of two equal rewards is larger is a matter of rounding.
        assert ours.pop("rewards/accuracies") == pytest.approx(others.pop("rewards/accuracies"), abs=0.1)
        assert ours == pytest.approx(others, rel=1e-4, abs=1e-5)


def test_after_fine_tuning_with_the_adapter_its_absence_is_another_model(make, base, encoding, pairs):
    config = DPOConfig(steps=2, val_share=0.2, reference="adapter_off")
    tuned = trained(base)
    with pytest.raises(InputError, match=r"the adapter is trained already: .* merge it and add a new one"):
        DPOTrainer(tuned, encoding, pairs, config)
    cached = DPOTrainer(tuned, encoding, pairs, replace(config, reference="cached"))
    assert cached.train(progress=False).rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    merge_lora(tuned)
    add_lora(tuned)
    row = DPOTrainer(tuned, encoding, pairs, config).train(progress=False).rows[0]
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_without_an_adapter_it_cannot_be_off(make):
    with pytest.raises(InputError, match="reference is adapter_off, but the model has no adapter"):
        make(lora=None, reference="adapter_off")


class Made(TorchDispatchMode):
    """Notes the shapes of all tensors made."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        self.shapes |= (
            {tuple(out.shape)} if isinstance(out, torch.Tensor) and function.name() != "aten::detach" else set()
        )
        return out


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_head_has_no_gradient_computed(base, encoding, pairs, frozen):
    if frozen:
        add_lora(base)
    chosen, rejected = pair_logps(base, collate([encode_pair(encoding, pair) for pair in pairs[:2]]))
    with Made() as made:
        (chosen - rejected).sum().backward()
    assert (tuple(base.wte.weight.shape) in made.shapes) == (not frozen)


@torch.no_grad()
def test_a_run_leaves_the_merged_model_and_the_adapter(make, tmp_path):
    trainer = make(tmp_path / "run")
    with torch.enable_grad():
        trainer.train(progress=False)
    logits = trainer.model(IDS)
    assert differ(GPT.from_pretrained(tmp_path / "run" / "final")(IDS), logits) < 1e-5
    assert torch.equal(load_adapted(tmp_path / "run" / "adapter")(IDS), logits)
    with torch.enable_grad():
        make(tmp_path / "run", lora=None).train(progress=False)
    assert not (tmp_path / "run" / "adapter").exists()  # it is not of this run


@pytest.mark.parametrize("reference", ["cached", "adapter_off"])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_equals_one_that_never_stopped(make, tmp_path, stop, reference):
    settings = {"log_every": 2, "eval_every": 3, "reference": reference}
    whole = make(tmp_path / "whole", **settings)
    whole.train(progress=False)
    first = make(tmp_path / "run", **settings)
    interrupt_after(first, stop)
    with pytest.raises(KeyboardInterrupt):
        first.train(progress=False)
    folder = tmp_path / "run" / "checkpoints" / f"step-00000{stop}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "trainer.json",
    ]  # fmt: skip
    assert_same_weights(load_adapted(folder), first.model)
    second = make(tmp_path / "run", **settings)
    second.train(progress=False, resume=True)
    assert_same_weights(second.model, whole.model)
    assert second.history == whole.history
    for file in ("final/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_patience_keeps_the_best_adapter(make, pairs, tmp_path):
    swapped = [PreferencePair(p.prompt, p.rejected, p.chosen) for p in pairs]  # what is learned is wrong there
    settings = {"val_pairs": swapped, "steps": 50, "eval_every": 2, "patience": 3}
    first = make(tmp_path / "run", **settings)
    interrupt_after(first, 3)
    with pytest.raises(KeyboardInterrupt):
        first.train(progress=False)
    second = make(tmp_path / "run", **settings)
    second.train(progress=False, resume=True)
    assert second.history.kept_row(second.config.patience)["step"] == 0
    assert_same_weights(second.model, make().model)
    assert set(load_file(tmp_path / "run" / "checkpoints" / "step-000003" / "best.safetensors")) == {
        name for name in second.model.state_dict() if ".lora_" in name
    }


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2), LoRAConfig(rank=4, targets=("mlp.c_fc",))])
def test_a_run_is_not_resumed_with_another_adapter(make, tmp_path, lora):
    make(tmp_path / "run", save_every=3).train(progress=False)
    with pytest.raises(InputError, match="was trained from other weights or on other data"):
        make(tmp_path / "run", lora=lora).train(progress=False, resume=True)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be a whole number above 0"),
        ({"alpha": 0}, "alpha is 0; it must be above 0"),
        ({"targets": ()}, "targets names no layer"),
        (
            {"targets": ("mlp.c_fc", "c_fce")},
            "no linear layer is called 'c_fce'; there are attn.c_attn, attn.c_proj, mlp",
        ),
        ({"targets": ("fc",)}, "no linear layer is called 'fc'"),
        ({"targets": ("wte",)}, "no linear layer is called 'wte'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(base, settings, message):
    with pytest.raises(InputError, match=message):
        add_lora(base, LoRAConfig(**settings))
    assert not adapters(base) and all(p.requires_grad for p in base.parameters())


def test_one_adapter_at_a_time(base):
    add_lora(base)
    with pytest.raises(InputError, match="the model has an adapter already; merge it first"):
        add_lora(base)


@pytest.mark.parametrize(
    "needs", [merge_lora, lambda model: adapter_off(model).__enter__(), lambda m: save_adapter(m, "x")]
)
def test_without_an_adapter_there_is_nothing_to_do(base, needs):
    with pytest.raises(InputError, match="the model has no adapter; add_lora"):
        needs(base)
