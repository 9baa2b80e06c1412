"""The exercises of chapter 04: HH-RLHF's text, the cut, and the split by prompt."""

from __future__ import annotations

from collections.abc import Callable

from dpo_core.course.exercises.base import Exercise
from dpo_core.data import same_prompt
from dpo_core.formats.dialogues import ANSWER, shared_length
from dpo_core.formats.readers import read_pair

__all__ = ["EXERCISES"]

# HH-RLHF's text

Texts = tuple[str, str, str]  # prompt, chosen, rejected


def _hh_cases() -> list[tuple]:
    once = "\n\nHuman: Name a colour.\n\nAssistant:"
    twice = f"{once} Blue.\n\nHuman: Another one?\n\nAssistant:"
    return [
        (f"{once} Red, as the rose is.", f"{once} Red."),
        (f"{twice} Green.", f"{twice} Blue again."),
        (f"{twice} Green.", f"{twice} No.\n\nHuman: Why not?\n\nAssistant: I only know one."),
    ]


def _read_hh(chosen: str, rejected: str) -> Texts:
    return read_pair({"chosen": chosen, "rejected": rejected})


def _cut(chosen: str, rejected: str, cuts: tuple[int, int]) -> Texts:
    return chosen[: cuts[0]], chosen[cuts[0] :].strip(), rejected[cuts[1] :].strip()


def _first_turn(chosen: str, rejected: str) -> Texts:
    cut = chosen.find(ANSWER) + len(ANSWER)
    return _cut(chosen, rejected, (cut, cut))


def _last_turn_of_each(chosen: str, rejected: str) -> Texts:
    return _cut(chosen, rejected, (chosen.rfind(ANSWER) + len(ANSWER), rejected.rfind(ANSWER) + len(ANSWER)))


def _letter_by_letter(chosen: str, rejected: str) -> Texts:
    cut = shared_length(chosen, rejected)
    return _cut(chosen, rejected, (cut, cut))


def _without_marker(chosen: str, rejected: str) -> Texts:
    prompt, *answers = _read_hh(chosen, rejected)
    return (prompt.removesuffix(ANSWER), *answers)  # type: ignore[return-value]


def _with_marker_in_the_answers(chosen: str, rejected: str) -> Texts:
    prompt, *answers = _read_hh(chosen, rejected)
    return (prompt.removesuffix(ANSWER), *(f"{ANSWER} {answer}" for answer in answers))  # type: ignore[return-value]


def _unstripped(chosen: str, rejected: str) -> Texts:
    prompt, *_ = _read_hh(chosen, rejected)
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


READ_HH = Exercise(
    cases=_hh_cases,
    right=_read_hh,
    mistakes={
        "it cuts at the first turn; earlier answers of the assistant belong to the prompt": _first_turn,
        "it cuts each text at its own last turn; cut where both texts still agree": _last_turn_of_each,
        "it cuts at the first letter that differs; answers may begin alike, so cut at the marker": _letter_by_letter,
        "the prompt must end with the marker, which tells the model that it is to answer": _without_marker,
        "the marker stands in the answers; it belongs to the prompt": _with_marker_in_the_answers,
        "the answers begin with white space; strip it, as one rule for all formats puts it back": _unstripped,
    },
)


# The cut at max_length

Ids = list[int]
END = 0  # the end-of-text token of the cases


def _fit_cases() -> list[tuple]:
    return [
        ([1, 2, 3], [4, 5, 6, END], [4, 7, END], 8),
        ([1, 2, 3], [4, 5, 6, 8, END], [4, 7, END], 6),
        ([1, 2, 3, 9], [4, 5, 6, END], [4, 5, 7, END], 6),
        ([1, 2], [4, 5, 6, 8, 9, END], [7, 5, 6, 8, 9, END], 5),
        ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, END], [6, 7, 8, END], 6),  # no room at all
    ]


def _cut_to(rooms: tuple[int, int], chosen: Ids, rejected: Ids) -> tuple[Ids, Ids]:
    cut = chosen[: rooms[0]], rejected[: rooms[1]]
    return ([], []) if cut[0] == cut[1] else cut


def _room(prompt: Ids, max_length: int) -> int:
    return max(0, max_length - len(prompt))


