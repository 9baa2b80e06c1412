"""Preference pairs made on the spot: typed in, answered by a model and judged, or drawn from the pocket world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import resources

from dpo_core.errors import InputError, printable
from dpo_core.formats.pairs import PreferencePair, load_pairs
from dpo_core.generate import Generation, generate
from dpo_core.model import GPT
from dpo_core.tokenizer import load_tokenizer

__all__ = ["answer_twice", "ask_which", "pocket_pairs", "sampled_pairs", "typed_pairs"]


def _ask(question: str) -> str | None:
    """Read a line from the keyboard; None at ``done`` or the end of the input."""
    try:
        text = input(question).strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"what was typed is not UTF-8 ({error.reason}); set the terminal to UTF-8") from error
    return None if text.lower() == "done" else text


def typed_pairs() -> Iterator[PreferencePair]:
    """Read pairs from the keyboard, one after the other, until ``done`` or the end of the input."""
    while True:
        texts = []
        for name in ("Prompt", "Chosen", "Rejected"):
            while (text := _ask(f"{name}: ")) == "":
                print("Please type something, or done.")
            if text is None:
                return
            texts.append(text)
        if texts[1] == texts[2]:
            print("The answers are the same, so there is nothing to prefer; the pair was not saved.")
        else:
            yield PreferencePair(*texts)


def ask_which(first: Generation, second: Generation) -> int | None:
    """Ask the person at the keyboard which answer is better.

    Args:
        first: shown as 1.
        second: shown as 2.
    Returns:
        1 for the first, -1 for the second, 0 for neither, None to end.
    """
    print(printable(f"\n{first.prompt}\n\n[1] {first.text}\n\n[2] {second.text}\n"))
    verdicts = {"1": 1, "2": -1, "s": 0}
    while (text := _ask("Which is better: 1, 2, s (skip) or done? ")) is not None:
        if text.lower() in verdicts:
            return verdicts[text.lower()]
    return None


def answer_twice(model: GPT, prompts: Sequence[str], seed: int) -> list[tuple[Generation, Generation]]:
    """Sample two answers of a model to each prompt at temperature 1, and keep those that differ and are not blank.

    Args:
        model: who answers.
        prompts: what is asked.
        seed: of the sampling.
    Returns:
        Two answers for each prompt that is left.

    >>> [(first, second)] = answer_twice(GPT.from_pretrained("pocket"), ["Why is the sky blue?"], seed=0)
    >>> first.text == second.text
    False
    """
    doubled = [prompt for prompt in prompts for _ in range(2)]
    answers = generate(model, load_tokenizer(model.config.tokenizer), doubled, max_new_tokens=200, seed=seed)
    both = zip(answers[::2], answers[1::2])
    return [(a, b) for a, b in both if a.text.strip() and b.text.strip() and a.text != b.text]


def sampled_pairs(
    model: GPT, prompts: Sequence[str], prefers: Callable[[Generation, Generation], int | None], seed: int
) -> Iterator[PreferencePair]:
    """Sample two answers of a model to each prompt at temperature 1, and have them judged.

    Args:
        model: who answers.
        prompts: what is asked.
        prefers: 1 for the first answer, -1 for the second, 0 for neither, None to end, as ``ask_which``.
        seed: of the sampling.
    Returns:
        A pair for each prompt whose answers differ and of which one is preferred.

    >>> model, longer = GPT.from_pretrained("pocket"), lambda a, b: 1 if len(a.text) > len(b.text) else -1
    >>> pair = next(sampled_pairs(model, ["Why is the sky blue?"], longer, seed=0))
    >>> len(pair.chosen) >= len(pair.rejected)
    True
    """
    for first, second in answer_twice(model, prompts, seed):
        verdict = prefers(first, second)
        if verdict is None:
            return
        if verdict:
            chosen, rejected = (first, second) if verdict > 0 else (second, first)
            yield PreferencePair(first.prompt, chosen.text, rejected.text)


def pocket_pairs(count: int, seed: int = 0, noise: float = 0.0, longer_chosen: float = 0.5) -> list[PreferencePair]:
    """Make pairs: the ten of the quick-start guide, then pairs of the pocket world that differ in style (``contrast``).

    Args:
        count: of all.
        seed: of the draw.
        noise: temperature of the judge's Bradley-Terry choice; 0 for the better answer always.
        longer_chosen: share of the drawn pairs in which the chosen answer is the longer one.

    >>> [pair.prompt for pair in pocket_pairs(2)]
    ['Explain machine learning.', 'What is the capital of France?']
    """
    from dpo_core.pocket.corpus import preference_pairs
    from dpo_core.pocket.judge import PocketJudge

    guide = load_pairs(str(resources.files("dpo_core.pocket") / "guide_pairs.jsonl"))[:count]
    drawn = preference_pairs(count - len(guide), seed, PocketJudge(), noise, longer_chosen=longer_chosen, contrast=True)
    return guide + drawn
