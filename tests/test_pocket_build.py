"""The pocket model's build, at a small size, and the files of it that are shipped."""

import itertools
import json
import math
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path

import pytest

from dpo_core.model import GPT
from dpo_core.pocket import build
from dpo_core.pocket.build import SHARPNESS, PocketRecipe, build_pocket, finish_pocket, sample_quality, validation_loss
from dpo_core.pocket.corpus import dialogues
from dpo_core.tokenizer import load_tokenizer, read_encoding

SHIPPED = Path(str(resources.files("dpo_core.pocket") / "model"))
SMALL = PocketRecipe(
    vocabulary_dialogues=300,
    school_dialogues=300,
    habit_dialogues=60,
    validation_dialogues=20,
    samples=4,
    wanted_parsed=0.0,  # of nine steps nothing is parsed
    vocab_size=512,
    n_embd=32,
    n_layer=1,
    n_head=2,
    school=replace(PocketRecipe().school, precision="float32"),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a small build, and what it returned."""
    folder = tmp_path_factory.mktemp("built")
    return folder, build_pocket(SMALL, folder, progress=False)


def contents(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "tokenizer.tiktoken").read_bytes(), (folder / "model" / "model.safetensors").read_bytes()


# A small build


def test_a_build_opens_again_and_its_record_is_true(built):
    """Vocabulary, model and card belong together, and the recorded losses are those of the weights written."""
    folder, record = built
    encoding, model = read_encoding("pocket", folder / "tokenizer.tiktoken"), GPT.from_pretrained(folder / "model")
    assert encoding.n_vocab == model.config.vocab_size == 512
    assert (model.config.tokenizer, model.config.n_layer, model.config.n_embd) == ("pocket", 1, 32)
    saved = json.loads((folder / "model" / "build.json").read_text(encoding="utf-8"))
    assert saved == record
    card = (folder / "model" / "MODEL_CARD.md").read_bytes().decode("utf-8")  # a sample may hold a carriage return
    assert card == build._card(saved)
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert len(record["samples"]) == SMALL.samples and record["sharpness"] == SHARPNESS[0]
    assert validation_loss(model, encoding, SMALL, habits=True) == pytest.approx(
        record["validation_loss_sharpened"], rel=1e-5
    )
    assert record["habits"]["validation_loss"] < math.log(512)  # what knowing nothing costs


def test_a_build_learns_from_the_school_and_then_from_the_habits(built):
    """Each stage from dialogues of its own number, seed and shares of styles."""
    folder, record = built
    encoding = read_encoding("pocket", folder / "tokenizer.tiktoken")
    for stage, seed, count in (("school", 1, SMALL.school_dialogues), ("habits", 11, SMALL.habit_dialogues)):
        told = itertools.islice(dialogues(seed, habits=stage == "habits"), count)
        tokens = sum(len(encoding.encode_ordinary(build.dialogue_text(d))) + 1 for d in told)
        assert record[stage]["tokens"] == tokens, stage


def test_a_recipe_gives_the_same_files_again_and_another_seed_other_weights(built, tmp_path):
    """All seeds share one vocabulary."""
    for name, recipe in {"again": SMALL, "other": replace(SMALL, seed=1)}.items():
        build_pocket(recipe, tmp_path / name, progress=False)
    vocabulary, weights = contents(built[0])
    assert contents(tmp_path / "again") == (vocabulary, weights)
    assert contents(tmp_path / "other")[0] == vocabulary and contents(tmp_path / "other")[1] != weights


def test_logits_are_sharpened_as_little_as_the_sentences_need(built, tmp_path, monkeypatch):
    """The first factor that suffices is taken, and the share in the record is measured on other prompts."""
    folder, record = built
    before, model = (GPT.from_pretrained(folder / "model") for _ in range(2))
    shares, seeds = [0.5, 0.9, 0.985, 0.97], []

    def quality(model, encoding, recipe, seed):
        seeds.append(seed)
        return shares[len(seeds) - 1], 1.0, record["samples"]

    monkeypatch.setattr(build, "sample_quality", quality)
    encoding, recipe = read_encoding("pocket", folder / "tokenizer.tiktoken"), replace(SMALL, wanted_parsed=0.98)
    done = finish_pocket(model, encoding, recipe, record, tmp_path)
    assert (done["sharpness"], done["parsed_share"], seeds) == (SHARPNESS[2], 0.97, [3, 3, 3, 4])
    written = GPT.from_pretrained(tmp_path).state_dict()
    for name, tensor in before.state_dict().items():
        factor = SHARPNESS[2] if name.startswith("ln_f.") else 1
        assert written[name].equal(tensor * factor), name


# What is shipped


def test_the_shipped_model_is_small():
    parameters = sum(parameter.numel() for parameter in GPT.from_pretrained("pocket").parameters())
    assert 3e6 <= parameters <= 8e6
    assert (SHIPPED / "model.safetensors").stat().st_size <= 16e6


def test_the_shipped_record_is_of_the_recipe_in_the_code_and_the_card_of_the_record():
    record = json.loads((SHIPPED / "build.json").read_text(encoding="utf-8"))
    assert record["recipe"] == json.loads(json.dumps(asdict(PocketRecipe())))
    assert record["parameters"] == sum(parameter.numel() for parameter in GPT.from_pretrained("pocket").parameters())
    assert (SHIPPED / "MODEL_CARD.md").read_text(encoding="utf-8") == build._card(record)


def test_the_shipped_model_speaks_in_sentences_the_judge_knows():
    """Of 200 answers at temperature 1, to prompts that no part of the build has drawn."""
    recipe = replace(PocketRecipe(), samples=200)
    parsed, ended, answers = sample_quality(GPT.from_pretrained("pocket"), load_tokenizer("pocket"), recipe, seed=5)
    assert len(answers) == 200
    assert parsed >= 0.95 and ended >= 0.95
