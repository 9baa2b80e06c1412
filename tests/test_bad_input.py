"""Sixty ways and more to hand over something wrong, each through the command line.

Each has to end in exit status 2 with a message that names the place, what is wrong there and what to do about it, no
traceback, and no file changed. ``python tests/test_bad_input.py`` prints the table.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_small_model

from dpo_core.cli import main
from dpo_core.cli.keyboard import ask_which
from dpo_core.course.labeling import LabelSession
from dpo_core.course.verdicts import Comparison, file_comparisons
from dpo_core.errors import InputError, printable, shown
from dpo_core.formats.pairs import SHOWN, PreferencePair, load_pairs, save_pairs
from dpo_core.formats.tables import LONGEST
from dpo_core.generate import Generation
from dpo_core.methods.adapter_files import load_merged, save_adapter
from dpo_core.methods.lora import add_lora
from dpo_core.model import GPT
from dpo_core.tokenizer import read_encoding

GOOD = '{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n'


def line(**changed: object) -> str:
    """A line of a data file with something wrong in it."""
    return json.dumps(json.loads(GOOD) | changed) + "\n"


def say(*turns: object) -> list[dict[str, object]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


# Content of data.jsonl or data.jsonl.gz; what the message says of the place, of the fault, and to do.
DATA: dict[str, tuple[str | bytes, str, str, str]] = {
    "nothing in it": ("", "data.jsonl:", "no pairs in it", "write one JSON object a line"),
    "blank lines only": ("\n \r\n\t\n", "data.jsonl:", "no pairs in it", "write one JSON object a line"),
    "only a byte order mark": (b"\xef\xbb\xbf", "data.jsonl:", "no pairs in it", "write one JSON object a line"),
    "a NUL byte": (GOOD.encode() + b"\x00\n" * 2, "data.jsonl:2:", "not JSON", "write one object a line"),
    "a NUL byte in a text": (GOOD.replace("Why", "W\x00y"), "data.jsonl:1:", "Invalid control", "write one object"),
    "a tab in a text": (GOOD.replace("Why", "W\ty"), "data.jsonl:1:", "Invalid control character", "write one object"),
    "zeros, as after a crash": (b"\x00" * 4096, "data.jsonl:1:", "not JSON", "write one object a line"),
    "Latin-1": (GOOD.replace("Why", "Wär").encode("latin-1"), "data.jsonl:1:", "not UTF-8", "save the file as UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), "data.jsonl:1:", "UTF-16", "save the file as UTF-8"),
    "UTF-16, big end first": (b"\xfe\xff" + GOOD.encode("utf-16-be"), "data.jsonl:1:", "UTF-16", "save the file as"),
    "half a character in bytes": (b'{"prompt": "\xed\xa0\xbd"}\n', "data.jsonl:1:", "not UTF-8", "save the file as"),
    "a byte missing at the end": (GOOD.encode() + b"\xc3\n\xc3", "data.jsonl:2:", "not UTF-8", "save the file as"),
    "a binary file": (bytes(range(256)) * 8, "data.jsonl:1:", "not JSON", "write one object a line"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "data.jsonl:1:", "not UTF-8", "save the file as UTF-8"),
    "a table with too few fields": (
        "prompt,chosen,rejected\nWhy?,a\n", "data.jsonl:2:", "has 2 fields where the header has 3", "put texts",
    ),
    "a table without the answers": (
        "prompt,answer\nWhy?,a\n", "data.jsonl:2:", "the line has prompt, answer", "a pair needs prompt, chosen",
    ),
    "a table with a quote too many": (
        'prompt,chosen,rejected\n"Why"y?,a,b\n', "data.jsonl:2:", "not a line of a table", "put texts with quotes",
    ),
    "Python instead of JSON": ("{'prompt': 'Why?'}\n", "data.jsonl:1:", "not JSON", "write one object a line"),
    "commas behind": (GOOD.replace("}", "},,"), "data.jsonl:1:", "Extra data", "write one object a line"),
    "a list of lists": ("[[1]]\n", "data.jsonl: item 1:", "not an object but [1]", "write {...} with prompt"),
    "an object over several lines, cut": (
        json.dumps(json.loads(GOOD), indent=1)[:-3], "data.jsonl:2:", "not JSON", "one object",
    ),
    "two objects in a line": (GOOD.strip() + GOOD, "data.jsonl:1:", "Extra data", "write one object a line"),
    "old Mac line ends": (GOOD.replace("\n", "\r") * 2, "data.jsonl:1:", "Extra data", "write one object a line"),
    "cut off": (GOOD + (GOOD[:30] + "\n") * 2, "data.jsonl:2:", "Unterminated string", "write one object a line"),
    "text": ('"Why?"\n', "data.jsonl:1:", 'not an object but "Why?"', "write {...} with prompt"),
    "null": ("null\n", "data.jsonl:1:", "not an object but null", "write {...} with prompt"),
    "NaN": (line(chosen=float("nan")), "data.jsonl:1:", '"chosen" is null', "it must be text or a list"),
    "infinity": (line(prompt=-float("inf")), "data.jsonl:1:", '"prompt" is null', "it must be text or a list"),
    "a number without end": (GOOD.replace('"No."', "1" * 5000), "data.jsonl:1:", "not JSON", "shorten the number"),
    "nested lists": ("[" * 100_000 + "\n", "data.jsonl:1:", "nested too deeply", "write text, or a list of messages"),
    "nested objects": ('{"a":' * 100_000 + "\n", "data.jsonl:1:", "nested too deeply", "write text, or a list"),
    "nested, and then closed": (
        GOOD.replace('"No."', "[" * 900 + "]" * 900), "data.jsonl:1:", '"rejected"', "a message is",
    ),
    "a field twice": (GOOD.replace("}", ', "chosen": "No."}'), "data.jsonl:1:", '"chosen" is there twice', "leave"),
    "a field of a message twice": (
        GOOD.replace('"Why?"', '[{"role": "user", "role": "user", "content": "a"}]'),
        "data.jsonl:1:", '"role" is there twice', "leave the other out",
    ),
    "no field that counts": ('{"question": "Why?"}\n', "data.jsonl:1:", "the line has question", "a pair needs prompt"),
    "a hundred fields": (
        json.dumps({f"f{i}": 1 for i in range(100)}), "data.jsonl:1:", "f7, ...", "a pair needs prompt",
    ),
    "a field that steers the terminal": (
        '{"\\u001b[2J": 1}\n', "data.jsonl:1:", "\\u001b[2J", "a pair needs prompt, chosen, rejected",
    ),
    "no rejected": ('{"prompt": "Why?", "chosen": "a"}\n', "data.jsonl:1:", 'no "rejected"', "a pair needs prompt"),
    "other capitals": (GOOD.replace("chosen", "Chosen"), "data.jsonl:1:", "has prompt, Chosen", "a pair needs prompt"),
    "null for text": (line(chosen=None), "data.jsonl:1:", '"chosen" is null', "it must be text or a list of messages"),
    "a number for text": (line(prompt=7), "data.jsonl:1:", '"prompt" is 7', "it must be text or a list of messages"),
    "an object for text": (line(rejected={}), "data.jsonl:1:", '"rejected" is {}', "it must be text or a list"),
    "a blank prompt": (line(prompt="\t "), "data.jsonl:1:", '"prompt" is empty', "fill it in or leave the line out"),
    "a blank answer": (line(rejected=" \u2003\n"), "data.jsonl:1:", '"rejected" is empty', "fill it in or leave"),
    "an empty dialogue": (line(prompt=[], chosen=[], rejected=[]), "data.jsonl:1:", "same dialogue", "must begin with"),
    "numbers for messages": (line(chosen=[1]), "data.jsonl:1:", '"chosen" holds 1', "a message is"),
    "a message without a role": (line(prompt=[{"content": "a"}]), "data.jsonl:1:", "the role null", "known are system"),
    "a message of a tool": (
        line(chosen=[{"role": "tool", "content": "a"}]), "data.jsonl:1:", 'the role "tool"', "known are system, user",
    ),
    "a message in parts": (
        line(chosen=[{"role": "assistant", "content": [{"type": "text"}]}]), "data.jsonl:1:", "holds", "a message is",
    ),
    "two dialogues": (line(chosen=say("a", "b"), rejected=say("c", "d")), "data.jsonl:1:", "same dialogue", "must"),
    "no prompt to be found": ('{"chosen": "Yes.", "rejected": "No."}\n', "data.jsonl:1:", 'no "prompt"', "add a"),
    "a line of 17 MB": (line(chosen="x" * (LONGEST + 1)), "data.jsonl:1:", "more than 16,777,216 bytes", "shorten"),
    "the same answers": (line(rejected="Because."), "(data.jsonl:1)", "the answers are the same", "give other pairs"),
    "the same but for the cut": (
        line(chosen="ha " * 600, rejected="ha " * 601), "(data.jsonl:1)", "same within 256 tokens", "larger --max-len",
    ),
    "a prompt too long": (line(prompt="Why? " * 300), "(data.jsonl:1)", "no room for answers", "a larger --max-length"),
    "one prompt": (GOOD * 3, "1 different prompts", "cannot be divided", "give validation pairs of their own"),
    "gz: packed twice": (gzip.compress(gzip.compress(GOOD.encode())), "data.jsonl.gz:1:", "not UTF-8", "save the file"),
    "gz: cut off": (
        gzip.compress("".join(line(prompt=str(i)) for i in range(9999)).encode())[:-100],
        "data.jsonl.gz:", "cannot be read from here on (Compressed file ended", "copy or pack the file again",
    ),
    "gz: damaged": (
        gzip.compress(GOOD.encode() * 9)[:-8] + bytes(8), "data.jsonl.gz:10:", "here on (CRC", "pack the file again",
    ),
    "gz: a bomb in one line": (
        gzip.compress(bytes(2**26)), "data.jsonl.gz:1:", "more than 16,777,216 bytes", "write one object a line",
    ),
    "gz: a bomb in many": (
        gzip.compress((b" " * 4095 + b"\n") * 2**13), "data.jsonl.gz:", "unpacks to more than 200", "give the text",
    ),
    "gz: nothing in it": (gzip.compress(b""), "data.jsonl.gz:", "no pairs in it", "write one JSON object a line"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The message of a command that fails, and changes nothing that was there."""
    monkeypatch.chdir(tmp_path)

    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refused(*argv: str) -> str:
        before = contents()
        status = main(argv)
        out, err = capsys.readouterr()
        after = contents()
        assert status == 2 and err.startswith("error: ") and err.count("error:") == 1, err
        assert "Traceback" not in err + out and len(err) < 8000
        assert all(c.isprintable() or c == "\n" for c in err), "something steers the terminal"
        assert {path: after.get(path) for path in before} == before
        return err

    return refused


