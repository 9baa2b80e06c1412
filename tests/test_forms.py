"""The form of prompts: what was trained on dialogues is asked in dialogues."""

import json
from pathlib import Path

import pytest
from tiny import save_small_model

from dpo_core.cli import main
from dpo_core.formats.pairs import PreferencePair, load_pairs
from dpo_core.pocket.judge import PocketJudge
from dpo_core.tokenizer import form_of, in_form

DIALOGUE = "\n\nHuman: Why?\n\nAssistant:"


def test_the_form_is_that_of_most_prompts():
    assert form_of([DIALOGUE, DIALOGUE, "Why?"]) == "dialogue"
    assert form_of([DIALOGUE, "Why?"]) == form_of(["Why?"]) == form_of([]) == "plain"


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("Why?", DIALOGUE),
        (" Why?\n", DIALOGUE),
        (DIALOGUE, DIALOGUE),
        ("Human: Why?", DIALOGUE),
        ("Human: Why?\n\nAssistant: Because", "\n\nHuman: Why?\n\nAssistant: Because"),
        ("Human: A\n\nAssistant: B\n\nHuman: C", "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"),
        ("System: Be brief.\n\nHuman: C", "\n\nSystem: Be brief.\n\nHuman: C\n\nAssistant:"),
        ("What does Assistant: mean?", "\n\nHuman: What does Assistant: mean?\n\nAssistant:"),
        ("", ""),
    ],
)
def test_a_question_becomes_a_dialogue_and_a_dialogue_stays_one(prompt, asked):
    assert in_form(prompt, "dialogue") == asked == in_form(asked, "dialogue")
    assert in_form(prompt, "plain") == prompt


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_small_model(tmp_path / "model")


@pytest.fixture
def output(capsys):
    def output(*argv: object) -> str:
        assert main([str(arg) for arg in argv]) == 0
        return capsys.readouterr().out

    return output


def write(file: Path, pairs: list[PreferencePair]) -> None:
    file.write_text("".join(json.dumps({"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected}) + "\n"
                            for p in pairs))  # fmt: skip


@pytest.mark.parametrize("command", ["train", "sft"])
def test_what_was_trained_on_dialogues_is_asked_in_dialogues(folder, tmp_path, monkeypatch, output, command):
    monkeypatch.chdir(tmp_path)
    for name, prompt in (("talks", "\n\nHuman: Ask {}?\n\nAssistant:"), ("plain", "Ask {}?")):
        write(tmp_path / f"{name}.jsonl", [PreferencePair(prompt.format(i), f"Yes {i}.", "No.") for i in range(6)])
        steps = ("--steps", 1) if command == "train" else ()
        output(command, "--data", f"{name}.jsonl", "--model", folder, "--output", name, *steps)
    ask = ("--prompt", "Ask 3?", "--max-new-tokens", 3, "--seed", 1)
    talked, said = output("generate", "--model", "talks", *ask), "was trained on dialogues, and is asked in one"
    assert said in talked and "\nHuman: Ask 3?\n\nAssistant:\n" in talked
    final = "talks/final" if command == "train" else "talks"
    assert json.loads((tmp_path / final / "training.json").read_text())["form"] == "dialogue"
    assert "'Human'" in json.loads((tmp_path / final / "tokenizer_config.json").read_text())["chat_template"]
    written = output("generate", "--model", "talks", "--prompt", "\n\nHuman: Ask 3?\n\nAssistant:", *ask[2:])
    assert written == talked
    for asked in (
        output("generate", "--model", "talks", "--plain", *ask),
        output("generate", "--model", "plain", *ask),
    ):
        assert asked.startswith("Ask 3?\n---") and said not in asked
    assert output("generate", "--model", "talks", "--compare", *ask).count("---") == 2  # both are asked alike


def test_a_checkpoint_and_an_adapter_are_asked_as_their_run_was_trained(folder, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "talks.jsonl", [PreferencePair(DIALOGUE, f"Yes {i}.", "No.") for i in range(6)])
    output("train", "--data", "talks.jsonl", "--model", folder, "--output", "run", "--lora", 2, "--steps", 2,
           "--save-every", 1, "--val-share", 0)  # fmt: skip
    for name in ("run/adapter", "run/checkpoints/step-000001"):
        out = output("generate", "--model", name, "--prompt", "Who?", "--max-new-tokens", 2)
        assert f"{name} was trained on dialogues" in out and "Human: Who?" in out


def test_a_models_answers_are_asked_for_in_its_form_and_judged_by_the_question(folder, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    judged = []
    monkeypatch.setattr(PocketJudge, "prefers", lambda self, prompt, *_: judged.append(prompt) or 1)
    write(tmp_path / "talks.jsonl", [PreferencePair(DIALOGUE, f"Yes {i}.", "No.") for i in range(6)])
    output("sft", "--data", "talks.jsonl", "--model", folder, "--output", "talks")
    (tmp_path / "asked.txt").write_text("Why is the sky blue?\n")
    output("data", "--from-model", "talks", "--prompts", "asked.txt", "--output", "new.jsonl")
    assert {pair.prompt for pair in load_pairs("new.jsonl")} == {"\n\nHuman: Why is the sky blue?\n\nAssistant:"}
    assert set(judged) == {"Why is the sky blue?"}
