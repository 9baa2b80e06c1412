"""An exam: two models answer the same questions, and the judge marks the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpo_core.generate import generate
from dpo_core.model import GPT
from dpo_core.pocket.judge import PocketJudge
from dpo_core.study.evaluate import Difference, WinRate, paired_bootstrap, sample_kl, win_rate
from dpo_core.tokenizer import load_tokenizer

__all__ = ["Exam", "Marks", "examine"]


@dataclass(frozen=True)
class Marks:
    """Means over the answers of one model."""

    reward: float  # of PocketJudge
    parsed: float  # share of the answers that the judge can read
    words: float

    def __str__(self) -> str:
        return f"reward {self.reward:+.2f}, parsed {self.parsed:.3f}, {self.words:.0f} words an answer"


@dataclass(frozen=True)
class Exam:
    """What ``examine`` found."""

    questions: int
    policy: Marks
    reference: Marks
    win_rate: WinRate
    reward_gained: Difference  # policy - reference, question by question
    kl: float  # nats per answer
    kl_error: float  # its standard error

    def __str__(self) -> str:
        return (
            f"policy     {self.policy}\nreference  {self.reference}\n{self.win_rate}\n"
            f"reward gained {self.reward_gained}\n"
            f"KL(policy || reference) {self.kl:.2f} +- {self.kl_error:.2f} nats an answer"
        )


def examine(policy: GPT, reference: GPT, prompts: Sequence[str], seed: int = 0, max_new_tokens: int = 200) -> Exam:
    """Sample one answer of each model to each prompt at temperature 1 and have them judged.

    Args:
        policy: a model with the pocket tokenizer.
        reference: another.
        prompts: two or more questions of the pocket world.
        seed: of the sampling.
        max_new_tokens: longest answer; the world's own have fewer than 200.
    Returns:
        Marks of both, win rate, reward gained, and the divergence.
    Raises:
        InputError: as ``sample_kl``.

    >>> model = GPT.from_pretrained("pocket")
    >>> exam = examine(model, model, ["Why is the sky blue?", "What is Python?"], max_new_tokens=20)
    >>> exam.win_rate.rate, exam.kl
    (0.5, 0.0)
    """
    encoding, judge = load_tokenizer("pocket"), PocketJudge()

    def sit(model: GPT) -> tuple[list[float], Marks]:
        texts = [a.text for a in generate(model, encoding, prompts, max_new_tokens=max_new_tokens, seed=seed)]
        scores = [judge.score(prompt, text) for prompt, text in zip(prompts, texts)]
        seen = [judge.features(prompt, text) for prompt, text in zip(prompts, texts)]
        count = len(prompts)
        return scores, Marks(
            sum(scores) / count, sum(s.parsed for s in seen) / count, sum(s.words for s in seen) / count
        )

    (policy_scores, policy_marks), (reference_scores, reference_marks) = sit(policy), sit(reference)
    kl, error = sample_kl(policy, reference, encoding, prompts, max_new_tokens=max_new_tokens, seed=seed)
    return Exam(
        questions=len(prompts),
        policy=policy_marks,
        reference=reference_marks,
        win_rate=win_rate(policy_scores, reference_scores),
        reward_gained=paired_bootstrap(policy_scores, reference_scores),
        kl=kl,
        kl_error=error,
    )
