"""Library, check for real GPUs and the chapters' code about GPT-2 on a pretended GPU, with the CPU's numbers."""

from __future__ import annotations

import ast
import gzip
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import torch
from test_tokenizer import gpt2_or_skip
from torch.torch_version import TorchVersion

from dpo_core.model import GPT, GPTConfig

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CHECK = ROOT / "tools" / "gpu_check.py"


@dataclass
class Pretended:
    """Runs Python where torch sees a GPU of this kind, and counts what ran on it."""

    gpu: str
    folder: Path

    def run(self, *arguments: object, **settings: str) -> str:
        path = os.pathsep.join(map(str, [HERE / "pretended", HERE, ROOT]))
        pretence = {"PRETEND_GPU": self.gpu, "PYTHONPATH": path, "PRETEND_CALLS": str(self.folder / "calls")}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=os.environ | pretence | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | settings,
            capture_output=True,
            text=True,
            cwd=self.folder,
        )
        assert not done.returncode, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    def check(self, *parts: str, **settings: str) -> dict:
        """What the quick part of ``tools/gpu_check.py`` finds."""
        self.run(CHECK, "--quick", "--results", self.folder, "--only", *parts, **settings)
        return json.loads((self.folder / f"gpu_check_pretend_{self.gpu.lower()}.json").read_text(encoding="utf-8"))

    @property
    def operations(self) -> int:
        return sum(map(int, (self.folder / "calls").read_text().split()))


@pytest.fixture
def pretended(request, tmp_path):
    if not shutil.which("g++"):
        assert not os.environ.get("CI"), "CI has to have a compiler: apt-get install g++"
        pytest.skip("no g++, with which the pretended GPU is built: apt-get install g++")
    if torch.version.cuda or TorchVersion(torch.__version__) < TorchVersion("2.9"):
        pytest.skip(
            f"the pretended GPU takes CUDA's place in a CPU build of torch 2.9 or later, not in {torch.__version__}"
        )
    return Pretended(getattr(request, "param", "A100"), tmp_path)


@pytest.mark.parametrize("pretended", ["A100", "T4"], indirect=True)
def test_every_way_to_train_and_to_use_a_model_gives_the_cpus_numbers(pretended):
    found = pretended.check("ways")
    half = {"auto precision"}  # bf16 or fp16 on the GPU
    gaps = {name: entry["gap"] for name, entry in found["ways"].items()}
    assert {name: gap for name, gap in gaps.items() if gap > (2e-2 if name in half else 1e-5)} == {}
    assert len(gaps) > 15
    assert found["machine"]["gpu"] == f"Pretend {pretended.gpu}" and found["failures"] == {}
    assert pretended.operations > 10_000


# What the chapters do with GPT-2, if there is a GPU


@pytest.fixture
def hub(tmp_path) -> Path:
    """A cache of the Hub with a GPT-2 of two small layers and a few pairs of HH-RLHF's form."""
    gpt2_or_skip()
    torch.manual_seed(0)
    model = tmp_path / "hub" / "models--openai-community--gpt2"
    GPT(GPTConfig(n_embd=16, n_layer=2, n_head=2)).save_pretrained(model / "snapshots" / "1")
    pairs = tmp_path / "hub" / "datasets--Anthropic--hh-rlhf"
    (pairs / "snapshots" / "1" / "helpful-base").mkdir(parents=True)
    said = "\n\nHuman: Question {0}?\n\nAssistant: {1} {0}"
    lines = [{"chosen": said.format(i, "Yes, because of"), "rejected": said.format(i, "No")} for i in range(60)]
    with gzip.open(pairs / "snapshots" / "1" / "helpful-base" / "test.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    for kind in (model, pairs):
        (kind / "refs").mkdir()
        (kind / "refs" / "main").write_text("1")
    return tmp_path


def about_gpt2(chapter: Path) -> str:
    """The chapter's cell for a GPU, behind the imports of the cells before it and the functions that it calls."""
    cells = [cell.source for cell in nbformat.read(chapter, as_version=4).cells if cell.cell_type == "code"]
    place = next(place for place, source in enumerate(cells) if "on_gpu(" in source)
    before = [node for source in cells[1:place] for node in ast.parse(source).body]
    called = {node.id for node in ast.walk(ast.parse(cells[place])) if isinstance(node, ast.Name)}
    imports = [node for node in before if isinstance(node, ast.Import | ast.ImportFrom)]
    functions = [node for node in before if isinstance(node, ast.FunctionDef) and node.name in called]
    return "\n".join([*map(ast.unparse, imports + functions), cells[place]])


def test_the_engine_and_a_chapter_run_where_there_is_a_gpu(pretended, hub):
    found = pretended.check("engine", "chapters", HF_HUB_CACHE=str(hub / "hub"))
    assert found["failures"] == {}
    assert {len(entry["variants"]["dpo_core"]["pairs_per_second"]) for entry in found["engine"].values()} == {1}
    assert {entry["on the GPU"].count("nats") for entry in found["chapters"].values()} == {3}


@pytest.mark.parametrize("chapter", ["00_quick_start", "06_training"])  # that of 01 ran with its chapter
def test_the_chapters_code_about_gpt2_runs_on_the_gpu(pretended, hub, chapter):
    script = hub / "cell.py"
    script.write_text(about_gpt2(ROOT / "notebooks" / f"{chapter}.ipynb"), encoding="utf-8")
    said = pretended.run(script, HF_HUB_CACHE=str(hub / "hub"))
    assert "left out" not in said
    assert pretended.operations > 100


REINFORCEMENT = """
import torch
from tiny import byte_encoding
from dpo_core.data import EncodedPair
from dpo_core.formats.pairs import PreferencePair
from dpo_core.model import GPT, GPTConfig
from dpo_core.rl import METHODS, RewardConfig, RewardModel, RLConfig, RLTrainer, train_reward
from dpo_core.rl.best_of import best_of_n
from dpo_core.rl.reward import scorer

encoding = byte_encoding()
for device in ("cpu", "cuda"):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(encoding.n_vocab, 64, 16, 1, 2)).to(device)
    reward = RewardModel(gpt)
    pairs = [EncodedPair([70 + i], [80, 81, 256], [90, 256], PreferencePair("", "", "")) for i in range(4)]
    rows = train_reward(reward, pairs, RewardConfig(batch_size=2, learning_rate=1e-2), pairs).rows
    found = [round(rows[-1]["eval_loss"], 4)]
    score = scorer(reward, encoding)
    for name in METHODS:
        torch.manual_seed(1)
        policy = GPT(gpt.config).to(device)
        config = RLConfig(name, steps=2, prompts_per_step=2, max_new_tokens=4, batch_size=4, log_every=1)
        trainer = RLTrainer(policy, encoding, ["Why?", "Who are you?"], score, config)
        found.append(round(trainer.train(progress=False).rows[-1]["objective/entropy"], 3))
    print(found, round(best_of_n(policy, encoding, ["Why?"], score, 3, max_new_tokens=4).scores.sum().item(), 3))
"""


def test_reinforcement_learning_gives_the_cpus_numbers(pretended):
    (pretended.folder / "program.py").write_text(REINFORCEMENT, encoding="utf-8")
    on_cpu, on_gpu = pretended.run(pretended.folder / "program.py").splitlines()
    assert on_cpu == on_gpu and pretended.operations > 1000
