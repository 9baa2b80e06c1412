"""A reward model: a GPT with a scalar head, trained on preferences by Bradley and Terry's model.

The head reads the state of an answer's last token, which has seen prompt and answer. That token is the end-of-text,
unless the answer was cut.

Shapes: B answers or pairs, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from dpo_core.config import DPOConfig, default_learning_rate
from dpo_core.data import EncodedPair, batches, encode_pair
from dpo_core.errors import InputError
from dpo_core.formats.files import atomic_write, read_tensors
from dpo_core.formats.pairs import PreferencePair
from dpo_core.formats.settings import COUNT, NOT_NEGATIVE, POSITIVE, SEED, Kind, check, setting
from dpo_core.metrics import History, MetricSums
from dpo_core.model import GPT
from dpo_core.rl.answers import Sample, collate_answers
from dpo_core.runs.checks import check_model

__all__ = ["RewardConfig", "RewardModel", "evaluate_reward", "reward_loss", "reward_scores", "scorer", "train_reward"]

HEAD = "reward_head.safetensors"
BELOW_1 = Kind(float, "a number of at least 0 and below 1", lambda value: 0 <= value < 1)


class RewardModel(nn.Module):
    """A GPT and a linear head without bias, which no difference of rewards would show.

    The head is 0 at the start, so that all answers are worth the same.

    Args:
        gpt: the body, trained together with the head; it should come from fine-tuning, as the policy does.

    >>> model = RewardModel(GPT.from_pretrained("pocket"))
    >>> reward_scores(model, [([1, 2], [3, 4]), ([1], [2])]).tolist()
    [0.0, 0.0]
    """

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt
        self.head = nn.Linear(gpt.config.n_embd, 1, bias=False).to(gpt.device)
        nn.init.zeros_(self.head.weight)

    def forward(self, samples: Sequence[Sample]) -> Tensor:
        """Compute the rewards of answers, with gradient.

        Args:
            samples: token ids of B prompts with an answer each.
        Returns:
            (B,).
        """
        batch = collate_answers(samples, self.gpt.device)
        states = self.gpt.hidden(batch.ids)  # (B, W, C)
        last = states[torch.arange(len(batch.last), device=states.device), batch.last]  # (B, C)
        return self.head(last)[:, 0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the body as a GPT's folder, and the head beside it; safetensors both.

        Args:
            folder: made if it is missing.
        Raises:
            InputError: the body has an adapter, or the folder cannot be written.
        """
        self.gpt.save_pretrained(folder)
        with atomic_write(Path(folder) / HEAD) as partial:
            save_file({"weight": self.head.weight.detach().cpu()}, partial, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> RewardModel:
        """Open a folder that ``save_pretrained`` wrote.

        Args:
            folder: of the reward model.
        Returns:
            The model in float32, on the CPU, in evaluation mode.
        Raises:
            InputError: there is no head, or body or head are damaged.

        >>> import tempfile
        >>> model = RewardModel(GPT.from_pretrained("pocket"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     RewardModel.from_pretrained(folder).head.weight.shape
        torch.Size([1, 224])
        """
        file = Path(folder) / HEAD
        if not file.is_file():
            raise InputError(f"{folder}: no reward model, as there is no {HEAD}; train one (python -m dpo_core reward)")
        model, head = cls(GPT.from_pretrained(folder)), read_tensors(file)
        if head.keys() != {"weight"} or head["weight"].shape != model.head.weight.shape:
            raise InputError(f"{file}: not the head of this model; copy both files from the same place")
        model.head.load_state_dict(head)
        return model.eval()


@torch.no_grad()
def reward_scores(model: RewardModel, samples: Sequence[Sample], batch_size: int = 32) -> Tensor:
    """Compute the rewards of answers.

    Args:
        model: the reward model.
        samples: token ids of prompts with an answer each, its end-of-text included.
        batch_size: answers per pass.
    Returns:
        (len(samples),) on the CPU, comparable between answers to the same prompt only.
    """
    parts = (samples[at : at + batch_size] for at in range(0, len(samples), batch_size))
    return torch.cat([model(part).cpu() for part in parts])


def reward_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Compute -log sigmoid(chosen - rejected), Bradley and Terry's (Rafailov et al. 2023, arXiv:2305.18290, Eq. 2).

    Args:
        chosen: (B,) rewards of the preferred answers.
        rejected: (B,) rewards of the others.
    Returns:
        (B,) nats.

    >>> reward_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))  # ln 2, ln(1 + e^-2)
    tensor([0.6931, 0.1269])
    """
    return -F.logsigmoid(chosen - rejected)


@dataclass(frozen=True)
class RewardConfig:
    """The settings of the training of a reward model.

    >>> RewardConfig().batch_size
    16
    """

    # fmt: off
    epochs: int = setting(1, COUNT, group="the steps",
        help="passes over the pairs: more fit them better, and soon by heart")
    batch_size: int = setting(16, COUNT, help="pairs per step: higher is calmer and takes more memory")
    learning_rate: float = setting(None, POSITIVE, "--lr", unset="1e-4 for pocket, 1e-5 for GPT-2",
        help="length of a step: higher learns faster, and breaks what the model knows sooner")
    weight_decay: float = setting(0.0, NOT_NEGATIVE, help="pull of all weights towards 0")
    max_grad_norm: float = setting(1.0, POSITIVE, help="longer gradients are shortened to this")
    val_share: float = setting(0.1, BELOW_1,
        help="share of the prompts set aside for validation: higher measures better and trains on less")
    log_every: int = setting(10, COUNT, help="steps averaged in one row of the history")
    seed: int = setting(0, SEED, help="of the split and the order of the pairs")
    # fmt: on

    def __post_init__(self) -> None:
        for found in fields(self):
            check(found, getattr(self, found.name))


def train_reward(
    model: RewardModel,
    training: Sequence[EncodedPair],
    config: RewardConfig,
    validation: Sequence[EncodedPair] = (),
    *,
    progress: bool = False,
) -> History:
    """Train a reward model in place.

    Args:
        model: the reward model, on the device to train on.
        training: pairs, of ``audit_pairs``.
        config: the settings; ``val_share`` is for whoever divides the pairs, with ``split_by_prompt``.
        validation: pairs to evaluate on at the end.
        progress: show a bar, if there is a terminal.
    Returns:
        Rows with loss, accuracy, margin and mean reward, TRL's names; the last has them of the validation pairs, too.
    Raises:
        InputError: no pairs, or a loss or gradient that is not finite.

    >>> pair = PreferencePair("", "", "")
    >>> pairs = [EncodedPair([1, 2], [3, 4095], [5, 6, 4095], pair), EncodedPair([7], [3, 4095], [8, 4095], pair)]
    >>> history = train_reward(RewardModel(GPT.from_pretrained("pocket")), pairs, RewardConfig(epochs=3, log_every=1))
    >>> [round(history.rows[0]["loss"], 4), history.rows[0]["accuracy"], history.rows[-1]["accuracy"]]
    [0.6931, 0.0, 1.0]
    """
    if not training:
        raise InputError("no preference pairs to train a reward model on; give some")
    steps = config.epochs * -(-len(training) // config.batch_size)
    rate = config.learning_rate or default_learning_rate(model.gpt, published=1e-5)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay)
    history, sums = History(), MetricSums()
    order = islice(batches(len(training), config.batch_size, config.seed), steps)
    for step, indices in enumerate(tqdm(order, total=steps, disable=None if progress else True), start=1):
        chosen, rejected = pair_rewards(model, [training[i] for i in indices])  # (B,) each
        loss = reward_loss(chosen, rejected).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        if not (loss + norm).isfinite():
            raise InputError(f"loss or gradient of step {step} is not finite; lower the learning rate")
        optimizer.step()
        sums.add(reward_metrics(chosen.detach(), rejected.detach()))
        if step % config.log_every == 0 or step == steps:
            history.log(step, **sums.means(), grad_norm=norm.item())
            sums = MetricSums()
    if validation:
        found = evaluate_reward(model, validation)
        history.log(steps, **{f"eval_{name}": value for name, value in found.items()})
    return history


def pair_rewards(model: RewardModel, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
    """Compute the rewards of both answers of each pair: (B,) of the chosen, (B,) of the rejected ones."""
    samples = [(e.prompt, answer) for e in pairs for answer in (e.chosen, e.rejected)]
    chosen, rejected = model(samples).view(-1, 2).unbind(1)
    return chosen, rejected


def reward_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Compute loss, accuracy, margin and mean reward of each pair: (B,) each; equal rewards are no hit."""
    return {
        "loss": reward_loss(chosen, rejected),
        "accuracy": (chosen > rejected).float(),
        "margin": chosen - rejected,
        "mean_reward": (chosen + rejected) / 2,
    }


