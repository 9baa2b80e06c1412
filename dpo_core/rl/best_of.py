"""Without reinforcement learning: the best of n samples, and fine-tuning on the preferred answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import tiktoken
import torch
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair
from dpo_core.generate import Generation, generate
from dpo_core.lm.pretrain import LMConfig, train_lm
from dpo_core.lm.sft import Example, sft_documents
from dpo_core.model import GPT

__all__ = ["BestOf", "best_of_n", "best_of_n_kl", "best_of_n_kl_bound", "preferred_examples", "train_preferred"]


@dataclass(frozen=True)
class BestOf:
    """The best answer to each of X prompts, and the scores of all n."""

    answers: list[Generation]  # X
    scores: Tensor  # (X, n)


def best_of_n(
    model: GPT,
    encoding: tiktoken.Encoding,
    prompts: Sequence[str],
    score: Callable[[list[str], list[str]], Sequence[float] | Tensor],
    n: int,
    *,
    max_new_tokens: int = 128,
    seed: int = 0,
) -> BestOf:
    """Sample n answers to each prompt and keep the one that scores best; of equals the first.

    Args:
        model: sampled at temperature 1.
        encoding: of the model.
        prompts: X of them.
        score: takes prompts and answers, and returns one reward each.
        n: answers to each prompt; 1 is the model itself.
        max_new_tokens: tokens of an answer.
        seed: of the sampling.
    Returns:
        The best answers and all scores.
    Raises:
        InputError: n below 1, or what ``generate`` refuses.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> def longer(prompts, answers):
    ...     return [len(answer) for answer in answers]
    >>> model, encoding = GPT.from_pretrained("pocket"), load_tokenizer("pocket")
    >>> found = best_of_n(model, encoding, ["Why is the sky blue?"], longer, n=3, max_new_tokens=8)
    >>> len(found.answers[0].text) == found.scores.max()
    tensor(True)
    """
    if n < 1:
        raise InputError(f"n is {n}; the best of at least one answer can be taken")
    asked = [prompt for prompt in prompts for _ in range(n)]
    answers = generate(model, encoding, asked, max_new_tokens=max_new_tokens, seed=seed)
    given = score(asked, [answer.text for answer in answers])
    scores = torch.as_tensor(given, dtype=torch.float32).cpu().view(-1, n)
    best = scores.argmax(1).tolist()
    return BestOf([answers[row * n + column] for row, column in enumerate(best)], scores)


def best_of_n_kl_bound(n: int) -> float:
    """Compute log n - (n-1)/n, which KL(best of n || the model) does not exceed.

    Stiennon et al. 2020, arXiv:2009.01325, appendix G.3; proved as a bound by Beirami et al. 2024, arXiv:2401.01879.

    It is the divergence itself where no two answers score alike and none is likely by itself.

    Args:
        n: answers from which the best is taken.
    Returns:
        Nats.

    >>> [round(best_of_n_kl_bound(n), 3) for n in (1, 2, 4, 64)]
    [0.0, 0.193, 0.636, 3.175]
    """
    return math.log(n) - (n - 1) / n


def best_of_n_kl(scores: Tensor, n: int) -> Tensor:
    """Measure KL(best of n || the model) from the scores of many samples.

    The best of n scores s or less as often as n samples do, F(s)^n; so level s, of share p(s) among the samples, is
    chosen with probability q(s) = F(s)^n - F(below s)^n, and the divergence is the sum of q log(q/p) over the levels:
    within a level nothing is preferred. Few samples find too small a divergence: N of them at most log N.

    Args:
        scores: (X, N) of samples of the model, N much larger than n.
        n: answers from which the best is taken.
    Returns:
        (X,) nats, float64.

    >>> best_of_n_kl(torch.tensor([[0.0, 1.0], [5.0, 5.0]]), n=2)  # 1/4 ln 1/2 + 3/4 ln 3/2; all alike: 0
    tensor([0.1308, 0.0000], dtype=torch.float64)
    """
    found = []
    for row in scores.cpu():
        share = row.unique(return_counts=True)[1].double() / len(row)  # (levels,), lowest first
        upto = share.cumsum(0).clamp(max=1.0)
        chosen = upto**n - (upto - share).clamp(min=0.0) ** n
        found.append(torch.special.xlogy(chosen, chosen / share).sum())
    return torch.stack(found)


def preferred_examples(pairs: Iterable[PreferencePair]) -> list[Example]:
    """Take the chosen answers as examples to imitate: what the pairs teach without their other half.

    Args:
        pairs: preferences.
    Returns:
        Each prompt with its chosen answer once, in the pairs' order.

    >>> preferred_examples([PreferencePair("Why?", "Because.", "No."), PreferencePair("Why?", "Because.", "Why not?")])
    [Example(prompt='Why?', completion='Because.')]
    """
    return list(dict.fromkeys(Example(pair.prompt, pair.chosen) for pair in pairs))


def train_preferred(
    model: GPT, encoding: tiktoken.Encoding, pairs: Iterable[PreferencePair], config: LMConfig
) -> list[float]:
    """Fine-tune a model in place on the chosen answers (preferred-SFT, "Preferred-FT" in the DPO paper, section 6).

    Args:
        model: to be trained.
        encoding: its tokenizer.
        pairs: preferences.
        config: of ``train_lm``.
    Returns:
        The loss per token of each step, in nats.
    Raises:
        InputError: as ``train_lm``.
    """
    documents = sft_documents(encoding, preferred_examples(pairs), model.config.n_positions)
    return train_lm(model, documents, config)
