"""Next-token training: pretraining on documents, and fine-tuning on the answers of dialogues.

One loop does both; what differs is from which token on a document counts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tiktoken
import torch
from torch import Tensor
from tqdm import tqdm

from dpo_core.errors import InputError
from dpo_core.kernels.device import FUSED_ADAMW
from dpo_core.kernels.head import head_logps
from dpo_core.kernels.precision import DTYPES, autocast, choose
from dpo_core.lm.muon import Muon
from dpo_core.methods.lora import adapters
from dpo_core.model import GPT

__all__ = ["Document", "LMConfig", "language_model_loss", "text_documents", "train_lm"]


@dataclass(frozen=True)
class Document:
    """Token ids of which those from ``start`` on are to be predicted (1: all but the first)."""

    ids: Sequence[int]
    start: int = 1


@dataclass(frozen=True)
class LMConfig:
    """How a language model is trained on documents."""

    epochs: float = 1.0  # passes over the documents
    tokens_per_batch: int = 4096  # a batch holds as many documents of like length as fit
    learning_rate: float = 1e-3  # the peak; a cosine brings it down to zero
    warmup_share: float = 0.02  # share of the steps in which the rate rises
    weight_decay: float = 0.1  # on matrices; pulls weights to zero
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"  # "muon" for training from scratch; fine-tuning stays with AdamW
    precision: str = "float32"  # "bf16" is faster where there are units for it; "auto" looks for them
    seed: int = 0


def text_documents(encoding: tiktoken.Encoding, text: str, max_length: int) -> list[Document]:
    """Divide plain text into documents at its blank lines, and cut long ones into pieces.

    Args:
        encoding: of the model.
        text: any.
        max_length: tokens of a piece.
    Returns:
        One document a piece, in order.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> len(text_documents(load_tokenizer("pocket"), "One document.\\n\\nAnother.", max_length=64))
    2
    """
    documents = []
    for part in text.split("\n\n"):
        if part.strip():
            ids = [*encoding.encode_ordinary(part.strip()), encoding.eot_token]
            documents += [Document(ids[at : at + max_length]) for at in range(0, len(ids), max_length)]
    return documents


def language_model_loss(model: GPT, documents: Sequence[Document]) -> tuple[Tensor, int]:
    """Sum the negative log-probabilities of the tokens that count.

    Args:
        model: the policy.
        documents: one row each, padded on the right, which causal attention never looks at.
    Returns:
        The sum, () nats with gradient, and the number of those tokens.

    >>> model = GPT.from_pretrained("pocket")
    >>> loss, count = language_model_loss(model, [Document([1, 2, 3], start=2)])
    >>> count
    1
    """
    width = max(len(d.ids) for d in documents)
    ids = torch.zeros(len(documents), width, dtype=torch.long, device="cpu")
    counts = torch.zeros(len(documents), width, dtype=torch.bool, device="cpu")
    for row, document in enumerate(documents):
        ids[row, : len(document.ids)] = torch.as_tensor(document.ids, device="cpu")
        counts[row, document.start : len(document.ids)] = True
    ids, counts = ids.to(model.device), counts.to(model.device)
    states = model.hidden(ids[:, :-1])[counts[:, 1:]]  # (N, C): logits only where a token counts
    targets = ids[:, 1:][counts[:, 1:]]
    return -head_logps(states, model.wte.weight, targets).sum(), len(targets)


def _batches(documents: Sequence[Document], tokens: int, rng: random.Random) -> list[list[Document]]:
    """Divide all documents into batches of like length, of at most ``tokens`` positions each."""
    order = sorted(documents, key=lambda d: (len(d.ids), rng.random()))
    batches: list[list[Document]] = [[]]
    for document in order:
        if batches[-1] and len(document.ids) * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(document)
    rng.shuffle(batches)
    return batches


def no_fp16(setting: str, device: torch.device) -> str:
    """Choose the precision of a setting, with float32 in place of fp16, which would need its losses scaled.

    Args:
        setting: one of ``PRECISIONS``.
        device: of the model.
    """
    precision = choose(setting, device)
    return "float32" if precision == "fp16" else precision


def _adamw(model: GPT, config: LMConfig) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = model.device.type in FUSED_ADAMW
    return [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=fused)]


def _muon(model: GPT, config: LMConfig) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.h.parameters() if p.dim() > 1]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]  # embeddings, norms and biases
    return [
        Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            dtype=DTYPES[no_fp16(config.precision, model.device)],
        ),
        torch.optim.AdamW(
            others,
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=model.device.type in FUSED_ADAMW,
        ),
    ]


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}


def train_lm(
    model: GPT,
    documents: Sequence[Document],
    config: LMConfig,
    progress: bool = True,
    on_step: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train a model to predict the next token, with warm-up and a cosine.

    Args:
        model: trained in place.
        documents: what to learn.
        config: how.
        progress: show a bar.
        on_step: called with (step, steps, loss) after each step.
    Returns:
        The mean loss per token of each step, in nats.
    Raises:
        InputError: there is nothing to learn, or a document is longer than the model's context.
    """
    documents = [d for d in documents if len(d.ids) > d.start]  # of the others only weight decay would come
    if not documents:
        raise InputError("nothing to train on: no document has a token to predict")
    too_long = max(len(d.ids) for d in documents)
    if too_long > model.config.n_positions:
        raise InputError(f"a document has {too_long} tokens, the model {model.config.n_positions} positions; cut it")
    rng = random.Random(config.seed)
    torch.manual_seed(config.seed)
    batches: list[list[Document]] = []
    per_epoch = len(_batches(documents, config.tokens_per_batch, random.Random(0)))
    steps = max(1, math.ceil(config.epochs * per_epoch))
    warmup = max(1, int(config.warmup_share * steps))
    optimizers = OPTIMIZERS[config.optimizer](model, config)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(
                (step + 1) / warmup,
                0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)),
            ),
        )
        for optimizer in optimizers
    ]
    losses = []
    precision = no_fp16(config.precision, model.device)
    model.train()
    bar = tqdm(range(1, steps + 1), disable=None if progress else True, unit="step")
    for step in bar:
        if not batches:
            batches = _batches(documents, config.tokens_per_batch, rng)
        with autocast(model.device, precision):
            total, count = language_model_loss(model, batches.pop())
        loss = total / max(1, count)
        model.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        losses.append(loss.item())
        if not math.isfinite(losses[-1] + grad_norm.item()):
            raise InputError(f"loss or gradient of step {step} is not finite; lower the learning rate")
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        if on_step:
            on_step(step, steps, losses[-1])
    model.eval()
    if not adapters(model):
        model.source = ""  # it is no longer what was loaded
    return losses
