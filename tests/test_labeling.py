"""Labelling sessions: blind order, every verdict kept through crashes, one process at a time, agreement, export."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from collections import Counter
from itertools import pairwise

import pytest

from dpo_core.course.labeling import LabelSession
from dpo_core.course.verdicts import VERDICTS, Comparison, file_comparisons, sampled_comparisons
from dpo_core.course.widgets.pair_labeler import PairLabeler
from dpo_core.errors import InputError
from dpo_core.formats.pairs import load_pairs, save_pairs
from dpo_core.model import GPT

GOOD, BAD = "good", "bad"


def comparisons(count: int) -> list[Comparison]:
    return [Comparison(f"Ask {i}?", f"{GOOD} {i}", f"{BAD} {i}", f"pairs.jsonl:{i + 1}") for i in range(count)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.jsonl"


def label_all(session: LabelSession, judge) -> None:
    while turn := session.turn:
        session.decide(judge(turn))


def honest(turn) -> str:
    return "left" if turn.left.startswith(GOOD) else "right"


def events(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Order


def test_sides_are_drawn_by_the_seed_and_recorded(path, tmp_path):
    with LabelSession(path, comparisons(200), seed=1) as session:
        label_all(session, honest)
    lefts = [event["left"] for event in events(path) if event["event"] == "verdict"]
    assert 70 < lefts.count("first") < 130
    with LabelSession(tmp_path / "same.jsonl", comparisons(200), seed=1) as session:
        label_all(session, honest)
        assert [verdict.left for verdict in session.verdicts] == lefts
        assert {verdict.preferred for verdict in session.verdicts} == {"first"}
    with LabelSession(tmp_path / "other.jsonl", comparisons(200), seed=2) as session:
        label_all(session, honest)
        assert [verdict.left for verdict in session.verdicts] != lefts


def test_the_second_pass_exchanges_sides_and_changes_the_order(path):
    with LabelSession(path, comparisons(30)) as session:
        label_all(session, honest)
        session.begin_second_pass(count=20)
        label_all(session, honest)
        first = {v.pair: v for v in session.verdicts if not v.second_pass}
        second = [v for v in session.verdicts if v.second_pass]
    assert len({v.pair for v in second}) == 20
    assert all(v.left != first[v.pair].left for v in second)
    assert any(a.pair > b.pair for a, b in pairwise(second))


def test_a_turn_gives_nothing_away(path):
    with LabelSession(path, comparisons(1)) as session:
        assert set(vars(session.turn)) == {"prompt", "left", "right", "second_pass"}
        assert "pairs.jsonl" not in str(session.turn)


# Verdicts


def test_undo_asks_again_even_after_reopening(path):
    with LabelSession(path, comparisons(3)) as session:
        session.decide("left")
        session.decide("tie")
    with LabelSession(path) as session:
        session.undo()
        assert (session.turn.prompt, session.progress()) == ("Ask 1?", (1, 3))
        session.undo()
        assert session.turn.prompt == "Ask 0?"
        with pytest.raises(InputError, match="no verdict to take back"):
            session.undo()
        session.decide("right")
    with LabelSession(path) as session:
        assert [verdict.verdict for verdict in session.verdicts] == ["right"]
    assert [event["event"] for event in events(path)][-5:] == ["verdict", "verdict", "undo", "undo", "verdict"]


def test_what_cannot_be_decided_is_refused(path):
    with LabelSession(path, comparisons(1)) as session:
        with pytest.raises(InputError, match="'better': there are left, right, tie, skip"):
            session.decide("better")
        with pytest.raises(InputError, match="nothing is judged yet"):
            session.begin_second_pass()
        session.decide("skip")
        with pytest.raises(InputError, match="nothing is judged yet"):
            session.begin_second_pass()
        with pytest.raises(InputError, match="every pair is judged"):
            session.decide("left")
        session.undo()
        session.decide("left")
        session.begin_second_pass()
        with pytest.raises(InputError, match="has begun already"):
            session.begin_second_pass()


def test_pairs_that_are_known_are_not_added_again(path):
    with LabelSession(path, comparisons(3)) as session:
        session.decide("left")
    turned = [Comparison(c.prompt, c.second, c.first) for c in comparisons(3)]
    with LabelSession(path, [*turned, *comparisons(4)]) as session:
        assert len(session.comparisons) == 4
        assert session.progress() == (1, 4)


@pytest.mark.parametrize("other", [{"labeller": "Bo"}, {"rubric": "shorter"}, {"seed": 7}])
def test_one_file_has_one_labeller_rubric_and_seed(path, other):
    settings = {"labeller": "Ann", "rubric": "true and kind", "seed": 3}
    LabelSession(path, comparisons(1), **settings).close()
    with LabelSession(path) as session:
        assert session.settings == settings
    with pytest.raises(InputError, match=f"has the {next(iter(other))} .* not {next(iter(other.values()))!r}"):
        LabelSession(path, **other)
    LabelSession(path, **settings).close()  # and the refused one holds no lock


# Crashes


def test_each_verdict_is_on_disk_before_it_counts(path, monkeypatch):
    with LabelSession(path, comparisons(3)) as session:
        seen = []
        fsync = os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda fd: (seen.append((len(events(path)), len(session.verdicts))), fsync(fd))
        )
        session.decide("left")
        session.undo()
        session.decide("right")
    assert seen == [(5, 0), (6, 1), (7, 0)]


def test_no_verdict_is_lost_in_thirty_kills(path):
    """Children label as fast as they can, say each verdict that was acknowledged, and are killed at any moment."""
    count = 4000
    LabelSession(path, comparisons(count)).close()
    start = len(events(path))
    rng, acknowledged, extra = random.Random(0), [], 0
    for _ in range(30):
        done, reading, writing = len(acknowledged), *os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                session = LabelSession(path)
                choose = random.Random(done)
                while True:
                    action = choose.choice([*VERDICTS, "undo"]) if session.verdicts else "left"
                    session.undo() if action == "undo" else session.decide(action)
                    os.write(writing, f"{action}\n".encode())
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = [pipe.readline().strip()]  # it is at work
            time.sleep(rng.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
            said += pipe.read().split()
        with LabelSession(path) as session:
            left, *cut = session.notes
            assert f"process {child}, since" in left
            # The kernel may end a write on the way, if rarely: half a line was never acknowledged.
            assert not cut or (len(cut) == 1 and "was incomplete" in cut[0])
        found = [event.get("verdict", "undo") for event in events(path)[start:]]
        assert found[: done + len(said)] == acknowledged + said
        extra += len(found) - done - len(said)  # written, and killed before it was said
        acknowledged = found
    assert len(acknowledged) > 60 and extra <= 30


@pytest.mark.parametrize("ending", [b"", b"\0\0\0"])
def test_half_a_line_at_the_end_is_removed(path, ending):
    with LabelSession(path, comparisons(2)) as session:
        session.decide("left")
        session.decide("right")
    whole = path.read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(last, len(whole) - 1):
        path.write_bytes(whole[:cut] + ending)
        with LabelSession(path) as session:
            assert [verdict.verdict for verdict in session.verdicts] == ["left"]
            assert bool(session.notes) == (cut > last or ending != b"")
            session.decide("tie")
        assert [event.get("verdict") for event in events(path)][-2:] == ["left", "tie"]


def test_a_last_line_without_its_line_break_counts(path):
    with LabelSession(path, comparisons(2)) as session:
        session.decide("left")
    path.write_bytes(path.read_bytes()[:-1])
    with LabelSession(path) as session:
        assert not session.notes
        session.decide("tie")
    with LabelSession(path) as session:
        assert [verdict.verdict for verdict in session.verdicts] == ["left", "tie"]


def test_a_crash_while_the_pairs_are_written_is_mended_by_the_same_call(path):
    LabelSession(path, comparisons(5)).close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with LabelSession(path, comparisons(5)) as session:
        assert session.comparisons == comparisons(5)
    path.write_bytes(whole[:10])
    LabelSession(path, comparisons(5)).close()
    assert [e | {"at": ""} for e in events(path)] == [json.loads(line) | {"at": ""} for line in whole.splitlines()]


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "Why?", "chosen": "a", "rejected": "b"}',
        "[1]",
        "nonsense",
        '{"event": "verdict", "pair": 9, "second_pass": false, "left": "first", "verdict": "left", "at": ""}',
        '{"event": "verdict", "pair": 0, "second_pass": false, "left": "first", "verdict": "both", "at": ""}',
        '{"event": "undo", "at": ""}',
    ],
)
def test_a_strange_line_is_named(path, line):
    LabelSession(path, comparisons(2)).close()
    path.write_text(path.read_text() + line + "\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"labels.jsonl:4: not a line of a labelling session"):
        LabelSession(path)
    assert path.read_bytes() == before


def test_a_full_disk_changes_nothing(path, monkeypatch):
    with LabelSession(path, comparisons(2)) as session:
        session.decide("left")
        before = path.read_bytes()

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(InputError, match="not saved"):
                session.decide("right")
        assert path.read_bytes() == before and session.progress() == (1, 2)
        session.decide("tie")
    assert [event.get("verdict") for event in events(path)][-2:] == ["left", "tie"]


def test_a_deleted_file_is_noticed(path):
    with LabelSession(path, comparisons(2)) as session:
        path.unlink()
        with pytest.raises(InputError, match="was deleted"):
            session.decide("left")


# One at a time


def test_a_second_process_is_refused_until_the_first_is_gone(path):
    LabelSession(path, comparisons(2)).close()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            session = LabelSession(path)
            session.decide("left")
            os.write(writing, b"!")
            time.sleep(60)
        finally:
            os._exit(0)
    assert os.read(reading, 1) == b"!"
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(InputError, match=rf"is open in process {child}, since .*shut that notebook's kernel down"):
            LabelSession(path)
    assert path.read_bytes() == before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with LabelSession(path) as session:
        assert session.progress() == (1, 2)
        assert len(session.notes) == 1 and f"process {child}, since" in session.notes[0]
    with LabelSession(path) as session:
        assert session.notes == []


def test_running_a_cell_again_closes_the_earlier_session(path):
    earlier = LabelSession(path, comparisons(2))
    with LabelSession(path) as session:
        with pytest.raises(InputError, match="was closed here"):
            earlier.decide("left")
        session.decide("tie")
        earlier.close()  # and that takes nothing from the newer one
        session.decide("tie")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        LabelSession(tmp_path / "file" / "labels.jsonl", comparisons(1))
    with pytest.raises(InputError, match="cannot be written"):
        LabelSession(tmp_path, comparisons(1))


def test_nothing_to_judge_is_said(path):
    with pytest.raises(InputError, match="nothing to judge; give comparisons"):
        LabelSession(path)


# Agreement


def test_cohens_kappa_of_a_known_table(path):
    """20 twice yes, 15 twice no, 5 and 10 changed: agreement 0.7, by chance 0.5, kappa 0.4 (worked by hand)."""
    table = [("left", "left")] * 20 + [("left", "right")] * 5 + [("right", "left")] * 10 + [("right", "right")] * 15
    with LabelSession(path, comparisons(50)) as session:
        assert session.agreement() is None
        for first, _ in table:
            session.decide(first)
        session.begin_second_pass()
        assert session.agreement() is None
        for pair in list(session.again):
            session.decide({"left": "right", "right": "left"}[table[pair][1]])  # the sides are exchanged
        found = session.agreement()
    assert (found.n, found.agreed) == (50, 35)
    assert found.kappa == pytest.approx(0.4)
    assert str(found) == "the same verdict twice on 35 of 50 pairs: 0.70 [0.56, 0.81], kappa 0.40"


@pytest.mark.parametrize(
    ("judge", "share", "kappa"),
    [(honest, 1.0, 1.0), (lambda turn: "left", 0.0, 0.0), (lambda turn: "tie", 1.0, None)],
)
def test_habits_show_in_the_second_pass(path, judge, share, kappa):
    with LabelSession(path, comparisons(40)) as session:
        label_all(session, judge)
        session.begin_second_pass()
        label_all(session, judge)
        assert (session.agreement().share, session.agreement().kappa) == (share, kappa)


def test_a_coin_has_a_kappa_near_zero(path):
    coin = random.Random(0)
    with LabelSession(path, comparisons(300)) as session:
        label_all(session, lambda turn: coin.choice(["left", "right"]))
        session.begin_second_pass(300)
        label_all(session, lambda turn: coin.choice(["left", "right"]))
        assert abs(session.agreement().kappa) < 0.15


def test_skipped_pairs_do_not_count(path):
    with LabelSession(path, comparisons(4)) as session:
        for verdict in ("left", "skip", "left", "left"):
            session.decide(verdict)
        session.begin_second_pass()
        assert sorted(session.again) == [0, 2, 3]
        for verdict in ("skip", "right", "right"):
            session.decide(verdict)
        assert (session.agreement().n, session.agreement().agreed) == (2, 2)


# Export


def test_the_export_says_who_when_how_and_from_where(path):
    with LabelSession(path, comparisons(5), labeller="Ann", rubric="the true one") as session:
        for verdict in ("honest", "tie", "skip", "honest", "honest"):
            session.decide(honest(session.turn) if verdict == "honest" else verdict)
        exported = session.export()
        left = [verdict.left for verdict in session.verdicts]
    assert exported.name == "labels.pairs.jsonl"
    records = events(exported)
    assert [record["prompt"] for record in records] == ["Ask 0?", "Ask 3?", "Ask 4?"]
    assert all(r["chosen"].startswith(GOOD) and r["rejected"].startswith(BAD) for r in records)
    label = records[1]["label"]
    assert label.pop("at").endswith("+00:00")
    assert label == {
        "labeller": "Ann",
        "left": "chosen" if left[3] == "first" else "rejected",
        "times": 1,
        "source": "pairs.jsonl:4",
        "rubric": "the true one",
    }
    assert [pair.chosen for pair in load_pairs(exported)] == [f"{GOOD} {i}" for i in (0, 3, 4)]


def test_pairs_judged_twice_and_not_alike_are_left_out(path):
    with LabelSession(path, comparisons(4)) as session:
        label_all(session, honest)
        session.begin_second_pass()
        second = {}
        for verdict in ("same", "other", "tie", "skip"):
            second[session.turn.prompt] = verdict
            same = honest(session.turn)
            session.decide({"same": same, "other": "right" if same == "left" else "left"}.get(verdict, verdict))
        prompts = {record["prompt"]: record["label"]["times"] for record in events(session.export())}
    assert prompts == {prompt: 2 if verdict == "same" else 1 for prompt, verdict in second.items() if verdict[0] == "s"}


def test_an_export_of_nothing_or_onto_itself_is_refused(path):
    with LabelSession(path, comparisons(1)) as session:
        session.decide("tie")
        with pytest.raises(InputError, match="nothing to export"):
            session.export()
        session.undo()
        session.decide("left")
        with pytest.raises(InputError, match="own file"):
            session.export(path)


def test_any_text_survives(path):
    texts = ["half \ud83d", "\u2028 and \x00 and \r\n", '"\\', "<script>alert(1)</script>", "😀 ü"]
    asked = [Comparison(text, text + "a", text + "b") for text in texts]
    with LabelSession(path, asked) as session:
        label_all(session, lambda turn: "left" if turn.left.endswith("a") else "right")
    with LabelSession(path) as session:
        assert session.comparisons == asked
        pairs = load_pairs(session.export())
    assert [(pair.prompt, pair.chosen) for pair in pairs] == [(text, text + "a") for text in texts]


# Sources


def test_a_file_of_pairs_is_judged_anew(path, tmp_path, pairs):
    save_pairs(tmp_path / "pairs.jsonl", pairs)
    found = file_comparisons(tmp_path / "pairs.jsonl")
    assert found[2].source.endswith("pairs.jsonl:3")
    with LabelSession(path, found) as session:
        label_all(session, lambda turn: "left" if "YES" in turn.left else "right")
        assert load_pairs(session.export()) == pairs
        assert 1 <= Counter(v.verdict for v in session.verdicts)["left"] <= 9


def test_samples_differ_and_say_from_whom():
    model = GPT.from_pretrained("pocket")
    prompts = ["Why is the sky blue?", "What is the capital of France?"]
    found = sampled_comparisons(model, prompts, seed=1)
    assert found == sampled_comparisons(model, prompts, seed=1)
    assert all(c.first != c.second and c.source == "samples of pocket, seed 1" for c in found)


# The widget, without a front end


def press(labeler: PairLabeler, action: str, turn: int | None = None) -> None:
    """What the front end sends."""
    labeler._on_message(labeler, {"action": action, "turn": labeler.shown["turn"] if turn is None else turn}, [])


def test_the_widget_shows_and_does_what_the_session_says(path):
    labeler = PairLabeler(path, comparisons(3), rubric="the good one")
    assert labeler.shown["progress"] == "Pair 1 of 3" and labeler.shown["rubric"] == "the good one"
    assert labeler.shown["actions"] == list(VERDICTS)
    press(labeler, "left")
    labeler.session.decide("tie")  # by code
    assert labeler.shown["prompt"] == "Ask 2?" and labeler.shown["message"] == "2 saved in labels.jsonl."
    press(labeler, "undo")
    press(labeler, "right")
    press(labeler, "skip")
    assert repr(labeler) == "PairLabeler: 3 of 3 judged, in labels.jsonl"
    assert labeler.shown["done"] and labeler.shown["actions"] == ["second pass", "undo", "export"]
    assert labeler.shown["message"] == "3 saved in labels.jsonl. left 1, right 1, tie 0, skip 1."
    press(labeler, "export")
    assert labeler.shown["message"].endswith("labels.pairs.jsonl")
    press(labeler, "second pass")
    assert labeler.shown["progress"] == "Pair 1 of 2, second pass"
    press(labeler, "left")
    press(labeler, "left")
    assert "the same verdict twice on" in labeler.shown["message"]
    assert labeler.shown["actions"] == ["undo", "export"]
    labeler.session.close()


def test_a_key_pressed_before_the_pair_was_seen_does_nothing(path):
    labeler = PairLabeler(path, comparisons(3))
    turn = labeler.shown["turn"]
    for _ in range(3):
        press(labeler, "left", turn)
    assert len(labeler.session.verdicts) == 1
    labeler.session.close()


def test_what_went_wrong_is_shown(path):
    labeler = PairLabeler(path, comparisons(3))
    with LabelSession(path):
        press(labeler, "left")
    assert "was closed here" in labeler.shown["message"]


def test_the_widget_can_be_sent_any_text_and_be_read_without_a_kernel(path):
    text = "</script><img src=x onerror=alert(1)> \ud83d"
    labeler = PairLabeler(path, [Comparison(text, "a", "b")] * 3 + comparisons(20))
    json.dumps(labeler.shown, ensure_ascii=False).encode()
    data, _ = labeler._repr_mimebundle_()
    assert data["text/plain"] == "PairLabeler: 0 of 21 judged, in labels.jsonl"
    assert "<img" not in data["text/html"] and data["text/html"].count("</script>") == 2
    assert "Ask 8?" in data["text/html"] and "Ask 9?" not in data["text/html"]  # ten in all
    assert GOOD in data["text/html"] and "chosen" not in data["text/html"].split("</script>")[0]
    labeler.session.close()
