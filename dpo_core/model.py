"""GPT in GPT-2's architecture, in one file.

- Decoder-only transformer, pre-norm, learned positions, tanh-GELU, head tied to the token embedding
  (Radford et al. 2019).
- Module names are those of GPT-2's published checkpoints, which ``hf_layout`` reads and writes.

Shapes: B rows, T positions, C channels, H heads, V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.files import atomic_write, read_tensors, tensor_layout
from dpo_core.hf_layout import PUBLISHED, check_layout, checkpoint_files, described, from_hf, read_config, to_hf
from dpo_core.precision import compute_dtype

__all__ = ["GPT", "GPTConfig", "KVCache", "PUBLISHED"]

KVCache = list[tuple[Tensor, Tensor]]  # one (keys, values) per layer, each (B, H, T, C/H)


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

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} must be a whole number above 0, not {size!r}")
        if not isinstance(self.tokenizer, str):
            raise InputError(f"tokenizer must be a name, not {self.tokenizer!r}")
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask into what is added to the scores, once for all layers.

    Left to ``scaled_dot_product_attention``, each layer would make its own and keep it for the backward pass. Rows
    begin at multiples of 8 numbers, without which its CUDA kernel would copy the bias.

    Args:
        mask: (..., T, S) bool, True where attention is allowed.
        dtype: of the scores.
    Returns:
        (..., T, S) 0 where attention is allowed, else -inf.

    >>> attention_bias(torch.tensor([[True, False]]), torch.float32)
    tensor([[0., -inf]])
    """
    S = mask.shape[-1]
    rows = torch.zeros(*mask.shape[:-1], -(-S // 8) * 8, dtype=dtype, device=mask.device)
    return rows[..., :S].masked_fill_(~mask, -torch.inf)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Values mixed by the softmax of query times key.

    Args:
        q: (B, H, T, C/H).
        k: (B, H, S, C/H), as v.
        v: what is mixed.
        bias: of ``attention_bias``, broadcastable to (B, H, T, S); causal if not given.
        dropout: share of the attention weights that is dropped.
    Returns:
        (B, H, T, C/H).

    >>> q = torch.zeros(1, 1, 2, 4)
    >>> attend(q, q, torch.tensor([[[[0.0], [1.0]]]]), None, dropout=0.0).flatten()  # the second sees both
    tensor([0.0000, 0.5000])
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # where torch's kernel takes several times as long
        with torch.autocast("cpu", enabled=False):
            return _attend_in_products(q, k, v, bias, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, dropout_p=dropout)


def _attend_in_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    B, H, T, D = q.shape
    S = k.shape[2]
    if bias is None:
        bias = attention_bias(torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T), q.dtype)
    bias = bias.expand(B, H, T, S)
    flat_q, flat_k, flat_v = (x.reshape(B * H, -1, D) for x in (q, k, v))
    scores = torch.baddbmm(bias.reshape(B * H, T, S), flat_q, flat_k.mT, alpha=D**-0.5)
    return (F.dropout(scores.softmax(-1), dropout) @ flat_v).view(B, H, T, D)


class Attention(nn.Module):
    """Multi-head self-attention; causal unless a bias says otherwise."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(
        self, x: Tensor, bias: Tensor | None, past: tuple[Tensor, Tensor] | None, kept: Tensor | None
    ) -> tuple[Tensor, Any]:
        C, dropout = x.shape[-1], self.dropout if self.training else 0.0
        qkv = self.c_attn(x)  # (B, T, 3C), or (N, 3C) if padding is left out
        if kept is not None and bias is not None and x.device.type == "cpu":  # row by row, each as long as it is
            lengths = torch.bincount(kept // bias.shape[-1], minlength=len(bias)).tolist()
            rows = [
                attend(*self._heads(row[None]), only[:, :, :T, :T], dropout).transpose(1, 2).reshape(T, C)
                for row, only, T in zip(qkv.split(lengths), bias.split(1), lengths)
            ]
            return F.dropout(self.c_proj(torch.cat(rows)), self.dropout, self.training), None
        if kept is not None and bias is not None:  # only here do rows matter: put the tokens back into them
            B, T = bias.shape[0], bias.shape[-1]
            qkv = qkv.new_zeros(B * T, 3 * C).index_copy(0, kept, qkv).view(B, T, 3 * C)
        q, k, v = self._heads(qkv)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = attend(q, k, v, bias, dropout).transpose(1, 2).flatten(2)  # (B, T, C)
        y = y if kept is None else y.flatten(0, 1)[kept]
        return F.dropout(self.c_proj(y), self.dropout, self.training), (k, v)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 3C) to queries, keys and values of (B, H, T, C/H)."""
        q, k, v = (part.unflatten(2, (self.n_head, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        return q, k, v


class MLP(nn.Module):
    """Position-wise feed-forward: widen fourfold, GELU, narrow again."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """One transformer layer: attention and MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, bias: Tensor | None, past: tuple[Tensor, Tensor] | None, kept: Tensor | None
    ) -> tuple[Tensor, Any]:
        attended, present = self.attn(self.ln_1(x), bias, past, kept)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), present


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
        return self.wte.weight.device

    @property
    def origin(self) -> str:
        """``source`` in a form that holds from every folder."""
        named = self.source in ("", "pocket", *PUBLISHED)
        return self.source if named else str(Path(self.source).absolute())

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """The states under the head, so that a caller can ask for logits only where they count.

        Args:
            ids: (B, T) token ids.
            positions: (B, T) positions; counted on from the cache, or from 0, if not given.
            mask: bool, broadcastable to (B, H, T, T_past + T), True where attention is allowed; causal if not given.
            cache: keys and values of earlier positions, extended in place; an empty list starts one.
            kept: (N,) where in B*T there is a token and not padding, which then costs nothing; needs positions of
                (B, T) and a mask of (B, 1, T, T).
        Returns:
            (B, T, C) states, or (N, C) of the kept ones; ``model.logits`` turns them into logits.
        Raises:
            InputError: a sequence is longer than the model has positions; only looked at where positions are not given.
        """
        past_length = cache[0][0].shape[2] if cache else 0
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
        bias = None if mask is None else attention_bias(mask, compute_dtype(self.wte.weight))
        if kept is not None:
            ids, positions = ids.flatten()[kept], positions.flatten()[kept]  # (N,)
        x = F.dropout(self.wte(ids) + self.wpe(positions), self.config.dropout, self.training)  # (B, T, C) or (N, C)
        for i, block in enumerate(self.h):
            x, present = block(x, bias, cache[i] if cache and i < len(cache) else None, kept)
            if cache is not None:
                cache[i : i + 1] = [present]
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) states to (..., V) logits: the dot product with every token's embedding."""
        return F.linear(hidden, self.wte.weight)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T) token ids to (B, T, V) logits; the logits at t predict token t + 1."""
        return self.logits(self.hidden(ids, mask=mask))

    # Checkpoints

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> GPT:
        """A model from the package (``pocket``), from the Hub (``gpt2`` ... ``gpt2-xl``) or from a folder.

        Args:
            name_or_path: one of those names, or a folder with ``config.json`` and ``model.safetensors``.
        Returns:
            The model in float32, on the CPU, in evaluation mode.
        Raises:
            InputError: unknown name, no network, a pickle, a missing or damaged file, a wrong key or shape.

        >>> GPT.from_pretrained("pocket").config.tokenizer
        'pocket'
        """
        config_file, weights_file = checkpoint_files(str(name_or_path))
        config, layout = _config(config_file), tensor_layout(weights_file)
        # Before anything is built from it: a configuration may ask for any size.
        C, size = config.n_embd, weights_file.stat().st_size
        asked = (config.vocab_size + config.n_positions) * C + config.n_layer * (12 * C + 13) * C + 2 * C
        if asked > size:
            raise InputError(
                f"{config_file}: asks for {asked:,} weights, more than the {size:,} bytes of {weights_file} hold;"
                " copy both files from the same place"
            )
        with torch.device("meta"):
            model = cls(config)
        check_layout(layout, model.state_dict(), weights_file)
        model.load_state_dict(from_hf(read_tensors(weights_file), weights_file), assign=True)
        model.source = str(name_or_path)
        return model.requires_grad_().eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` in Hugging Face layout, which transformers opens too.

        Args:
            folder: made if it is missing.
        Raises:
            InputError: the model has an adapter (``dpo_core.lora``), or the folder cannot be written.

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
        with atomic_write(folder / "config.json") as partial:
            partial.write_text(json.dumps(described(asdict(self.config)), indent=2) + "\n", encoding="utf-8")
        with atomic_write(folder / "model.safetensors") as partial:
            save_file(to_hf(state), partial, metadata={"format": "pt"})


def _config(file: Path) -> GPTConfig:
    # Training state is not a checkpoint's business: dropout starts at 0 whatever the file says.
    known, raw = {f.name for f in fields(GPTConfig)} - {"dropout"}, read_config(file)
    try:
        return GPTConfig(**{key: raw[key] for key in known & raw.keys()})
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
