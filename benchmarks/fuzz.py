"""Feed the readers damaged files for some minutes: ``python benchmarks/fuzz.py --minutes 30``.

Files that are right are changed at random, by bytes, by tokens of JSON and by values, and read. A reader may take them
or raise ``InputError``; anything else is a crash, as are more than 4 GB of memory and more than a minute.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import kills
from machine import provenance

from dpo_core.course.labeling import LabelSession
from dpo_core.course.verdicts import Comparison
from dpo_core.data import audit_pairs
from dpo_core.errors import InputError
from dpo_core.formats.pairs import load_labels, load_pairs
from dpo_core.lm.sft import load_examples
from dpo_core.model import GPT
from dpo_core.runs.checkpoint import list_checkpoints
from dpo_core.tokenizer import load_tokenizer, read_encoding

RESULTS = Path(__file__).with_name("results") / "fuzz.json"
PIECES = [
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\0", b"\\", b"\\ud83d", b"\\u0000", b"\xef\xbb\xbf",
    b"\xff", b"null", b"NaN", b"-Infinity", b"true", b"1e999", b"9" * 5000, b"-1", b"10000000000000", b"[" * 5000,
    b'{"a":' * 5000,
    b'"prompt"', b'"chosen"', b'"role"', b'"content"', b'"step"', b'"event"', b'"pairs"', b'"shape"', b'"n_layer"',
    "\u2028é日本\u202e".encode(), b"</script>", b"\n\nAssistant:", b"<|endoftext|>", b" " * 3000,
]  # fmt: skip
LINES = [
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
    {"system": "Be brief.", "question": "Why?", "chosen": "So.", "rejected": "No.", "score": 1},
    {"instruction": "Ask.", "input": "Why?", "history": [["Hi.", "Ho."]], "chosen": "So.", "rejected": "No."},
    {
        "input": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
        "preferred_output": [{"role": "assistant", "content": "So."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    },
    {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": "[{'role': 'assistant', 'content': 'So.'}]",
        "rejected": {"from": "gpt", "value": "No."},
    },
    {
        "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
        "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}],
    },
]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A few random changes."""
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at, length = rng.randrange(len(content) + 1), rng.choice([0, 1, 1, 4, 16, 200])
        piece = rng.choice([rng.choice(PIECES), rng.randbytes(rng.choice([1, 1, 8])), b""])
        if rng.random() < 0.1:  # a part of it once more, elsewhere
            start = rng.randrange(len(content) + 1)
            piece = content[start : start + rng.choice([10, 100])]
        content = content[:at] + piece + content[at + length :]
    return content if rng.random() > 0.05 else content[: rng.randrange(len(content) + 1)]


def readers(folder: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """The file to damage, and what reads it, by name."""
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    packed = folder / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(data.read_bytes()))
    good = folder / "good.jsonl"
    good.write_text('{"prompt": "Why?", "completion": "Because."}\n' + data.read_text("utf-8"), encoding="utf-8")
    listed = folder / "listed.json"
    listed.write_text(json.dumps(LINES, indent=1), encoding="utf-8")
    table = folder / "table.csv"
    table.write_text('prompt,chosen,rejected,label\n"Why,\nso?",So.,"No ""so"".",true\n', encoding="utf-8")
    labels = folder / "labels.jsonl"
    with LabelSession(labels, [Comparison(f"Ask {i}?", "good", "bad") for i in range(3)]) as session:
        session.decide("left")
        session.decide("right")
        session.undo()
        session.begin_second_pass()
    run = folder / "run"
    kills.train(run, lora=False)
    newest = list_checkpoints(run)[-1]
    trainer = kills.trainer_in(run, lora=False)
    tokens = folder / "tokens.tiktoken"
    tokens.write_text("IQ== 0\nIg== 1\nIw== 2\n", encoding="ascii")

    def resume() -> None:
        trainer.run.begin(True, True, trainer.model, trainer.optimizer)

    def label() -> None:
        with LabelSession(labels) as session:
            while session.turn and len(session.verdicts) < 9:
                session.decide("left")
            session.undo()
            session.agreement()

    return {
        "pairs": (data, lambda: audit_pairs(load_pairs(data), load_tokenizer("pocket"), 64)),
        "packed pairs": (packed, lambda: load_pairs(packed)),
        "a list of pairs": (listed, lambda: load_pairs(listed)),
        "a table": (table, lambda: load_labels(table)),
        "examples": (good, lambda: load_examples(good)),
        "a session": (labels, label),
        "config.json": (run / "final" / "config.json", lambda: GPT.from_pretrained(run / "final")),
        "model.safetensors": (run / "final" / "model.safetensors", lambda: GPT.from_pretrained(run / "final")),
        "trainer.json": (newest / "trainer.json", resume),
        "optimizer.safetensors": (newest / "optimizer.safetensors", resume),
        "best.safetensors": (newest / "best.safetensors", resume),
        "a tokenizer": (tokens, lambda: read_encoding("own", tokens)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of this process's own time")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, counts, crashes = random.Random(args.seed), Counter[str](), []
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, resource.RLIM_INFINITY))

    def too_long(*_: object) -> None:
        raise TimeoutError("more than a minute")

    signal.signal(signal.SIGALRM, too_long)
    with TemporaryDirectory() as folder:
        found = readers(Path(folder))
        whole = {name: file.read_bytes() for name, (file, _) in found.items()}
        while time.process_time() - start < 60 * args.minutes:
            name = rng.choice(list(found))
            file, read = found[name]
            if name.endswith(".safetensors") and rng.random() < 0.7:  # mostly the header, where there is more to break
                content = damaged(whole[name][:2000], rng) + whole[name][2000:]
            else:
                content = damaged(whole[name], rng)
            file.write_bytes(content)
            signal.alarm(60)
            try:
                read()
                counts[f"{name}: read"] += 1
            except InputError:
                counts[f"{name}: refused"] += 1
            except Exception:  # MemoryError and TimeoutError too
                counts[f"{name}: crashed"] += 1
                crashes.append({"reader": name, "content": repr(content[:400]), "error": traceback.format_exc()[-600:]})
            signal.alarm(0)
            file.write_bytes(whole[name])
    results = {
        **provenance(), "cpu_minutes": round((time.process_time() - start) / 60, 1), "seed": args.seed,
        "inputs": sum(counts.values()), "crashes": len(crashes), "counts": dict(sorted(counts.items())),
        "first_crashes": crashes[:5],
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
