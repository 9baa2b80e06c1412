"""Preference data as people have it: each kind of file is read rightly, or refused in words that say what to do.

``python tests/test_cases.py`` prints what happens to each case of the review, and what is right.
"""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import json
import lzma
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_core.cli import main
from dpo_core.data import audit_pairs
from dpo_core.errors import InputError
from dpo_core.formats.pairs import LabelledAnswer, PreferencePair, load_labels, load_pairs
from dpo_core.lm.sft import Example, load_examples
from dpo_core.tokenizer import load_tokenizer

REVIEW = Path(__file__).parents[2] / "shared" / "review" / "cases"
PLAIN = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
PAIR = PreferencePair("Why?", "So.", "No.")
needs_arrow = pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="pyarrow is an extra")


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def said(role: str, value: str) -> dict[str, object]:
    return {"from": role, "value": value}


USER, SO, NO = turn("user", "Why?"), turn("assistant", "So."), turn("assistant", "No.")
SYSTEM = turn("system", "Be brief.")
ASKED = "\n\nHuman: Why?\n\nAssistant:"
BRIEF = "\n\nSystem: Be brief." + ASKED
LATER = "\n\nHuman: Hi.\n\nAssistant: Ho." + ASKED
ANSWERS = {"chosen": "Would it? So.", "rejected": "Would it? No."}  # that begin alike

# A line, and the prompt and answers that are in it.
READ: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "the whole dialogue in the answers, with another system turn": (
        {"prompt": "Why?", "chosen": [SYSTEM, USER, SO], "rejected": [SYSTEM, USER, NO]}, (BRIEF, "So.", "No."),
    ),
    "a system turn in the prompt alone": (
        {"prompt": [SYSTEM, USER], "chosen": [USER, SO], "rejected": [USER, NO]}, (BRIEF, "So.", "No."),
    ),
    "earlier turns in the prompt alone": (
        {
            "prompt": [turn("user", "Hi."), turn("assistant", "Ho."), USER],
            "chosen": [USER, SO], "rejected": [USER, NO],
        },
        (LATER, "So.", "No."),
    ),
    "the first question alone in the prompt": (
        {
            "prompt": "Hi.",
            "chosen": [turn("user", "Hi."), turn("assistant", "Ho."), USER, SO],
            "rejected": [turn("user", "Hi."), turn("assistant", "Ho."), USER, NO],
        },
        (LATER, "So.", "No."),
    ),
    "the rendered dialogue in the prompt": (
        {"prompt": BRIEF, "chosen": [SYSTEM, USER, SO], "rejected": [SYSTEM, USER, NO]}, (BRIEF, "So.", "No."),
    ),
    "the prompt once more in both answers": (
        {"prompt": ASKED, "chosen": ASKED + " So.", "rejected": ASKED + " No."}, (ASKED, "So.", "No."),
    ),
    "a plain prompt and dialogues as text": (
        {"prompt": "Why?", "chosen": ASKED + " So.", "rejected": ASKED + " No."}, (ASKED, "So.", "No."),
    ),
    "an empty system turn": (
        {"prompt": [turn("system", ""), USER], "chosen": [SO], "rejected": [NO]}, (ASKED, "So.", "No."),
    ),
    "roles in capitals": (
        {"prompt": [turn("User", "Why?")], "chosen": [turn("ASSISTANT", "So.")], "rejected": [NO]},
        (ASKED, "So.", "No."),
    ),
    "an answer as one message": ({"messages": [USER], "chosen": SO, "rejected": NO}, (ASKED, "So.", "No.")),
    "content in parts": (
        {
            "prompt": [turn("user", [{"type": "text", "text": "Why?"}])],
            "chosen": [turn("assistant", [{"type": "text", "text": "So."}])], "rejected": [NO],
        },
        (ASKED, "So.", "No."),
    ),
    "messages as text": (
        {"prompt": json.dumps([USER]), "chosen": json.dumps([SO]), "rejected": str([NO])}, (ASKED, "So.", "No."),
    ),
    "ShareGPT": (
        {
            "conversations": [said("system", "Be brief."), said("human", "Why?")],
            "chosen": said("gpt", "So."), "rejected": said("gpt", "No."),
        },
        (BRIEF, "So.", "No."),
    ),
    "ShareGPT with the chosen answer in the conversation": (
        {
            "conversations": [said("human", "Why?"), said("gpt", "So.")],
            "chosen": said("gpt", "So."), "rejected": said("gpt", "No."),
        },
        (ASKED, "So.", "No."),
    ),
    "OpenAI": (
        {
            "input": {"messages": [SYSTEM, USER], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [SO], "non_preferred_output": [NO],
        },
        (BRIEF, "So.", "No."),
    ),
    "UltraFeedback, the dialogue there three times": (
        {"prompt": "Why?", "chosen": [USER, SO], "rejected": [USER, NO], "messages": [USER, SO]},
        (ASKED, "So.", "No."),
    ),
    "Alpaca": (
        {"instruction": "Ask.", "input": "Why?", "output": "?", **ANSWERS}, ("Ask.\nWhy?", *ANSWERS.values()),
    ),
    "Alpaca without input": ({"instruction": "Ask.", "input": "", **ANSWERS}, ("Ask.", *ANSWERS.values())),
    "Alpaca with a history": (
        {"instruction": "Why?", "history": [["Hi.", "Ho."]], "chosen": "So.", "rejected": "No."},
        (LATER, "So.", "No."),
    ),
    "Orca": ({"system": "Be brief.", "question": "Why?", **ANSWERS}, (BRIEF, *ANSWERS.values())),
    "Orca without system": ({"system": "", "question": "Why?", **ANSWERS}, (ASKED, *ANSWERS.values())),
    "a question alone": ({"question": "Why?", **ANSWERS}, ("Why?", *ANSWERS.values())),
    "code, indented": (
        {"prompt": [USER], "chosen": [turn("assistant", "    return 1\n")], "rejected": [NO]},
        (ASKED, "    return 1", "No."),
    ),
    "NaN where nothing is": ({**PLAIN, "rating": float("nan")}, ("Why?", "So.", "No.")),
}  # fmt: skip

