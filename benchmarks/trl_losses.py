"""Our losses against TRL's own code: random log-probabilities in float64, loss, gradient and rewards of each pair.

Run in an environment of its own (``benchmarks/requirements.txt``) as ``python benchmarks/trl_losses.py``. It writes
the record that chapter 10 reads and, for the tests, which have no TRL, ``tests/data/trl_losses.json``.

TRL's trainers compute their losses inside a method that also runs the model. We call that method with a stand-in model
that returns the log-probabilities we want, one pair at a time, because TRL returns the mean over a batch.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import astuple, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import transformers
import trl
from machine import provenance
from torch import Tensor
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from dpo_core.course.records import record_file
from dpo_core.losses import PairLogps, PairLoss
from dpo_core.methods.family import LOSSES
from dpo_core.methods.kto import kto_loss, reference_point

ROOT = Path(__file__).resolve().parent.parent
PROMPT = 3  # tokens of every prompt
BETAS = (0.05, 0.5, 2.0)
TOLERANCE = 1e-6
NUMBERS = ("loss", "chosen_gradient", "rejected_gradient", "chosen_rewards", "rejected_rewards")
ELSEWHERE = {"dpop": "TRL has no DPOP; the test does the arithmetic by hand"}
NOT_OURS = ["exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "discopop"]

Run = Callable[[PairLogps, float], tuple[Tensor, float, float]]  # loss (), chosen and rejected reward of one pair


def random_pairs(count: int, seed: int) -> PairLogps:
    """Log-probs as of real answers: 3 to 40 tokens at up to 3 nats, and a policy that has moved by some nats."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 41, (2, count), generator=generator)
    reference = -lengths * (0.2 + 2.8 * torch.rand(2, count, generator=generator, dtype=torch.float64))
    policy = reference + 2 * torch.randn(2, count, generator=generator, dtype=torch.float64)
    mismatched = 0.5 + torch.randn(count, generator=generator, dtype=torch.float64)
    return PairLogps(*policy.clamp(max=-0.1), *reference, *lengths, mismatched)


def accelerator() -> SimpleNamespace:
    return SimpleNamespace(device="cpu", gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor)


def rows(logps: list[Tensor], lengths: list[int]) -> tuple[dict[str, Tensor], SimpleNamespace]:
    """Inputs of a batch, and what a model would return for it: each answer's log-prob, spread over its tokens."""
    width = PROMPT + max(lengths)
    at = torch.arange(width)
    mask = torch.stack([(at >= PROMPT) & (at < PROMPT + n) for n in lengths]).long()
    shares = torch.stack([logp / n for logp, n in zip(logps, lengths)])  # (rows,)
    nothing = torch.zeros(len(lengths), width - 1, dtype=torch.float64)
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    outputs = SimpleNamespace(
        log_probs=shares[:, None] * mask[:, 1:], entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    return inputs, outputs


def dpo_trainer(loss_type: str, label_smoothing: float = 0.0) -> Run:
    """``DPOTrainer`` on one pair."""

    def run(pair: PairLogps, beta: float) -> tuple[Tensor, float, float]:
        inputs, outputs = rows([pair.policy_chosen[0], pair.policy_rejected[0]], lengths_of(pair))
        inputs |= {"ref_chosen_logps": pair.reference_chosen, "ref_rejected_logps": pair.reference_rejected}
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=accelerator(),
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[loss_type],
            loss_weights=[1.0],
            beta=beta,
            label_smoothing=label_smoothing,
            use_weighting=False,
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        loss = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
        metrics = trainer._metrics["train"]
        return loss, metrics["rewards/chosen"][0], metrics["rewards/rejected"][0]

    return run


def kto_trainer(policy: list[Tensor], reference: Tensor, labels: list[bool], lengths: list[int], **settings):
    """``KTOTrainer`` on single answers: its mean loss and its metrics."""
    inputs, outputs = rows(policy, lengths)
    inputs |= {"label": torch.tensor(labels), "ref_logps": reference}
    mismatched = settings.pop("mismatched")
    inputs["ref_KL_logps"] = torch.zeros_like(mismatched)  # only the difference counts
    defaults = {"loss_type": "kto", "desirable_weight": 1.0, "undesirable_weight": 1.0}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=settings.get("loss_type", "kto") == "kto",
        _compute_kl_logps=lambda model, batch: mismatched,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **defaults | settings,
    )
    return trl.KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False), trainer._metrics["train"]


