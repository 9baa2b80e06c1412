import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from tiny import byte_encoding, save_small_model

from dpo_core.cli import main
from dpo_core.cli.flags import build_parser
from dpo_core.formats.pairs import PreferencePair, load_pairs, save_pairs
from dpo_core.generate import generate
from dpo_core.model import GPT
from dpo_core.pocket.judge import PocketJudge
from dpo_core.pocket.world import questions
from dpo_core.tokenizer import ENCODINGS, load_tokenizer
from dpo_core.trainer import DPOTrainer

LINE = re.compile(r"step {1,5}\d+ \| loss: \d+\.\d{4} \| reward_margin: [+-]\d+\.\d{4} \| accuracy: [01]\.\d{3}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """A command's standard output; it must have gone well."""

    def run(*argv):
        status = main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        return out

    return run


@pytest.fixture
def pairs(here):
    """Twelve pairs in pairs.jsonl."""
    save_pairs("pairs.jsonl", [PreferencePair(f"Ask {i}?", f"Yes, {i}.", "No." * (1 + i % 2)) for i in range(12)])
    return "pairs.jsonl"


def type_in(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The guide's path


def test_from_data_to_a_measured_model(here, run, model):
    assert run("data", "--pairs", 24) == "24 pairs in preference_data.jsonl\n"
    out = run("train", "--data", "preference_data.jsonl", "--model", model, "--steps", 4, "--beta", 0.2, "--lr", 1e-3,
              "--batch-size", 4, "--grad-accum", 2, "--eval-every", 2)  # fmt: skip
    logged = [line for line in out.splitlines() if line.startswith("step")]
    assert len(logged) == 3 and all(LINE.match(line) for line in logged)
    assert logged[0].startswith("step     0 | loss: 0.6931 | reward_margin: +0.0000 | accuracy: 0.000")
    assert "24 pairs kept, 0 dropped" in out and "held-out reward accuracy" in out
    assert json.loads((here / "dpo_checkpoints/config.json").read_text())["start"] == model

    ask = ("--prompt", "Why is the sky blue?", "--prompt", "What is Python?", "--max-new-tokens", 8)
    out = run("generate", "--weights", "dpo_checkpoints/final", *ask, "--compare")
    headers = [line for line in out.splitlines() if line.startswith("---")]
    assert headers == [f"--- {model}", "--- dpo_checkpoints/final"] * 2
    assert out.startswith("Why is the sky blue?\n") and "\nWhat is Python?\n" in out
    assert run("generate", "--weights", "dpo_checkpoints", *ask, "--compare", model) == out  # the run's own folder

    out = run("evaluate", "--weights", "dpo_checkpoints", "--data", "preference_data.jsonl", "--questions", 3,
              "--json", "new/figures.json")  # fmt: skip
    figures = json.loads((here / "new/figures.json").read_text())
    assert figures["questions"] == 3 and figures["kl"] > 0
    assert figures["win_rate"]["n"] == 3 and 0 <= figures["reward_accuracy"] <= 1
    for part in ("reward accuracy", "policy ", "reference ", "win rate", "reward gained", "KL(policy || reference)"):
        assert part in out


def test_a_second_training_on_top_of_the_first(here, run, model, pairs):
    run("train", "--data", pairs, "--model", model, "--steps", 1, "--output", "one")
    run("train", "--data", pairs, "--val", pairs, "--weights", "one", "--steps", 1, "--output", "two")
    assert json.loads((here / "two/config.json").read_text())["start"] == str(here / "one/final")


def test_the_start_is_found_from_another_folder(here, run, model, pairs, monkeypatch):
    (here / "below").mkdir()
    run("train", "--data", pairs, "--model", model, "--steps", 1, "--output", "one")
    run("train", "--data", pairs, "--model", "one", "--steps", 1, "--output", "two")
    monkeypatch.chdir(here / "below")
    out = run("generate", "--model", "../two", "--prompt", "Why?", "--compare")
    assert f"--- {here / 'one/final'}\n" in out
    run("train", "--data", f"../{pairs}", "--model", "pocket", "--steps", 1, "--output", "three")
    assert json.loads((here / "below/three/config.json").read_text())["start"] == "pocket"


def test_a_finished_run_is_replaced(here, run, model, pairs):
    common = ("train", "--data", pairs, "--model", model)
    run(*common, "--steps", 1)
    first = (here / "dpo_checkpoints/final/model.safetensors").read_bytes()
    run(*common, "--steps", 2)
    assert (here / "dpo_checkpoints/final/model.safetensors").read_bytes() != first


@pytest.mark.parametrize("start", ["one", "one/final"])
def test_the_model_a_training_starts_from_is_not_overwritten(here, run, refused, model, pairs, start):
    run("train", "--data", pairs, "--model", model, "--steps", 1, "--output", "one")
    assert "one holds the model that training starts from; choose another --output" in refused(
        "train", "--data", pairs, "--model", start, "--steps", 1, "--output", "one"
    )


def test_an_unfinished_run_says_how_to_go_on(here, run, refused, model, pairs):
    run("train", "--data", pairs, "--model", model, "--steps", 1, "--save-every", 1, "--output", "one")
    shutil.rmtree(here / "one/final")
    assert "one: the training is not finished; go on with --resume, or name a folder in one/checkpoints" in refused(
        "generate", "--model", "one", "--prompt", "Why?"
    )


def test_an_earlier_model_does_not_pass_for_that_of_an_unfinished_run(here, run, refused, model, pairs, monkeypatch):
    common = ("train", "--data", pairs, "--model", model, "--output", "one")
    run(*common, "--steps", 1)
    monkeypatch.setattr(DPOTrainer, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*common, "--steps", 2)
    assert "one: the training there is not finished, and one/final is an earlier one's; train again to its end" in (
        refused("generate", "--model", "one", "--prompt", "Why?")
    )
    assert f"--- {model}\n" in run("generate", "--model", "one/final", "--prompt", "Why?", "--compare")


def test_nor_if_only_the_pairs_differ(here, run, refused, model, pairs, monkeypatch):
    save_pairs("other.jsonl", [PreferencePair(f"Say {i}?", "Good.", "Bad.") for i in range(12)])
    run("train", "--data", pairs, "--model", model, "--steps", 1, "--output", "one")
    monkeypatch.setattr(DPOTrainer, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("train", "--data", "other.jsonl", "--model", model, "--steps", 1, "--output", "one")
    assert "one: the training there is not finished" in refused("generate", "--model", "one", "--prompt", "Why?")


def test_a_model_and_a_run_do_not_share_a_folder(here, run, refused, model, pairs):
    tune = ("sft", "--data", pairs, "--model", model, "--epochs", 0.1)
    run(*tune, "--output", "tuned")
    train = ("train", "--data", pairs, "--model", model, "--steps", 1)
    assert "tuned holds a model" in refused(*train, "--output", "tuned")
    run(*train, "--output", "one")
    assert "one holds a training by DPO; choose another --output" in refused(*tune, "--output", "one")


def test_a_fine_tuned_model_knows_its_start(here, run, refused, model, pairs):
    run("train", "--data", pairs, "--model", model, "--steps", 1, "--output", "one")
    run("sft", "--data", pairs, "--model", "one", "--epochs", 0.1, "--output", "one/tuned")
    out = run("generate", "--model", "one/tuned", "--prompt", "Why?", "--compare")
    assert f"--- {here / 'one/final'}\n" in out
    asked = ("generate", "--model", "pocket", "--prompt", "Why?", "--compare")
    assert "pocket was not trained here; name what to compare with: --compare MODEL" in refused(*asked)


def test_an_evaluation_says_what_it_drops(here, run, model, pairs):
    save_pairs("more.jsonl", [*load_pairs(pairs), PreferencePair("Same?", "Yes.", "Yes.")])
    out = run("evaluate", "--model", model, "--reference", model, "--data", "more.jsonl", "--questions", 2)
    assert "12 pairs kept, 1 dropped" in out


def test_pairs_are_not_written_under_a_packed_name(here, refused):
    assert "new.jsonl.gz: pairs are written unpacked; leave .gz out of the name" in refused(
        "data", "--output", "new.jsonl.gz"
    )


def test_examples_without_room_for_an_answer_are_counted(here, run, model):
    record = {"prompt": "why " * 400, "completion": "Because."}
    good = {"prompt": "Why?", "completion": "Because."}
    (here / "examples.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(good))
    out = run("sft", "--data", "examples.jsonl", "--model", model, "--output", "tuned")
    assert "1 of 2 examples have no room for an answer and are left out" in out


def test_validation_pairs_are_reported(here, run, model, pairs):
    first = load_pairs(pairs)[0]
    shared = [PreferencePair(first.prompt.upper(), "One.", "Two."), PreferencePair("New?", "One.", "Two.")]
    save_pairs("val.jsonl", [*shared, PreferencePair("Same?", "Yes.", "Yes.")])
    out = run("train", "--data", pairs, "--val", "val.jsonl", "--model", model, "--steps", 1)
    assert "validation: 2 pairs kept, 1 dropped" in out
    assert "validation: 1 of 2 prompts are in the training pairs, too" in out


def test_the_accuracy_is_that_of_the_weights_kept(here, run, model, pairs, monkeypatch):
    swapped = [PreferencePair(pair.prompt, pair.rejected, pair.chosen) for pair in load_pairs(pairs)]
    save_pairs("swapped.jsonl", swapped)
    common = ("train", "--data", pairs, "--val", "swapped.jsonl", "--model", model, "--steps", 2, "--eval-every", 1)
    calls, evaluate = [], DPOTrainer.evaluate
    monkeypatch.setattr(DPOTrainer, "evaluate", lambda self: calls.append(1) or evaluate(self))
    rows = [re.findall(r"eval_accuracy: ([\d.]+)", out := run(*common)), calls[:]]
    assert f"held-out reward accuracy {rows[0][-1]} " in out and out.endswith("dpo_checkpoints/final\n")
    assert len(rows[0]) == len(rows[1]) == 3
    out = run(*common, "--early-stopping", 5, "--lr", 1e-3)
    assert "held-out reward accuracy 0.000 " in out and out.endswith("final, the weights of step 0\n")


def test_resume_equals_never_having_stopped(here, run, model, pairs):
    common = ("train", "--data", pairs, "--model", model, "--save-every", 2, "--eval-every", 2)
    run(*common, "--steps", 4, "--output", "whole")
    run(*common, "--steps", 2, "--output", "parts")
    run(*common, "--steps", 4, "--output", "parts", "--resume")
    assert (here / "parts/final/model.safetensors").read_bytes() == (
        here / "whole/final/model.safetensors"
    ).read_bytes()
    run("generate", "--weights", "parts/checkpoints/step-000004", "--prompt", "Why?", "--compare")  # start is found


# data


def test_sampled_pairs_depend_on_the_flags(here, run):
    run("data", "--pairs", 60, "--longer-chosen", 0, "--output", "short.jsonl")
    guide, drawn = (pairs := load_pairs("short.jsonl"))[:10], pairs[10:]
    assert guide[0].prompt == "Explain machine learning." and len(drawn) == 50
    assert all(len(pair.chosen) <= len(pair.rejected) for pair in drawn)
    run("data", "--pairs", 60, "--seed", 1, "--output", "other.jsonl")
    run("data", "--pairs", 60, "--seed", 1, "--output", "again.jsonl")
    assert load_pairs("other.jsonl") == load_pairs("again.jsonl") != pairs


def test_convert_hh(here, run):
    turns = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    lines = [{"chosen": f"{turns} Because \ud83d.", "rejected": f"{turns} No."}]  # half a character survives
    (here / "hh.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("data", "--convert", "hh.jsonl", "--output", "new/plain.jsonl") == "1 pairs in new/plain.jsonl\n"
    assert load_pairs("new/plain.jsonl") == [PreferencePair(turns, "Because \ud83d.", "No.")]


def test_check_says_what_training_would_do(here, run, pairs):
    save_pairs("mixed.jsonl", [*load_pairs(pairs), PreferencePair("Same?", "Yes.", "Yes.")])
    before = files(here)
    assert "12 pairs kept, 1 dropped" in run("data", "--check", "mixed.jsonl")
    assert files(here) == before


def test_pairs_that_are_there_are_replaced_only_by_force(here, run, refused, pairs):
    for command in (("--pairs", 3), ("--convert", pairs), ("--from-model", "pocket")):
        assert f"{pairs}: is there already; choose another --output, or replace it with --force" in refused(
            "data", *command, "--output", pairs
        )
    assert run("data", "--pairs", 3, "--output", pairs, "--force") == f"3 pairs in {pairs}\n"
    (here / "blank.jsonl").touch()
    run("data", "--pairs", 3, "--output", "blank.jsonl")


def test_interactive(here, run, monkeypatch):
    type_in(monkeypatch, "Why?\n\n  Because it is. \nNo.\nWho?\nMe.\nMe.\nWho?\nI.\nYou.\nDONE\n")
    out = run("data", "--interactive", "--output", "mine.jsonl")
    expected = [PreferencePair("Why?", "Because it is.", "No."), PreferencePair("Who?", "I.", "You.")]
    assert load_pairs("mine.jsonl") == expected
    assert "answers are the same" in out and out.endswith("2 pairs in mine.jsonl\n")
    type_in(monkeypatch, "What?\nThat.\nThis.\n")  # the input ends without done
    run("data", "--interactive", "--output", "mine.jsonl")
    assert load_pairs("mine.jsonl") == [*expected, PreferencePair("What?", "That.", "This.")]


def test_pairs_by_hand_leave_the_other_lines_alone(here, run, monkeypatch):
    old = json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "label": {"labeller": "me"}})
    (here / "own.jsonl").write_text(old)
    type_in(monkeypatch, "done\n")
    run("data", "--interactive", "--output", "own.jsonl")
    assert (here / "own.jsonl").read_text() == old
    type_in(monkeypatch, "Who?\nA friend.\nNobody.\ndone\n")
    run("data", "--interactive", "--output", "own.jsonl")
    assert (here / "own.jsonl").read_text() == (
        old + '\n{"prompt": "Who?", "chosen": "A friend.", "rejected": "Nobody."}\n'
    )


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, EOFError])
def test_what_was_typed_is_saved_whatever_comes(here, monkeypatch, capsys, stop):
    typed = iter(["Why?", "Because.", "No.", "Half a"])

    def keyboard(question):
        for text in typed:
            return text
        raise stop

    monkeypatch.setattr("builtins.input", keyboard)
    if stop is MemoryError:  # stands for any crash
        with pytest.raises(MemoryError):
            main(["data", "--interactive", "--output", "mine.jsonl"])
    else:
        assert main(["data", "--interactive", "--output", "mine.jsonl"]) == (130 if stop is KeyboardInterrupt else 0)
    assert load_pairs("mine.jsonl") == [PreferencePair("Why?", "Because.", "No.")]


def test_pairs_from_a_model_by_the_judge(here, run):
    prompts = [q.text for q in questions() if q.kind == "topic"][:6]
    (here / "prompts.txt").write_text("\n".join(prompts) + "\n\n")
    run("data", "--from-model", "pocket", "--prompts", "prompts.txt", "--output", "new.jsonl")
    made, judge = load_pairs("new.jsonl"), PocketJudge()
    assert made and all(judge.score(p.prompt, p.chosen) > judge.score(p.prompt, p.rejected) for p in made)
    assert {pair.prompt for pair in made} <= set(prompts)


def test_pairs_from_a_model_by_you(here, run, model, monkeypatch):
    (here / "prompts.txt").write_text("Which moon?\nWho am I?\nIs it?\nAnd so?\n")
    type_in(monkeypatch, "2\nmaybe\n1\ns\ndone\n")
    common = ("data", "--from-model", model, "--ask", "--prompts", "prompts.txt", "--output", "mine.jsonl")
    out = run(*common)
    asked = [p for p in ("Which moon?", "Who am I?") for _ in range(2)]
    asked += ["Is it?"] * 2 + ["And so?"] * 2
    texts = [
        answer.text
        for answer in generate(GPT.from_pretrained(model), load_tokenizer("pocket"), asked, max_new_tokens=200, seed=0)
    ]
    assert load_pairs("mine.jsonl") == [
        PreferencePair("Which moon?", texts[1], texts[0]),
        PreferencePair("Who am I?", texts[2], texts[3]),
    ]
    assert "[1] " in out
    type_in(monkeypatch, "done\n")
    run(*common)
    assert len(load_pairs("mine.jsonl")) == 2  # nothing lost


# Other training


def test_sft_learns_the_answers(here, run, model):
    examples = [{"prompt": f"Ask {i}?", "completion": "Always the same answer."} for i in range(20)]
    (here / "good.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    out = run("sft", "--data", "good.jsonl", "--model", model, "--epochs", 20, "--lr", 0.02, "--batch-tokens", 200)
    first, last = map(float, re.search(r"loss ([\d.]+) to ([\d.]+)", out).groups())
    assert last < first / 4
    assert "Always" in run("generate", "--model", "checkpoints/sft", "--prompt", "Ask 3?", "--temperature", 0)


def test_an_adapter_from_fine_tuning_to_a_measured_model(here, run, model, pairs):
    (here / "good.jsonl").write_text('{"prompt": "Ask?", "completion": "Always."}\n' * 8)
    common = ("--data", "good.jsonl", "--model", model, "--epochs", 20, "--lr", 0.02, "--batch-tokens", 200)
    out = run("sft", *common, "--lora", "--output", "tuned")
    assert re.match(r"adapter of rank 8: 2,048 parameters are trained, of [\d,]+\n", out)
    ask = ("--prompt", "Ask?", "--temperature", 0)
    answers = [run("generate", "--model", name, *ask).splitlines()[2:] for name in ("tuned", "tuned/adapter")]
    assert answers[0] == answers[1] != run("generate", "--model", model, *ask).splitlines()[2:]

    out = run("train", "--data", pairs, "--model", "tuned", "--lora", 2, "--reference", "adapter_off", "--lr", 1e-2,
              "--steps", 3, "--save-every", 3)  # fmt: skip
    assert "adapter of rank 2: 512 parameters" in out and "step     0 | loss: 0.6931" in out
    run_folder = here / "dpo_checkpoints"
    assert json.loads((run_folder / "config.json").read_text())["start"] == str(here / "tuned")
    adapter = run_folder / "adapter" / "adapter_model.safetensors"
    assert adapter.read_bytes() == (run_folder / "checkpoints/step-000003/adapter_model.safetensors").read_bytes()
    figures = []
    for name in ("", "/final", "/adapter", "/checkpoints/step-000003"):
        run(
            "evaluate", "--model", f"dpo_checkpoints{name}", "--data", pairs, "--questions", 2, "--json", "figures.json"
        )
        figures.append(json.loads((here / "figures.json").read_text()))
    assert figures[0] == figures[1] and figures[2] == figures[3] and figures[0]["kl"] > 0
    assert figures[0]["reward_margin"] == pytest.approx(figures[2]["reward_margin"], abs=1e-4)

    run("sft", *common, "--output", "tuned")
    assert not (here / "tuned" / "adapter").exists()  # the weights it was merged in are gone


def test_an_adapter_does_not_overwrite_its_model(here, run, refused, model, pairs):
    told = "holds the model that training starts from; choose another --output"
    assert told in refused("sft", "--data", pairs, "--model", model, "--lora", "--output", model)
    run("sft", "--data", pairs, "--model", model, "--lora", "--output", "tuned")
    for lora in (["--lora"], []):  # it would remove the adapter that it starts from
        assert told in refused("sft", "--data", pairs, "--model", "tuned/adapter", *lora, "--output", "tuned")
    assert (here / "tuned" / "adapter" / "adapter_config.json").exists()


def test_training_on_top_of_an_adapter(here, run, model, pairs):
    run("train", "--data", pairs, "--model", model, "--steps", 1, "--lora", "--output", "one")
    run("train", "--data", pairs, "--model", "one/adapter", "--steps", 1, "--lora", "--output", "two")
    assert f"--- {here / 'one/adapter'}" in run("generate", "--model", "two/adapter", "--prompt", "Why?", "--compare")


def test_an_adapter_is_trained_at_ten_times_the_rate(here, run, model, pairs):
    run("train", "--data", pairs, "--model", model, "--steps", 1, "--lora")
    assert json.loads((here / "dpo_checkpoints/config.json").read_text())["learning_rate"] == pytest.approx(1e-3)


def test_sft_takes_the_chosen_side_of_pairs(here, run, model, pairs):
    assert "saved in out" in run("sft", "--data", pairs, "--model", model, "--output", "out")


def test_sft_says_what_was_cut(here, run, model):
    examples = [{"prompt": f"Ask {i}?", "completion": "Yes. " * 150 * i or "No."} for i in range(3)]
    (here / "good.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    out = run("sft", "--data", "good.jsonl", "--model", model)
    assert out.startswith("2 of 3 examples were cut at 256 tokens, the model's context\n")


def test_pretrain_makes_a_model_of_the_given_shape(here, run):
    (here / "text.txt").write_text("One day. Another day.\n\nA second document.\n" * 5)
    shape = ("--layers", 1, "--channels", 16, "--heads", 2, "--context", 32)
    run("pretrain", "--data", "text.txt", *shape, "--epochs", 2, "--output", "own")
    config = GPT.from_pretrained("own").config
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions, config.tokenizer) == (
        1,
        16,
        2,
        32,
        "pocket",
    )
    run("generate", "--model", "own", "--prompt", "One", "--max-new-tokens", 3, "--top-k", 5, "--top-p", 0.9)


# Mistakes


GOOD = '{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n'
BAD_DATA = {  # content of data.jsonl -> what the message says
    "missing": (None, "data.jsonl: cannot be read"),
    "empty": ("", "data.jsonl: no pairs in it"),
    "not JSON": (GOOD + 2 * "prompt: Why?\n", "data.jsonl:2: not JSON"),
    "not UTF-8": (b"\xff\xfe\n", "data.jsonl:1: not UTF-8"),
    "missing field": (GOOD + GOOD + 2 * '{"prompt": "Why?", "chosen": "Because."}\n', 'data.jsonl:3: no "rejected"'),
    "number": ('{"prompt": "Why?", "chosen": 3, "rejected": "No."}\n', 'data.jsonl:1: "chosen" is 3'),
    "empty answer": ('{"prompt": "Why?", "chosen": " ", "rejected": "No."}\n', 'data.jsonl:1: "chosen" is empty'),
    "identical": (
        '{"prompt": "Why?", "chosen": "No.", "rejected": "No."}\n',
        "the answers are the same (data.jsonl:1)",
    ),
    "long prompt": (GOOD.replace("Why?", "Why? " * 300), "no room for answers in 256 tokens (data.jsonl:1)"),
    "one prompt": (GOOD, "1 different prompts cannot be divided"),
}


@pytest.fixture
def refused(here, capsys):
    """The message of a command that fails and touches no file that was there."""

    def refused(*argv):
        before = files(here)
        status = main([str(arg) for arg in argv])
        err = capsys.readouterr().err
        assert status == 2 and err.startswith("error: ") and err.count("error:") == 1 and "Traceback" not in err, err
        after = files(here)
        assert {path: after.get(path) for path in before} == before
        return err

    return refused


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data(here, refused, model, kind):
    content, message = BAD_DATA[kind]
    if content is not None:
        (here / "data.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused("train", "--data", "data.jsonl", "--model", model, "--steps", 1)


@pytest.mark.parametrize(
    ("command", "message"),
    {
        "train --data pairs.jsonl --model gpt5": "no model 'gpt5': it is neither a folder nor one of pocket, gpt2",
        "train --data pairs.jsonl --model empty": "empty: no config.json (the folder holds nothing)",
        "train --data pairs.jsonl --model half": "half: no model.safetensors (the folder holds config.json)",
        "train --data pairs.jsonl --model cut": "not a whole safetensors file",
        "train --data pairs.jsonl --model foreign": "model_type must be 'gpt2'",
        "generate --prompt Hi --model strange": "unknown tokenizer 'klingon'",
        "train --data pairs.jsonl --model MODEL --output file": "file: cannot write there",
        "train --data pairs.jsonl --model MODEL --output file/deep": "file/deep: cannot write there",
        "train --data pairs.jsonl --model MODEL --beta 0": "--beta: 0 is not a number above 0",
        "train --data pairs.jsonl --model MODEL --beta nan": "--beta: nan is not a number above 0",
        "train --data pairs.jsonl --model MODEL --steps 0": "--steps: 0 is not a whole number above 0",
        "train --data pairs.jsonl --model MODEL --steps many": "--steps: many is not a whole number above 0",
        "train --data pairs.jsonl --model MODEL --lr=-1e-5": "--lr: -1e-5 is not a number above 0",
        "train --data pairs.jsonl --model MODEL --lr 0": "--lr: 0 is not a number above 0",
        "train --data pairs.jsonl --model MODEL --batch-size 2.5": "--batch-size: 2.5 is not a whole number above 0",
        "train --data pairs.jsonl --model MODEL --seed 99999999999999999999": "--seed: 99999999999999999999 is not",
        "train --data pairs.jsonl --model MODEL --label-smoothing 1": "--label-smoothing: 1 is not a number of",
        "train --data pairs.jsonl --model MODEL --val-share 1": "1 is not a number of at least 0 and below 1",
        "train --data pairs.jsonl --model MODEL --max-length 9999": "--max-length is 9999, but the model has 256",
        "train --data pairs.jsonl --model MODEL --precision fp8": "invalid choice: 'fp8'",
        "train --data pairs.jsonl --model MODEL --resume": "no checkpoint in dpo_checkpoints to resume from",
        "train --data pairs.jsonl --model MODEL --val lost.jsonl": "lost.jsonl: cannot be read",
        "train --data pairs.jsonl --speed 3": "unrecognized arguments: --speed 3",
        "train": "the following arguments are required: --data",
        "": "the following arguments are required: command",
        "dance": "invalid choice: 'dance'",
        "data --from-model MODEL --prompts lost.txt --force": "lost.txt: cannot be read",
        "data --from-model MODEL --prompts binary --force": "binary: not UTF-8",
        "data --from-model MODEL --prompts own.txt --force": "own.txt: the pocket judge knows nothing about 'Who",
        "data --from-model gpt5 --force": "no model 'gpt5'",
        "data --prompts own.txt": "--ask and --prompts go with --from-model",
        "data --check pairs.jsonl --convert pairs.jsonl": "choose one of --interactive",
        "data --check pairs.jsonl --tokenizer klingon": "unknown tokenizer 'klingon'",
        "data --convert lost.jsonl --force": "lost.jsonl: cannot be read",
        "data --interactive --output damaged.jsonl": "damaged.jsonl:1: not JSON",
        "data --output file/new.jsonl": "file: cannot write there",
        "data --output empty": "empty: is a folder",
        "data --pairs 0": "--pairs: 0 is not a whole number above 0",
        "data --noise=-1": "--noise: -1 is not a number of at least 0",
        "data --longer-chosen 1.5": "--longer-chosen: 1.5 is not a share from 0 to 1",
        "evaluate --model MODEL --reference MODEL --json file/x.json": "file: cannot write there",
        "evaluate --model MODEL --reference MODEL --questions 1": "at least two prompts",
        "evaluate --model MODEL": "does not say what the training began from; name it: --reference MODEL",
        "evaluate --model MODEL --reference other": "different tokenizers",
        "evaluate --model other --reference other": "only the pocket world has a judge",
        "generate --model MODEL --prompt Hi --compare": "name it: --compare MODEL",
        "generate --model MODEL --prompt LONG": "leaves no room for an answer in the model's 256 positions",
        "generate --model MODEL --prompt=": "prompt '' is blank",
        "generate --model MODEL --prompt Hi --temperature=-1": "--temperature: -1 is not",
        "generate --model MODEL --prompt Hi --top-p 0": "top_p must be above 0",
        "sft --data lost.jsonl --model MODEL": "lost.jsonl: cannot be read",
        "sft --data half.jsonl --model MODEL": 'half.jsonl:1: "completion" is 1; it must be text',
        "sft --data pairs.jsonl --model MODEL --output file": "file: cannot write there",
        "sft --data pairs.jsonl --model MODEL --epochs 0": "--epochs: 0 is not a number above 0",
        "pretrain --data lost.txt": "lost.txt: cannot be read",
        "pretrain --data binary": "binary: not UTF-8",
        "pretrain --data blank.txt": "nothing to train on",
        "pretrain --data own.txt --channels 10 --heads 3": "n_embd 10 is not a multiple of n_head 3",
        "pretrain --data own.txt --tokenizer klingon": "unknown tokenizer 'klingon'",
        "pretrain --data own.txt --output file --channels 16 --heads 2": "file: cannot write there",
        "pocket --output file": "file: cannot write there",
    }.items(),
)
def test_bad_input(here, refused, model, pairs, monkeypatch, command, message):
    monkeypatch.setitem(ENCODINGS, "bytes", byte_encoding)
    config, weights = ((open(f"{model}/{name}", "rb").read()) for name in ("config.json", "model.safetensors"))
    contents = {
        "file": b"",
        "binary": b"\xff\xff",
        "blank.txt": b"\n\n",
        "own.txt": b"Who am I?\n",
        "damaged.jsonl": b"{\n",
        "half.jsonl": b'{"prompt": "Why?", "completion": 1}\n',
        "preference_data.jsonl": b"keep me\n",
        "half/config.json": config,
        "cut/config.json": config,
        "cut/model.safetensors": weights[: len(weights) // 2],
        "foreign/config.json": config.replace(b'"gpt2"', b'"bert"'),
        "foreign/model.safetensors": weights,
        "strange/config.json": config.replace(b'"pocket"', b'"klingon"'),
        "strange/model.safetensors": weights,
        "other/config.json": config.replace(b'"pocket"', b'"bytes"'),
        "other/model.safetensors": weights,
    }
    (here / "empty").mkdir()
    for name, content in contents.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content)
    argv = [word.replace("MODEL", model).replace("LONG", "Why? " * 300) for word in command.split()]
    assert message in refused(*argv)


def test_a_run_with_checkpoints_is_not_overwritten(here, run, refused, model, pairs):
    common = ("train", "--data", pairs, "--model", model, "--save-every", 1)
    run(*common, "--steps", 1)
    state = here / "dpo_checkpoints" / "checkpoints" / "step-000001" / "trainer.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"finished": False}))
    assert "holds checkpoints of an earlier run" in refused(*common, "--steps", 1)
    assert "beta is 0.3, was 0.1" in refused(*common, "--steps", 2, "--resume", "--beta", 0.3)


@pytest.mark.parametrize(
    ("command", "remedy"),
    {
        "train --data pairs.jsonl": "lower --batch-size (with",
        "sft --data pairs.jsonl": "lower --batch-tokens",
        "generate --prompt Hi": "take a smaller model or fewer prompts",
        "evaluate": "take a smaller model or fewer prompts",
    }.items(),
)
def test_full_gpu_memory_says_what_to_do(here, pairs, refused, monkeypatch, command, remedy):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("dpo_core.cli.loading.load_model", full)
    assert f"memory is full; {remedy}" in refused(*command.split())


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_is_no_traceback(here, pairs, refused, model, monkeypatch, failure):
    def full(*_, **__):
        raise failure

    monkeypatch.setattr("dpo_core.model.save_file", full)
    assert "No space left on device" in refused("sft", "--data", pairs, "--model", model)


# Around


def test_as_a_program(here):
    def program(*argv):
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        return subprocess.run(
            [sys.executable, "-m", "dpo_core", *argv], capture_output=True, text=True, env=environment
        )

    failed = program("train", "--data", "löst.jsonl")
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr == "error: l\\xf6st.jsonl: cannot be read (No such file or directory); check the path\n"
    assert "generate" in program("--help").stdout


def test_help_of_every_command_names_defaults_and_no_none(capsys):
    for name in ("data", "pretrain", "sft", "train", "generate", "evaluate", "pocket"):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([name, "--help"])
        out = capsys.readouterr().out
        assert stop.value.code == 0 and "default: None" not in out and "default: False" not in out
        assert "default: 0" in out