@torch.no_grad()
def evaluate_reward(model: RewardModel, pairs: Sequence[EncodedPair], batch_size: int = 16) -> dict[str, float]:
    """Average the metrics of a reward model over pairs.

    Args:
        model: the reward model.
        pairs: at least one.
        batch_size: pairs per pass.
    Returns:
        loss, accuracy, margin and mean_reward.
    """
    sums = MetricSums()
    for at in range(0, len(pairs), batch_size):
        sums.add(reward_metrics(*pair_rewards(model, pairs[at : at + batch_size])))
    return sums.means()


def scorer(
    model: RewardModel, encoding: tiktoken.Encoding, max_length: int | None = None
) -> Callable[[list[str], list[str]], Tensor]:
    """Make a function that scores texts, as ``RLTrainer`` and ``best_of_n`` take it.

    Texts are encoded as pairs are for training, each with its end-of-text: that an answer was cut is not seen here, and
    is what ``missing_eos_penalty`` is for.

    Args:
        model: the reward model.
        encoding: its tokenizer.
        max_length: tokens of prompt and answer; the model's positions if not given. The answer is cut there.
    Returns:
        From prompts and answers to (B,) rewards.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> scorer(RewardModel(GPT.from_pretrained("pocket")), load_tokenizer("pocket"))(["Why?"], ["Because."])
    tensor([0.])
    """
    check_model(model.gpt, encoding, DPOConfig())
    length = max_length or model.gpt.config.n_positions

    def score(prompts: list[str], answers: list[str]) -> Tensor:
        pairs: Any = (encode_pair(encoding, PreferencePair(*texts, texts[1])) for texts in zip(prompts, answers))
        return reward_scores(model, [(e.prompt, e.chosen[: length - len(e.prompt)]) for e in pairs])

    return score