# A line that must not be read, and what is said of it.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two dialogues": ({"prompt": [turn("user", "Who?")], "chosen": [USER, SO], "rejected": [USER, NO]}, "neither the"),
    "two systems": (
        {"prompt": [turn("system", "Rhyme."), USER], "chosen": [SYSTEM, USER, SO], "rejected": [SYSTEM, USER, NO]},
        "neither the beginning of the dialogue in the answers nor",
    ),
    "context beside the prompt": ({**PLAIN, "context": "A text."}, '"context" is not read, and could be part of the'),
    "input beside the prompt": ({**PLAIN, "input": "A text."}, '"input" is not read'),
    "a prompt under another name": ({"user_query": "Why?", **ANSWERS}, '"user_query" is not read'),
    "a prompt in capitals": ({"Prompt": "Why?", **ANSWERS}, '"Prompt" is not read'),
    "a text that could be the prompt": ({"ask": "Why is it?", **ANSWERS}, 'no "prompt", and "ask" could be it'),
    "history as text beside a question": ({"question": "Why?", "history": "Hi. Ho.", **ANSWERS}, '"history" is not'),
    "a call of a tool": (
        {"prompt": [USER, {**turn("assistant", None), "tool_calls": [{}]}], "chosen": [SO], "rejected": [NO]},
        "has a call of a tool",
    ),
    "tools": ({"input": {"messages": [USER], "tools": [1]}, "chosen": [SO], "rejected": [NO]}, "has tools"),
    "an image": (
        {"prompt": [turn("user", [{"type": "image_url"}])], "chosen": [SO], "rejected": [NO]}, 'type "image_url"',
    ),
    "several rejected answers": ({**PLAIN, "rejected": ["No.", "Go."]}, "write one text a line"),
    "a prompt that ends with an answer": (
        {"prompt": [USER, turn("assistant", "Ho.")], "chosen": [SO], "rejected": [NO]}, "must end with the user's",
    ),
    "no answers of a known name": ({"prompt": "Why?", "a": "So.", "b": "No."}, "given as chosen_field and rejected"),
}  # fmt: skip


def write(file: Path, *records: object) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