def kto_on_a_pair(pair: PairLogps, beta: float) -> tuple[Tensor, float, float]:
    loss, metrics = kto_trainer(
        [pair.policy_chosen[0], pair.policy_rejected[0]],
        torch.cat([pair.reference_chosen, pair.reference_rejected]),
        [True, False],
        lengths_of(pair),
        beta=beta,
        mismatched=pair.mismatched,
    )
    return loss, metrics["rewards/chosen"][0], metrics["rewards/rejected"][0]


def means(pair: PairLogps) -> tuple[Tensor, Tensor]:
    return pair.policy_chosen / pair.chosen_lengths, pair.policy_rejected / pair.rejected_lengths


def simpo(gamma: float) -> Run:
    def run(pair: PairLogps, beta: float) -> tuple[Tensor, float, float]:
        trainer = SimpleNamespace(
            alpha=0.0, loss_type="simpo", simpo_gamma=gamma, beta=beta, label_smoothing=0.0, accelerator=accelerator()
        )
        loss, chosen, rejected = CPOTrainer.cpo_loss(trainer, *means(pair))
        return loss[0], chosen.item(), rejected.item()

    return run


def orpo(pair: PairLogps, beta: float) -> tuple[Tensor, float, float]:
    """TRL's odds-ratio term, its cast to float32 lifted, and the chosen answer's cost per token.

    TRL takes that cost over prompt and answer, which is no function of the answers' log-probs.
    """
    trainer = SimpleNamespace(beta=beta, accelerator=accelerator())
    with patch.object(torch.Tensor, "float", torch.Tensor.double):
        term, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means(pair))
    return -means(pair)[0][0] - term[0], chosen.item(), rejected.item()


def lengths_of(pair: PairLogps) -> list[int]:
    return [int(pair.chosen_lengths), int(pair.rejected_lengths)]


# Our name and settings, where TRL has it, and how to run it there.
CASES: list[tuple[str, dict[str, float], str, Run]] = [
    ("sigmoid", {}, "DPOTrainer, sigmoid", dpo_trainer("sigmoid")),
    ("cdpo", {"label_smoothing": 0.2}, "DPOTrainer, aot (of one pair)", dpo_trainer("aot", 0.2)),
    ("robust", {"label_smoothing": 0.2}, "DPOTrainer, robust", dpo_trainer("robust", 0.2)),
    ("hinge", {}, "DPOTrainer, hinge", dpo_trainer("hinge")),
    ("ipo", {}, "DPOTrainer, ipo", dpo_trainer("ipo")),
    ("sigmoid_norm", {}, "DPOTrainer, sigmoid_norm", dpo_trainer("sigmoid_norm")),
    ("apo_zero", {}, "DPOTrainer, apo_zero", dpo_trainer("apo_zero")),
    ("apo_down", {}, "DPOTrainer, apo_down", dpo_trainer("apo_down")),
    ("kto", {}, "KTOTrainer, kto", kto_on_a_pair),
    ("simpo", {"gamma": 0.7}, "experimental.cpo.CPOTrainer, simpo", simpo(0.7)),
    ("orpo", {}, "experimental.orpo.ORPOTrainer", orpo),
    ("sft", {}, "DPOTrainer, sft (of one pair)", dpo_trainer("sft")),
]


def with_gradient(pairs: PairLogps) -> PairLogps:
    """The same with new leaves for the policy."""
    fresh = {name: getattr(pairs, name).clone().requires_grad_() for name in ("policy_chosen", "policy_rejected")}
    return replace(pairs, **fresh)


def single(pairs: PairLogps, i: int) -> PairLogps:
    alone = [field[i : i + 1] for field in astuple(replace(pairs, mismatched=None))[:-1]]
    return with_gradient(PairLogps(*alone, pairs.mismatched))


def trl_numbers(run: Run, pairs: PairLogps, beta: float) -> dict[str, list[float]]:
    """Loss, gradient by both policy log-probs, and rewards, as TRL has them."""
    out: dict[str, list[float]] = defaultdict(list)
    for i in range(len(pairs.policy_chosen)):
        pair = single(pairs, i)
        loss, chosen, rejected = run(pair, beta)
        grads = torch.autograd.grad(loss, [pair.policy_chosen, pair.policy_rejected], materialize_grads=True)
        for name, value in zip(NUMBERS, [loss.item(), *(grad.item() for grad in grads), chosen, rejected]):
            out[name].append(value)
    return dict(out)


