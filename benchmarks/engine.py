"""Our training step beside TRL's and the textbook's: the same weights, pairs, order and hyperparameters.

Run in the environment of ``benchmarks/requirements.txt``::

    python benchmarks/engine.py --data benchmarks/data/preference_lengths.json --pairs 16 --name long_prompts

``--data`` is a JSONL of preference pairs, or a JSON with lengths in tokens, ``{"rows": [[prompt, chosen, rejected]]}``,
for which random tokens are drawn. Every variant runs in a process of its own, so that its peak memory is its own; the
variants take turns, ``--rounds`` times, so that a slow minute of the machine hits them all. Results go to
``benchmarks/results/engine_NAME.json``.

TRL's defaults compute in bf16 on every machine. Where that is emulated a step takes minutes, so ``--as-it-comes`` says
how many of them are run, and the same settings in float32 are measured beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import in_process, provenance

from dpo_core.config import DPOConfig
from dpo_core.data import EncodedPair, audit_pairs
from dpo_core.formats.pairs import PreferencePair, load_pairs
from dpo_core.kernels.device import best_device
from dpo_core.kernels.precision import choose
from dpo_core.model import GPT, GPTConfig
from dpo_core.tokenizer import load_tokenizer
from dpo_core.trainer import DPOTrainer

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {  # GPT-2's sizes, and a small one to try this script with
    "tiny": GPTConfig(n_embd=128, n_layer=2, n_head=2),
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPTConfig(n_embd=1280, n_layer=36, n_head=20),
}
BETA, RATE, CLIP = 0.1, 1e-6, 1.0
END = 50256  # GPT-2's end of text


@dataclass
class Work:
    """What every variant is given."""

    pairs: list[list[list[int]]]  # prompt, chosen, rejected token ids
    weights: str  # folder of the start model
    batch_size: int
    passes: int
    precision: str  # ours: what "auto" means here, or float32 to compare numbers
    trl_best: tuple[str, str] = ("float32", "eager")  # TRL's precision and attention, where it may choose
    steps: int | None = None  # not a warm-up and all passes, but these steps

    @property
    def batches(self) -> list[list[list[list[int]]]]:
        B = self.batch_size
        return [self.pairs[i : i + B] for i in range(0, len(self.pairs) - B + 1, B)]

    @property
    def device(self) -> torch.device:
        return best_device()

    def schedule(self) -> list[int]:
        """Which batch each step takes: one for warm-up, then all of them, ``passes`` times."""
        if self.steps is not None:
            return [i % len(self.batches) for i in range(self.steps)]
        return [0, *list(range(len(self.batches))) * self.passes]


@dataclass
class Log:
    """What a variant gives back."""

    seconds: list[float] = field(default_factory=list)  # of each step
    losses: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)  # mean reward margin of each step
    reference_seconds: float = 0.0  # of one pass that precomputes the reference, if there is one
    peak_mb: float = 0.0


def now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def peak_mb(device: torch.device) -> float:
    """The most memory so far: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# The variants


