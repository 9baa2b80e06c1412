"""Direct Preference Optimization for GPT-2, small enough to read whole.

The names below are what most programs need; each module's docstring says what else is there.
"""

import os

# Large tensors on large pages, where Linux has them: a step on short pairs is a tenth faster on a CPU, or more. torch
# reads this when it makes its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from dpo_core.data import PreferenceBatch, PreferencePair, audit_pairs, collate, encode_pair, load_pairs, save_pairs
from dpo_core.diagnose import diagnose
from dpo_core.errors import InputError
from dpo_core.evaluate import paired_bootstrap, sample_kl, wilson_interval, win_rate
from dpo_core.generate import filter_logits, generate
from dpo_core.logprobs import pair_logps, reference_logps, sequence_logps, token_logps
from dpo_core.lora import LoRAConfig, adapter_off, add_lora, merge_lora
from dpo_core.losses import LOSSES, PairLogps, PairLoss, choose_loss, dpo_loss
from dpo_core.metrics import History, log_line, preference_metrics
from dpo_core.model import GPT, GPTConfig
from dpo_core.preflight import check_setup
from dpo_core.tabular import TabularWorld, example_world, optimal_policy, reward_kl_frontier
from dpo_core.tokenizer import boundary, load_tokenizer, open_prompt
from dpo_core.trainer import DPOConfig, DPOTrainer
from dpo_core.watch import watch

__all__ = [
    "GPT",
    "LOSSES",
    "DPOConfig",
    "DPOTrainer",
    "GPTConfig",
    "History",
    "InputError",
    "LoRAConfig",
    "PairLogps",
    "PairLoss",
    "PreferenceBatch",
    "PreferencePair",
    "TabularWorld",
    "adapter_off",
    "add_lora",
    "audit_pairs",
    "boundary",
    "check_setup",
    "choose_loss",
    "collate",
    "diagnose",
    "dpo_loss",
    "encode_pair",
    "example_world",
    "filter_logits",
    "generate",
    "load_pairs",
    "load_tokenizer",
    "log_line",
    "merge_lora",
    "open_prompt",
    "optimal_policy",
    "pair_logps",
    "paired_bootstrap",
    "preference_metrics",
    "reference_logps",
    "reward_kl_frontier",
    "sample_kl",
    "save_pairs",
    "sequence_logps",
    "token_logps",
    "watch",
    "wilson_interval",
    "win_rate",
]
