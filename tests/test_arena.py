"""The blind contest: sides, the win rate so far, what a crash leaves, and the same arithmetic on a page."""

from __future__ import annotations

import json
import re

import pytest
from test_labeling import press
from test_widgets import node

from dpo_core.course.arena import ArenaSession, contest
from dpo_core.course.verdicts import Comparison
from dpo_core.course.widgets.arena import Arena
from dpo_core.errors import InputError
from dpo_core.generate import Generation
from dpo_core.study.evaluate import wilson_interval, win_rate

NAMES = ("ours", "theirs")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.jsonl"


def matches(count: int, same: int = 0) -> list[Comparison]:
    """Ours is always the good one; ``same`` of the prompts have one answer from both."""
    prompts = [f"Ask {i}?" for i in range(count)]
    ours = [Generation(f"good {prompt}", [], True, prompt) for prompt in prompts]
    theirs = [Generation(f"{'good' if i < same else 'bad'} {p}", [], True, p) for i, p in enumerate(prompts)]
    return contest(ours, theirs, NAMES)


def honest(turn) -> str:
    return "left" if turn.left.startswith("good") else "right"


def judge_all(session: ArenaSession, judge) -> None:
    while turn := session.turn:
        session.decide(judge(turn))


def test_the_winner_is_found_wherever_it_stands(path):
    with ArenaSession(path, matches(60)) as session:
        judge_all(session, honest)
        assert {verdict.left for verdict in session.verdicts} == {"first", "second"}
        standing = session.standing()
    assert (standing.wins, standing.ties, standing.losses) == (60, 0, 0)
    assert (standing.low, standing.high) == wilson_interval(60, 60)


def test_who_only_looks_at_a_side_finds_no_winner(path):
    with ArenaSession(path, matches(200)) as session:
        judge_all(session, lambda turn: "left")
        standing = session.standing()
    assert standing.low < 0.5 < standing.high and standing.n == 200


def test_neither_the_turn_nor_what_is_shown_names_a_model(path):
    arena = Arena(path, matches(3))
    assert not re.search("ours|theirs|first|second", json.dumps(arena.shown))
    arena.session.close()


def test_answers_that_are_the_same_are_ties_and_are_not_asked(path):
    with ArenaSession(path, matches(10, same=4)) as session:
        assert session.standing() is None and session.progress() == (0, 6)
        judge_all(session, honest)
        assert (session.standing().wins, session.standing().ties, len(session.verdicts)) == (6, 4, 6)
    with ArenaSession(path.with_name("alike.jsonl"), matches(3, same=3)) as session:
        assert session.turn is None and session.standing().rate == 0.5


def test_skips_do_not_count_and_ties_count_half(path):
    verdicts = iter(["skip", "tie", "win", "lose", "win"])

    def judge(turn):
        verdict, right = next(verdicts), honest(turn)
        return {"win": right, "lose": "left" if right == "right" else "right"}.get(verdict, verdict)

    with ArenaSession(path, matches(5)) as session:
        judge_all(session, judge)
        assert session.standing() == win_rate([0, 1, 0, 1], [0, 0, 1, 0])


def test_it_goes_on_where_it_stopped_and_every_verdict_is_on_disk(path):
    arena = Arena(path, matches(4))
    for done in range(1, 4):
        press(arena, honest(arena.session.turn))
        events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
        assert events.count("verdict") == done
    before = arena.session.standing()
    again = Arena(path)  # as after a crash: nothing is given but the file
    assert again.session.standing() == before and again.shown["progress"] == "Pair 4 of 4"
    press(again, "undo")
    assert again.session.standing().n == 2 and again.shown["progress"] == "Pair 3 of 4"
    again.session.close()


