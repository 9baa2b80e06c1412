"""Where in its answers a policy differs from the reference: the implicit reward, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import tiktoken
import torch
from torch import Tensor

from dpo_core.course.widgets.embed import embed
from dpo_core.data import encode_pair
from dpo_core.formats.pairs import PreferencePair
from dpo_core.logprobs import token_logps
from dpo_core.model import GPT

__all__ = ["AnswerRewards", "TokenRewards", "token_rewards"]


@dataclass(frozen=True)
class AnswerRewards:
    """An answer's tokens as text, and what each adds to the implicit reward, nats."""

    name: str
    tokens: list[str]
    rewards: list[float]


@dataclass(frozen=True)
class TokenRewards:
    """Both answers of a pair, their tokens coloured by implicit reward: blue above 0, vermilion below.

    Args:
        prompt: what was asked.
        answers: one or more.
        beta: with which the rewards were computed.

    >>> shown = TokenRewards("Why?", [AnswerRewards("chosen", ["Be", "cause", "."], [0.2, 0.05, -0.1])], beta=0.1)
    >>> shown
    TokenRewards: chosen +0.15 in 3 tokens
    """

    prompt: str
    answers: Sequence[AnswerRewards]
    beta: float

    def __repr__(self) -> str:
        sums = (f"{a.name} {sum(a.rewards) + 0.0:+.2f} in {len(a.tokens)} tokens" for a in self.answers)
        return f"TokenRewards: {', '.join(sums)}"

    def _repr_html_(self) -> str:
        return embed("token_rewards", asdict(self), repr(self))


def token_rewards(
    policy: GPT, reference: GPT, encoding: tiktoken.Encoding, pair: PreferencePair, beta: float
) -> TokenRewards:
    """Compute the implicit reward beta (log pi(y_t|x, y_<t) - log ref(y_t|x, y_<t)) of each token of both answers.

    Their sum over an answer is its reward in the DPO loss (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7); the share of
    a single token says where the two models differ, not which token is good.

    Args:
        policy: the model after training.
        reference: the model before.
        encoding: the tokenizer of both.
        pair: prompt and answers.
        beta: with which the policy was trained.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> model, pair = GPT.from_pretrained("pocket"), PreferencePair("Why?", "Because it is.", "No.")
    >>> token_rewards(model, model, load_tokenizer("pocket"), pair, beta=0.1)
    TokenRewards: chosen +0.00 in 7 tokens, rejected +0.00 in 4 tokens
    """
    encoded = encode_pair(encoding, pair)
    answers = []
    for name, answer in (("chosen", encoded.chosen), ("rejected", encoded.rejected)):
        logps = [_answer_logps(model, encoded.prompt, answer) for model in (policy, reference)]
        rewards = [round(reward, 4) for reward in (beta * (logps[0] - logps[1])).tolist()]
        answers.append(AnswerRewards(name, [_text(encoding, token) for token in answer], rewards))
    return TokenRewards(pair.prompt, answers, beta)


@torch.no_grad()
def _answer_logps(model: GPT, prompt: list[int], answer: list[int]) -> Tensor:
    """Compute the log-probability of each token of an answer: (len(answer),) nats, on the CPU."""
    ids = torch.tensor([prompt + answer], device=model.device)
    return token_logps(model(ids)[0, len(prompt) - 1 : -1], ids[0, len(prompt) :]).cpu()


def _text(encoding: tiktoken.Encoding, token: int) -> str:
    """Show a token as text; bytes that are no whole character are shown as such."""
    if token == encoding.eot_token:
        return " ⟨end⟩"
    return encoding.decode_single_token_bytes(token).decode("utf-8", "backslashreplace")