@pytest.mark.parametrize(("content", "place", "fault", "remedy"), DATA.values(), ids=DATA)
def test_bad_data(refused, model, content, place, fault, remedy):
    name = "data.jsonl.gz" if "gz" in place else "data.jsonl"
    Path(name).write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    message = refused("train", "--data", name, "--model", str(model), "--steps", "1")
    assert place in message and fault in message and remedy in message, message
    if not place.startswith(("(", "1")):  # what does not depend on a model, every other reader says, too
        for command in (["data", "--check", name], ["data", "--convert", name, "--output", "new.jsonl"]):
            assert refused(*command) == message
        assert not Path("new.jsonl").exists()
        with pytest.raises(InputError):
            file_comparisons(name)


# What is done to a model's folder; of the file, the fault and the remedy.


def config(**changed: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | changed))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return changed


def header(change: Callable[[dict[str, dict]], object], length: int | None = None) -> Callable[[Path], object]:
    """Lies in the header of the weights, whose bytes stay."""

    def changed(folder: Path) -> None:
        file = folder / "model.safetensors"
        raw = file.read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        described = json.loads(raw[8 : 8 + size])
        change(described)
        text = json.dumps(described).encode()
        file.write_bytes(struct.pack("<Q", length or len(text)) + text + raw[8 + size :])

    return changed


