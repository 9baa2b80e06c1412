"""Pairs typed and pasted at a terminal: a paste is one text, and undo takes back."""

from __future__ import annotations

import io
import os
import select
import sys
import time
from pathlib import Path

import pytest

from dpo_core.cli import main
from dpo_core.cli.keyboard import typed_pairs
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair, add_pair, load_pairs, take_back

LINES = "So\n\nit\nis."
SESSION = """
from dpo_core.cli.keyboard import typed_pairs
for pair in typed_pairs():
    print(f"<{pair.chosen!r}>", flush=True)
"""


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def texts(pairs: list[PreferencePair | None]) -> list[tuple[str, str, str] | None]:
    return [pair and (pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal")
def test_a_paste_of_several_lines_is_one_answer():
    """In one piece where the terminal marks pastes, else as long as lines are there; the last may lack its end."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", SESSION])
    seen = b""

    def wait(word: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 90
        while word not in seen:
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 4096)
        seen = seen[seen.index(word) + len(word) :]

    marked, plain = f"\x1b[200~{LINES}\x1b[201~", LINES.replace("\n", "\r")
    for pasted in (plain + "\r", marked, plain):
        wait(b"Prompt:")
        os.write(terminal, b"Why?\r")
        wait(b"Chosen:")
        os.write(terminal, pasted.encode())
        if not pasted.endswith("\r"):
            time.sleep(1)
            os.write(terminal, b"\r")
        wait(b"Rejected:")
        os.write(terminal, b"No.\r")
        wait(f"<{LINES!r}>".encode())
    os.write(terminal, b"done\r")
    os.waitpid(pid, 0)
    os.close(terminal)


def test_quotes_hold_several_lines_together(monkeypatch):
    type_in(monkeypatch, 'Why?\n"""So\n\n  it is."""\n"""\n    No.\n"""\n"""done"""\n"""undo"""\n"""a""""""\ndone\n')
    assert texts(list(typed_pairs())) == [("Why?", "So\n\n  it is.", "    No."), ("done", "undo", 'a"""')]


def test_undo_goes_back_text_by_text_and_then_pair_by_pair(monkeypatch):
    type_in(monkeypatch, "Who?\nundo\nWhy?\nNo.\nundo\nSo.\nNo.\nundo\nundo\ndone\n")
    assert texts(list(typed_pairs())) == [("Why?", "So.", "No."), None, None]


def test_undo_takes_pairs_of_this_session_off_the_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.jsonl"
    add_pair(file, PreferencePair("Old?", "Yes.", "No."))
    before = file.read_bytes()
    type_in(monkeypatch, "Why?\nSo.\nNo.\nWho?\nI.\nYou.\nundo\nundo\nundo\nWhat?\nThat.\nThis.\ndone\n")
    assert main(["data", "--interactive", "--output", str(file)]) == 0
    assert load_pairs(file)[1:] == [PreferencePair("What?", "That.", "This.")]
    assert file.read_bytes().startswith(before)
    out = capsys.readouterr().out
    assert out.count("The last pair was taken back.") == 2 and "There is nothing to take back" in out
    assert out.endswith(f"2 pairs in {file}\n")


def test_a_pair_is_not_taken_off_a_file_that_was_changed(tmp_path: Path):
    file, pair = tmp_path / "mine.jsonl", PreferencePair("Why?", "So.", "No.")
    add_pair(file, pair)
    add_pair(file, PreferencePair("Who?", "I.", "You."))
    before = file.read_bytes()
    with pytest.raises(InputError, match="was changed by someone else since; take the pair out by hand"):
        take_back(file, pair)
    assert file.read_bytes() == before
