"""The DPO trainer: reference log-probs once, then one readable loop.

A run's folder holds ``final/`` (the model, Hugging Face layout), ``history.jsonl``, ``config.json``, the cached
``reference.safetensors`` and ``checkpoints/step-000100/``. With LoRA, ``adapter/`` stands beside a
``final/`` in which it is merged. Under ``torchrun`` the processes share each step's pairs; the first prints and writes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

import tiktoken
import torch
from torch import Tensor
from tqdm import tqdm

from dpo_core.checkpoint import (
    cached,
    delayed_interrupt,
    fingerprint,
    kept_precision,
    learned,
    list_checkpoints,
    load_best,
    load_checkpoint,
    read_state,
    remove_checkpoints,
    save_checkpoint,
    save_final,
    sole_use,
    writable_folder,
    write_json,
)
from dpo_core.config import DPOConfig
from dpo_core.data import (
    EncodedPair,
    PreferenceBatch,
    PreferencePair,
    audit_pairs,
    batches,
    by_length,
    collate,
    split_by_prompt,
)
from dpo_core.device import FUSED_ADAMW
from dpo_core.distributed import (
    anywhere,
    exchanging,
    gather,
    owned,
    parallel,
    rank,
    share,
    snapshot,
    whole,
    world_size,
)
from dpo_core.errors import InputError
from dpo_core.kto import mismatched_pairs
from dpo_core.logprobs import pair_logps, reference_logps
from dpo_core.lora import adapter_off, adapters
from dpo_core.losses import PairLogps
from dpo_core.metrics import History, MetricSums, log_line, preference_metrics
from dpo_core.model import GPT
from dpo_core.precision import autocast, choose
from dpo_core.refusals import check_folder, check_model, check_resumable, not_finite

__all__ = ["DPOConfig", "DPOTrainer"]


def _alone(train: Callable[..., History]) -> Callable[..., History]:
    """Lets one process at a time train in a run's folder."""

    @wraps(train)
    def alone(self: DPOTrainer, *args: Any, **kwargs: Any) -> History:
        with sole_use(self.output):
            return train(self, *args, **kwargs)

    return alone


