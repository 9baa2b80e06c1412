"""What the loss does not see, measured while a model trains: whether weights move, and what the policy writes now."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dpo_core.data import encode_pair
from dpo_core.generate import encode_prompt, generate
from dpo_core.logprobs import token_logps
from dpo_core.model import GPT
from dpo_core.study.evaluate import answer_kl
from dpo_core.trainer import Callback, DPOTrainer

__all__ = ["watch"]

ODD = 1e-3  # probability: of its own tokens, a reference writes about one in a thousand that it finds so unlikely


def watch(trainer: DPOTrainer, prompts: Sequence[str] = (), max_new_tokens: int = 120) -> Callback:
    """Make a callback that measures what the loss does not see; some rules of ``diagnose`` need it.

    In every row it adds ``weights/changed``, the share of weights that differ from the start. In rows of step 0 and of
    evaluations ``ended/chosen``, the share of chosen answers in training that have their end-of-text token, and
    ``eos/chosen``, the probability of that token where whole chosen answers end, held out and not cut. With prompts
    also ``kl/policy_ref`` in nats an answer, ``samples/length`` in tokens, ``samples/ended`` as a share, and
    ``samples/odd``, the tokens a sample to which the reference gives less than 1 in 1,000.

    Args:
        trainer: before its first step; with prompts a copy of its model is kept.
        prompts: two or more, sampled at temperature 1; two dozen take a second or two each time.
        max_new_tokens: longest sample.
    Returns:
        A callback for ``trainer.train(callbacks=[...])``.

    >>> from dpo_core.formats.pairs import PreferencePair
    >>> from dpo_core.model import GPT
    >>> from dpo_core.tokenizer import load_tokenizer
    >>> from dpo_core.config import DPOConfig
    >>> model, pairs = GPT.from_pretrained("pocket"), [PreferencePair("Why?", "Because it is.", "No.")]
    >>> trainer = DPOTrainer(model, load_tokenizer("pocket"), pairs, DPOConfig(steps=1, val_share=0))
    >>> look = watch(trainer, ["What is Python?"] * 2, max_new_tokens=8)
    >>> row = trainer.train(progress=False, callbacks=[look]).rows[0]
    >>> row["weights/changed"], row["kl/policy_ref"], row["ended/chosen"]
    (0.0, 0.0, 1.0)
    """
    reference = copy.deepcopy(trainer.model).eval() if prompts else None
    start = _some_weights(trainer.model)

    def look(trainer: DPOTrainer, step: int, row: dict[str, float]) -> dict[str, float]:
        found = {"weights/changed": (_some_weights(trainer.model) != start).float().mean().item()}
        if step == 0 or trainer.due(trainer.config.eval_every):
            found |= _endings(trainer)
            if reference:
                found |= _sample(trainer, reference, prompts, max_new_tokens)
        return found

    return look


def _some_weights(model: torch.nn.Module, count: int = 4096) -> Tensor:
    """Pick values of the trainable weights, evenly spaced over all of them."""
    parameters = [parameter.detach().flatten() for parameter in model.parameters() if parameter.requires_grad]
    stride = max(1, sum(map(len, parameters)) // count)
    return torch.cat([parameter[::stride].float() for parameter in parameters])


@contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)


def _next_logits(model: GPT, prompt: list[int], answer: list[int]) -> Tensor:
    """Compute the logits that predict an answer's tokens: (len(answer), V)."""
    return model(torch.tensor([prompt + answer], device=model.device))[0, len(prompt) - 1 : -1]


def _endings(trainer: DPOTrainer, count: int = 32) -> dict[str, float]:
    end, chosen = trainer.encoding.eot_token, [e.chosen for e in trainer.training if e.chosen]
    shown = [e.pair for e in trainer.validation or trainer.training if e.chosen][:count]
    whole = [encode_pair(trainer.encoding, pair) for pair in shown]
    room = trainer.model.config.n_positions
    with _evaluating(trainer.model):
        stops = [
            _next_logits(trainer.model, e.prompt, e.chosen)[-1].float().softmax(-1)[end].item()
            for e in whole
            if len(e.prompt) + len(e.chosen) <= room
        ]
    found = {"ended/chosen": sum(ids[-1:] == [end] for ids in chosen) / len(chosen)} if chosen else {}
    return found | ({"eos/chosen": sum(stops) / len(stops)} if stops else {})


def _sample(trainer: DPOTrainer, reference: GPT, prompts: Sequence[str], longest: int) -> dict[str, float]:
    model, encoding = trainer.model, trainer.encoding
    with _evaluating(model):
        answers = generate(model, encoding, prompts, max_new_tokens=longest, seed=0)
        texts = [(encode_prompt(model, encoding, answer.prompt), answer.ids) for answer in answers]
        kl = answer_kl(model, reference, encoding, answers).mean().item()
        odd = 0
        for prompt, ids in texts:
            logps = token_logps(_next_logits(reference, prompt, ids), torch.tensor(ids, device=model.device))
            odd += int((logps < math.log(ODD)).sum())
    count = len(answers)
    return {
        "kl/policy_ref": kl,
        "samples/length": sum(len(answer.ids) for answer in answers) / count,
        "samples/ended": sum(answer.ended for answer in answers) / count,
        "samples/odd": odd / count,
    }
