"""Which device and precision are chosen, and that torch's default device is nobody's business but the caller's."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from dpo_core.config import DPOConfig
from dpo_core.course.checks import EXERCISES, verdict
from dpo_core.generate import generate
from dpo_core.kernels.device import best_device
from dpo_core.kernels.precision import autocast, choose, compute_dtype, cpu_has_bf16
from dpo_core.lm.pretrain import Document, LMConfig, train_lm
from dpo_core.methods.lora import adapters, add_lora
from dpo_core.model import GPT
from dpo_core.study.evaluate import paired_bootstrap, sample_kl
from dpo_core.study.tabular import example_world, random_world
from dpo_core.trainer import DPOTrainer
from dpo_core.trainers import trainer_for

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


# The device


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(True, True, "cuda"), (True, False, "cuda"), (False, False, "cpu")]
)
def test_the_best_device(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == torch.device(chosen)


def test_apples_gpu_is_taken_with_a_word(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="untested on Apple's GPU"):
        assert best_device() == MPS


@pytest.fixture
def elsewhere():
    """Everything made without a device is made where no number can be read."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_a_default_device_is_one(elsewhere):
    assert torch.zeros(1).device.type == "meta"


@pytest.mark.parametrize("settings", [{}, {"reference": "live"}, {"loss": "kto"}, {"precision": "bf16"}], ids=str)
def test_training_does_not_depend_on_the_default_device(tiny_model, encoding, pairs, tmp_path, settings, request):
    def train(folder, **more):
        model = GPT.from_pretrained(tmp_path / "start")
        config = DPOConfig(
            **{"steps": 4, "batch_size": 2, "grad_accum": 2, "eval_every": 2, "val_share": 0.2} | settings, **more
        )
        trainer = trainer_for(config.loss)(model, encoding, pairs, config, folder)
        return trainer.train(progress=False, resume=(folder / "checkpoints").exists()).rows

    tiny_model.save_pretrained(tmp_path / "start")
    expected = train(tmp_path / "here")
    request.getfixturevalue("elsewhere")
    first = train(tmp_path / "there", save_every=2)
    assert first == expected
    (tmp_path / "there" / "checkpoints" / "step-000004").rename(tmp_path / "gone")
    assert train(tmp_path / "there", save_every=2) == expected


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_pretraining_does_not_depend_on_the_default_device(tiny_model, optimizer, request):
    documents = [Document([i, i + 1, i + 2, i + 3]) for i in range(8)]
    config = LMConfig(epochs=3, tokens_per_batch=8, optimizer=optimizer)
    expected = train_lm(copy.deepcopy(tiny_model), documents, config, progress=False)
    request.getfixturevalue("elsewhere")
    assert train_lm(tiny_model, documents, config, progress=False) == expected


WORK = {
    "paired bootstrap": lambda model, encoding: str(paired_bootstrap([3, 2, 5, 1], [1, 2, 4, 2])),
    "sampling": lambda model, encoding: generate(model, encoding, ["Why?", "Who is it?"], max_new_tokens=5, seed=0),
    "divergence": lambda model, encoding: sample_kl(model, model, encoding, ["a", "b"], max_new_tokens=4),
    "example world": lambda model, encoding: example_world().rewards.tolist(),
    "random world": lambda model, encoding: random_world().rewards.tolist(),
    "adapter": lambda model, encoding: (
        add_lora(model),
        [layer.lora_A.tolist() for layer in adapters(model).values()],
    ),
    "exercises": lambda model, encoding: [verdict(name, exercise.right) for name, exercise in EXERCISES.items()],
}


@pytest.mark.parametrize("name", WORK)
def test_nothing_depends_on_the_default_device(tiny_model, encoding, name, request):
    expected = WORK[name](copy.deepcopy(tiny_model), encoding)
    request.getfixturevalue("elsewhere")
    assert WORK[name](tiny_model, encoding) == expected


# The precision


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp16")], ids=["A100", "T4"])
def test_a_gpu_is_asked_for_its_bf16_units(monkeypatch, native, chosen):
    """Not timed: that of a busy GPU may come out either way."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert choose("auto", CUDA) == chosen
    assert choose("float32", CUDA) == "float32"


@pytest.fixture
def processor(monkeypatch):
    """A processor with these instructions, and libraries that may use them."""

    def pretend(*instructions, ceiling="AVX512", limit="", mkldnn=True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True), raising=False)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: ceiling)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)

    return pretend


@pytest.mark.parametrize(
    ("instructions", "held", "chosen"),
    [
        (["avx512_f", "avx512_bf16"], {}, "bf16"),
        (["avx512_f", "avx512_bf16", "amx_bf16"], {"limit": "AVX512_CORE_AMX"}, "bf16"),
        (["avx512_f"], {}, "float32"),
        (["avx2"], {"ceiling": "AVX2"}, "float32"),
        (["neon", "bf16"], {"ceiling": "DEFAULT"}, "bf16"),
        (["neon", "bf16"], {"ceiling": "DEFAULT", "mkldnn": False}, "float32"),
        (["neon"], {"ceiling": "SVE256"}, "float32"),
        (["avx512_f", "avx512_bf16"], {"ceiling": "AVX2"}, "float32"),
        (["avx512_f", "avx512_bf16"], {"ceiling": "DEFAULT"}, "float32"),
        (["avx512_f", "amx_bf16"], {"limit": "AVX2"}, "float32"),
        (["avx512_f", "amx_bf16"], {"limit": "avx512_core"}, "float32"),
    ],
    ids=str,
)
def test_a_cpu_computes_in_bf16_if_it_has_units_that_torch_may_use(processor, instructions, held, chosen):
    processor(*instructions, **held)
    assert cpu_has_bf16() == (chosen == "bf16")
    assert choose("auto", CPU) == chosen


def test_an_older_torch_has_the_list_from_linux(monkeypatch):
    known = cpu_has_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu_has_bf16() == known


def test_apples_gpu_computes_in_float32_with_a_word():
    assert choose("auto", MPS) == choose("float32", MPS) == "float32"
    with pytest.warns(UserWarning, match="bf16 is untested on Apple's GPU"):
        assert choose("bf16", MPS) == "float32"


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_products_are_computed_in_the_dtype_that_is_named(precision):
    weight = torch.ones(2, 2)
    with autocast(CPU, precision):
        assert (weight @ weight).dtype == compute_dtype(weight)
    assert compute_dtype(weight.half()) == torch.float16


def test_auto_goes_on_in_the_precision_of_the_checkpoint(tiny_model, encoding, pairs, tmp_path, processor):
    """On whatever machine it is resumed; before, another choice was refused."""

    def trainer(folder, steps=6, precision="auto"):
        config = DPOConfig(steps=steps, batch_size=4, save_every=3, log_every=3, precision=precision)
        return DPOTrainer(copy.deepcopy(tiny_model), encoding, pairs, config, folder)

    processor("avx512_bf16")
    expected = trainer(tmp_path / "whole").train(progress=False).rows
    trainer(tmp_path / "run", steps=3).train(progress=False)
    processor("avx2")
    other = trainer(tmp_path / "run")
    precisions = [run.precision.name for run in (other, trainer(tmp_path / "new"))]
    assert precisions == ["bf16", "float32"]
    assert other.train(progress=False, resume=True).rows[-1] == expected[-1]
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-000006" / "trainer.json").read_text())
    assert state["precision"] == "bf16"
