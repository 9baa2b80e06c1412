"""KTO on answers judged one by one: files, what is learned and logged, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import byte_encoding

from dpo_core.cli import main
from dpo_core.config import DPOConfig
from dpo_core.errors import InputError
from dpo_core.formats.pairs import LabelledAnswer, PreferencePair, load_labels
from dpo_core.losses import PairLoss
from dpo_core.methods.kto import kto_loss, reference_point
from dpo_core.metrics import History, log_line
from dpo_core.model import GPT, GPTConfig
from dpo_core.study.diagnose import diagnose
from dpo_core.study.setup_check import check_setup
from dpo_core.study.watch import watch
from dpo_core.tokenizer import ENCODINGS
from dpo_core.trainer import DPOTrainer
from dpo_core.trainers import KTOTrainer
from dpo_core.trainers.kto import audit_labels

PAIRS_ONLY = {f"{prefix}{name}" for prefix in ("", "eval_") for name in ("rewards/accuracies", "accuracies/policy")}


def split(pairs):
    """Each pair as two labelled answers."""
    return [
        LabelledAnswer(pair.prompt, text, label, pair.source)
        for pair in pairs
        for text, label in ((pair.chosen, True), (pair.rejected, False))
    ]


@pytest.fixture
def make(tiny_model, encoding, pairs):
    """A trainer of a fresh copy of the tiny model on labelled answers, with settings changed by keyword."""
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}

    def make(given=None, output=None, val=None, **settings):
        model = GPT(tiny_model.config)
        model.load_state_dict(start)
        defaults = {"steps": 4, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 0, "val_share": 0.2}
        config = DPOConfig(**defaults | {"loss": "kto", "log_every": 1, "eval_every": 2} | settings)
        return KTOTrainer(model, encoding, split(pairs) if given is None else given, config, output, val)

    return make


def write(file, *lines):
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


# Files


def test_labelled_answers_are_read_with_their_places(tmp_path):
    file = write(
        tmp_path / "labels.jsonl",
        {"prompt": "Why?", "completion": "Because.", "label": True},
        {"prompt": "Who?", "completion": "No.", "label": False, "more": 1},
    )
    found = load_labels(file)
    assert found == [LabelledAnswer("Why?", "Because.", True), LabelledAnswer("Who?", "No.", False)]
    assert [answer.source for answer in found] == [f"{file}:1", f"{file}:2"]


def test_a_pair_among_labels_counts_as_two_answers(tmp_path):
    label = {"prompt": "Why?", "completion": "Because.", "label": True}
    pair = {"prompt": "Who?", "chosen": "A friend.", "rejected": "No."}
    both = [LabelledAnswer("Who?", "A friend.", True), LabelledAnswer("Who?", "No.", False)]
    assert load_labels(write(tmp_path / "a.jsonl", label, pair)) == [LabelledAnswer("Why?", "Because.", True), *both]
    assert load_labels(write(tmp_path / "b.jsonl", pair)) == [PreferencePair("Who?", "A friend.", "No.")]


def test_labelled_dialogues_are_read_as_pairs_are(tmp_path):
    """TRL's conversational format, and the prompt as text with the answer as messages."""
    ask, say = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": " Because. "}
    lines = [
        {"prompt": [ask], "completion": [say], "label": True},
        {"prompt": "Why?", "completion": [say], "label": True},
        {"prompt": [ask], "completion": "Because.", "label": True},
        {"completion": [ask, say], "label": True},
        {"prompt": [ask], "completion": [ask, say], "label": True},
    ]
    prompt = "\n\nHuman: Why?\n\nAssistant:"
    assert load_labels(write(tmp_path / "labels.jsonl", *lines)) == [LabelledAnswer(prompt, "Because.", True)] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ...}, 'no "label"; a labelled answer needs prompt, completion and label'),
        ({"label": None}, r'"label" is null; it must be true \(a wanted answer\) or false'),
        ({"label": 1}, '"label" is 1; it must be true'),
        ({"label": "true"}, '"label" is "true"; it must be true'),
        ({"prompt": ...}, 'no "prompt" .*; add one'),
        ({"prompt": 3}, '"prompt" is 3; it must be text or a list of messages'),
        ({"completion": None}, '"completion" is null; it must be text or a list of messages'),
        ({"completion": " \n"}, '"completion" is empty; fill it in'),
        ({"completion": []}, "no turn of the user before an answer; give a prompt"),
        ({"prompt": " "}, '"prompt" is empty; fill it in'),
        ({"completion": ...}, 'no "chosen" .*; labelled answers are for the loss kto'),
    ],
    ids=str,
)
def test_a_line_that_is_no_labelled_answer_is_named(tmp_path, change, message):
    good = {"prompt": "Why?", "completion": "Because.", "label": True}
    bad = {name: value for name, value in (good | change).items() if value is not ...}
    with pytest.raises(InputError, match=rf"2 bad lines in .*labels.jsonl:\n.*labels.jsonl:2: ({message})"):
        load_labels(write(tmp_path / "labels.jsonl", good, bad, bad))


