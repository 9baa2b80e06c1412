"""The commands ``reward`` and ``rl``, from pairs and prompts to a model in a folder, and what they refuse."""

import json

import pytest
from tiny import save_small_model

from dpo_core.cli import main
from dpo_core.formats.pairs import PreferencePair, save_pairs
from dpo_core.rl.reward import RewardModel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pairs("pairs.jsonl", [PreferencePair(f"Ask {i}?", f"Yes, {i}.", "No." * (1 + i % 2)) for i in range(12)])
    (tmp_path / "prompts.txt").write_text("Which moon?\nWho am I?\n\nWho am I?\n")
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(*argv, status=0):
        assert main([str(arg) for arg in argv]) == status
        out, err = capsys.readouterr()
        return err if status else out

    return run


FEW = ("--steps", 2, "--prompts-per-step", 2, "--samples-per-prompt", 2, "--max-new-tokens", 4, "--log-every", 1)


def test_from_pairs_to_a_policy_by_a_reward_model(here, run, model):
    out = run("reward", "--data", "pairs.jsonl", "--model", model, "--epochs", 2, "--lr", 1e-2, "--val-share", 0.25)
    assert "12 pairs kept, 0 dropped" in out and "on 3 pairs\nsaved in reward_model\n" in out
    assert json.loads((here / "reward_model/training.json").read_text())["start"] == model
    assert (RewardModel.from_pretrained("reward_model").head.weight != 0).any()

    out = run("rl", "--model", model, "--prompts", "prompts.txt", "--reward", "reward_model", *FEW)
    assert out.startswith("2 prompts, scored by reward_model\nstep     1/2 | scores: ")
    assert out.endswith("saved in rl_checkpoints/final\n")
    assert json.loads((here / "rl_checkpoints/config.json").read_text())["method"] == "rloo"
    assert "--- rl_checkpoints" in run("generate", "--model", "rl_checkpoints", "--prompt", "Who?", "--compare")


@pytest.mark.parametrize("method", ["reinforce", "rloo", "grpo", "dr_grpo", "ppo", "online_dpo"])
def test_every_method_by_the_judge(here, run, model, method):
    out = run("rl", "--method", method, "--model", model, "--beta", 0.2, *FEW, "--lora", 2)
    assert "prompts, scored by judge" in out and "step     2/2 | scores: " in out
    assert (here / "rl_checkpoints/adapter").is_dir()


def test_resume_goes_on(here, run, model):
    run("rl", "--model", model, *FEW)
    out = run("rl", "--model", model, "--resume", *FEW[2:], "--steps", 3)
    assert "step     3/3" in out and "step     1/3" not in out


@pytest.mark.parametrize(
    ("command", "message"),
    {
        "rl --prompts prompts.txt": "prompts.txt: the pocket judge knows nothing about 'Which moon?'; give a reward",
        "rl --prompts none.txt": "none.txt: cannot be read",
        "rl --reward pairs": "pairs: no reward model, as there is no reward_head.safetensors",
        "rl --method trpo": "trpo",
        "rl --method rloo --gae-lambda 0.9": "--gae-lambda is 0.9, but the method rloo has no such setting",
        "rl --method online_dpo --samples-per-prompt 4": "--samples-per-prompt is 4; the method online_dpo needs 2",
        "rl --resume": "to resume from; start without",
        "reward --data pairs.jsonl --epochs 0": "0 is not a whole number above 0",
    }.items(),
)
def test_mistakes_are_told_in_the_words_of_the_command_line(here, run, model, command, message):
    assert message in run(*command.split(), "--model", model, status=2)


def test_a_reward_model_is_not_written_over_what_is_there(here, run, model):
    run("rl", "--model", model, *FEW)
    command = ("reward", "--data", "pairs.jsonl", "--model", model, "--output")
    assert "rl_checkpoints holds a training; choose another --output" in run(*command, "rl_checkpoints", status=2)
    assert "holds the model that training starts from; choose another --output" in run(*command, model, status=2)