def our_numbers(name: str, settings: dict[str, float], pairs: PairLogps, beta: float) -> dict[str, list[float]]:
    """The same of ours, all pairs at once."""
    pairs = with_gradient(pairs)
    out: PairLoss = LOSSES[name](pairs, beta, **settings)
    leaves = [pairs.policy_chosen, pairs.policy_rejected]
    grads = torch.autograd.grad(out.loss.sum(), leaves, materialize_grads=True)
    values = [out.loss, *grads, out.chosen_rewards, out.rejected_rewards]
    return {name: value.tolist() for name, value in zip(NUMBERS, values)}


def unpaired(pairs: PairLogps) -> list[dict[str, object]]:
    """``kto_loss`` on single answers with weights; with the point at 0 it is TRL's ``apo_zero_unpaired``."""
    policy, reference = pairs.policy_chosen, pairs.reference_chosen
    desirable = torch.arange(len(policy)) % 3 > 0
    settings = {"desirable_weight": 1.0, "undesirable_weight": 1.5}
    found = []
    for beta, loss_type in product(BETAS, ("kto", "apo_zero_unpaired")):
        more = settings | {"beta": beta, "loss_type": loss_type, "mismatched": pairs.mismatched}
        theirs = [
            kto_trainer([policy[i]], reference[i : i + 1], [bool(desirable[i])], [5], **more)[0].item()
            for i in range(len(policy))
        ]
        point = reference_point(pairs.mismatched) * (loss_type == "kto")
        ours = kto_loss(policy, reference, desirable, point, beta, **settings)
        entry = {"trl": f"KTOTrainer, {loss_type}", "beta": beta, "settings": settings, "point": float(point)}
        entry |= {"desirable": desirable.tolist(), "loss": theirs}
        found.append(entry | {"difference": max(abs(a - b) for a, b in zip(theirs, ours.tolist()))})
    return found


def measure(count: int, seed: int) -> tuple[list[dict[str, object]], dict[str, object]]:
    """The largest difference of each loss, and TRL's numbers with the inputs behind them."""
    pairs = random_pairs(count, seed)
    summary: list[dict[str, object]] = []
    numbers = []
    for name, settings, where, run in CASES:
        worst = dict.fromkeys(NUMBERS, 0.0)
        for beta in BETAS:
            theirs, ours = trl_numbers(run, pairs, beta), our_numbers(name, settings, pairs, beta)
            numbers.append({"name": name, "settings": settings, "beta": beta, "trl": where} | theirs)
            for number in NUMBERS:
                gap = max(abs(a - b) for a, b in zip(theirs[number], ours[number]))
                worst[number] = max(worst[number], gap)
        summary.append({"loss": name, "settings": settings, "trl": where, "max_difference": worst})
    alone = unpaired(pairs)
    for where in dict.fromkeys(entry["trl"] for entry in alone):
        gap = max(entry["difference"] for entry in alone if entry["trl"] == where)
        summary.append({"loss": "kto_loss", "trl": where, "max_difference": {"loss": gap}})
    inputs = {field: getattr(pairs, field).tolist() for field in PairLogps.__dataclass_fields__}
    return summary, {"inputs": inputs, "losses": numbers, "unpaired": alone}


if __name__ == "__main__":
    found, _ = measure(count=64, seed=0)
    record = provenance()
    record["versions"] |= {"trl": trl.__version__, "transformers": transformers.__version__}
    small = {"made_by": "benchmarks/trl_losses.py", "versions": record["versions"]} | measure(count=4, seed=1)[1]
    record |= {"pairs": 64, "betas": BETAS, "dtype": "float64", "losses": found, "not in TRL": ELSEWHERE}
    record["of TRL's DPOTrainer not in LOSSES"] = NOT_OURS
    compared = {LOSSES[name] for name in (*(name for name, *_ in CASES), *ELSEWHERE)}
    assert compared == set(LOSSES.values()), "a loss is compared with nothing"
    record_file("trl_losses").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    fixture = ROOT / "tests" / "data" / "trl_losses.json"
    fixture.parent.mkdir(exist_ok=True)
    fixture.write_text(json.dumps(small) + "\n", encoding="utf-8")
    for entry in found:
        print(f"{entry['loss']:13} {entry['trl']:36} {max(entry['max_difference'].values()):.1e}")
    worst_of_all = max(max(entry["max_difference"].values()) for entry in found)
    assert worst_of_all < TOLERANCE, f"off by {worst_of_all}"
