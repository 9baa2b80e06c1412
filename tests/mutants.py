"""Plants mistakes in a copy of ``dpo_core``, one at a time, and says which test notices each.

Run as ``python tests/mutants.py``, or with words to try only the mutants whose name holds one of them:
``python tests/mutants.py sign beta``. It is for whoever changes the tests: a mutant that survives is a claim of the
course that nothing checks. pytest does not collect this file; the checkout is never touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    """A mistake: what is replaced where, and who should mind: ``tests/test_NAME.py``, the likeliest first."""

    name: str
    file: str  # in dpo_core
    edits: tuple[tuple[str, str], ...]  # each old text stands in the file exactly once
    tests: tuple[str, ...]


def mutant(name: str, file: str, tests: str, *edits: str) -> Mutant:
    return Mutant(name, file, tuple(zip(edits[::2], edits[1::2])), tuple(tests.split()))


LOSS = "-(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)"

MUTANTS = [
    # The loss
    mutant("the loss's sign is flipped", "losses.py", "losses tabular", LOSS, LOSS.replace("(margin)", "(-margin)")),
    mutant(
        "beta divides instead of multiplying",
        "losses.py",
        "losses tabular",
        "chosen = beta * (policy_chosen - reference_chosen)",
        "chosen = (policy_chosen - reference_chosen) / beta",
        "rejected = beta * (policy_rejected - reference_rejected)",
        "rejected = (policy_rejected - reference_rejected) / beta",
    ),
    mutant(
        "beta is applied twice", "losses.py", "losses tabular",
        "    margin = chosen - rejected\n", "    margin = beta * (chosen - rejected)\n",
    ),
    mutant(
        "the reference is left out", "losses.py", "losses tabular",
        "chosen = beta * (policy_chosen - reference_chosen)", "chosen = beta * policy_chosen",
        "rejected = beta * (policy_rejected - reference_rejected)", "rejected = beta * policy_rejected",
    ),
    mutant(
        "the rejected answer is left out", "losses.py", "losses tabular",
        "    margin = chosen - rejected\n", "    margin = chosen\n",
    ),
    mutant(
        "the gradient's weight is s(margin), the loss is right", "losses.py", "losses tabular",
        "    return PairLoss(loss, chosen.detach(), rejected.detach())\n\n\n# What all of the family share",
        "    loss = loss.detach() + margin.detach().sigmoid() * (margin.detach() - margin)\n"
        "    return PairLoss(loss, chosen.detach(), rejected.detach())\n\n\n# What all of the family share",
    ),
    mutant(
        "label smoothing's sign is flipped", "losses.py", "losses",
        LOSS, LOSS.replace("- label_smoothing *", "+ label_smoothing *"),
    ),
    mutant(
        "the robust loss is the conservative one", "losses.py", "losses",
        "(1 - label_smoothing) * right - label_smoothing * flipped",
        "(1 - label_smoothing) * right + label_smoothing * flipped",
    ),
    mutant(
        "IPO takes sums for averages", "losses.py", "losses",
        "h = logps.chosen_ratios / logps.chosen_lengths - logps.rejected_ratios / logps.rejected_lengths",
        "h = logps.chosen_ratios - logps.rejected_ratios",
    ),
    mutant(
        "SimPO's margin is multiplied by beta", "losses.py", "losses",
        "F.logsigmoid(chosen - rejected - gamma)", "F.logsigmoid(chosen - rejected - beta * gamma)",
    ),
    mutant(
        "the rewards keep their gradient", "losses.py", "losses",
        "    return PairLoss(loss, chosen.detach(), rejected.detach())\n\n\n# What all of the family share",
        "    return PairLoss(loss, chosen, rejected)\n\n\n# What all of the family share",
    ),
    # Log-probabilities
    mutant(
        "the shift is dropped", "logprobs.py", "logprobs",
        "model(ids)[:, :-1], ids[:, 1:]", "model(ids)[:, 1:], ids[:, 1:]",
    ),
    mutant(
        "the prompt counts", "logprobs.py", "logprobs",
        "(logps * mask[:, 1:]).sum(1)", "(logps * mask.flip(1).cummax(1).values.flip(1)[:, 1:]).sum(1)",
    ),
    mutant(
        "padding counts", "logprobs.py", "logprobs",
        "(logps * mask[:, 1:]).sum(1)", "(logps * mask.cummax(1).values[:, 1:]).sum(1)",
    ),
    mutant(
        "the average for the sum, in the textbook way", "logprobs.py", "logprobs",
        "(logps * mask[:, 1:]).sum(1)", "(logps * mask[:, 1:]).sum(1) / mask[:, 1:].sum(1)",
    ),
    mutant(
        "the average for the sum, in the engine", "logprobs.py", "logprobs",
        "chosen, rejected = table.sum(1).split(B)",
        "chosen, rejected = (table.sum(1) / (table != 0).sum(1)).split(B)",
    ),
    mutant(
        "log-probs stay in bf16", "logprobs.py", "logprobs",
        "F.cross_entropy(logits.float(), targets", "F.cross_entropy(logits, targets",
    ),
    mutant(
        "the head's gradient has the wrong sign", "kernels/head.py", "logprobs",
        "slope.scatter_add_(1, targets[part, None], grad[part, None])",
        "slope.scatter_add_(1, targets[part, None], -grad[part, None])",
    ),
    mutant(
        "only the first chunk reaches the head's gradient", "kernels/head.py", "logprobs",
        "grad_weight += slope.T @ states[part]", "grad_weight += slope.T @ states[part] if part.start == 0 else 0",
    ),
    mutant(
        "the reference's answers come in another order", "logprobs.py", "logprobs trainer",
        "out[indices] = torch.stack(pair_logps(model, batch), dim=1).cpu()",
        "out[sorted(indices)] = torch.stack(pair_logps(model, batch), dim=1).cpu()",
    ),
    # Pairs and batches
    mutant(
        "the rejected answer sees the chosen one", "data.py", "data logprobs",
        "((query == key) | (key == 0))", "(key >= 0)",
    ),
    mutant(
        "the rejected answer's positions run on", "data.py", "data logprobs",
        "*range(p, p + r)", "*range(p + c, p + c + r)",
    ),
    mutant(
        "the chosen answer's end predicts the rejected one's start", "data.py", "data logprobs",
        "[p - 1, *range(p + c, p + c + r)]", "[p + c - 1, *range(p + c, p + c + r)]",
    ),
    mutant(
        "answers have no end of text", "data.py", "data",
        "([*ids[cut:], encoding.eot_token] for ids in whole)", "(ids[cut:] for ids in whole)",
    ),
    mutant(
        "a cut answer gets its end back", "data.py", "data",
        "rejected=encoded.rejected[: max(room, 0)])",
        "rejected=[*encoded.rejected[: max(room - 1, 0)], encoding.eot_token])",
    ),
    mutant(
        "prompt and answer are encoded apart", "data.py", "data",
        "[encoding.encode_ordinary(pair.prompt + gap + text) for text in answers]",
        "[opening + encoding.encode_ordinary(text) for text in answers]",
    ),
    mutant(
        "answers that are the same once cut are kept", "data.py", "data",
        "short.chosen == short.rejected", "False",
    ),
    mutant(
        "held-out prompts are trained on", "data.py", "data trainer",
        "train = [e for e in encoded if same_prompt(e.pair.prompt) not in held_out]", "train = list(encoded)",
    ),
    mutant(
        "every epoch has the same order", "data.py", "data trainer",
        "generator = torch.Generator(\"cpu\").manual_seed(seed)\n    while True:\n",
        "while True:\n        generator = torch.Generator(\"cpu\").manual_seed(seed)\n",
    ),
    mutant(
        "the reader swaps the labels", "pairs.py", "data",
        'answers = [_render(name, record[name], "assistant") for name in ("chosen", "rejected")]',
        'answers = [_render(name, record[name], "assistant") for name in ("rejected", "chosen")]',
    ),
    mutant(
        "the reader swaps HH-RLHF's labels", "pairs.py", "data",
        "return chosen[:cut], chosen[cut:].strip(), rejected[cut:].strip()",
        "return chosen[:cut], rejected[cut:].strip(), chosen[cut:].strip()",
    ),
    # Metrics
    mutant(
        "a tie counts as a hit", "metrics.py", "metrics trainer",
        "rewards[0] > rewards[1]", "rewards[0] >= rewards[1]",
    ),
    mutant(
        "reward accuracy is the policy's own ranking", "metrics.py", "metrics trainer",
        '"rewards/accuracies": rewards[0] > rewards[1]', '"rewards/accuracies": policy_chosen > policy_rejected',
    ),
    mutant(
        "metrics are means of means", "metrics.py", "metrics trainer",
        "values.double().sum(1).tolist()", "values.double().mean(1).tolist()",
        "self.count += values.shape[1]", "self.count += 1",
    ),
    mutant(
        "chosen_delta is measured from 0", "metrics.py", "metrics trainer",
        "policy_chosen - reference_chosen", "policy_chosen",
    ),
    # The trainer
    mutant(
        "the cached reference moves", "trainer.py", "trainer",
        'return self.reference["training"][indices].to(self.model.device).unbind(1)',
        "return [logps.detach() for logps in pair_logps(self.policy, batch)]",
    ),
    mutant(
        "the live reference is the policy", "trainer.py", "trainer",
        'copy.deepcopy(model).requires_grad_(False) if config.reference == "live"',
        'model if config.reference == "live"',
    ),
    mutant(
        "passes are averaged, not pairs", "trainer.py", "trainer",
        "loss.sum() / len(indices) * world_size()", "loss.mean() / len(groups) * world_size()",
    ),
    mutant(
        "gradients of the last step stay", "trainer.py", "trainer",
        "        self.optimizer.zero_grad()\n        groups =", "        groups =",
    ),
    mutant(
        "warm-up begins at 0", "config.py", "trainer",
        "min(1.0, (step + 1) / max(1, self.warmup_steps))", "min(1.0, step / max(1, self.warmup_steps))",
    ),
    mutant(
        "beta's schedule runs backwards", "config.py", "trainer",
        "self.beta + (end - self.beta) * step", "end + (self.beta - end) * step",
    ),
    mutant(
        "gradients are not clipped", "trainer.py", "mutants_trainer",
        "clip_grad_norm_(self.parameters, self.config.max_grad_norm)", "clip_grad_norm_(self.parameters, 1e9)",
    ),
    mutant(
        "a resumed run begins the order anew", "trainer.py", "trainer",
        "config.seed), self.step, None)", "config.seed), 0, None)",
    ),
    mutant(
        "patience keeps the last weights", "trainer.py", "trainer",
        "self.model.load_state_dict(self.best, strict=False)", "pass",
    ),
    mutant(
        "dropout is not refused", "refusals.py", "trainer",
        "if model.config.dropout:", "if False:",
    ),
    mutant(
        "a policy unlike its reference is not refused", "trainer.py", "trainer",
        "if (gap > tolerance * (1 + expected.abs())).any():", "if False:",
    ),
    mutant(
        "a loss that is not finite is trained on", "trainer.py", "trainer",
        "if not math.isfinite(grad_norm):", "if False:",
    ),
    mutant(
        "every loss is DPO's", "config.py", "trainer_losses",
        "return choose_loss(self.loss, self.sft_weight, **settings)", 'return choose_loss("dpo", self.sft_weight)',
    ),
    mutant(
        "label smoothing does not reach the loss", "config.py", "trainer_losses",
        '"label_smoothing": self.label_smoothing or None', '"label_smoothing": None',
    ),
    mutant(
        "kto's reference point is of the answers' own prompts", "kto.py", "trainer_losses",
        "prompt=encoded[j].prompt[-room:]", "prompt=e.prompt[-room:]",
    ),
    mutant(
        "kto's reference point never moves", "trainer.py", "trainer_losses",
        "(now - self.reference[", "(0 * now * self.reference[",
    ),
    # What was paid for: runs, checkpoints, labels
    mutant(
        "an older model passes for an unfinished run's", "cli.py", "cli",
        "if of_run and began and finished and began != finished:", "if False:",
    ),
    mutant(
        "a run does not say on which pairs", "trainer.py", "cli",
        '{"start": self.start, "key": self.key} |', '{"start": self.start} |',
    ),
    mutant(
        "a run may be written into a model's folder", "refusals.py", "cli",
        'if (output / "model.safetensors").exists():', "if False:",
    ),
    mutant(
        "a model may be written into a run's folder", "cli.py", "cli",
        'if (out / "final").is_dir() or list_checkpoints(out):', "if False:",
    ),
    mutant(
        "a fine-tuned model forgets its start", "cli.py", "cli",
        'write_json(args.output / "training.json", {"start": began})', "pass",
    ),
    mutant(
        "stale best weights come back", "trainer.py", "trainer",
        "load_best(folder, self.model) if self.config.patience else None", "load_best(folder, self.model)",
    ),
    mutant(
        "a checkpoint may have lost all moments", "checkpoint.py", "faults",
        "if tensors or stepped else []", "if tensors else []",
    ),
    mutant(
        "moments may be no numbers", "checkpoint.py", "faults",
        "or not tensor.is_floating_point() or not tensor.isfinite().all()", "or not tensor.is_floating_point()",
    ),
    mutant(
        "a checkpoint may be of any step", "checkpoint.py", "faults",
        'if not isinstance(steps, int) or not 0 <= state["step"] <= steps:', "if False:",
    ),
    mutant(
        "a trained model bears the old name", "trainer.py", "trainer",
        'self.model.source = ""  # it is no longer', "pass  # it is no longer",
    ),
    mutant(
        "a merged model bears the old name", "lora.py", "lora",
        'model.source = ""  # no folder', "pass  # no folder",
    ),
    mutant(
        "other weights may be trained beside an adapter", "refusals.py", "lora",
        "if adapters(model) and any(p.requires_grad", "if False and any(p.requires_grad",
    ),
    mutant("an adapter may have any rank", "lora.py", "lora", 'if raw["r"] > largest:', "if False:"),
    mutant(
        "another model's encoding is taken", "tokenizer.py", "trainer generate",
        "encoding.name in set(ENCODINGS) - {name} or encoding.n_vocab", "encoding.n_vocab",
    ),
    mutant(
        "kto's cache does not know the lent prompts", "trainer.py", "trainer_losses",
        "self.validation, *self.mismatched.values()], settings)", "self.validation], settings)",
    ),
    mutant(
        "numbers of steps may be broken", "settings.py", "trainer",
        "types = (int, float) if self.type is float else self.type", "types = (int, float, str, object)",
    ),
    mutant(
        "pairs by hand are written over the file", "cli.py", "cli",
        "add_pair(args.output, pair)", "save_pairs(args.output, pairs)",
    ),
    mutant(
        "pairs are written under a packed name", "cli.py", "cli", 'if args.output.suffix == ".gz":', "if False:",
    ),
    mutant("an evaluation hides what it drops", "cli.py", "cli", "    print(audit.report())\n    kept", "    kept"),
    mutant(
        "votes are dropped as repeats", "data.py", "data",
        '"repeats an earlier pair": pair in seen and not contested', '"repeats an earlier pair": pair in seen',
    ),
    mutant(
        "an empty answer is kept", "data.py", "data",
        "min(len(encoded.chosen), len(encoded.rejected)) < 2", "min(len(encoded.chosen), len(encoded.rejected)) < 1",
    ),
    mutant(
        "a further turn goes unnoticed", "data.py", "data", 'any("\\n\\nHuman:" in a', 'any("\\n\\nNobody:" in a',
    ),
    mutant(
        "bad answers are learned", "sft.py", "pretrain", 'if record.get("label") is False:', "if False:",
    ),
    mutant(
        "documents without an answer are trained on", "pretrain.py", "pretrain",
        "documents = [d for d in documents if len(d.ids) > d.start]", "documents = list(documents)",
    ),
    mutant(
        "a schedule's evaluations are compared", "diagnose.py", "diagnose",
        "> 1:\n            # Evaluations keep", "> 99:\n            # Evaluations keep",
    ),
    mutant(
        "all wins end below 1", "evaluate.py", "evaluate",
        "1.0 if wins == n else (centre + half) / scale", "(centre + half) / scale",
    ),
    mutant(
        "a history's step may be endless", "metrics.py", "metrics",
        "AttributeError, OverflowError, RecursionError)", "AttributeError)",
    ),
    mutant("no bar is shown", "generate.py", "generate", "disable=few or None", "disable=True"),
    # LoRA
    mutant("the adapter stays on in the reference", "lora.py", "lora", "        layer.on = False\n", "        pass\n"),
    mutant(
        "a trained adapter may be switched off for the reference", "refusals.py", "lora trainer",
        "if any(layer.lora_B.any() for layer in adapters(model).values()):", "if False:",
    ),
    mutant(
        "the adapter's scale is its rank times alpha", "lora.py", "lora",
        "self.alpha / self.rank", "self.alpha * self.rank",
    ),
    # The exactly solvable world
    mutant(
        "Z leaves the reference out", "tabular.py", "tabular",
        "(reference + rewards / beta).logsumexp(-1)", "(rewards / beta).logsumexp(-1)",
    ),
    mutant(
        "beta is upside down at the optimum", "tabular.py", "tabular",
        "(reference + rewards / beta).logsumexp(-1)", "(reference + rewards * beta).logsumexp(-1)",
        "return reference + rewards / beta - log_z", "return reference + rewards * beta - log_z",
    ),
    mutant(
        "the KL term is a reward", "tabular.py", "tabular",
        ".sum(-1) - beta * kl_divergence(policy, reference)", ".sum(-1) + beta * kl_divergence(policy, reference)",
    ),
    mutant(
        "KL is taken the other way round", "tabular.py", "tabular",
        "policy.exp() * (policy - reference)", "reference.exp() * (reference - policy)",
    ),
    mutant(
        "the implied reward has no beta", "tabular.py", "tabular",
        "return beta * (policy - reference)", "return policy - reference",
    ),
    mutant(
        "the worse answer is preferred", "tabular.py", "tabular",
        "rewards[..., :, None] - rewards[..., None, :]", "rewards[..., None, :] - rewards[..., :, None]",
    ),
    # Measuring
    mutant(
        "the sampled KL is of the reference", "evaluate.py", "evaluate",
        "log_p.exp() * (log_p - log_q)", "log_q.exp() * (log_q - log_p)",
    ),
    mutant(
        "the sampled KL counts the prompt", "evaluate.py", "evaluate",
        "(columns >= len(prompt) - 1) & (columns < len(text))", "(columns >= 0) & (columns < len(text))",
    ),
    mutant(
        "Wilson's interval is the textbook one", "evaluate.py", "evaluate",
        "centre = share + z * z / (2 * n)", "centre = share",
    ),
    mutant(
        "prompts are not drawn in pairs", "evaluate.py", "evaluate",
        "scores(a) - scores(b)  # (n,)", "scores(a) - scores(b)[torch.randperm(len(b))]",
    ),
    mutant(
        "answers run on after their end", "generate.py", "generate",
        "answer.ended = token == encoding.eot_token", "answer.ended = False",
    ),
    # The model
    mutant(
        "a token sees what follows", "kernels/attention.py", "model logprobs",
        "attn_mask=bias, is_causal=bias is None, dropout_p=dropout", "attn_mask=bias, dropout_p=dropout",
    ),
    # What reads the curves
    mutant(
        "exchanged labels are looked for in training alone", "diagnose.py", "diagnose",
        "if margin <= 0 or held_out > -margin / 4 or accuracy >= NEAR_HALF[0]:", "if margin >= 0:",
    ),
    mutant(
        "every fall is harmless", "diagnose.py", "diagnose",
        "    if odd < ODD_PER_ANSWER:\n", "    if odd < 1e9:\n",
    ),
    mutant(
        "odd tokens are odd to the policy", "watch.py", "diagnose",
        "token_logps(_next_logits(reference, prompt, ids)", "token_logps(_next_logits(model, prompt, ids)",
    ),
    # The pocket world
    mutant(
        "all bad styles are rejected alike", "pocket/corpus.py", "pocket",
        "rng.choices(drawn, [styles[style].habit for style, _ in drawn])[0] if contrast",
        "rng.choice(drawn) if contrast",
    ),
    mutant(
        "habits are those of the school", "pocket/corpus.py", "pocket",
        "s.habit if habits else s.school", "s.school",
    ),
    mutant(
        "no habits are learned", "pocket/build.py", "pocket_build",
        "dialogues(seed, habits=habits)", "dialogues(seed)",
    ),
]  # fmt: skip


def copy_to(folder: Path) -> None:
    """What the tests of the library need; the chapters and results are only linked."""
    for name in ("dpo_core", "tests", "tools", "book"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("notebooks", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where ``dpo_core`` is the copy, also for what the tests start themselves."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def first_failure(folder: Path, tests: Sequence[str]) -> str:
    """The first of these tests, files or single ones, that fails, or nothing."""
    quick = ("-x", "-q", "-m", "not slow and not browser", "-p", "no:cacheprovider")
    done = python(folder, "-m", "pytest", *quick, *tests)
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode and not found:
        raise SystemExit(f"pytest could not run {tests}:\n{done.stdout}\n{done.stderr}")
    return found[1] if found else ""


def planted(text: str, mutant: Mutant) -> str:
    """The file with the mistake in it."""
    for old, new in mutant.edits:
        if text.count(old) != 1:
            raise SystemExit(f"{mutant.name}: {mutant.file} holds {text.count(old)} times, not once: {old}")
        text = text.replace(old, new)
    return text


def try_out(folder: Path, mutant: Mutant) -> str:
    """Plant it, see who notices, and take it out again."""
    file = folder / "dpo_core" / mutant.file
    text = file.read_text(encoding="utf-8")
    file.write_text(planted(text, mutant), encoding="utf-8")
    try:
        failures = (first_failure(folder, [f"tests/test_{name}.py"]) for name in mutant.tests)
        return next(filter(None, failures), "")
    finally:
        file.write_text(text, encoding="utf-8")


def main(words: Sequence[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_to(folder)
        imported = python(folder, "-c", "import dpo_core; print(dpo_core.__file__)").stdout.strip()
        if Path(imported).parent != folder / "dpo_core":
            raise SystemExit(f"{imported} would be tested, not the copy in {folder}")
        for m in chosen:  # whether they still fit the code is known at once
            planted((folder / "dpo_core" / m.file).read_text(encoding="utf-8"), m)
        caught = {}
        for m in chosen:
            started = time.monotonic()
            caught[m.name] = try_out(folder, m)
            seconds = time.monotonic() - started
            print(f"{m.name:58} {caught[m.name].removeprefix('tests/') or 'SURVIVED'}  ({seconds:.0f} s)", flush=True)
        guards = sorted(set(caught.values()) - {""})
        if guards and (failed := first_failure(folder, guards)):
            raise SystemExit(f"{failed} fails without any mutant, too, so it proves nothing; mend that first")
    survivors = [name for name, test in caught.items() if not test]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants are caught")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
