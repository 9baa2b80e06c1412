"""GPT in GPT-2's architecture, in one file.

- Decoder-only transformer, pre-norm, learned positions, tanh-GELU, head tied to the token embedding
  (Radford et al. 2019).
- Module names are those of GPT-2's published checkpoints, which ``formats.hf_layout`` reads and writes.

Shapes: B rows, T positions, C channels, H heads, V vocabulary.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dpo_core.errors import InputError, shown
from dpo_core.formats.files import atomic_write
from dpo_core.formats.hf_layout import (
    SPECIAL,
    check_layout,
    described,
    find_checkpoint,
    from_hf,
    on_hub,
    read_config,
    to_hf,
)
from dpo_core.formats.hf_tokenizer import added_tokens, save_tokenizer
from dpo_core.kernels.attention import Attend, attention_bias, scaled_dot_product_attention
from dpo_core.kernels.precision import compute_dtype
from dpo_core.tokenizer import load_tokenizer, vocabulary_of

__all__ = ["GPT", "GPTConfig", "KVCache", "write_tokenizer"]

log = logging.getLogger(__name__)

KVCache = list[tuple[Tensor, Tensor]]  # one (keys, values) per layer, each (B, T, H, C/H)


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT; the field names are those of GPT-2's ``config.json``.

    >>> GPTConfig().n_embd
    768
    """

    vocab_size: int = 50257
    n_positions: int = 1024  # longest sequence
    n_embd: int = 768  # C
    n_layer: int = 12
    n_head: int = 12  # H
    dropout: float = 0.0  # DPO wants 0: noise in the log-ratio is noise in the reward
    tokenizer: str = "gpt2"  # name for load_tokenizer
    # What config.json said of these tokens, kept for the next one; here the encoding's own end of text counts.
    bos_token_id: int | None = field(default=None, compare=False)
    eos_token_id: int | None = field(default=None, compare=False)
    pad_token_id: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} must be a whole number above 0, not {size!r}")
        if not isinstance(self.tokenizer, str):
            raise InputError(f"tokenizer must be a name, not {self.tokenizer!r}")
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, bias: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention in each head: softmax(q k^T / sqrt(C/H) + bias) v.

    Args:
        q: (B, T, H, C/H) queries.
        k: (B, S, H, C/H) keys.
        v: (B, S, H, C/H) values.
        dropout: share of the attention weights to drop.
        bias: added to the scores, broadcastable to (B, H, T, S), -inf where attention is not allowed; without one, a
            query sees the keys up to its own position.
    Returns:
        (B, T, H, C/H).

    >>> q, v = torch.zeros(1, 2, 1, 4), torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    >>> attention(q, q, v, dropout=0.0).flatten()  # the second query sees both keys
    tensor([0.0000, 0.5000])
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, C/H)
    return scaled_dot_product_attention(q, k, v, bias, dropout).transpose(1, 2)