class DPOTrainer:
    """Trains a model in place by DPO against its own state at the start.

    Args:
        model: the policy, and the reference too as it is now; float32, without dropout, on the device to train on;
            with ``add_lora`` its adapter alone is trained.
        encoding: its tokenizer.
        pairs: preferences; a share of the prompts is set aside unless ``val_pairs`` are given.
        config: the settings.
        output: folder of the run; a finished run there is replaced, and without a folder nothing is written.
        val_pairs: pairs to evaluate on.
    Raises:
        InputError: model, data, settings or folder do not fit, or another process trains there; nothing has been
            computed then.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> pairs = [PreferencePair("Why?", "Because it is.", "No."), PreferencePair("Who?", "A friend.", "No.")]
    >>> config = DPOConfig(steps=2, batch_size=2, val_share=0)
    >>> history = DPOTrainer(GPT.from_pretrained("pocket"), load_tokenizer("pocket"), pairs, config).train(False)
    >>> round(history.rows[0]["loss"], 4), history.rows[-1]["loss"] < history.rows[0]["loss"]
    (0.6931, True)
    """

    def __init__(
        self,
        model: GPT,
        encoding: tiktoken.Encoding,
        pairs: Sequence[PreferencePair],
        config: DPOConfig,
        output: str | Path | None = None,
        val_pairs: Sequence[PreferencePair] | None = None,
    ) -> None:
        self.model, self.encoding, self.config, self.loss = model, encoding, config, config.pair_loss()
        self.output = None if output is None else writable_folder(output)
        self.start = model.origin
        if self.output:
            check_folder(self.output, self.start)
        check_model(model, encoding, config)
        max_length = config.max_length or model.config.n_positions
        self.audit = audit_pairs(pairs, encoding, max_length)
        self.val_audit = None if val_pairs is None else audit_pairs(val_pairs, encoding, max_length)
        if self.val_audit is None:
            self.training, self.validation = split_by_prompt(self.audit.kept, config.val_share, config.seed)
        else:
            self.training, self.validation = self.audit.kept, self.val_audit.kept
        self.config = config = config.resolve(model, len(self.training))
        if config.patience and not self.validation:
            raise InputError("patience needs validation pairs; give some, or a val_share above 0")
        # Each answer under a prompt that is not its own, of which only kto wants to know.
        sets = {"training": self.training, "validation": self.validation} if config.loss == "kto" else {}
        self.mismatched = {name: mismatched_pairs(name, encoded, max_length) for name, encoded in sets.items()}
        # A run that decided for itself goes on in what it decided then, also on another machine.
        kept = kept_precision(self.output) if self.output and config.precision == "auto" else None
        self.precision = choose(kept or config.precision, model.device)
        if anywhere(self.precision == "float32"):
            self.precision = "float32"
        # fp16 has so small a range that gradients are scaled up to stay in it.
        self.scaler = torch.amp.GradScaler(model.device.type, init_scale=2.0**12, enabled=self.precision == "fp16")
        settings = (self.precision, config.batch_size, config.reference, *self.mismatched)
        self.key = fingerprint(model, [self.training, self.validation, *self.mismatched.values()], settings)
        self.reference_model = copy.deepcopy(model).requires_grad_(False) if config.reference == "live" else None
        self.policy = parallel(model, config.parallel)  # the model, as all processes call it
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, weight_decay=config.weight_decay, fused=model.device.type in FUSED_ADAMW
        )
        self.step = 0
        self.history = History()
        self.best: dict[str, Tensor] | None = None  # weights of the history's kept_row, if there is patience
        self.sums = MetricSums()  # since the last row
        # Numbers of another device or another share of the work are rounded otherwise, though the run is the same.
        file, key = self.output and self.output / "reference.safetensors", (self.key, model.device.type, world_size())
        with sole_use(self.output):
            self.reference = cached(file, " ".join(map(str, key)), self._reference_logps)

    @_alone
    def train(
        self,
        progress: bool = True,
        resume: bool | Literal["auto"] = False,
        on_log: Callable[[History], None] | None = None,
    ) -> History:
        """Train from where the trainer stands to ``config.steps``, or until evaluations stop improving.

        With patience the model has the weights of the best evaluation in the end.

        Args:
            progress: print the rows as they are logged, and show a bar if there is a terminal.
            resume: go on from the last checkpoint in the output folder; with "auto" only if there is one.
            on_log: is given the history after each row, to show it, for one.
        Returns:
            All rows; that of step 0 is before any update, the others average the pairs since the row before.
        Raises:
            InputError: a loss or gradient is not finite, there is nothing to resume, checkpoints stand in the way,
                another process trains there, or a checkpoint cannot be written (then ``train`` can be called again).
            KeyboardInterrupt: after Ctrl-C, once the step is done and a checkpoint is written.
        """
        config, progress = self.config, progress and rank() == 0
        self._begin(resume)
        order = islice(batches(len(self.training), config.batch_size * config.grad_accum, config.seed), self.step, None)
        bar = tqdm(total=config.steps, initial=self.step, disable=None if progress else True)
        saved = time.monotonic()
        with bar, delayed_interrupt() as interrupted:
            while self.step < config.steps and not self.history.stalled(config.patience):
                indices = next(order)
                if self.step == 0:
                    self._log(self._start(indices) | self.evaluate(), progress, on_log)
                beta, learning_rate = config.beta_at(self.step), config.learning_rate_at(self.step)
                grad_norm = self._update(indices, beta, learning_rate)
                self.step += 1
                bar.update()
                if self._due(config.log_every) or self._due(config.eval_every):
                    row = self.sums.means() | {"grad_norm": grad_norm, "learning_rate": learning_rate, "beta": beta}
                    self.sums = MetricSums()
                    self._log(row | (self.evaluate() if self._due(config.eval_every) else {}), progress, on_log)
                if anywhere(config.save_due(self.step, (time.monotonic() - saved) / 60)):
                    self._save()
                    saved = time.monotonic()
                if anywhere(interrupted.is_set()):
                    raise KeyboardInterrupt(f"stopped after step {self.step}; {self._save()}")
        try:
            if config.saves:
                self._save(finished=True)
        finally:  # where there is no room for another checkpoint, there may be for the model alone
            if config.patience and self.best:
                self.model.load_state_dict(self.best, strict=False)
            if not adapters(self.model):
                self.model.source = ""  # it is no longer what was loaded
            if self.output:
                save_final(self.output, self.model, self.history)
        return self.history

    def _update(self, indices: list[int], beta: float, learning_rate: float) -> float:
        """One optimiser step on the mean over these pairs, however many passes that takes."""
        self.optimizer.zero_grad()
        groups = by_length(self.training, indices, self.config.batch_size * world_size())
        drift, parts = self._drift("training", indices), []
        for group in groups:
            with exchanging(self.policy, now=group is groups[-1]):
                loss, metrics = self._measure(group, beta, drift)
                # The processes' gradients are averaged.
                self.scaler.scale(loss.sum() / len(indices) * world_size()).backward()
            parts.append(metrics)
        metrics = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.scaler.unscale_(self.optimizer)
        grad_norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)))
        if not math.isfinite(grad_norm):
            if self.scaler.get_scale() > 1 and metrics["loss"].isfinite().all():  # too large for fp16: scale down
                self.scaler.update()
                return self._update(indices, beta, learning_rate)
            self.scaler.update()  # so that train can be called again
            self._refuse_step([i for group in groups for i in group], metrics["loss"])
        for settings in self.optimizer.param_groups:
            settings["lr"] = learning_rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.sums.add(metrics)
        return grad_norm

    def _measure(
        self, indices: list[int], beta: float, drift: Tensor | None, at_start: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the training pairs that are this process's share, and metrics of all, (B,) each."""
        own = share(indices)
        batch = collate([self.training[i] for i in own]).to(self.model.device)
        with autocast(self.model.device, self.precision):
            reference = self._reference(own, batch)
            policy: Sequence[Tensor] = pair_logps(self.policy, batch)
        if at_start:
            self._check_start(policy, reference)
            policy = reference
        lengths = batch.chosen_lengths, batch.rejected_lengths
        loss, metrics = self._score(policy, reference, lengths, beta, drift)
        values = gather(torch.stack(list(metrics.values()), dim=1), len(indices)).unbind(1)
        return loss[: owned(len(indices))], dict(zip(metrics, values))

    def _reference(self, indices: list[int], batch: PreferenceBatch) -> Sequence[Tensor]:
        """Log-probs (B,) and (B,) of training pairs under the reference."""
        if self.config.reference == "cached":
            return self.reference["training"][indices].to(self.model.device).unbind(1)
        with torch.no_grad(), adapter_off(self.model) if self.reference_model is None else nullcontext():
            return pair_logps(self.reference_model or self.policy, batch)

    def _drift(self, name: str, indices: list[int]) -> Tensor | None:
        """(2 B,) log-ratios of these pairs' answers under prompts that are not theirs, on the CPU; none if not kto."""
        if not self.mismatched:
            return None
        now = self._logps([self.mismatched[name][i] for i in indices])
        return (now - self.reference[f"mismatched {name}"][indices]).flatten()

    def _score(
        self,
        policy: Sequence[Tensor],
        reference: Sequence[Tensor],
        lengths: Sequence[Tensor],
        beta: float,
        mismatched: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        (chosen, rejected), (reference_chosen, reference_rejected), (n_w, n_l) = policy, reference, lengths
        mismatched = None if mismatched is None else mismatched.to(chosen.device)
        logps = PairLogps(chosen, rejected, reference_chosen, reference_rejected, n_w, n_l, mismatched)
        out = self.loss(logps, beta)
        return out.loss, preference_metrics(out, chosen, rejected, reference_chosen, n_w, n_l)

    def _start(self, indices: list[int]) -> dict[str, float]:
        """Metrics before any update, when the policy is the reference; that it is, is checked.

        The row then takes the reference's numbers: other batches round otherwise, and rewards of 1e-6 would rank at
        random.
        """
        sums, drift = MetricSums(), self._drift("training", indices)
        with torch.no_grad():
            for group in by_length(self.training, indices, self.config.batch_size * world_size()):
                sums.add(self._measure(group, self.config.beta_at(0), drift, at_start=True)[1])
        return sums.means()

    def _check_start(self, policy: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        tolerance = 1e-4 if self.precision == "float32" else 2e-2
        measured, expected = (gather(torch.stack(list(logps), 1)) for logps in (policy, reference))  # (B, 2)
        gap = (measured - expected).abs()
        if (gap > tolerance * (1 + expected.abs())).any():  # what is not finite is reported with its pair, later
            raise InputError(
                f"policy and reference differ by {gap.max():.4f} nats before the first step, where they must be the"
                " same; the model was changed after the trainer was made: make a new trainer"
            )

    def evaluate(self) -> dict[str, float]:
        """Mean metrics of the validation pairs under ``eval_`` names; beta is ``config.beta`` whatever the schedule.

        Returns:
            Nothing if there are no validation pairs.
        """
        if not self.validation:
            return {}
        # The very batches of the reference, so that equal weights give a reward of exactly 0.
        policy = self._logps(self.validation).unbind(1)
        reference = self.reference["validation"].unbind(1)
        lengths = torch.tensor([[len(e.chosen), len(e.rejected)] for e in self.validation], device="cpu").unbind(1)
        drift = self._drift("validation", [*range(len(self.validation))])
        _, metrics = self._score(policy, reference, lengths, self.config.beta, drift)
        return {f"eval_{name}": float(values.mean()) for name, values in metrics.items()}

    def _due(self, every: int | None) -> bool:
        return every is not None and (self.step % every == 0 or self.step == self.config.steps)

    def _log(self, row: dict[str, float], progress: bool, on_log: Callable[[History], None] | None) -> None:
        self.history.log(self.step, **row)
        patience = self.config.patience
        if patience and self.history.kept_row(patience) is self.history.rows[-1]:
            self.best = snapshot(learned(self.model))
        if progress:
            tqdm.write(log_line(self.history.rows[-1]))
        if on_log:
            on_log(self.history)

    def _refuse_step(self, indices: list[int], losses: Tensor) -> NoReturn:
        bad = [i for i, fine in zip(indices, losses.isfinite().tolist()) if not fine] or indices
        self.optimizer.zero_grad()
        raise not_finite(self.step + 1, [self.training[i].pair for i in bad], self._save())

    # Files

    def _reference_logps(self) -> dict[str, Tensor]:
        sets = {"validation": self.validation}
        if self.config.reference == "cached":
            sets["training"] = self.training
        sets |= {f"mismatched {name}": encoded for name, encoded in self.mismatched.items()}
        return {name: self._logps(encoded, progress=True) for name, encoded in sets.items()}

    def _logps(self, encoded: Sequence[EncodedPair], progress: bool = False) -> Tensor:
        """Log-probs (len(encoded), 2) under the policy as it is, of which each process computes its share."""
        with autocast(self.model.device, self.precision):
            own = reference_logps(self.policy, share(encoded), self.config.batch_size, progress and rank() == 0)
        return gather(own, len(encoded))

    def _begin(self, resume: bool | Literal["auto"]) -> None:
        checkpoints = list_checkpoints(self.output) if self.output else []
        resume = bool(checkpoints) if resume == "auto" else resume
        if resume and not checkpoints:
            raise InputError(f"no checkpoint in {self.output} to resume from; start without resume")
        if resume:
            self._restore(checkpoints[-1])
        elif self.step == 0 and checkpoints:
            if not read_state(checkpoints[-1]).get("finished"):
                raise InputError(
                    f"{self.output} holds checkpoints of an earlier run that is not finished; resume it, or choose"
                    " another output"
                )
            anywhere(False)  # all have looked before the first process clears the folder
            remove_checkpoints(checkpoints)
        if self.output and rank() == 0:
            write_json(self.output / "config.json", {"start": self.start, "key": self.key} | self.config.record())

    def _restore(self, folder: Path) -> None:
        state = read_state(folder)
        check_resumable(folder, state, self.config, self.precision, self.key)
        self.best = load_best(folder, self.model) if self.config.patience else None
        if self.config.patience and not self.best:
            raise InputError(
                f"{folder} was written without patience (early stopping), or its best.safetensors is lost;"
                " resume without"
            )
        load_checkpoint(folder, self.model, self.optimizer, stepped=state["step"] > 0)
        self.step, self.history, self.sums = state["step"], History(state["history"]), MetricSums(**state["sums"])
        self.scaler.load_state_dict(state["scaler"])

    def _save(self, finished: bool = False) -> str:
        """Write a checkpoint, and say how to go on from it; over that of a finished run a new one may be started."""
        if self.output is None:
            return "nothing was saved, as the run has no output folder"
        state = {
            "step": self.step,
            "finished": finished,
            "key": self.key,
            "precision": self.precision,
            "config": self.config.record(),
            "history": self.history.rows,
            "sums": asdict(self.sums),
            "scaler": self.scaler.state_dict(),
        }
        folder = save_checkpoint(self.output, self.step, self.model, self.optimizer, state, self.best)
        return f"saved as {folder}, from where train(resume=True), or --resume, goes on"
