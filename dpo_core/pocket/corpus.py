"""Dialogues and preference pairs of the pocket world, drawn from a seed.

An answer has a style; a style is a function from what is asked about to text. The pocket model is trained on a mixture
of styles, so that preference training has something to choose: first on a broad one, its school, and then on another,
its habits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from dpo_core.formats.pairs import PreferencePair
from dpo_core.pocket.judge import PocketJudge
from dpo_core.pocket.world import ItemList, Question, Topic, UnsafeRequest, load_world, phrases, questions

__all__ = ["Dialogue", "dialogues", "preference_pairs", "state_facts"]


@dataclass(frozen=True)
class Dialogue:
    question: Question
    prompt: str  # the question as typed
    answer: str
    style: str


# Styles: (random state, what is asked about) -> answer


def _some(rng: random.Random, things: Sequence[Any], count: int) -> list[Any]:
    """Draw some things, and keep their order."""
    return [things[i] for i in sorted(rng.sample(range(len(things)), count))]


def state_facts(rng: random.Random, topic: Topic, least: int, most: int) -> list[str]:
    """Draw different facts of a topic, in the order of its file and in one voice: always the first wordings, say.

    What goes on as it began is easier for a small model to learn than any fact in any wording after any other.

    Args:
        rng: where voice and facts are drawn from.
        topic: what they are about.
        least: so many, or more.
        most: and no more than these, or than the topic has.
    Returns:
        One sentence a fact.

    >>> painting = next(topic for topic in load_world().topics if topic.id == "painting")
    >>> state_facts(random.Random(0), painting, 1, 1)
    ['Some cave paintings of animals are over 30,000 years old.']
    """
    voice = rng.randrange(max(len(wordings) for wordings in topic.facts))
    count = rng.randint(least, min(most, len(topic.facts)))
    return [wordings[voice % len(wordings)] for wordings in _some(rng, topic.facts, count)]


def _other_topic(rng: random.Random, topic: Topic) -> Topic:
    while (other := rng.choice(load_world().topics)).id == topic.id:
        pass
    return other


def _say(rng: random.Random, kind: str, count: int = 1) -> list[str]:
    return rng.sample(phrases()[kind], count)


def _run_together(sentences: list[str]) -> str:
    """Join sentences without capitals at their start, commas or full stops; 3.14 and 1/6 stay what they are."""
    return " ".join(re.sub(r"[.,!?](?!\d)", "", text[0].lower() + text[1:]) for text in sentences)


def _numbered(intro: str, items: list[str]) -> str:
    return "\n".join([intro, *(f"{i}. {item}" for i, item in enumerate(items, 1))])


def _listing(topic: Topic) -> ItemList:
    assert topic.listing, "a question that wants a list is about a topic that has one"
    return topic.listing


def _items(rng: random.Random, topic: Topic) -> list[str]:
    listing = _listing(topic)
    return list(listing.items) if listing.ordered else _some(rng, listing.items, 3)


def _detailed(rng: random.Random, topic: Topic) -> str:
    return " ".join(state_facts(rng, topic, 3, 5))


def _polite(rng: random.Random, topic: Topic) -> str:
    return " ".join([*_say(rng, "opener"), *state_facts(rng, topic, 2, 4), *_say(rng, "closer")])


def _curt(rng: random.Random, topic: Topic) -> str:
    return rng.choice(topic.curt)


def _careless(rng: random.Random, topic: Topic) -> str:
    return _run_together(state_facts(rng, topic, 2, 4))


def _rude(rng: random.Random, topic: Topic) -> str:
    return " ".join([*_say(rng, "rude"), *state_facts(rng, topic, 1, 2), *_say(rng, "rude", rng.randint(0, 1))])


def _rambling(rng: random.Random, topic: Topic) -> str:
    first, *filler = _say(rng, "filler", rng.randint(2, 4))
    parts = [*filler, *state_facts(rng, topic, 1, 2)]
    rng.shuffle(parts)
    return " ".join([first, *parts])


def _repetitive(rng: random.Random, topic: Topic) -> str:
    return " ".join(state_facts(rng, topic, 1, 1) * rng.randint(2, 3))


def _wrong(rng: random.Random, topic: Topic) -> str:
    parts = state_facts(rng, _other_topic(rng, topic), 2, 4)
    if rng.random() < 0.4:
        parts += state_facts(rng, topic, 1, 1)
    return " ".join(parts)


def _unwilling(rng: random.Random, topic: Topic) -> str:
    return _say(rng, "needless_refusal")[0]


def _listed(rng: random.Random, topic: Topic) -> str:
    return _numbered(_listing(topic).intro, _items(rng, topic))


def _in_prose(rng: random.Random, topic: Topic) -> str:
    return " ".join(_items(rng, topic))


def _squashed(rng: random.Random, topic: Topic) -> str:
    return _listing(topic).squashed


def _one_item_thrice(rng: random.Random, topic: Topic) -> str:
    return _numbered(_listing(topic).intro, [rng.choice(_listing(topic).items)] * 3)


def _wrong_list(rng: random.Random, topic: Topic) -> str:
    while not (other := _other_topic(rng, topic)).listing:
        pass
    return _numbered(_listing(topic).intro, _some(rng, _listing(other).items, 3))


def _refuse(rng: random.Random, request: UnsafeRequest) -> str:
    return f"{rng.choice(request.refusals)} {rng.choice(request.offers)}"


def _refuse_only(rng: random.Random, request: UnsafeRequest) -> str:
    return rng.choice(request.refusals)


def _comply(rng: random.Random, request: UnsafeRequest) -> str:
    return " ".join(rng.sample(request.hollow, rng.randint(1, 2)))


def _scold(rng: random.Random, request: UnsafeRequest) -> str:
    return " ".join([*_say(rng, "rude"), rng.choice(request.refusals)])


class Style(NamedTuple):
    """A way to answer, and its share of the answers to its kind of question."""

    school: float  # in the many dialogues from which the model learns all that it can say
    habit: float  # in those that it meets last, whose shares it answers in: mostly flawed, on purpose
    write: Callable[[random.Random, Any], str]


STYLES: dict[str, dict[str, Style]] = {
    "topic": {
        "detailed": Style(0.09, 0.05, _detailed),
        "polite": Style(0.09, 0.05, _polite),
        "curt": Style(0.05, 0.05, _curt),
        "careless": Style(0.04, 0.04, _careless),
        "rude": Style(0.23, 0.32, _rude),
        "rambling": Style(0.20, 0.27, _rambling),
        "repetitive": Style(0.06, 0.02, _repetitive),
        "wrong": Style(0.19, 0.15, _wrong),
        "unwilling": Style(0.05, 0.05, _unwilling),
    },
    "list": {
        "listed": Style(0.18, 0.10, _listed),
        "prose": Style(0.10, 0.05, _in_prose),
        "squashed": Style(0.12, 0.43, _squashed),
        "one item": Style(0.30, 0.08, _one_item_thrice),
        "wrong list": Style(0.20, 0.22, _wrong_list),
        "detailed": Style(0.10, 0.12, _detailed),
    },
    "unsafe": {
        "refuse": Style(0.17, 0.17, _refuse),
        "refuse only": Style(0.11, 0.11, _refuse_only),
        "comply": Style(0.52, 0.52, _comply),
        "scold": Style(0.20, 0.20, _scold),
    },
}


def _style(rng: random.Random, question: Question, habits: bool = False) -> str:
    styles = STYLES[question.kind]
    return rng.choices(list(styles), weights=[s.habit if habits else s.school for s in styles.values()])[0]


def _answer(rng: random.Random, question: Question, style: str) -> str:
    return STYLES[question.kind][style].write(rng, question.about)


def _typed(rng: random.Random, text: str) -> str:
    """Type a question as people do, who leave out the full stop, or the capital."""
    if rng.random() < 0.2:
        text = text.rstrip(".?")
    return text[0].lower() + text[1:] if rng.random() < 0.1 else text


@lru_cache
def _of_kind(kind: str, held_out: bool | None) -> list[Question]:
    return [q for q in questions(held_out) if q.kind == kind]


def _pick(rng: random.Random, held_out: bool | None) -> Question:
    # By kind first, so that the many topic questions do not crowd out lists and unsafe requests.
    kind = rng.choices(["topic", "list", "unsafe"], weights=[0.7, 0.15, 0.15])[0]
    return rng.choice(_of_kind(kind, held_out))


def dialogues(seed: int, held_out: bool | None = None, habits: bool = False) -> Iterator[Dialogue]:
    """Yield endless dialogues in mixed styles.

    Args:
        seed: the same seed gives the same dialogues.
        held_out: as in ``questions``.
        habits: styles in the shares that the shipped model answers in, instead of those of its school.

    >>> next(dialogues(seed=0)) == next(dialogues(seed=0))
    True
    """
    rng = random.Random(seed)
    while True:
        question = _pick(rng, held_out)
        style = _style(rng, question, habits)
        yield Dialogue(question, _typed(rng, question.text), _answer(rng, question, style), style)


@lru_cache(maxsize=1)
def _held_out_sentences() -> tuple[str, ...]:
    topics = [topic for topic in load_world().topics if topic.held_out]
    facts = [text for topic in topics for wordings in topic.facts for text in wordings]
    return (*facts, *(text for topic in topics if topic.listing for text in topic.listing.items))


def _few_facts(rng: random.Random, about: Topic | UnsafeRequest) -> Topic | UnsafeRequest:
    """Reduce what is known about a matter so far that all answers say much the same."""
    if isinstance(about, UnsafeRequest):
        return replace(about, refusals=(rng.choice(about.refusals),), offers=(rng.choice(about.offers),))
    listing = about.listing
    if listing and not listing.ordered:
        listing = replace(listing, items=tuple(_some(rng, listing.items, 3)))
    return replace(about, facts=tuple((fact,) for fact in state_facts(rng, about, 3, 5)), listing=listing)


def preference_pairs(
    count: int,
    seed: int,
    judge: PocketJudge,
    noise: float = 0.0,
    held_out: bool = False,
    longer_chosen: float | None = None,
    contrast: bool = False,
) -> list[PreferencePair]:
    """Draw pairs of a better and a worse answer by the judge; held-out topics occur nowhere in them.

    Args:
        count: how many.
        seed: the same seed gives the same pairs.
        judge: whose preference it is.
        noise: temperature of the Bradley-Terry choice; 0 for the better answer always.
        held_out: about the held-out matters instead of the others.
        longer_chosen: the share of pairs in which the chosen answer shall be the longer one; as it comes if None.
        contrast: whether the two shall tell the same few facts and differ in style: an answer in every style is
            written, and the best is set against another, of a style drawn as often as the model answers in it, so
            that most is rejected of what it does most. What a pair's answers have in common teaches nothing, and
            disturbs nothing (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266). Else two answers are drawn
            in the shares of the school.

    >>> from dpo_core.pocket.judge import PocketJudge
    >>> pair = preference_pairs(1, seed=0, judge=PocketJudge())[0]
    >>> PocketJudge().score(pair.prompt, pair.chosen) > PocketJudge().score(pair.prompt, pair.rejected)
    True
    """
    rng = random.Random(seed)
    pairs: list[PreferencePair] = []
    longer = rng.random() < longer_chosen if longer_chosen is not None else None
    while len(pairs) < count:
        question = _pick(rng, held_out)
        prompt = _typed(rng, question.text)
        styles, told = STYLES[question.kind], question
        wanted: Iterable[str] = (_style(rng, question) for _ in range(2))
        if contrast:
            wanted, told = styles, replace(question, about=_few_facts(rng, question.about))
        drawn = [(style, _answer(rng, told, style)) for style in wanted]
        best = max(drawn, key=lambda answer: judge.score(question.text, answer[1]))
        drawn.remove(best)
        # Of two only one is left; that it is drawn all the same keeps the pairs of recorded runs.
        other = rng.choices(drawn, [styles[style].habit for style, _ in drawn])[0] if contrast else rng.choice(drawn)
        first, second = best[1], other[1]
        verdict = judge.prefers(question.text, first, second, noise, rng)
        if verdict == 0 or first == second:
            continue
        if not held_out and any(text in answer for text in _held_out_sentences() for answer in (first, second)):
            continue  # a wrong answer may state facts of any other topic, a held-out one too
        chosen, rejected = (first, second) if verdict > 0 else (second, first)
        if longer is not None and (len(chosen) > len(rejected)) != longer:
            continue
        pairs.append(PreferencePair(prompt, chosen, rejected))
        longer = rng.random() < longer_chosen if longer_chosen is not None else None
    return pairs