def test_what_is_cut_dropped_and_contradicted_is_said(encoding):
    answers = [
        LabelledAnswer("Ask", "yes", True, "f:1"),
        LabelledAnswer("Ask", "yes", False, "f:2"),
        LabelledAnswer("Ask", "yes" * 20, True, "f:3"),
        LabelledAnswer("Ask" * 10, "yes", True, "f:4"),
        LabelledAnswer("", "yes", False, "f:5"),
    ]
    audit = audit_labels(answers, encoding, max_length=16)
    assert audit.report().splitlines() == [
        "3 answers kept, 2 dropped",
        "dropped: 1 x the prompt leaves no room for the answer in 16 tokens (f:4)",
        "dropped: 1 x the prompt is empty (f:5)",
        "noted: 2 x the same answer is also there with the other label (f:1, f:2)",
        "noted: 1 x the answer was cut at 16 tokens (f:3)",
        "desirable: 2, on average 8.0 tokens; undesirable: 1, 4.0 tokens",
    ]
    assert [(bool(e.chosen), bool(e.rejected)) for e in audit.kept] == [(True, False), (False, True), (True, False)]


# What is learned and logged


@pytest.mark.parametrize("settings", [{}, {"reference": "live"}, {"desirable_weight": 3.0}], ids=str)
def test_pairs_and_the_same_pairs_as_labelled_answers_learn_the_same(make, pairs, settings):
    """In one batch with all: the mean over pairs of two answers' mean is that over answers, and so is the point."""
    on_pairs, on_labels = make(pairs, **settings), make(**settings)
    rows = [trainer.train(progress=False).rows for trainer in (on_pairs, on_labels)]
    assert len(on_pairs.training) * 2 == len(on_labels.training) == 16
    for theirs, ours in zip(*rows):
        assert ours == pytest.approx({k: v for k, v in theirs.items() if k not in PAIRS_ONLY}, rel=1e-4, abs=1e-5)
    assert rows[1][-1]["loss"] < rows[1][0]["loss"] and rows[1][-1]["rewards/margins"] > 0.01


def answer_logp(model, encoding, prompt, text):
    """Of an answer alone in its row, without padding or packing."""
    before, answer = encoding.encode(prompt + "\n"), [*encoding.encode(text), encoding.eot_token]
    with torch.no_grad():
        logps = model(torch.tensor([before + answer]))[0].log_softmax(-1)
    return sum(logps[len(before) + i - 1, token].item() for i, token in enumerate(answer))