def _fit(prompt: Ids, chosen: Ids, rejected: Ids, max_length: int) -> tuple[Ids, Ids]:
    room = _room(prompt, max_length)
    return _cut_to((room, room), chosen, rejected)


def _without_prompt(prompt: Ids, chosen: Ids, rejected: Ids, max_length: int) -> tuple[Ids, Ids]:
    return _cut_to((max_length, max_length), chosen, rejected)


def _one_after_the_other(prompt: Ids, chosen: Ids, rejected: Ids, max_length: int) -> tuple[Ids, Ids]:
    room = _room(prompt, max_length)
    return _cut_to((room, max(0, room - len(chosen[:room]))), chosen, rejected)


def _with_an_end(prompt: Ids, chosen: Ids, rejected: Ids, max_length: int) -> tuple[Ids, Ids]:
    cut = _fit(prompt, chosen, rejected, max_length)
    first, second = (ids if not ids or ids[-1] == END else [*ids[:-1], END] for ids in cut)
    return first, second


def _identical_kept(prompt: Ids, chosen: Ids, rejected: Ids, max_length: int) -> tuple[Ids, Ids]:
    room = _room(prompt, max_length)
    return chosen[:room], rejected[:room]


def _from_the_left(prompt: Ids, chosen: Ids, rejected: Ids, max_length: int) -> tuple[Ids, Ids]:
    room = _room(prompt, max_length)
    cut = chosen[-room:], rejected[-room:]
    return ([], []) if cut[0] == cut[1] else cut


FIT = Exercise(
    cases=_fit_cases,
    right=_fit,
    mistakes={
        "an answer gets max_length tokens; the prompt's are part of them": _without_prompt,
        "the rejected answer gets what the chosen one leaves; each is read alone behind the prompt": (
            _one_after_the_other
        ),
        "a cut answer ends in the end-of-text token; it did not end there, so it has none": _with_an_end,
        "a pair whose answers are the same after the cut is kept; nothing can be learned from it": _identical_kept,
        "the answers are cut at their beginning; keep it, and cut at the end": _from_the_left,
    },
)


# The split by prompt


def _split_cases() -> list[tuple]:
    return [
        (["Why?", "Who?", "Why?", "Where?", "Who?"], 1),
        (["Why?", "Who?", "Where?", "why", "When?", "Who?", "Where?"], 2),
        (["What is DNA?", "Why?", "what is DNA", "What is DNA?", "Why?", "When?"], 1),
        (["Why?", "Who?", "Why?"], 0),
    ]


def _split(prompts: list[str], count: int, same: Callable[[str], str] = same_prompt) -> tuple[list[int], list[int]]:
    different = list(dict.fromkeys(map(same, prompts)))
    held_out = different[max(0, len(different) - count) :]
    train = [i for i, prompt in enumerate(prompts) if same(prompt) not in held_out]
    return train, [i for i, prompt in enumerate(prompts) if same(prompt) in held_out]


def _by_pair(prompts: list[str], count: int) -> tuple[list[int], list[int]]:
    every = list(range(len(prompts)))
    return every[:-count], every[-count:]


def _first_prompts(prompts: list[str], count: int) -> tuple[list[int], list[int]]:
    held_out = list(dict.fromkeys(map(same_prompt, prompts)))[:count]
    train = [i for i, prompt in enumerate(prompts) if same_prompt(prompt) not in held_out]
    return train, [i for i, prompt in enumerate(prompts) if same_prompt(prompt) in held_out]


SPLIT_PROMPTS = Exercise(
    cases=_split_cases,
    right=_split,
    mistakes={
        "it holds out pairs, not prompts; other pairs of the same prompt stay in training": _by_pair,
        "prompts that differ in case or in the mark at their end ask the same; compare same_prompt(...)": (
            lambda prompts, count: _split(prompts, count, str)
        ),
        "the held-out pairs are in the training part, too": lambda prompts, count: (
            list(range(len(prompts))),
            _split(prompts, count)[1],
        ),
        "the first prompts are held out; the last ones are asked for": _first_prompts,
        "training and held-out part are exchanged": lambda prompts, count: _split(prompts, count)[::-1],
    },
)


EXERCISES = {
    "read_hh": READ_HH,
    "fit": FIT,
    "split_prompts": SPLIT_PROMPTS,
}
