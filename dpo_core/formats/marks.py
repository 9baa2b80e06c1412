"""Marks in texts that are no words: end tokens, chat markers, and white space at an answer's ends."""

from __future__ import annotations

from collections.abc import Iterator

from dpo_core.formats.dialogues import tidy

__all__ = ["ENDS", "marks_in", "one_seam", "without_end"]

# End tokens of GPT-2, then of others; in a text they are letters, and would be learned as such.
END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "<eos>", "</s>")
MARKERS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>")


def _own_end(text: str) -> str:
    bare = text.rstrip()
    found = next((end for end in ENDS if bare.endswith(end)), "")
    return "" if found == "</s>" and "<s>" in text[1:] else found  # struck-out text in HTML


def without_end(text: str) -> str:
    """Take an end token off the end of an answer, GPT-2's or another model's, with white space behind it.

    >>> without_end("Yes.<|endoftext|>\\n"), without_end("Yes.</s>"), without_end("<s>No</s>, <s>yes</s>")
    ('Yes.', 'Yes.', '<s>No</s>, <s>yes</s>')
    """
    end = _own_end(text)
    return text.rstrip().removesuffix(end) if end else text


def one_seam(chosen: str, rejected: str) -> list[str]:
    """Give both answers the same white space around them, as what only one has would tell which it is.

    Where it differs before them, what only separates is taken off both and indentation stays; behind them, all.

    >>> one_seam("So.", " No."), one_seam(" So.", " No."), one_seam("    return 1", "return 1")
    (['So.', 'No.'], [' So.', ' No.'], ['    return 1', 'return 1'])
    """
    answers = [chosen, rejected]
    if len({text[len(text.rstrip()) :] for text in answers}) > 1:
        answers = [text.rstrip() for text in answers]
    if len({text[: len(text) - len(text.lstrip())] for text in answers}) > 1:
        answers = [_lead_off(text) for text in answers]
    return answers


def _lead_off(text: str) -> str:
    return tidy(text) + text[len(text.rstrip()) :]


def marks_in(prompt: str, *answers: str) -> Iterator[str]:
    """Say which marks are in texts that were mended or are read as letters.

    >>> list(marks_in("Why?", "So.</s>", "No."))
    ["an answer ended in another model's end token, which was taken off"]
    """
    if any(_own_end(text) not in ("", END_OF_TEXT) for text in answers):
        yield "an answer ended in another model's end token, which was taken off"
    inside = [prompt, *map(without_end, answers)]
    if any(END_OF_TEXT in text for text in inside):
        yield f"{END_OF_TEXT} stands within a text and is read as letters"
    if any(marker in text for text in inside for marker in MARKERS):
        yield "a text holds another model's chat markers, which are read as letters"
    if len(answers) == 2 and one_seam(*inside[1:]) != inside[1:]:
        yield "the answers had different white space at their beginning or end, which was taken off"
    if len(answers) > 1 and len(prompt.split()) > 1:
        again = sum(text.lstrip().startswith(prompt.strip()) for text in answers)
        if again == len(answers):
            yield "both answers begin with the whole prompt once more"
        elif again:
            yield "only one answer begins with the whole prompt once more, which tells it from the other"