@pytest.mark.parametrize(("record", "texts"), READ.values(), ids=READ)
def test_read_rightly(tmp_path, record, texts):
    (pair,) = load_pairs(write(tmp_path / "pairs.jsonl", record))
    assert (pair.prompt, pair.chosen, pair.rejected) == texts


@pytest.mark.parametrize(("record", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_words(tmp_path, record, message):
    with pytest.raises(InputError) as error:
        load_pairs(write(tmp_path / "pairs.jsonl", record))
    assert message in str(error.value) and f"{tmp_path / 'pairs.jsonl'}:1: " in str(error.value)


def test_fields_that_are_not_used_are_listed_once_a_file(tmp_path):
    files = [write(tmp_path / f"{i}.jsonl", *[{**PLAIN, "id": 1, "score": i, "empty": None}] * 3) for i in range(2)]
    found = load_pairs(files)
    assert len(found) == 6 and found.notes == [f"{file}: not used: id, score" for file in files]
    assert found.notes[1] in audit_pairs(found, load_tokenizer("pocket"), 64).report()


def test_what_stands_beside_the_messages_is_listed_too(tmp_path):
    file = write(tmp_path / "pairs.jsonl", READ["OpenAI"][0])
    assert load_pairs(file).notes == [f"{file}: not used: input.parallel_tool_calls"]


def test_fields_are_named_by_the_caller(tmp_path):
    record = {"context": "A text.", "ask": "Why?", "good": "So.", "bad": "No.", "system": "Be brief."}
    file = write(tmp_path / "pairs.jsonl", record)
    found = load_pairs(file, prompt_field=["context", "ask"], chosen_field="good", rejected_field="bad")
    assert found == [PreferencePair("A text.\nWhy?", "So.", "No.")]
    assert found.notes == [f"{file}: not used: system"]
    with pytest.raises(InputError, match=r'no "asked" for the prompt .the line has context, ask'):
        load_pairs(file, prompt_field="asked", chosen_field="good", rejected_field="bad")


# Containers


def table(delimiter: str) -> bytes:
    rows = [["prompt", "chosen", "rejected"], ["Why?", '"So,\tit; is\nso.\n"', "No."]]
    return "\r\n".join(delimiter.join(row) for row in rows).encode("utf-8-sig")


LINE = json.dumps(PLAIN).encode() + b"\n"
CONTAINERS: dict[str, bytes] = {
    "JSON list": json.dumps([PLAIN, PLAIN]).encode(),
    "JSON list over lines": json.dumps([PLAIN, PLAIN], indent=2).encode("utf-8-sig"),
    "a list under a name": json.dumps({"version": 1, "data": [PLAIN, PLAIN]}, indent=1).encode(),
    "objects over several lines": 2 * json.dumps(PLAIN, indent=1).encode(),
    "commas behind": LINE.replace(b"}", b"},") + LINE,
    "gzip": gzip.compress(LINE * 2),
    "bzip2": bz2.compress(LINE * 2),
    "xz": lzma.compress(LINE * 2),
    "a packed list": gzip.compress(json.dumps([PLAIN, PLAIN]).encode()),
}


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data", "data.jsonl.GZ", "data.csv.gz"])
@pytest.mark.parametrize("content", CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_is_told_by_its_bytes(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    assert load_pairs(tmp_path / name) == [PAIR, PAIR]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.txt"])
def test_tables(tmp_path, delimiter, pack, name):
    (tmp_path / name).write_bytes(pack(table(delimiter)))
    (pair,) = load_pairs(tmp_path / name)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Why?", "So,\tit; is\nso.\n", "No.")
    assert pair.source == f"{tmp_path / name}:2"


def test_a_table_of_labels_and_of_messages(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text("prompt,completion,label\nWhy?,So.,True\nWhy?,No.,false\n")
    assert load_labels(file) == [LabelledAnswer("Why?", "So.", True), LabelledAnswer("Why?", "No.", False)]
    file.write_text(f'prompt,chosen,rejected\n"{[USER]}","{[SO]}","{[NO]}"\n')  # as pandas writes lists
    assert load_pairs(file) == [PreferencePair(ASKED, "So.", "No.")]


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (f"[{LINE.decode()},3,{LINE.decode()},3]", ["item 2", "item 4"]),
        (f"[{LINE.decode()},{LINE.decode()},{{]", ["3"]),
        (f"[{LINE.decode()}] x", ["2"]),
        ("prompt,chosen,rejected\n1,2\n1,2,3,4\n", ["2", "3"]),
        ('prompt,chosen,rejected\n"Why?,2,3\n', ["2"]),
    ],
)
def test_what_is_wrong_in_a_container_is_named_with_its_place(tmp_path, content, places):
    (tmp_path / "data").write_text(content)
    with pytest.raises(InputError) as error:
        load_pairs(tmp_path / "data")
    told = [line for line in str(error.value).splitlines()[1:] if line]
    assert [line.split(": not")[0].split(": has")[0].split("data:")[1].strip() for line in told] == places


@needs_arrow
def test_containers_of_pyarrow(tmp_path):
    import pyarrow
    import pyarrow.parquet

    data = pyarrow.Table.from_pylist([PLAIN, {"prompt": "Who?", "chosen": "I.", "rejected": "You."}])
    pyarrow.parquet.write_table(data, tmp_path / "parquet")
    with pyarrow.ipc.new_file(tmp_path / "file", data.schema) as writer:
        writer.write_table(data)
    with pyarrow.ipc.new_stream(tmp_path / "stream", data.schema) as writer:
        writer.write_table(data)
    with pyarrow.output_stream(str(tmp_path / "zst"), compression="zstd") as stream:
        stream.write(b"".join(json.dumps(record).encode() + b"\n" for record in data.to_pylist()))
    for name in ("parquet", "file", "stream", "zst"):
        assert load_pairs(tmp_path / name) == [PAIR, PreferencePair("Who?", "I.", "You.")], name
        content = (tmp_path / name).read_bytes()
        for damaged in (content[:20], content[: len(content) // 2], content[:9] + bytes(40) + content[49:]):
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                load_pairs(tmp_path / "damaged")
            except InputError as error:
                assert "damaged" in str(error)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"PAR1....PAR1", "Parquet"), (b"ARROW1\0\0", "Arrow"), (b"\x28\xb5\x2f\xfd....", "zst")],
)
def test_without_a_library_it_is_named(tmp_path, monkeypatch, content, what):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(InputError, match=rf"{what} is read by the library pyarrow, .*; pip install pyarrow"):
        load_pairs(tmp_path / "data")


def test_the_hub_is_asked_only_by_name(tmp_path, monkeypatch):
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(name: str, config: str | None, split: str) -> list[dict[str, str]]:
            asked.append((name, config, split))
            if name == "org/none":
                raise RuntimeError("no such data set")
            return [PLAIN]

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert load_pairs("hub:org/some") == load_pairs("hub:org/some:test:default") == [PAIR]
    assert asked == [("org/some", None, "train"), ("org/some", "default", "test")]
    with pytest.raises(InputError, match=r"hub:org/none: could not be fetched .*RuntimeError.*; check name"):
        load_pairs("hub:org/none")
    with pytest.raises(InputError, match="check the path, or name a data set of the Hugging Face Hub: hub:org/some"):
        load_pairs("org/some")
    assert len(asked) == 3
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="is read by the library datasets, which is not installed; pip install"):
        load_pairs("hub:org/some")


# Fine-tuning


EXAMPLES = {
    "messages": ({"messages": [SYSTEM, USER, SO]}, Example(BRIEF, "So.")),
    "several turns": ({"messages": [turn("user", "Hi."), turn("assistant", "Ho."), USER, SO]}, Example(LATER, "So.")),
    "ShareGPT": ({"conversations": [said("human", "Why?"), said("gpt", "So.")]}, Example(ASKED, "So.")),
    "Alpaca": ({"instruction": "Ask.", "input": "Why?", "output": "So."}, Example("Ask.\nWhy?", "So.")),
    "question and answer": ({"question": "Why?", "answer": "So."}, Example("Why?", "So.")),
    "prompt and completion as messages": ({"prompt": [USER], "completion": [SO]}, Example(ASKED, "So.")),
    "text": ({"text": "So it is."}, Example("", "So it is.")),
    "a pair": (PLAIN, Example("Why?", "So.")),
}


@pytest.mark.parametrize(("record", "example"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples_are_read(tmp_path, record, example):
    assert load_examples(write(tmp_path / "examples.jsonl", record)) == [example]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"a": 1}, "no answer (the line has a); an example needs prompt and completion"),
        ({"prompt": "Why?"}, "an example needs prompt and completion"),
        ({"messages": [USER]}, '"messages" must end with the assistant\'s answer'),
        ({"prompt": "Why?", "context": "A text.", "completion": "So."}, '"context" is not read'),
        ({"prompt": "Why?", "completion": ""}, '"completion" is empty'),
    ],
)
def test_what_is_no_example_is_named(tmp_path, record, message):
    with pytest.raises(InputError) as error:
        load_examples(write(tmp_path / "examples.jsonl", record))
    assert message in str(error.value)


