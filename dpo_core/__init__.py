"""Direct Preference Optimization for GPT-2, small enough to read whole.

The names below are what most programs need, each loaded when it is first asked for; a module's docstring says what else
is there. The modules of this folder are the path that the course takes: tokenizer, data, model, logprobs, losses,
metrics, config, trainer. All else stands in rooms: kernels, formats, methods, lm, runs, trainers, rl, study, cli.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Large tensors on large pages, where Linux has them: a step on short pairs is a tenth faster on a CPU, or more. torch
# reads this when it makes its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from dpo_core.generate import generate  # at once, as its module has the same name

if TYPE_CHECKING:
    from dpo_core.config import DPOConfig
    from dpo_core.data import PreferenceBatch, audit_pairs, collate, encode_pair
    from dpo_core.errors import InputError
    from dpo_core.formats.pairs import LabelledAnswer, PreferencePair, load_labels, load_pairs, save_pairs
    from dpo_core.generate import filter_logits
    from dpo_core.logprobs import pair_logps, reference_logps, sequence_logps, token_logps
    from dpo_core.losses import PairLogps, PairLoss, dpo_loss
    from dpo_core.methods.adapter_files import load_adapted, load_model
    from dpo_core.methods.family import LOSSES, choose_loss
    from dpo_core.methods.lora import LoRAConfig, adapter_off, add_lora, merge_lora
    from dpo_core.metrics import History, log_line, preference_metrics
    from dpo_core.model import GPT, GPTConfig
    from dpo_core.rl import RewardModel, RLConfig, RLTrainer
    from dpo_core.runs.processes import process_group
    from dpo_core.study.diagnose import diagnose
    from dpo_core.study.evaluate import paired_bootstrap, sample_kl, wilson_interval, win_rate
    from dpo_core.study.setup_check import check_setup
    from dpo_core.study.tabular import TabularWorld, example_world, optimal_policy, reward_kl_frontier
    from dpo_core.study.watch import watch
    from dpo_core.tokenizer import boundary, load_tokenizer, open_prompt
    from dpo_core.trainer import Callback, DPOTrainer
    from dpo_core.trainers import KTOTrainer

# Where each name is at home.
_HOMES = {
    "config": ("DPOConfig",),
    "data": ("PreferenceBatch", "audit_pairs", "collate", "encode_pair"),
    "errors": ("InputError",),
    "formats.pairs": ("LabelledAnswer", "PreferencePair", "load_labels", "load_pairs", "save_pairs"),
    "generate": ("filter_logits", "generate"),
    "logprobs": ("pair_logps", "reference_logps", "sequence_logps", "token_logps"),
    "losses": ("PairLogps", "PairLoss", "dpo_loss"),
    "methods.family": ("LOSSES", "choose_loss"),
    "methods.adapter_files": ("load_adapted", "load_model"),
    "methods.lora": ("LoRAConfig", "adapter_off", "add_lora", "merge_lora"),
    "metrics": ("History", "log_line", "preference_metrics"),
    "model": ("GPT", "GPTConfig"),
    "rl": ("RLConfig", "RLTrainer", "RewardModel"),
    "runs.processes": ("process_group",),
    "study.diagnose": ("diagnose",),
    "study.evaluate": ("paired_bootstrap", "sample_kl", "wilson_interval", "win_rate"),
    "study.setup_check": ("check_setup",),
    "study.tabular": ("TabularWorld", "example_world", "optimal_policy", "reward_kl_frontier"),
    "study.watch": ("watch",),
    "tokenizer": ("boundary", "load_tokenizer", "open_prompt"),
    "trainer": ("Callback", "DPOTrainer"),
    "trainers": ("KTOTrainer",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
