"""Two gloo processes against one, on the same pairs: the numbers have to be the same."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import byte_encoding
from torch.torch_version import TorchVersion

from dpo_core.cli import main
from dpo_core.config import DPOConfig
from dpo_core.errors import InputError
from dpo_core.formats.pairs import LabelledAnswer, PreferencePair, save_pairs
from dpo_core.methods.adapter_files import load_adapted
from dpo_core.methods.lora import LoRAConfig, add_lora, merged_copy
from dpo_core.metrics import History
from dpo_core.model import GPT, GPTConfig
from dpo_core.runs.processes import FSDP_ON_CPU, Processes, any_rank, rank
from dpo_core.runs.processes import WAYS as ALL_WAYS
from dpo_core.tokenizer import load_tokenizer
from dpo_core.trainers import trainer_for

WAYS = ("ddp", "fsdp") if TorchVersion(torch.__version__) >= TorchVersion(FSDP_ON_CPU) else ("ddp",)
# Nine training pairs of unlike lengths. Batches of three: two pairs in one process, one in the other. Batches of four:
# the last of each epoch has one pair, so that a process has none of its own. Batches of 2 x 3: two passes, then one.
CASES = {
    f"{name} {parallel}": settings | {"parallel": parallel}
    for parallel in WAYS
    for name, settings in {
        "threes": {"batch_size": 3},
        "fours": {"batch_size": 4},
        "accumulated": {"batch_size": 2, "grad_accum": 3},
        "live": {"batch_size": 3, "reference": "live"},
        "lora": {"batch_size": 3, "rank": 4},
        "adapter_off": {"batch_size": 3, "rank": 4, "reference": "adapter_off"},
        "labels": {"batch_size": 3, "loss": "kto", "labels": True, "val_share": 0.4},
        "patience": {"batch_size": 3, "rank": 4, "steps": 50, "patience": 1, "eval_every": 2, "swapped": True},
    }.items()
}


def trainer(output, rank=None, swapped=False, labels=False, **settings):
    """Of the tiny model, with settings by keyword."""
    encoding = byte_encoding()
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=encoding.n_vocab, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    if rank:
        add_lora(model, LoRAConfig(rank=rank))
    pairs = [PreferencePair(f"Ask {i}?", "YES " * (1 + i % 3) + "OK", "no " * (1 + i % 4) + "way") for i in range(10)]
    held_out = [PreferencePair(pair.prompt, pair.rejected, pair.chosen) for pair in pairs[:3]] if swapped else None
    answers = [LabelledAnswer(p.prompt, text, text[0] == "Y") for p in pairs for text in (p.chosen, p.rejected)]
    defaults = {"steps": 8, "learning_rate": 3e-4, "warmup_steps": 0, "val_share": 0.1, "log_every": 1, "eval_every": 4}
    config = DPOConfig(**defaults | settings)
    given = answers[:-3] if labels else pairs  # of one kind more than of the other
    return trainer_for(config.loss)(model, encoding, given, config, output, held_out)


def two(number, folder):
    """What each of the two processes does, to be looked at by the tests."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    both = Processes(GPT.from_pretrained("pocket"), "ddp")
    said = {
        "count": [len(both.share(range(n))) for n in (0, 1, 2, 5)],
        "owned": [both.owned(n) for n in (0, 1, 2, 5)],
        "any": [any_rank(rank() == 1), any_rank(False)],
    }
    rows = torch.tensor([[i] for i in both.share(range(5))])
    said["gathered"] = [both.gather(part, 5).flatten().tolist() for part in (rows, rows[: both.owned(5)])]
    for name, settings in CASES.items():
        trainer(folder / name, **settings).train(progress=True)
    for parallel in WAYS:
        settings = {"batch_size": 3, "parallel": parallel, "patience": 9}
        whole = trainer(folder / f"whole {parallel}", **settings)
        whole.train(progress=False)
        stopped = trainer(folder / f"stopped {parallel}", **settings)
        update = stopped.step

        def interrupted(*args, update=update, stopped=stopped):
            if stopped.global_step == 4 and rank() == 1:
                os.kill(os.getpid(), signal.SIGINT)  # in one process only
            return update(*args)

        stopped.step = interrupted
        with pytest.raises(KeyboardInterrupt, match=r"stopped after step 5; saved as .*step-000005"):
            stopped.train(progress=False)
        resumed = trainer(folder / f"stopped {parallel}", **settings)
        resumed.train(progress=False, resume=True)
        said[f"resumed {parallel}"] = resumed.history == whole.history
        damaged = trainer(None, batch_size=3, parallel=parallel)
        if rank() == 1:
            damaged.reference["training"][:, 0] = float("nan")  # in one process only
        with pytest.raises(InputError, match="loss or gradient of step 1 is not finite, at pair") as refused:
            damaged.train(progress=False)
        said[f"damaged {parallel}"] = str(refused.value)
    with pytest.raises(InputError) as refused:
        trainer(None, batch_size=1)
    said["refused"] = str(refused.value)
    (folder / f"said {number}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(two, (folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def said(folder):
    return [json.loads((folder / f"said {number}.json").read_text()) for number in (0, 1)]


def assert_close_rows(ours, theirs):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for our, their in zip(ours, theirs):
        if our["step"] == 1:  # policy and reference are equal, and which reward is larger is a matter of rounding
            our, their = ({k: v for k, v in row.items() if k != "rewards/accuracies"} for row in (our, their))
        assert our == pytest.approx(their, rel=1e-5, abs=1e-5)


def largest_gap(ours, theirs):
    """Between two models, leaving out the bias of keys: it changes no probability, its gradient is rounding."""
    gaps = [(tensor - theirs.state_dict()[name]).abs() for name, tensor in ours.state_dict().items()]
    for name, gap in zip(ours.state_dict(), gaps):
        if name.endswith("c_attn.bias"):
            gap[16:32] = 0
    return max(gap.max().item() for gap in gaps)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(folder, tmp_path, name):
    alone = trainer(tmp_path, **CASES[name])
    start = merged_copy(alone.model).state_dict()
    start = {key: tensor.clone() for key, tensor in start.items()}
    alone.train(progress=False)
    assert_close_rows(History.from_jsonl(folder / name / "history.jsonl").rows, alone.history.rows)
    ours, theirs, before = (
        GPT.from_pretrained(folder / name / "final"),
        merged_copy(alone.model),
        GPT(alone.model.config),
    )
    before.load_state_dict(start)
    if name.startswith("patience"):  # what is learned is wrong there, and the start is kept
        assert largest_gap(ours, before) == 0.0 == alone.history.kept_row(alone.config.patience)["step"]
    else:
        assert largest_gap(ours, theirs) < 1e-5 < 1e-3 < largest_gap(ours, before)
    files = [sorted(str(file.relative_to(run)) for file in run.rglob("*")) for run in (folder / name, tmp_path)]
    assert files[0] == files[1]


@pytest.mark.parametrize("parallel", WAYS)
def test_the_adapter_is_written_whole(folder, parallel):
    run = folder / f"lora {parallel}"
    adapted = load_adapted(run / "adapter", trainer(None).model)
    assert largest_gap(merged_copy(adapted), GPT.from_pretrained(run / "final")) == 0.0


@pytest.mark.parametrize("parallel", WAYS)
def test_a_stop_in_one_process_stops_both_and_is_resumed(folder, said, parallel):
    assert [part[f"resumed {parallel}"] for part in said] == [True, True]
    runs = [folder / f"{run} {parallel}" / "final" / "model.safetensors" for run in ("whole", "stopped")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


@pytest.mark.parametrize("parallel", WAYS)
def test_one_process_goes_on_from_the_checkpoint_of_two(folder, tmp_path, parallel):
    run, alone = tmp_path / "run", trainer(tmp_path / "alone", batch_size=3)
    shutil.copytree(folder / f"stopped {parallel}", run)
    resumed = trainer(run, batch_size=3)
    resumed.train(progress=False, resume=True)
    alone.train(progress=False)
    assert_close_rows(resumed.history.rows, alone.history.rows)
    assert largest_gap(resumed.model, alone.model) < 1e-5


def test_shares_are_of_one_size_and_are_put_together_in_order(said):
    assert said[0]["count"] == said[1]["count"] == [0, 1, 1, 3]
    assert [said[0]["owned"], said[1]["owned"]] == [[0, 1, 1, 3], [0, 0, 1, 2]]
    for part in said:
        assert part["gathered"] == [[0, 1, 2, 3, 4]] * 2
        assert part["any"] == [True, False]


@pytest.mark.parametrize("parallel", WAYS)
def test_a_loss_that_is_not_finite_in_one_process_is_named_in_both(said, parallel):
    messages = {part[f"damaged {parallel}"].split(";")[0] for part in said}
    assert len(messages) == 1 and messages.pop().count("pair ") == 1  # of three, the one that process 1 had


def test_more_processes_than_pairs_are_refused(said):
    for part in said:
        assert part["refused"].startswith(
            "2 processes for the 1 pairs of a step (batch_size x grad_accum); start fewer"
        )


# The command line


def torchrun(folder, *argv):
    """The command in two processes: exit status, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "dpo_core", *map(str, argv)],
        cwd=folder, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    torch.manual_seed(0)
    GPT(GPTConfig(load_tokenizer("pocket").n_vocab, 256, 16, 1, 2, tokenizer="pocket")).save_pretrained(
        folder / "model"
    )
    pairs = [PreferencePair(f"Ask {i}?", f"Yes, {i}." * (1 + i % 3), "No." * (1 + i % 4)) for i in range(13)]
    save_pairs(folder / "pairs.jsonl", pairs)
    return folder


TRAIN = (
    "train",
    "--data",
    "pairs.jsonl",
    "--model",
    "model",
    "--steps",
    4,
    "--batch-size",
    5,
    "--precision",
    "float32",
)
FEW = [1 if word == 5 else word for word in TRAIN]  # pairs in a step


def test_torchrun_trains_as_one_process_would(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert main([str(arg) for arg in (*TRAIN, "--lora", 2, "--output", "one")]) == 0
    status, out, _ = torchrun(here, *TRAIN, "--lora", 2, "--output", "two", "--parallel", WAYS[-1])
    assert status == 0
    assert out == capsys.readouterr().out.replace("one/final", "two/final")
    rows = [History.from_jsonl(here / run / "history.jsonl").rows for run in ("one", "two")]
    for ours, theirs in zip(*rows):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def test_fsdp_on_a_cpu_is_refused_where_torch_computes_other_gradients(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.0+cpu")
    with pytest.raises(InputError, match=r"needs torch 2.9 or later \(this is 2.8.0\+cpu\); take ddp"):
        ALL_WAYS["fsdp"](GPT(GPTConfig(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=1)))


def test_what_all_processes_meet_is_said_once(here):
    status, out, errors = torchrun(here, *FEW, "--output", "few")
    assert status != 0 and out == ""
    assert [line for line in errors.splitlines() if line.startswith("error")] == [
        "error: 2 processes for the 1 pairs of a step (--batch-size x --grad-accum); start fewer processes, or raise"
        " --batch-size"
    ]


def test_other_commands_are_not_for_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["generate", "--prompt", "Why?"]) == 2
    assert "only train runs in several processes; start generate without torchrun" in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(monkeypatch, capsys):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert main(["train", "--data", "pairs.jsonl"]) == 2
    assert "8 processes for 4 GPUs; start torchrun with --nproc-per-node 4" in capsys.readouterr().err