def file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


WTE, LN = "transformer.wte.weight", "transformer.h.0.ln_1.bias"
PICKLE = b"cposix\nsystem\n(S'touch hacked'\ntR."
HUGE = 10**12
MODELS: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "a pickle instead": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "m:", "runs code", "save the model as saf",
    ),
    "a pickle in capitals": (
        lambda f: (f / "model.safetensors").rename(f / "A.PKL"), "m:", "holds A.PKL", "save the model as safetensors",
    ),
    "a pickle under another name": (file("model.safetensors", PICKLE), "model.safetensors:", "not a whole", "copy or"),
    "a pickle as config": (file("config.json", PICKLE), "config.json:", "not readable as JSON", "write it again"),
    "a header that is too long": (header(lambda h: 0, length=2**62), "model.safetensors:", "not a whole", "download"),
    "a header of 10^12 rows": (
        header(lambda h: h[WTE].update(shape=[HUGE, 16])), "model.safetensors:", "not a whole", "copy or download",
    ),
    "a header whose sizes overflow": (
        header(lambda h: h[WTE].update(shape=[2**40, 2**40])), "model.safetensors:", "not a whole", "copy or download",
    ),
    "a header with data elsewhere": (
        header(lambda h: h[WTE].update(data_offsets=[0, HUGE])), "model.safetensors:", "not a whole", "download it",
    ),
    "a header of another kind": (
        header(lambda h: h[WTE].update(dtype="I32")), "model.safetensors:", "other numbers than F64", "wte.weight I32",
    ),
    "a tensor too many": (weights(lambda t: t.update({"x\x1b": torch.zeros(1)})), "model.safetensors:", "unknown", "x"),
    "a tensor missing": (weights(lambda t: t.pop(LN)), "model.safetensors:", "tensors are missing", "h.0.ln_1.bias"),
    "10^12 layers": (config(n_layer=HUGE), "config.json:", "asks for", "copy both files"),
    "10^12 tokens": (config(vocab_size=HUGE), "config.json:", "asks for", "copy both files"),
    "10^12 channels": (config(n_embd=HUGE), "config.json:", "asks for", "copy both files"),
    "10^100 positions": (config(n_positions=10**100), "config.json:", "asks for", "copy both files"),
    "less than no layer": (config(n_layer=-1), "config.json:", "n_layer must be", "a whole number above 0"),
    "half a layer": (config(n_layer=1.5), "config.json:", "n_layer must be", "a whole number above 0"),
    "a path for a tokenizer": (config(tokenizer="../../passwd"), "unknown tokenizer", "passwd", "there are pocket"),
    "a config without end": (file("config.json", b"[" * 100_000), "config.json:", "not readable", "write it again"),
    "a config of 2 MB": (file("config.json", b" " * 2**21), "config.json:", "2,097,152 bytes", "are not read"),
    "a config of numbers": (file("config.json", b"[1]"), "config.json:", "holds [1]", "copy or write it again"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "place", "fault", "remedy"), MODELS.values(), ids=MODELS)