def test_the_running_rate_is_shown_with_its_interval(path):
    arena = Arena(path, matches(3))
    assert arena.shown["message"] == "Every choice is saved at once."
    press(arena, honest(arena.session.turn))
    assert arena.shown["message"].endswith(f"ours against theirs: {win_rate([1], [0])}.")
    press(arena, "tie")
    assert arena.shown["message"].endswith(f"ours against theirs: {win_rate([1, 0], [0, 0])}.")
    press(arena, "skip")
    assert repr(arena) == "Arena: 3 of 3 judged, in labels.jsonl"
    assert "n = 2" in arena.shown["message"]
    arena.session.close()


def test_another_contest_is_refused_and_leaves_the_file_as_it_was(path):
    with ArenaSession(path, matches(2)) as session:
        session.decide("tie")
    before = path.read_bytes()
    with pytest.raises(InputError, match="one contest, not ours against theirs, us against them"):
        ArenaSession(path, [Comparison("Else?", "Yes.", "No.", "us against them")])
    assert path.read_bytes() == before
    with ArenaSession(path, matches(2)) as session:  # and it can be opened again
        assert session.progress() == (1, 2)


def test_unlike_prompts_are_refused():
    asked = [Generation("Yes.", [], True, prompt) for prompt in ("A?", "B?")]
    with pytest.raises(InputError, match="same prompts"):
        contest(asked, asked[::-1], NAMES)
    with pytest.raises(InputError, match="there twice"):
        contest([asked[0]] * 2, [asked[0]] * 2, NAMES)


def test_the_page_counts_as_dpo_core_does(path):
    cases = [["left", "right", "tie", "skip", "left"], ["skip"], ["right"] * 9, ["tie", "tie"]]
    sides = ["first", "second", "second", "first", "second", "first", "first", "second", "first"]
    got = node(f"""
        import {{ standing }} from "./pair_labeler.js";
        console.log(JSON.stringify({json.dumps(cases)}.map((c) => standing(c, {json.dumps(sides)}))));
    """)
    for verdicts, text in zip(cases, got, strict=True):
        judged = [(side, verdict) for side, verdict in zip(sides, verdicts) if verdict != "skip"]
        first = [verdict != "tie" and (verdict == "left") == (side == "first") for side, verdict in judged]
        second = [verdict != "tie" and (verdict == "left") != (side == "first") for side, verdict in judged]
        assert text == (str(win_rate(first, second)) if judged else "")


def test_a_page_without_a_kernel_has_the_turns_as_they_are_asked(path):
    arena = Arena(path, matches(14, same=2))
    data, _ = arena._repr_mimebundle_()
    state = json.loads(re.search(r'<script type="application/json">(.*?)</script>', data["text/html"], re.DOTALL)[1])
    assert len(state["turns"]) == len(state["sides"]) == 10 and state["contest"] == "ours against theirs"
    for turn, side in zip(state["turns"], state["sides"]):
        assert turn["left"].startswith("good") == (side == "first") and turn["left"] != turn["right"]
    arena.session.close()


@pytest.mark.browser
def test_in_a_browser_the_page_tells_the_running_rate(path, tmp_path, chromium):
    asked = matches(4)
    arena = Arena(path, asked)
    body = arena._repr_mimebundle_()[0]["text/html"]
    keys = ["ArrowLeft" if arena.session.ask(i).left.startswith("good") else "ArrowRight" for i in range(4)]
    arena.session.close()
    file = tmp_path / "page.html"
    file.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><body>{body}', "utf-8")
    page = chromium.new_page()
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(file.as_uri())
    page.keyboard.press("Tab")
    status = page.get_by_role("status")
    assert "win rate" not in status.inner_text()  # nothing is known yet
    for key in keys[:2]:
        page.keyboard.press(key)
    assert f"ours against theirs: {win_rate([1, 1], [0, 0])}." in status.inner_text()
    page.keyboard.press("u")
    page.keyboard.press("t")
    assert f"ours against theirs: {win_rate([1, 0], [0, 0])}." in status.inner_text()
    assert troubles == []
    page.close()