# The command line


def test_flags_name_fields_and_several_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = {"context": "A text.", "ask": "Why?", "good": "So.", "bad": "No.", "id": 1}
    write(tmp_path / "a.jsonl", record)
    write(tmp_path / "b.jsonl", {**record, "ask": "Who?"}, {**record, "good": ""})
    names = ["--chosen-field", "good", "--rejected-field", "bad"]
    assert main(["data", "--check", "a.jsonl", *names]) == 2
    assert "--prompt-field" in capsys.readouterr().err
    names += ["--prompt-field", "context", "--prompt-field", "ask"]
    assert main(["data", "--convert", "a.jsonl", "b.jsonl", *names, "--output", "new.jsonl"]) == 0
    out = capsys.readouterr().out
    assert load_pairs("new.jsonl") == [PreferencePair(f"A text.\n{ask}?", "So.", "No.") for ask in ("Why", "Who")]
    assert 'dropped: b.jsonl:2: "good" is empty' in out and "a.jsonl: not used: id" in out
    assert main(["data", "--check", "a.jsonl", "--check", "b.jsonl", *names]) == 0
    assert "2 pairs kept, 1 dropped" in capsys.readouterr().out


def test_a_first_token_that_tells_the_label_is_told(tmp_path, capsys):
    lines = [{"prompt": f"Why {i}?", "chosen": f"Yes, {i}.", "rejected": f"No, {i}."} for i in range(20)]
    assert main(["data", "--check", str(write(tmp_path / "a.jsonl", *lines))]) == 0
    assert (
        "noted: the first token alone tells the chosen answer from the rejected one in 100%" in capsys.readouterr().out
    )
    mixed = [
        line if i % 2 else line | {"chosen": line["rejected"], "rejected": line["chosen"]}
        for i, line in enumerate(lines)
    ]
    assert main(["data", "--check", str(write(tmp_path / "b.jsonl", *mixed))]) == 0
    assert "first token" not in capsys.readouterr().out
    spaced = [line | {"chosen": f"It is {i}.", "rejected": f" It is not {i}."} for i, line in enumerate(lines)]
    assert main(["data", "--check", str(write(tmp_path / "c.jsonl", *spaced))]) == 0
    assert "first token" not in capsys.readouterr().out  # the space was taken off