def test_bad_models(refused, model, tmp_path, damage, place, fault, remedy):
    (tmp_path / "m").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "m" / name).write_bytes((model / name).read_bytes())
    damage(tmp_path / "m")
    message = refused("generate", "--model", "m", "--prompt", "Why?")
    assert place in message and fault in message and remedy in message, message
    assert not Path("hacked").exists()


def test_a_pickle_beside_good_weights_is_left_alone_and_named(model, tmp_path, caplog):
    """Also beside an adapter and the model that it is followed to."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    adapted = GPT.from_pretrained(tmp_path)
    add_lora(adapted)
    save_adapter(adapted, tmp_path / "adapter")
    file("training_args.bin", PICKLE)(tmp_path)
    file("optimizer.PT", PICKLE)(tmp_path / "adapter")
    load_merged(tmp_path / "adapter")
    said = [record.getMessage() for record in caplog.records]
    assert any("training_args.bin was not opened, as it can be a pickle" in line for line in said)
    assert any("optimizer.PT was not opened" in line for line in said)
    assert not Path("hacked").exists() and not (tmp_path / "hacked").exists()


def test_there_are_at_least_sixty():
    assert len(DATA) + len(MODELS) >= 60


# What is right after all


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode() + b"\xef\xbb\xbf" + GOOD.encode(),  # two files with a mark, put together
        GOOD.replace("\n", "\r\n").encode() * 2,
        GOOD.encode() + b"\n \n" + GOOD.strip().encode(),
        gzip.compress(GOOD.encode()) + gzip.compress(GOOD.encode()),
    ],
    ids=["byte order marks", "CRLF", "no line break at the end", "two packed files in one"],
)
def test_what_differs_only_in_its_bytes_is_read(tmp_path, content):
    name = "data.jsonl.gz" if content.startswith(b"\x1f") else "data.jsonl"
    (tmp_path / name).write_bytes(content)
    assert load_pairs(tmp_path / name) == [PreferencePair("Why?", "Because.", "No.")] * 2


def test_all_problems_of_a_file_are_told_together_whatever_kind_they_are(tmp_path):
    lines = [b"{", b"\xff", line(chosen=1).encode().strip(), b"[" * 100_000, GOOD.encode().strip(), b"NaN"]
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(InputError) as error:
        load_pairs(tmp_path / "data.jsonl")
    found = str(error.value).splitlines()
    assert found[0] == f"5 bad lines in {tmp_path / 'data.jsonl'}:"
    assert [message.split(":")[1] for message in found[1:]] == ["1", "2", "3", "4", "6"]
    (tmp_path / "data.jsonl").write_bytes(b"{\n" * 99 + b"[" * 100_000)
    with pytest.raises(InputError, match=f"and {100 - SHOWN} more$"):
        load_pairs(tmp_path / "data.jsonl")


def test_a_path_that_is_none_is_named():
    for path in ("a\0b", "x" * 5000, "/"):
        with pytest.raises(InputError, match="cannot be read"):
            load_pairs(path)


def test_a_file_that_never_ends_is_given_up():
    with pytest.raises(InputError, match=r"/dev/zero:1: has more than 16,777,216 bytes"):
        load_pairs("/dev/zero")


# Files that are someone's work


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"my notes\nand more",
        GOOD.encode().strip(),
        GOOD.encode() + b"{half",
        b"\x00\x01\x02",
        b'{"event": 1',
    ],
)
def test_a_file_that_is_no_session_is_refused_and_stays_as_it_was(tmp_path, content):
    path = tmp_path / "labels.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"labels.jsonl:\d+: not a line of a labelling session"):
        LabelSession(path, [Comparison("Why?", "Because.", "No.")])
    assert path.read_bytes() == content


EVENTS = [
    '{"event": "pair", "prompt": 1, "first": "a", "second": "b", "source": ""}',
    '{"event": "verdict", "pair": true, "second_pass": false, "left": "third", "verdict": "left", "at": ""}',
    '{"event": "verdict", "pair": 0, "second_pass": 7, "left": "first", "verdict": "left", "at": ""}',
    '{"event": "verdict", "pair": 0.0, "second_pass": false, "left": "first", "verdict": "left", "at": ""}',
    '{"event": "verdict", "pair": -1, "second_pass": false, "left": "first", "verdict": "left", "at": ""}',
    '{"event": "second pass", "pairs": ["x"], "at": ""}',
    '{"event": "second pass", "pairs": 5, "at": ""}',
    '{"event": "session", "labeller": 1, "rubric": "", "seed": 0, "at": ""}',
    '{"event": ["pair"]}',
    '{"event": "close"}',
    "[" * 100_000,
]


@pytest.mark.parametrize("event", EVENTS, ids=[event[:50] for event in EVENTS])
def test_a_line_that_no_session_wrote_is_named(tmp_path, event):
    path = tmp_path / "labels.jsonl"
    LabelSession(path, [Comparison("Why?", "Because.", "No.")]).close()
    path.write_text(path.read_text() + event + "\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"labels.jsonl:3: not a line of a labelling session"):
        LabelSession(path)
    assert path.read_bytes() == before


def test_what_was_typed_in_another_encoding_is_named_and_what_was_saved_stays(tmp_path, monkeypatch, capsys):
    typed = iter(["Why?", "Because.", "No."])

    def keyboard(question):
        for text in typed:
            return text
        return b"\xff".decode("utf-8")

    monkeypatch.setattr("builtins.input", keyboard)
    file = tmp_path / "mine.jsonl"
    assert main(["data", "--interactive", "--output", str(file)]) == 2
    assert "not UTF-8 (invalid start byte); set the terminal to UTF-8" in capsys.readouterr().err
    assert load_pairs(file) == [PreferencePair("Why?", "Because.", "No.")]


@pytest.mark.parametrize(
    "content", [b"", b"IQ==\n", b"IQ== 0\nIg== 0\n", b"IQ== x\n", b"\xff", b"I!!= 0\n", b"IQ== 1\n"]
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    (tmp_path / "own.tiktoken").write_bytes(content)
    with pytest.raises(InputError, match=r"own.tiktoken: not a tokenizer's file .*; copy it again"):
        read_encoding("own", tmp_path / "own.tiktoken")


# How text from anywhere is shown


def test_text_cannot_steer_a_terminal():
    assert printable("\x1b]0;title\x07 \x9b2J \u202egnp.exe \ud83d é 日本\n\t") == (
        "\\x1b]0;title\\x07 \\x9b2J \\u202egnp.exe \\ud83d é 日本\n\t"
    )
    assert shown("a\nb\x1b") == '"a\\nb\\u001b"' and len(shown("x" * 10**6)) == 40
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a list" and shown({1, 2}) == "a set"


def test_pairs_are_judged_on_a_terminal_that_they_cannot_steer(monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda question: "1")
    answers = [Generation("Why?\x1b[2J", f"{i}\x1b]0;x\x07", [1], True) for i in range(2)]
    assert ask_which(*answers) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_pairs_with_any_text_are_written_and_read(tmp_path):
    texts = ["\ud83d", "\x00", "\u2028\u2029\x85", "\r\n", '\\"', "</script>", "\ufeff."]
    pairs = [PreferencePair(text + "?", text + "a", text + "b") for text in texts]
    save_pairs(tmp_path / "data.jsonl", pairs)
    assert load_pairs(tmp_path / "data.jsonl") == pairs


if __name__ == "__main__":
    for name, (_, place, fault, remedy) in (DATA | MODELS).items():
        print(f"| {name} | {place} {fault} | {remedy} |")