def textbook(work: Work) -> Log:
    """Two padded forward passes per model, a live reference, all logits, float32: what most tutorials show."""
    from transformers import GPT2LMHeadModel

    policy = GPT2LMHeadModel.from_pretrained(work.weights).to(work.device).train()
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reference = GPT2LMHeadModel.from_pretrained(work.weights).to(work.device).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0)

    def logps(model: torch.nn.Module, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids, mask, attention = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
        for row, (prompt, answer) in enumerate(rows):
            length = len(prompt) + len(answer)
            ids[row, :length] = torch.tensor(prompt + answer)
            mask[row, len(prompt) : length] = 1
            attention[row, :length] = 1
        ids, mask, attention = (x.to(work.device) for x in (ids, mask, attention))
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
        found = torch.gather(logits.log_softmax(-1), 2, ids[:, 1:, None])[..., 0]
        return (found * mask[:, 1:]).sum(1)

    log = Log()
    for index in work.schedule():
        start = now(work.device)
        batch = work.batches[index]
        sides = [[(p, c) for p, c, _ in batch], [(p, r) for p, _, r in batch]]
        chosen, rejected = (logps(policy, rows) for rows in sides)
        with torch.no_grad():
            reference_chosen, reference_rejected = (logps(reference, rows) for rows in sides)
        margins = BETA * ((chosen - reference_chosen) - (rejected - reference_rejected))
        loss = -F.logsigmoid(margins).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        log.losses.append(loss.item())
        log.margins.append(margins.mean().item())
        log.seconds.append(now(work.device) - start)
    return log


def trl(work: Work, precision: str = "bf16", attention: str = "sdpa", **options: object) -> Log:
    """TRL's DPOTrainer with its defaults, to which bf16 belongs, but for what is said here."""
    import trl as library
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback

    # A word for each token id, so that TRL trains on the very ids that the others do.
    words = {f"t{i}": i for i in range(END)} | {"<end>": END}
    inner = Tokenizer(models.WordLevel(words, unk_token="t0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")

    def text(ids: list[int]) -> str:
        return " ".join("<end>" if i == END else f"t{i}" for i in ids)

    rows = [pair for index in work.schedule() for pair in work.batches[index]]
    data = Dataset.from_list(
        [{"prompt": text(p), "chosen": " " + text(c), "rejected": " " + text(r)} for p, c, r in rows]
    )
    log = Log()

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.start = now(work.device)

        def on_step_end(self, args, state, control, **kwargs):
            log.seconds.append(now(work.device) - self.start)

    class Trainer(library.DPOTrainer):
        def compute_loss(self, *args, **kwargs):
            out = super().compute_loss(*args, **kwargs)
            log.losses.append((out[0] if isinstance(out, tuple) else out).item())
            log.margins.append(self._metrics["train"]["rewards/margins"][-1])
            return out

        def _get_train_sampler(self, *args, **kwargs):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *args, **kwargs):
            start = now(work.device)
            out = super()._precompute_ref_logps(*args, **kwargs)
            passes = len(rows) / (len(work.batches) * work.batch_size)  # it takes every row of the schedule
            log.reference_seconds = (now(work.device) - start) / passes
            return out

    with tempfile.TemporaryDirectory() as folder:
        settings = library.DPOConfig(
            output_dir=folder,
            **{
                "per_device_train_batch_size": work.batch_size,
                "num_train_epochs": 1,
                "learning_rate": RATE,
                "lr_scheduler_type": "constant",
                "weight_decay": 0.0,
                "max_grad_norm": CLIP,
                "beta": BETA,
                "max_length": 512,
                "use_cpu": work.device.type == "cpu",
                "bf16": precision == "bf16",
                "fp16": precision == "fp16",
                "report_to": "none",
                "save_strategy": "no",
                "disable_tqdm": True,
                "logging_strategy": "no",
            }
            | options,
        )
        trainer = Trainer(
            model=GPT2LMHeadModel.from_pretrained(work.weights, attn_implementation=attention),
            args=settings,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
        trainer.train()
    return log


def trl_in_float32(work: Work) -> Log:
    return trl(work, "float32")


def trl_best(work: Work) -> Log:
    """TRL with every option that helps here: no recomputation, reference precomputed, faster numbers and attention."""
    return trl(work, *work.trl_best, gradient_checkpointing=False, precompute_ref_log_probs=True)


def ours(work: Work) -> Log:
    """``DPOTrainer`` with ``--precision auto``, all else as a user gets it but for the order of the pairs."""
    return train_ours(GPT.from_pretrained(work.weights), work)


def our_trainer(model: GPT, work: Work) -> DPOTrainer:
    """Our trainer on token ids; its pairs stand in for text, which has been encoded before."""
    model.to(work.device)
    config = DPOConfig(
        beta=BETA,
        learning_rate=RATE,
        max_grad_norm=CLIP,
        batch_size=work.batch_size,
        val_share=0,
        precision=work.precision,
        warmup_steps=0,
    )
    placeholder = [PreferencePair("a", "b", "c"), PreferencePair("d", "e", "f")]
    trainer = DPOTrainer(model, load_tokenizer("gpt2"), placeholder, config)
    names = [PreferencePair("", "", "", f"pair {i}") for i in range(len(work.pairs))]
    trainer.training = [EncodedPair(p, c, r, pair) for (p, c, r), pair in zip(work.pairs, names)]
    return trainer


def train_ours(model: GPT, work: Work) -> Log:
    trainer, log, B = our_trainer(model, work), Log(), work.batch_size
    start = now(work.device)
    trainer.reference = trainer.score_sets()
    log.reference_seconds = now(work.device) - start
    for index in work.schedule():
        start = now(work.device)
        trainer.step(list(range(index * B, index * B + B)), BETA, RATE)
        means = trainer.sums.means()
        trainer.sums = type(trainer.sums)()
        log.losses.append(means["loss"])
        log.margins.append(means["rewards/margins"])
        log.seconds.append(now(work.device) - start)
    return log


KINDS = {  # of work, by the beginnings of the names of torch's operations
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("_scaled_dot", "_efficient_attention", "_flash_attention", "_softmax"),
    "GELU": ("gelu",),
    "log-softmax and its slope": ("_log_softmax", "exp_", "scatter", "gather"),
    "layer norm": ("native_layer_norm",),
    "clipping and optimiser": ("_fused_adam", "linalg_vector_norm", "_foreach"),
    "casts and copies": ("copy_", "_to_copy", "cat", "clone", "contiguous"),
    "room for results": ("empty", "zeros", "fill_", "zero_", "resize_"),
    "additions": ("add", "sum", "mul"),
}


def profile_ours(work: Work) -> dict[str, float]:
    """Share of each kind of work in the time of our steps over all batches, after a warm-up."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    cuda = work.device.type == "cuda"
    trainer, B = our_trainer(GPT.from_pretrained(work.weights), work), work.batch_size
    trainer.reference = {"training": torch.zeros(len(trainer.training), 2)}
    steps = [list(range(i * B, i * B + B)) for i in range(len(work.batches))]
    trainer.step(steps[0], BETA, RATE)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        for indices in steps:
            trainer.step(indices, BETA, RATE)
    shares = dict.fromkeys([*KINDS, "all else"], 0.0)
    # A kernel's time is counted with the operation that started it, which runs on the CPU.
    for entry in (entry for entry in found.key_averages() if entry.device_type == DeviceType.CPU):
        name = entry.key.removeprefix("aten::")
        kind = next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "all else")
        shares[kind] += entry.self_device_time_total if cuda else entry.self_cpu_time_total
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}


VARIANTS: dict[str, Callable[[Work], Log]] = {
    "textbook": textbook,
    "TRL default": trl,
    "TRL default, float32": trl_in_float32,
    "TRL best": trl_best,
    "dpo_core": ours,
}


# The work


def read_pairs(file: Path, count: int, max_length: int = 512) -> list[list[list[int]]]:
    """Token ids of the first pairs whose prompt leaves room for answers."""
    if file.suffix == ".json":
        draw = random.Random(0)
        lengths = [row for row in json.loads(file.read_text())["rows"] if row[0] < max_length][:count]
        return [
            [
                [draw.randrange(END) for _ in range(p)],
                [*(draw.randrange(END) for _ in range(c - 1)), END][: max_length - p],
                [*(draw.randrange(END) for _ in range(r - 1)), END][: max_length - p],
            ]
            for p, c, r in lengths
        ]
    audit = audit_pairs(list(load_pairs(file)), load_tokenizer("gpt2"), max_length)
    return [[e.prompt, e.chosen, e.rejected] for e in audit.kept[:count]]


def least_flops(work: Work, config: GPTConfig) -> float:
    """What the steps over all pairs need at least, reference known: each prompt once, logits where they count.

    Two per multiply-add; forward and backward make three forwards; causal attention counts half.
    """
    C, L, V = config.n_embd, config.n_layer, config.vocab_size
    total = 0.0
    for prompt, chosen, rejected in (pair for batch in work.batches for pair in batch):
        p, c, r = len(prompt), len(chosen), len(rejected)
        attention = sum(((p + n) ** 2 - p**2) / 2 for n in (c, r)) + p**2 / 2  # pairs of query and key
        total += 3 * (2 * 12 * C * C * L * (p + c + r) + 4 * C * L * attention + 2 * C * V * (c + r))
    return total


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Products per second of this device at GPT-2's shapes, in FLOP/s: the best of several."""
    best = 0.0
    for M, K, N in ((2048, 768, 3072), (2048, 3072, 768)):
        a, b = torch.randn(M, K, device=device, dtype=dtype), torch.randn(N, K, device=device, dtype=dtype)
        times = 1
        for _ in range(9):
            start = now(device)
            for _ in range(times):
                F.linear(a, b)
            seconds = now(device) - start
            best = max(best, times * 2 * M * K * N / seconds)
            times = max(times, min(50, int(times * 0.05 / seconds)))  # so that starting a kernel takes no share
    return best


def child(variant: str, file: Path) -> None:
    """Run one variant and print its log as JSON; called in a process of its own."""
    work = Work(**json.loads(file.read_text()))
    torch.manual_seed(0)
    if variant == "profile":
        return print("\n" + json.dumps(profile_ours(work)))
    log = VARIANTS[variant](work)
    log.peak_mb = peak_mb(work.device)
    print("\n" + json.dumps(asdict(log)))


def measured(variant: str, work: Work, folder: Path) -> dict[str, Any]:
    """What a variant measured in a process of its own."""
    file = folder / "work.json"
    file.write_text(json.dumps(asdict(work)))
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    return in_process(__file__, "--child", variant, "--work", str(file), **quiet)


def run(variant: str, work: Work, folder: Path) -> Log:
    return Log(**measured(variant, work, folder))


def pairs_per_second(log: Log, work: Work, with_reference: bool = False) -> float:
    """Over the batches that were taken after the warm-up, each with its fastest pass."""
    fastest: dict[int, float] = {}
    for index, seconds in list(zip(work.schedule(), log.seconds))[0 if work.steps == 1 else 1 :]:
        fastest[index] = min(seconds, fastest.get(index, seconds))
    reference = log.reference_seconds * len(fastest) / len(work.batches) if with_reference else 0.0
    return len(fastest) * work.batch_size / (sum(fastest.values()) + reference)


def trl_trials(work: Work, folder: Path) -> dict[tuple[str, str], float]:
    """Pairs a second over one pass of TRL with all that helps, for each precision and attention."""
    choices = [(precision, attention) for precision in {work.precision, "float32"} for attention in ("eager", "sdpa")]
    trials = {}
    for choice in sorted(choices):
        once = Work(**asdict(work) | {"passes": 1, "trl_best": choice})
        trials[choice] = pairs_per_second(run("TRL best", once, folder), once)
        print("TRL,", *choice, f"{trials[choice]:.3g} pairs/s", flush=True)
    return trials


def same_numbers(work: Work, folder: Path, steps: int) -> dict[str, object]:
    """Losses and margins of the first steps in float32, and how far the variants lie apart."""
    float32 = {"precision": "float32", "trl_best": ("float32", work.trl_best[1])}
    exact = Work(**asdict(work) | float32 | {"steps": steps})
    logs = {name: run(name, exact, folder) for name in ("textbook", "TRL best", "dpo_core")}
    mine = logs["dpo_core"]
    apart = {
        name: {
            "loss_relative": max(abs(a - b) / abs(a) for a, b in zip(log.losses, mine.losses)),
            "margin_absolute": max(abs(a - b) for a, b in zip(log.margins, mine.margins)),
        }
        for name, log in logs.items()
        if log is not mine
    }
    return {"steps": steps, "apart": apart, "losses": {name: log.losses for name, log in logs.items()}}


def summary(record: dict) -> str:
    """The result as a Markdown table."""
    lines = [
        f"| {record['pairs']} pairs, {record['model']}, B={record['batch_size']} | pairs/s on the steps"
        " | with the reference pass | peak MB | times "
        f"{record['base']} |",
        "|---|---|---|---|---|",
    ]
    base = statistics.mean(record["variants"][record["base"]]["pairs_per_second"])
    for name, entry in record["variants"].items():
        rates, whole = entry["pairs_per_second"], entry["pairs_per_second_with_reference"]
        lines.append(
            f"| {name} | {', '.join(f'{x:.3g}' for x in rates)} | {', '.join(f'{x:.3g}' for x in whole)}"
            f" | {max(entry['peak_mb']):,.0f} | {statistics.mean(rates) / base:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--name", default="pairs")
    parser.add_argument("--model", choices=SHAPES, default="gpt2")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--same-numbers", type=int, default=0, metavar="STEPS", help="compare this many float32 steps")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--no-profile", action="store_true", help="leave out what a step's time goes into")
    parser.add_argument("--as-it-comes", type=int, metavar="STEPS", help="of TRL's defaults; fewer where bf16 is slow")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.work)
    base = "TRL default" if options.as_it_comes is None else "TRL default, float32"
    if base not in options.variants:  # as where TRL is not installed
        base = options.variants[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        config = SHAPES[options.model]
        GPT(config).save_pretrained(folder / "start")
        work = Work(
            read_pairs(options.data, options.pairs),
            str(folder / "start"),
            options.batch_size,
            options.passes,
            choose("auto", best_device()),
        )
        trials = trl_trials(work, folder) if "TRL best" in options.variants else {}
        if trials:
            work = Work(**asdict(work) | {"trl_best": max(trials, key=trials.__getitem__)})
        few = Work(**asdict(work) | {"steps": options.as_it_comes})
        works = {name: few if name == "TRL default" else work for name in options.variants}
        logs: dict[str, list[Log]] = {name: [] for name in options.variants}
        for _ in range(options.rounds):
            for name in options.variants:
                logs[name].append(run(name, works[name], folder))
                print(name, f"{pairs_per_second(logs[name][-1], works[name]):.3g} pairs/s", flush=True)
        ceiling = {str(d).removeprefix("torch."): matmul_rate(work.device, d) for d in (torch.float32, torch.bfloat16)}
        numbers = same_numbers(work, folder, options.same_numbers) if options.same_numbers else None
        record = provenance()
        others = {"transformers", "trl"} if set(options.variants) != {"dpo_core"} else set()
        record["versions"] |= {name: version(name) for name in sorted(others) if find_spec(name)}
        flops = least_flops(work, config)
        fastest = max(ceiling.values())
        record |= {
            "model": options.model,
            "pairs": len(work.batches) * work.batch_size,
            "batch_size": work.batch_size,
            "passes": work.passes,
            "precision": work.precision,
            "trl_best": work.trl_best,
            "trl_trials": {", ".join(choice): rate for choice, rate in trials.items()},
            "base": base,
            "least_gflop_per_pair": flops / (len(work.batches) * work.batch_size) / 1e9,
            "matmul_gflops": {name: rate / 1e9 for name, rate in ceiling.items()},
            "variants": {
                name: {
                    "steps": len(entries[0].seconds),
                    "pairs_per_second": [pairs_per_second(log, works[name]) for log in entries],
                    "pairs_per_second_with_reference": [pairs_per_second(log, works[name], True) for log in entries],
                    "peak_mb": [log.peak_mb for log in entries],
                    "share_of_matmul_rate": [
                        flops * pairs_per_second(log, works[name]) / (len(work.batches) * work.batch_size) / fastest
                        for log in entries
                    ],
                    "losses": entries[0].losses,
                    "seconds": [log.seconds for log in entries],
                }
                for name, entries in logs.items()
            },
            "profile": None if options.no_profile else measured("profile", work, folder),
            "same_numbers": numbers,
        }
        file = options.results / f"engine_{options.name}.json"
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(summary(record))


if __name__ == "__main__":
    main()
