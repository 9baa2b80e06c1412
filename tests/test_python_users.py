"""What people give the trainers in Python: it works, or the error says what to give."""

from __future__ import annotations

import pytest

from dpo_core.config import DPOConfig
from dpo_core.errors import InputError
from dpo_core.formats.pairs import LabelledAnswer, PreferencePair, save_pairs
from dpo_core.trainer import DPOTrainer
from dpo_core.trainers import KTOTrainer

CONFIG = DPOConfig(steps=1, batch_size=4, val_share=0)


@pytest.fixture
def make(tiny_model, encoding):
    def make(pairs, kind=DPOTrainer, config=CONFIG, model=tiny_model, encoding=encoding, **given):
        return kind(model, encoding, pairs, config, **given)

    return make


def as_dicts(pairs):
    return [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]


# What simply works


@pytest.mark.parametrize("form", ["dicts", "generator", "tuple", "path", "text path", "dialogues"])
def test_pairs_in_any_form_are_the_same_pairs(make, pairs, tmp_path, form):
    save_pairs(tmp_path / "pairs.jsonl", pairs)
    dialogues = [
        {"prompt": [{"role": "user", "content": p.prompt}]}
        | {side: [{"role": "assistant", "content": getattr(p, side)}] for side in ("chosen", "rejected")}
        for p in pairs
    ]
    forms = {
        "dicts": as_dicts(pairs),
        "generator": (pair for pair in pairs),
        "tuple": tuple(pairs),
        "path": tmp_path / "pairs.jsonl",
        "text path": str(tmp_path / "pairs.jsonl"),
        "dialogues": dialogues,
    }
    found = [e.pair for e in make(forms[form], val_pairs=forms["dicts"]).training]
    if form == "dialogues":
        assert [pair.chosen.strip() for pair in found] == [pair.chosen.strip() for pair in pairs]
    else:
        assert found == pairs


def test_a_dict_is_named_by_its_number(make, pairs):
    assert make(as_dicts(pairs)).training[2].pair.source == "pair 3"


def test_labelled_answers_from_a_path(make, tmp_path):
    file = tmp_path / "answers.jsonl"
    lines = [f'{{"prompt": "Ask {i}?", "completion": "Yes.", "label": {str(i % 2 == 0).lower()}}}\n' for i in range(6)]
    file.write_text("".join(lines))
    config = DPOConfig(loss="kto", steps=1, val_share=0)
    answers = [LabelledAnswer(f"Ask {i}?", "Yes.", i % 2 == 0) for i in range(6)]
    dicts = [{"prompt": a.prompt, "completion": a.completion, "label": a.label} for a in answers]
    trainers = [make(given, KTOTrainer, config) for given in (answers, file, dicts)]
    theirs, *ours = ([(e.prompt, e.chosen, e.rejected) for e in trainer.training] for trainer in trainers)
    assert ours == [theirs, theirs]


# What is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("Why?", "Because.", "No.")], r"pair 1 is \('Why\?', .*; it must be a PreferencePair or a dict"),
        (["Why?"], r"pair 1 is 'Why\?'; it must be a PreferencePair or a dict"),
        ([PreferencePair("Why?", 3, "No.")], "pair 1 is PreferencePair.*with text as prompt, chosen and rejected"),
        ([{"prompt": "Why?", "completion": "No."}], "pair 1 is Labelled.*and a label, True or False"),
        ([{"prompt": "Why?", "chosen": "Because."}], r'pair 1: no "rejected"'),
        ([{"prompt": "Why?", "chosen": 3, "rejected": "No."}], 'pair 1: "chosen" is 3; it must be text'),
        (
            {"prompt": ["Why?"], "chosen": ["Because."], "rejected": ["No."]},
            "give a list of PreferencePair or of dicts",
        ),
        (3, "pairs are 3; give a list of PreferencePair"),
        (None, "pairs are null; give a list of PreferencePair"),
        ("nowhere.jsonl", "nowhere.jsonl: cannot be read"),
    ],
)
def test_what_are_no_pairs_is_named(make, given, message):
    with pytest.raises(InputError, match=message):
        make(given)


def test_a_tokenizer_of_transformers_is_refused_with_what_to_use(make, pairs):
    class GPT2TokenizerFast:
        name_or_path = "gpt2"

    with pytest.raises(InputError, match=r"the tokenizer is a GPT2TokenizerFast.*use load_tokenizer\(model.config"):
        make(pairs, encoding=GPT2TokenizerFast())


@pytest.mark.parametrize("model", ["pocket", None])
def test_what_is_no_model_is_refused_with_how_to_load_one(make, pairs, model):
    with pytest.raises(InputError, match=r"not a GPT of dpo_core; load one: GPT.from_pretrained"):
        make(pairs, model=model)


@pytest.mark.parametrize("settings", [{"beta": "0.1"}, {"steps": "10"}, {"learning_rate": "1e-4"}])
def test_numbers_as_text_are_refused(settings):
    (name, value) = next(iter(settings.items()))
    with pytest.raises(InputError, match=rf"{name} is '{value}'; it must be a .*number.*without quotes"):
        DPOConfig(**settings)