def test_what_is_logged_is_what_one_computes_by_hand(make, encoding, pairs):
    """Loss, point and rewards of the second step, from the weights before and after the first."""
    answers = split(pairs)[:7]  # four desirable, three undesirable
    start, first, trainer = (make(answers, steps=n, val_share=0.0, beta=0.5) for n in (1, 1, 2))
    first.train(progress=False)
    row = trainer.train(progress=False).rows[-1]

    def ratio(prompt, text):
        policy, reference = (answer_logp(one.model, encoding, prompt, text) for one in (first, start))
        return policy - reference

    own = torch.tensor([ratio(answer.prompt, answer.completion) for answer in answers])
    lent = [ratio(encoding.decode(e.prompt).removesuffix("\n"), answers[i].completion)
            for i, e in enumerate(trainer.mismatched["training"])]  # fmt: skip
    wanted = torch.tensor([answer.label for answer in answers])
    losses = kto_loss(own, torch.zeros(7), wanted, reference_point(torch.tensor(lent)), beta=0.5)
    assert row["loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert row["rewards/chosen"] == pytest.approx(0.5 * own[wanted].mean().item(), abs=1e-5)
    assert row["rewards/rejected"] == pytest.approx(0.5 * own[~wanted].mean().item(), abs=1e-5)
    assert row["rewards/margins"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"])
    assert row["length/chosen"] == pytest.approx(
        sum(len(encoding.encode(a.completion)) + 1 for a in answers if a.label) / 4
    )
    assert abs(row["rewards/chosen"]) > 1e-3 and not PAIRS_ONLY & row.keys()


@pytest.mark.parametrize(("label", "side", "other"), [(True, "chosen", "rejected"), (False, "rejected", "chosen")])
def test_of_a_kind_that_is_not_there_nothing_is_logged(make, pairs, label, side, other):
    trainer = make([answer for answer in split(pairs) if answer.label == label])
    history = trainer.train(progress=False)
    names = {name for row in history.rows for name in row}
    assert f"rewards/{side}" in names and f"eval_logps/{side}" in names
    assert not [name for name in names if other in name or "margins" in name or "accuracies" in name]
    assert all(math.isfinite(value) for row in history.rows for value in row.values())
    assert history.rows[-1]["loss"] < history.rows[0]["loss"] == 0.5
    assert log_line(history.rows[2]).startswith("step     2 | loss: 0.") and diagnose(history) is not None


def test_rows_are_printed_with_the_margin_and_without_an_accuracy(make, capsys):
    make(steps=2).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert lines[0] == "step     0 | loss: 0.5000 | reward_margin: +0.0000 | eval_loss: 0.5000"
    assert len(lines) == 3 and "accuracy" not in "".join(lines)


def test_weights_make_up_for_labels_of_which_one_kind_is_rare(make, pairs):
    """One desirable answer with weight 3 has the gradient of three with weight 1; means of 5 and 7 answers."""
    answers = split(pairs)
    wanted, others = answers[:1], answers[3:10:2]
    settings = {"val_share": 0.0, "steps": 1, "max_grad_norm": 1e9}
    rare, often = make(wanted + others, **settings, desirable_weight=3.0), make(3 * wanted + others, **settings)
    norms = [trainer.train(progress=False).rows[-1]["grad_norm"] for trainer in (rare, often)]
    assert 5 * norms[0] == pytest.approx(7 * norms[1], rel=1e-4)
    plain = make(wanted + others, **settings).train(progress=False).rows[-1]["grad_norm"]
    assert abs(plain / norms[0] - 1) > 0.05


@pytest.mark.parametrize("settings", [{"desirable_weight": -1.0}, {"loss": "dpo", "desirable_weight": 2.0}], ids=str)
def test_weights_that_make_no_sense_are_refused(settings):
    with pytest.raises(InputError, match="desirable_weight"):
        DPOConfig(**{"loss": "kto"} | settings)


def test_fine_tuning_is_added_for_desirable_answers_alone(make, pairs):
    history = make(sft_weight=0.5).train(progress=False)
    first = history.rows[0]
    wanted = [answer for answer in split(pairs) if answer.label]
    assert first["loss"] > 0.5 and math.isfinite(history.rows[-1]["loss"])
    only = make([replace(answer, label=False) for answer in wanted], sft_weight=0.5).train(progress=False)
    assert only.rows[0]["loss"] == 0.5


# Evaluation, resume, what looks at a run


def test_validation_answers_of_their_own_may_be_pairs(make, pairs):
    rows = make(split(pairs[:7]), val=pairs[7:], val_share=0.0).train(progress=False).rows
    assert {"eval_rewards/accuracies", "eval_rewards/margins"} <= rows[-1].keys()
    assert not {"rewards/accuracies"} & rows[-1].keys() and "rewards/margins" in rows[-1]


def test_a_prompt_is_on_one_side_of_the_split_with_all_its_answers(make):
    trainer = make()
    training, validation = ({e.pair.prompt for e in part} for part in (trainer.training, trainer.validation))
    assert len(training) == 8 and len(validation) == 2 and not training & validation
    assert len(trainer.validation) == 4


def test_a_resumed_run_equals_one_that_never_stopped(make, tmp_path):
    settings = {"batch_size": 3, "save_every": 2, "steps": 6}
    whole = make(output=tmp_path / "whole", **settings).train(progress=False)

    def fails(trainer, step, row):
        if step == 5:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        make(output=tmp_path / "run", **settings).train(progress=False, callbacks=[fails])
    assert make(output=tmp_path / "run", **settings).train(progress=False, resume=True) == whole
    files = [(tmp_path / run / "final" / "model.safetensors").read_bytes() for run in ("whole", "run")]
    assert files[0] == files[1]


def test_a_resume_with_other_weights_of_the_labels_is_refused(make, tmp_path):
    make(output=tmp_path).train(progress=False)
    with pytest.raises(InputError, match=r"other settings \(desirable_weight is 2.0, was 1.0\)"):
        make(output=tmp_path, desirable_weight=2.0).train(progress=False, resume=True)


def test_a_checkpoint_from_before_there_were_weights_is_resumed(make, tmp_path):
    whole = make(steps=6).train(progress=False)
    make(output=tmp_path).train(progress=False)
    for folder in (tmp_path / "checkpoints").iterdir():
        state = json.loads((folder / "trainer.json").read_text())
        for name in ("desirable_weight", "undesirable_weight"):
            del state["config"][name]
        (folder / "trainer.json").write_text(json.dumps(state))
    assert make(output=tmp_path, steps=6).train(progress=False, resume=True).rows[-1] == whole.rows[-1]


def test_the_side_that_is_missing_on_purpose_is_no_finding(make):
    told = [finding.name for finding in check_setup(make())]
    assert told == ["first token tells the label"]  # "YES" and "no" do


def test_cut_answers_are_counted_among_those_there_are(make):
    found = check_setup(make(max_length=20))
    assert [finding.name for finding in found] == ["no end of text", "first token tells the label"]
    assert found[0].evidence.split(" have")[0].split(" and ")[0].endswith("of 10 chosen")


@pytest.mark.parametrize(
    ("settings", "found"), [({}, ["unbalanced labels"]), ({"desirable_weight": 4.0}, [])], ids=["plain", "weighted"]
)
def test_unbalanced_labels_are_found_before_training(make, pairs, settings, found):
    answers = split(pairs)
    trainer = make([answer for answer in answers if not answer.label] + answers[:4:2], val_share=0.0, **settings)
    assert [finding.name for finding in check_setup(trainer)] == found


def test_watch_and_diagnose_look_at_labels(make, pairs):
    trainer = make(steps=2)
    history = trainer.train(progress=False, callbacks=[watch(trainer)])
    assert history.rows[-1]["ended/chosen"] == 1.0 and 0 < history.rows[-1]["eos/chosen"] < 1
    assert not [finding for finding in diagnose(history) if not finding.note]
    none = make([answer for answer in split(pairs) if not answer.label], steps=2)
    assert "eos/chosen" not in none.train(progress=False, callbacks=[watch(none)]).rows[-1]


def test_diagnose_reads_rows_of_which_few_have_a_desirable_answer():
    rows = [{"step": 0, "loss": 0.5, "rewards/chosen": 0.0, "rewards/rejected": 0.0, "eval_rewards/chosen": 0.1}]
    rows += [{"step": 1, "loss": 0.4, "rewards/rejected": -0.1, "eval_rewards/rejected": 0.1, "beta": 0.1}]
    rows[1] |= {"eval_rewards/chosen": 0.1}
    assert diagnose(History(rows)) == []


# What is refused


def test_dpos_trainer_names_ktos_before_any_work(tiny_model, encoding, pairs, tmp_path):
    with pytest.raises(InputError, match=r"kto needs .*: take KTOTrainer"):
        DPOTrainer(tiny_model, encoding, pairs, DPOConfig(loss="kto"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_loss_is_refused_by_ktos_trainer(make):
    with pytest.raises(InputError, match=r"the settings have 'dpo'; give loss='kto', or take DPOTrainer"):
        make(loss="dpo")


def test_pairs_and_labels_together_are_refused(make, pairs):
    with pytest.raises(InputError, match="pairs and labelled answers are mixed"):
        make([*pairs, *split(pairs)])


def test_a_loss_of_ones_own_learns_from_labels(make):
    def pull(logps, beta):
        """Up with desirable answers, down with the others, and no point to measure from."""
        chosen, rejected = beta * logps.chosen_ratios, beta * logps.rejected_ratios
        return PairLoss(torch.tanh(rejected) - torch.tanh(chosen), chosen.detach(), rejected.detach())

    row = make(loss=pull, steps=8).train(progress=False).rows[-1]
    assert row["rewards/chosen"] > 0.01 and row["rewards/rejected"] < -0.01


# The command line


@pytest.fixture
def here(tmp_path, monkeypatch, pairs):
    """A folder with a model of the tiny encoding, and labels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENCODINGS, "bytes", byte_encoding)
    torch.manual_seed(0)
    GPT(GPTConfig(byte_encoding().n_vocab, 64, 16, 1, 2, tokenizer="bytes")).save_pretrained(tmp_path / "model")
    lines = [{"prompt": a.prompt, "completion": a.completion, "label": a.label} for a in split(pairs)]
    write(tmp_path / "labels.jsonl", *lines)
    return tmp_path


TRAIN = ["train", "--data", "labels.jsonl", "--model", "model", "--steps", "2", "--output", "run"]


def test_labels_are_trained_on_from_the_command_line(here, capsys):
    assert main([*TRAIN, "--loss", "kto", "--desirable-weight", "1.5", "--val-share", "0.2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "20 answers kept, 0 dropped" and out[1].startswith("desirable: 10, on average ")
    assert out[-2].startswith("held-out rewards +0.") or out[-2].startswith("held-out rewards -0.")
    assert " on 2 desirable answers, " in out[-2] and out[-2].endswith(" on 2 undesirable answers")
    assert out[-1] == "saved in run/final"
    assert json.loads((here / "run" / "config.json").read_text())["desirable_weight"] == 1.5


def test_labels_without_the_loss_kto_are_refused_with_its_name(here, capsys):
    assert main(TRAIN) == 2
    assert 'labels.jsonl:1: no "chosen" (the line has prompt, completion, label)' in (err := capsys.readouterr().err)
    assert "labelled answers are for the loss kto" in err and not (here / "run").exists()


def test_labels_are_checked_from_the_command_line(here, capsys):
    assert main(["data", "--check", "labels.jsonl", "--tokenizer", "bytes"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("20 answers kept, 0 dropped\ndesirable: 10, on average ")
    shutil.copy("labels.jsonl", "mixed.jsonl")
    with (here / "mixed.jsonl").open("a") as file:
        file.write('{"prompt": "Who?", "chosen": "Me.", "rejected": "No."}\n')
    assert main(["data", "--check", "mixed.jsonl", "--tokenizer", "bytes"]) == 0
    assert capsys.readouterr().out.startswith("22 answers kept, 0 dropped\ndesirable: 11")