def _with_cache(attend: Attend, cache: KVCache, layer: int) -> Attend:
    """Let queries see the keys of earlier calls, too; the cache gets the new ones."""

    def attend_to_all(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        if layer < len(cache):
            k, v = (torch.cat([earlier, new], dim=1) for earlier, new in zip(cache[layer], (k, v)))
        cache[layer : layer + 1] = [(k, v)]
        return attend(q, k, v, dropout)

    return attend_to_all


class Attention(nn.Module):
    """Multi-head self-attention; ``attend`` decides which positions see which."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Mix the states of the positions that ``attend`` lets see each other: (B, T, C) to (B, T, C)."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.n_head, -1)).unbind(-3)  # (B, T, H, C/H) each
        y = attend(q, k, v, self.dropout if self.training else 0.0)
        return F.dropout(self.c_proj(y.flatten(-2)), self.dropout, self.training)  # (B, T, C)


class MLP(nn.Module):
    """Position-wise feed-forward: widen fourfold, GELU, narrow again."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the state of each position by itself: (..., C) to (..., C)."""
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """One transformer layer: attention and MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Add to the states what attention and the MLP find in them: (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x), attend)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2: token and position embeddings, blocks, a final norm, and the embedding again as the head.

    Args:
        config: the shape of the model.

    >>> model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 11])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.source = ""  # what from_pretrained was given
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        # GPT-2's initialisation: std 0.02, and less where 2 n_layer outputs are summed into the stream.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, (Attention, MLP)):
            nn.init.normal_(module.c_proj.weight, std=0.02 / (2 * self.config.n_layer) ** 0.5)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.wte.weight.device

    @property
    def origin(self) -> str:
        """What ``from_pretrained`` was given, a folder as its absolute path."""
        named = self.source in ("", "pocket") or on_hub(self.source)
        return self.source if named else str(Path(self.source).absolute())

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Compute the final hidden states, so that a caller can compute logits only where they are needed.

        Args:
            ids: (B, T) token ids.
            positions: (B, T) positions; counted on from the cache, or from 0, if not given.
            mask: bool, broadcastable to (B, H, T, T_past + T), True where attention is allowed; causal if not given.
            cache: keys and values of earlier positions, extended in place; an empty list starts one.
            attend: another way to mix values, for which the mask is not looked at; ``kernels.attention`` has one for
                ids and positions of (M,) without padding, and then the states are of (M, C).
        Returns:
            (B, T, C) states; ``model.logits`` turns them into logits.
        Raises:
            InputError: a sequence is longer than the model has positions; only looked at where positions are not given.
        """
        past_length = cache[0][0].shape[1] if cache else 0
        if positions is None:
            if past_length + ids.shape[1] > self.config.n_positions:
                raise InputError(
                    f"sequence of {past_length + ids.shape[1]} tokens, but the model has {self.config.n_positions}"
                    " positions: shorten the text or set a lower max_length"
                )
            positions = torch.arange(past_length, past_length + ids.shape[1], device=ids.device)
        if mask is None and past_length:
            steps = torch.arange(past_length + ids.shape[1], device=ids.device)
            mask = steps <= steps[past_length:, None]  # (T, T_past + T)
        if attend is None:
            bias = None if mask is None else attention_bias(mask, compute_dtype(self.wte.weight))
            attend = partial(attention, bias=bias)
        x = F.dropout(self.wte(ids) + self.wpe(positions), self.config.dropout, self.training)  # (B, T, C)
        for layer, block in enumerate(self.h):
            x = block(x, attend if cache is None else _with_cache(attend, cache, layer))
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn states into logits: the dot product with every token's embedding.

        Args:
            hidden: (..., C) of ``hidden``.
        Returns:
            (..., V).
        """
        return F.linear(hidden, self.wte.weight)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the logits of every position; those at t predict token t + 1.

        Args:
            ids: (B, T) token ids.
            mask: as in ``hidden``; causal if not given.
        Returns:
            (B, T, V).
        """
        return self.logits(self.hidden(ids, mask=mask))

    # Checkpoints

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> GPT:
        """Load a model from the package (``pocket``), the Hub (``gpt2`` ... ``gpt2-xl``, ``owner/name``) or a folder.

        Args:
            name_or_path: one of those names, or a folder with ``config.json`` and ``model.safetensors``, or with the
                parts of the latter and their index. A tokenizer there must be GPT-2's own, or pocket's; tokens that
                were added to it are not used, which is said in the log.
        Returns:
            The model in float32, on the CPU, in evaluation mode.
        Raises:
            InputError: unknown name, no network, weights in a pickle alone, another tokenizer, a missing or damaged
                file, a wrong key or shape.

        >>> GPT.from_pretrained("pocket").config.tokenizer
        'pocket'
        """
        found = find_checkpoint(str(name_or_path))
        config, layout, weights = _config(found.config), found.layout(), found.index or found.weights[0]
        # Before anything is built from it: a configuration may ask for any size.
        C, size = config.n_embd, found.size()
        asked = (config.vocab_size + config.n_positions) * C + config.n_layer * (12 * C + 13) * C + 2 * C
        if asked > size:
            raise InputError(
                f"{found.config}: asks for {asked:,} weights, more than the {size:,} bytes of {weights} hold;"
                " copy both files from the same place"
            )
        with torch.device("meta"):
            model = cls(config)
        check_layout(layout, model.state_dict(), weights)
        _check_tokenizer(found.config.parent, config.tokenizer)
        model.load_state_dict(from_hf(found.tensors(), weights), assign=True)
        model.source = str(name_or_path)
        return model.requires_grad_().eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` in Hugging Face layout, which transformers opens too.

        Args:
            folder: made if it is missing.
        Raises:
            InputError: the model has an adapter (``dpo_core.methods.lora``), or the folder cannot be written.

        >>> import tempfile
        >>> model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     bool((GPT.from_pretrained(folder).wte.weight == model.wte.weight).all())
        True
        """
        folder, state = Path(folder), self.state_dict()
        if any(".lora_" in key for key in state):
            raise InputError("an adapter is no part of a GPT-2 checkpoint; write merged_copy(model), or save_adapter")
        known = vocabulary_of(self.config.tokenizer)
        end = known[0] if known and known[0] < self.config.vocab_size else None
        with atomic_write(folder / "config.json") as partial:
            partial.write_text(json.dumps(described(asdict(self.config), end), indent=2) + "\n", encoding="utf-8")
        with atomic_write(folder / "model.safetensors") as partial:
            save_file(to_hf(state), partial, metadata={"format": "pt"})


def _config(file: Path) -> GPTConfig:
    # Training state is not a checkpoint's business: dropout starts at 0 whatever the file says.
    known, raw = {f.name for f in fields(GPTConfig)} - {"dropout"}, read_config(file)
    try:
        config = GPTConfig(**{key: raw[key] for key in known & raw.keys()})
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    told = {name: getattr(config, name) for name in SPECIAL}
    # An id that is none, as a list or -1, is not handed on.
    odd: dict[str, Any] = {
        name: None for name, token in told.items() if type(token) is not int or not 0 <= token < config.vocab_size
    }
    return replace(config, **odd)


def write_tokenizer(config: GPTConfig, folder: Path, form: str) -> None:
    """Write a tokenizer that transformers opens beside a model, if the model's encoding is one of ours.

    Args:
        config: of the model.
        folder: of the model.
        form: of the prompts in training, ``form_of``.
    Raises:
        InputError: the folder cannot be written.
    """
    known = vocabulary_of(config.tokenizer)
    if not known or known[0] >= config.vocab_size:
        return
    try:
        encoding = load_tokenizer(config.tokenizer)
    except InputError as error:  # no network: the model is there, and that is what counts
        log.warning("%s: has no tokenizer for other programs (%s)", folder, error)
    else:
        save_tokenizer(encoding, folder, config.n_positions, form)


def _check_tokenizer(folder: Path, name: str) -> None:
    """Refuse another tokenizer than the one that the model is to be used with, and name tokens that were added."""
    if known := vocabulary_of(name):
        added = added_tokens(folder, name, *known)
        if added:
            listed = ", ".join(shown(added[i])[1:-1] for i in sorted(added)[:5]) + ", ..." * (len(added) > 5)
            log.warning("%s: its tokenizer has %d tokens of its own that are not used: %s", folder, len(added), listed)
