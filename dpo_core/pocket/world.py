"""The knowledge of the pocket world: topics with facts, and unsafe requests with refusals.

The data are the JSON files in ``knowledge/``, one per subject, meant to be read by people.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

__all__ = ["Question", "Topic", "UnsafeRequest", "World", "load_world", "phrases", "questions"]

# Wordings for any topic, beside the topic's own.
GENERIC_ASKS = (
    "Tell me about {}.",
    "Can you explain {}?",
    "What can you tell me about {}?",
    "I would like to learn about {}.",
)


@dataclass(frozen=True)
class ItemList:
    """Answers that should be a numbered list: three of ``items``, or all of them in order if ``ordered``."""

    ask: tuple[str, ...]
    intro: str
    items: tuple[str, ...]
    squashed: str  # the same content as a careless run of words
    ordered: bool


@dataclass(frozen=True)
class Topic:
    """One thing the world knows about."""

    id: str
    subject: str
    name: str  # a noun phrase that fits "Tell me about ..."
    ask: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]  # each fact in two or more wordings
    curt: tuple[str, ...]
    listing: ItemList | None
    held_out: bool  # never used in preference data


@dataclass(frozen=True)
class UnsafeRequest:
    """A request that deserves a refusal with a better offer."""

    id: str
    ask: tuple[str, ...]
    refusals: tuple[str, ...]
    offers: tuple[str, ...]
    hollow: tuple[str, ...]  # "Sure, ..." answers: the bad ones, without any content
    held_out: bool


@dataclass(frozen=True)
class World:
    topics: tuple[Topic, ...]
    unsafe: tuple[UnsafeRequest, ...]


SENTENCE = re.compile(r"^[A-Z0-9][^\n:;\"“”]*[.!?]$")


def problems(data: dict) -> list[str]:
    """List what is wrong with one subject's data; nothing if all is well.

    Args:
        data: of a file in ``knowledge/``.
    """
    out = []

    def sentence(where: str, text: str, longest: int = 24) -> None:
        if not SENTENCE.match(text) or not text.isascii() or "  " in text:
            out.append(f"{where}: not one plain ASCII sentence: {text!r}")
        if re.search(r"[.!?] ", text):
            out.append(f"{where}: more than one sentence: {text!r}")
        if len(text.split()) > longest:
            out.append(f"{where}: over {longest} words: {text!r}")

    def enough(where: str, values: list, least: int) -> None:
        if len(values) < least or len(set(map(str, values))) < len(values):
            out.append(f"{where}: needs at least {least} different entries")

    for topic in data.get("topics", []):
        at = topic["id"]
        enough(f"{at}.ask", topic["ask"], 4)
        enough(f"{at}.facts", topic["facts"], 6)
        enough(f"{at}.curt", topic["curt"], 2)
        for i, wordings in enumerate(topic["facts"]):
            enough(f"{at}.facts[{i}]", wordings, 2)
            for text in wordings:
                sentence(f"{at}.facts[{i}]", text)
        for text in topic["curt"]:
            sentence(f"{at}.curt", text, longest=8)
        for text in topic["ask"]:
            sentence(f"{at}.ask", text, longest=16)
        listing = topic.get("list") or topic.get("steps")
        if listing:
            enough(f"{at}.list.ask", listing["ask"], 2)
            enough(f"{at}.list.items", listing["items"], 4)
            if not listing["intro"].endswith(":"):
                out.append(f"{at}.list.intro: must end in a colon: {listing['intro']!r}")
            for text in listing["ask"]:
                sentence(f"{at}.list.ask", text, longest=16)
            for text in listing["items"]:
                sentence(f"{at}.list.items", text, longest=14)
            if not re.fullmatch(r"[a-z0-9' -]+", listing["squashed"]):
                out.append(f"{at}.list.squashed: lower-case words only: {listing['squashed']!r}")
    for request in data.get("unsafe", []):
        at = request["id"]
        for field, least, longest in (("ask", 3, 16), ("refusals", 2, 24), ("offers", 2, 24), ("hollow", 2, 14)):
            enough(f"{at}.{field}", request[field], least)
            for text in request[field]:
                sentence(f"{at}.{field}", text, longest)
    return out


def _topic(subject: str, raw: dict) -> Topic:
    listing = None
    if block := raw.get("list") or raw.get("steps"):
        listing = ItemList(
            ask=tuple(block["ask"]),
            intro=block["intro"],
            items=tuple(block["items"]),
            squashed=block["squashed"],
            ordered="steps" in raw,
        )
    return Topic(
        id=raw["id"],
        subject=subject,
        name=raw["name"],
        ask=tuple(raw["ask"]),
        facts=tuple(tuple(wordings) for wordings in raw["facts"]),
        curt=tuple(raw["curt"]),
        listing=listing,
        held_out=raw.get("held_out", False),
    )


@lru_cache(maxsize=1)
def load_world() -> World:
    """Load everything that the pocket world knows.

    >>> world = load_world()
    >>> len(world.topics) >= 150 and len(world.unsafe) >= 30
    True
    """
    topics, unsafe = [], []
    folder = resources.files("dpo_core.pocket") / "knowledge"
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        data = json.loads(path.read_text(encoding="utf-8"))
        topics += [_topic(data["subject"], raw) for raw in data.get("topics", [])]
        unsafe += [
            UnsafeRequest(
                **{k: tuple(raw[k]) for k in ("ask", "refusals", "offers", "hollow")},
                id=raw["id"],
                held_out=raw.get("held_out", False),
            )
            for raw in data.get("unsafe", [])
        ]
    return World(tuple(topics), tuple(unsafe))


@lru_cache(maxsize=1)
def phrases() -> dict[str, tuple[str, ...]]:
    """Load the sentences without content, by kind: openers, closers, rude ones, filler, needless refusals."""
    text = (resources.files("dpo_core.pocket") / "phrases.json").read_text(encoding="utf-8")
    return {kind: tuple(lines) for kind, lines in json.loads(text).items()}


@dataclass(frozen=True)
class Question:
    """A prompt and what it is about."""

    text: str
    about: Topic | UnsafeRequest
    wants_list: bool = False

    @property
    def kind(self) -> str:
        """What the question wants: ``topic``, ``list`` or ``unsafe``."""
        if isinstance(self.about, UnsafeRequest):
            return "unsafe"
        return "list" if self.wants_list else "topic"

    @property
    def in_order(self) -> bool:
        """Whether a right answer gives steps in their order."""
        return (
            self.wants_list
            and isinstance(self.about, Topic)
            and bool(self.about.listing and self.about.listing.ordered)
        )


@lru_cache
def questions(held_out: bool | None = None) -> tuple[Question, ...]:
    """List every question of the world.

    Args:
        held_out: only those about held-out (True) or about other (False) matters; all if None.

    >>> held = {q.about.id for q in questions(held_out=True)}
    >>> held & {q.about.id for q in questions(held_out=False)}
    set()
    """
    world = load_world()
    out = []
    for topic in world.topics:
        asks = (*topic.ask, *(ask.format(topic.name) for ask in GENERIC_ASKS))
        out += [Question(text, topic) for text in asks]
        if topic.listing:
            out += [Question(text, topic, wants_list=True) for text in topic.listing.ask]
    for request in world.unsafe:
        out += [Question(text, request) for text in request.ask]
    once = {q.text: q for q in out}
    return tuple(q for q in once.values() if held_out is None or q.about.held_out == held_out)