# The review's cases: whether they are read, by what, and what is right.

OUTCOMES: dict[str, tuple[Callable[..., Any], bool, str]] = {
    "c01": (load_pairs, True, "read; prompt_id and scores listed"),
    "c02a": (load_pairs, True, "read with the system turn"),
    "c02b": (load_pairs, True, "read with the system turn"),
    "c02d": (load_pairs, True, "read without the empty turn"),
    "c03a": (load_pairs, True, "system and question are the prompt; one seam"),
    "c03b": (load_pairs, True, "system and question are the prompt"),
    "c04a": (load_pairs, True, "instruction and input are the prompt; output listed"),
    "c04b": (load_pairs, True, "as c04a, from a list"),
    "c04c": (load_pairs, True, "read from a list"),
    "c05": (load_pairs, True, "read as ShareGPT"),
    "c06b": (load_pairs, True, "messages are the prompt"),
    "c07": (load_pairs, True, "read as OpenAI's"),
    "c08": (load_labels, True, "read as labelled answers"),
    "c09a": (load_pairs, False, "refused: which answer is better stands in a number"),
    "c09b": (load_pairs, True, "response_j is the better one"),
    "c10a": (load_pairs, True, "read as HH-RLHF"),
    "c10b": (load_pairs, True, "cut where the dialogues part; further turns noted"),
    "c10c": (load_pairs, True, "the empty answer dropped by name"),
    "c10d": (load_pairs, True, "cut at the last answer that both share"),
    "c10e": (load_pairs, True, "the repeated prompt taken off, and said"),
    "c11a": (load_pairs, False, "refused: a call of a tool"),
    "c11b": (load_pairs, False, "refused: the role tool"),
    "c11c": (load_pairs, True, "parts of text joined"),
    "c11e": (load_pairs, True, "one message is an answer"),
    "c12a": (load_pairs, True, "NaN is nothing; rating listed"),
    "c12b": (load_pairs, False, "refused: null is no text"),
    "c12c": (load_pairs, False, "refused: the answers have no known names"),
    **{f"c13{letter}": (load_pairs, True, "read whatever its container") for letter in "abcdefg"},
    "c14": (load_pairs, True, "read character by character"),
    "c14b": (load_pairs, True, "read character by character"),
    "c15a": (load_pairs, True, "read; the merge at the boundary noted"),
    "c15c": (load_pairs, True, "end tokens taken off and noted"),
    "c16": (load_pairs, True, "read; repeats and votes are the audit's"),
    "c17": (load_pairs, False, "refused: no prompt"),
    "c18": (load_pairs, True, "byte order mark and line ends do not matter"),
    "c18b": (load_pairs, False, "refused: old line ends"),
    "c18c": (load_pairs, False, "refused: not UTF-8"),
    "c18e": (load_pairs, True, "commas behind lines taken off"),
    "c19": (load_pairs, True, "messages in text read, and said"),
    "c20": (load_pairs, True, "read"),
    "c21": (load_pairs, True, "read; what is too long is the audit's"),
    "c22": (load_examples, True, "the last turn is the answer"),
    "c22c": (load_examples, True, "text to nothing"),
    "c22d": (load_examples, True, "read as messages"),
    "c23": (load_pairs, True, "one seam for both answers"),
    "c23b": (load_pairs, True, "read"),
    "c24": (load_pairs, False, "refused: one answer a line"),
    "c27": (load_pairs, True, "earlier turns kept"),
    "c31": (load_pairs, True, "read as messages"),
}  # fmt: skip
review = pytest.mark.skipif(not REVIEW.is_dir(), reason="the review's cases are not part of the repository")


def case_of(file: Path) -> str:
    return file.name.split("_")[0].split(".")[0]


def outcome(file: Path) -> tuple[bool, str]:
    """Whether a case is read, and in a few words what happens; never its text, as some of it hurts."""
    load, _, _ = OUTCOMES[case_of(file)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load(file)
    except InputError as error:
        return False, "refused: " + str(error).splitlines()[-1].split(": ", 1)[1]
    said = [*(f"dropped: {fault}" for _, fault in found.dropped), *(note.split(": ", 1)[1] for note in found.notes)]
    return True, "; ".join([f"{len(found)} read", *said])


@review
def test_every_case_of_the_review_has_an_outcome():
    assert {case_of(file) for file in REVIEW.iterdir()} == set(OUTCOMES)


@review
@pytest.mark.parametrize("file", sorted(REVIEW.iterdir()) if REVIEW.is_dir() else [], ids=lambda file: file.name)
def test_the_reviews_cases(file):
    if case_of(file) in ("c13e", "c13f", "c13g"):
        pytest.importorskip("pyarrow")
    assert outcome(file)[0] == OUTCOMES[case_of(file)][1]


@review
def test_white_space_before_one_answer_does_not_tell_the_label():
    encoding = load_tokenizer("pocket")
    spaced, stripped = (
        audit_pairs(load_pairs(REVIEW / name), encoding, 64).kept
        for name in ("c23_space_tells_label.jsonl", "c23b_space_stripped.jsonl")
    )
    assert [e.rejected[:1] for e in spaced] == [e.chosen[:1] for e in spaced]
    assert len(spaced) == len(stripped)


if __name__ == "__main__":
    print("| case | what happens now | what is right |\n| --- | --- | --- |")
    for file in sorted(REVIEW.iterdir()):
        print(f"| {file.name} | {outcome(file)[1]} | {OUTCOMES[case_of(file)][2]} |")
