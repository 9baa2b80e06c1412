"""The DPO trainer: reference log-probs once, then one readable step.

Under ``torchrun`` the processes share each step's pairs; the first prints and writes. ``runs`` says what is written.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import tiktoken
import torch
from torch import Tensor
from tqdm import tqdm

from dpo_core.config import DPOConfig
from dpo_core.data import Audit, EncodedPair, PreferenceBatch, audit_pairs, batches, by_length, collate, split_by_prompt
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair
from dpo_core.kernels.device import FUSED_ADAMW
from dpo_core.kernels.precision import Precision, choose
from dpo_core.logprobs import pair_logps, reference_logps
from dpo_core.losses import PairLogps
from dpo_core.methods.lora import adapter_off, adapters
from dpo_core.metrics import History, MetricSums, preference_metrics
from dpo_core.model import GPT
from dpo_core.runs.checkpoint import fingerprint, trainable_state
from dpo_core.runs.checks import check_metric, check_model, check_start, not_finite, pairs_from
from dpo_core.runs.exits import Interrupt, delayed_interrupt, lasting_output, saved_on_error
from dpo_core.runs.processes import Processes, any_rank, copy_of
from dpo_core.runs.run import Run
from dpo_core.runs.still import console_lines
from dpo_core.tokenizer import form_of

__all__ = ["Callback", "DPOTrainer"]

# Is given trainer, step and row after each row is logged; the metrics that it returns are added to the row, and
# setting ``trainer.stop`` ends the training.
Callback = Callable[["DPOTrainer", int, dict[str, float]], dict[str, float] | None]


class DPOTrainer:
    """Train a model in place by DPO against its own state at the start.

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
    >>> trainer = DPOTrainer(GPT.from_pretrained("pocket"), load_tokenizer("pocket"), pairs, config)
    >>> history = trainer.train(progress=False)
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
        self.model, self.encoding, self.loss = model, encoding, config.pair_loss()
        check_model(model, encoding, config)
        self.run = Run(output, model.origin)
        self.max_length = config.max_length or model.config.n_positions
        self.audit = self.encode(pairs)
        self.val_audit = None if val_pairs is None else self.encode(val_pairs)
        if self.val_audit is None:
            self.training, self.validation = split_by_prompt(self.audit.kept, config.val_share, config.seed)
        else:
            self.training, self.validation = self.audit.kept, self.val_audit.kept
        self.config = config = config.resolve(model, len(self.training))
        if config.patience and not self.validation:
            raise InputError("patience needs validation pairs; give some, or a val_share above 0")
        self.loss(self.example(), config.beta)  # one that cannot be computed is refused before any work is done
        precision = choose(self.run.asked_precision(config.precision), model.device)
        self.precision = Precision("float32" if any_rank(precision == "float32") else precision, model.device)
        form = form_of([e.pair.prompt for e in self.training])
        self.run.identify(config, self.precision.name, self.key(), form)
        self.reference_model = copy.deepcopy(model).requires_grad_(False) if config.reference == "live" else None
        self.processes = Processes(model, config.parallel)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        fused = model.device.type in FUSED_ADAMW
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=config.weight_decay, fused=fused)
        self.global_step = 0  # optimiser steps taken
        self.history, self.sums = History(), MetricSums()  # the rows so far, and what goes into the next one
        self.metrics: dict[str, Tensor] = {}  # (B,) of the last step's pairs, in the order of its passes
        self.best: dict[str, Tensor] | None = None  # weights of the best evaluation, if there is patience
        self.stop = False  # a callback may set it
        self.check_start = check_start  # of policy and reference; the museum has runs in which they differ
        self._best_by = config.patience, config.metric_for_best_model
        self.reference = self.run.cached_reference(model.device, self.score_sets)

    # A step

    def step(self, indices: Sequence[int], beta: float, learning_rate: float) -> float:
        """Take one optimiser step on the mean loss of these training pairs, in passes that fit into memory.

        Args:
            indices: of the pairs in ``training``.
            beta: of the loss.
            learning_rate: of the step.
        Returns:
            The gradient's norm before it was clipped; where it is not finite, no step was taken.
        """
        self.optimizer.zero_grad()
        metrics = []
        for group in self.passes(indices):  # pairs of like length
            logps = self.logps(group)  # (B,) each: policy and reference, chosen and rejected
            out = self.loss(logps, beta)  # (B,) loss and rewards
            self.backward(out.loss.sum() / len(indices))  # passes add up to the mean
            metrics.append(self.gathered(preference_metrics(logps, out), group))
        return self.clip_and_move(learning_rate, metrics)

    def passes(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Divide a step's pairs into passes of ``batch_size``, pairs of similar length together."""
        size = self.config.batch_size * self.processes.count
        return self.processes.passes(by_length(self.training, indices, size))

    def logps(self, group: list[int]) -> PairLogps:
        """Compute the log-probs of training pairs under policy and reference; each process computes its share.

        Args:
            group: indices of the pairs in ``training``.
        """
        share = self.processes.share(group)
        batch = collate([self.training[i] for i in share]).to(self.model.device)
        with self.precision.compute():
            reference = self.reference_logps(share, batch)
            policy = pair_logps(self.processes.model, batch)
        return PairLogps(*policy, *reference, *batch.lengths).first(self.processes.owned(len(group)))

    def reference_logps(self, indices: list[int], batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Look up or compute the reference's log-probs of training pairs.

        Args:
            indices: of the pairs in ``training``.
            batch: the same pairs, collated.
        Returns:
            (B,) of the chosen and (B,) of the rejected answers, nats.
        """
        if self.config.reference == "cached":
            chosen, rejected = self.reference["training"][indices].to(self.model.device).unbind(1)
            return chosen, rejected
        with torch.no_grad(), adapter_off(self.model) if self.reference_model is None else nullcontext():
            return pair_logps(self.reference_model or self.processes.model, batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a pass to that of the passes before it.

        Args:
            loss: () nats, the pass's share of the mean loss.
        """
        self.precision.backward(loss * self.processes.count)  # whose gradients are averaged

    def gathered(self, metrics: dict[str, Tensor], group: Sequence[int]) -> dict[str, Tensor]:
        """Collect the metrics of a pass's pairs, (len(group),) each, from the processes that computed them."""
        rows = self.processes.gather(torch.stack(list(metrics.values()), dim=1), len(group))
        return dict(zip(metrics, rows.unbind(1)))

    def clip_and_move(self, learning_rate: float, metrics: Sequence[dict[str, Tensor]]) -> float:
        """Clip the gradient, move the weights against it, and count in the metrics of the pairs.

        Args:
            learning_rate: of the step.
            metrics: of each pass.
        Returns:
            The gradient's norm before; where it is not finite, nothing was moved or counted.
        """
        self.metrics = {name: torch.cat([part[name] for part in metrics]) for name in metrics[0]}
        self.precision.unscale(self.optimizer)
        norm = self.processes.clip(self.parameters, self.config.max_grad_norm)
        if math.isfinite(norm):
            for settings in self.optimizer.param_groups:
                settings["lr"] = learning_rate
            self.precision.move(self.optimizer)
            self.sums.add(self.averaged(self.metrics))
        return norm

    # The loop around it

    def train(
        self,
        *,
        progress: bool = True,
        resume: bool | Literal["auto"] = False,
        callbacks: Iterable[Callback] = (),
    ) -> History:
        """Train until ``config.steps`` are taken, or until evaluations stop improving.

        A trainer that has taken steps already goes on from there. With patience the model ends with the weights of the
        best evaluation.

        Args:
            progress: print the rows as they are logged, and show a bar if there is a terminal.
            resume: go on from the last checkpoint in the output folder; with "auto" only if there is one.
            callbacks: functions of trainer, step and row, called one after another when a row is logged; what they
                return is added to it. One that sets ``trainer.stop`` ends the training there.
        Returns:
            All rows; that of step 0 is before any update, the others average the pairs since the row before.
        Raises:
            InputError: a loss or gradient is not finite, there is nothing to resume, checkpoints stand in the way,
                another process trains there, or a checkpoint cannot be written (then ``train`` can be called again).
            KeyboardInterrupt: after Ctrl-C, once the step is done and a checkpoint is written.
            SystemExit: the same after SIGTERM or SIGHUP. An error of anything else is raised after a checkpoint, too.
        """
        progress, callbacks = progress and self.processes.first, [*callbacks]
        with self.run.locked(), lasting_output():
            self._begin(resume)
            with delayed_interrupt() as interrupted:
                self._loop(progress, callbacks, interrupted)
                self._finish()
        return self.history

    def _loop(self, progress: bool, callbacks: Sequence[Callback], interrupted: Interrupt) -> None:
        config = self.config
        order = batches(len(self.training), config.batch_size * config.grad_accum, config.seed)
        order = islice(order, self.global_step, None)
        bar = tqdm(total=config.steps, initial=self.global_step, disable=None if progress else True)
        with bar, saved_on_error(self.optimizer, interrupted, self._rescue) as moving:
            while self.global_step < config.steps and not (self.stop or self.history.stalled(*self._best_by)):
                indices = next(order)
                if self.global_step == 0:
                    self._log(self.first_row(indices) | self.evaluate(), progress, callbacks)
                    if self.stop:
                        break
                beta, learning_rate = config.beta_at(self.global_step), config.learning_rate_at(self.global_step)
                while not math.isfinite(grad_norm := self.step(indices, beta, learning_rate)):
                    self._retry_or_refuse(indices)
                self.global_step += 1
                moving.clear()
                bar.update()
                if self.due(config.log_every) or self.due(config.eval_every):
                    row = self.sums.means() | {"grad_norm": grad_norm, "learning_rate": learning_rate, "beta": beta}
                    row |= self.evaluate() if self.due(config.eval_every) else {}
                    self.sums = MetricSums()
                    self._log(row, progress, callbacks)
                if any_rank(self.run.save_due(self.global_step)):
                    self.save()
                if any_rank(interrupted.is_set()):
                    raise interrupted.stop(f"stopped after step {self.global_step}; {self.save()}")

    def due(self, every: int | None) -> bool:
        """Tell whether something is due now that happens every so many steps, and at the last one."""
        return every is not None and (self.global_step % every == 0 or self.global_step == self.config.steps)

    def _log(self, row: dict[str, float], progress: bool, callbacks: Sequence[Callback]) -> None:
        self.history.log(self.global_step, **row)
        row, (patience, metric) = self.history.rows[-1], self._best_by
        try:
            for callback in callbacks:
                self.history.log(self.global_step, **callback(self, self.global_step, row) or {})
        finally:  # an error in a callback costs neither the row nor the best weights
            if patience and self.history.kept_row(patience, metric) is row:
                self.best = copy_of(trainable_state(self.model))
            self.run.write_history(self.history)
        self.stop = any_rank(self.stop)
        check_metric(self.config, row)
        if progress:
            tqdm.write(console_lines(self.history, self.config.steps))

    def first_row(self, indices: Sequence[int]) -> dict[str, float]:
        """Average the metrics before any update, and check that the policy is the reference.

        The row takes the reference's numbers: other batches round otherwise, and rewards of 1e-6 would rank at random.
        """
        sums, beta = MetricSums(), self.config.beta_at(0)
        with torch.no_grad():
            for group in self.passes(indices):
                logps = self.logps(group)
                same = replace(logps, policy_chosen=logps.reference_chosen, policy_rejected=logps.reference_rejected)
                moved = {"chosen": logps.chosen_ratios, "rejected": logps.rejected_ratios}
                metrics = preference_metrics(same, self.loss(same, beta))
                self.check_start(self.gathered(metrics | moved, group), self.precision.name)
                sums.add(self.averaged(self.gathered(metrics, group)))
        return sums.means()

    def evaluate(self) -> dict[str, float]:
        """Average the metrics of the validation pairs, under names that begin with ``eval_``.

        Beta is ``config.beta`` at every step, so that evaluations can be compared.

        Returns:
            Nothing if there are no validation pairs.
        """
        if not self.validation:
            return {}
        logps = self.validation_logps()
        metrics = self.averaged(preference_metrics(logps, self.loss(logps, self.config.beta)))
        return {f"eval_{name}": float(values.mean()) for name, values in metrics.items() if len(values)}

    def validation_logps(self) -> PairLogps:
        """Compute the validation pairs' log-probs in the reference's very batches, so that equal weights give 0."""
        policy, reference = self.score(self.validation), self.reference["validation"]
        lengths = torch.tensor([[len(e.chosen), len(e.rejected)] for e in self.validation], device="cpu")
        return PairLogps(*policy.unbind(1), *reference.unbind(1), *lengths.unbind(1))

    # What a trainer of another method has otherwise

    def encode(self, pairs: Sequence[Any]) -> Audit:
        """Encode the given pairs, and drop those from which nothing can be learned."""
        return audit_pairs(pairs_from(pairs), self.encoding, self.max_length)

    def example(self) -> PairLogps:
        """Make the log-probs of one pair, to try the loss on."""
        return PairLogps(*torch.zeros(4, 1, device=self.model.device), *torch.ones(2, 1, device=self.model.device))

    def averaged(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose which values of each metric are averaged: (n,) of all pairs to (m,)."""
        return metrics

    def key(self) -> str:
        """Compute a key of weights, data and settings: numbers stored under another key are stale."""
        settings = (self.precision.name, self.config.batch_size, self.config.reference)
        return fingerprint(self.model, [self.training, self.validation], settings)

    def scored_sets(self) -> dict[str, Sequence[EncodedPair]]:
        """Name the sets of pairs whose reference log-probs are computed once."""
        sets: dict[str, Sequence[EncodedPair]] = {"validation": self.validation}
        return sets | ({"training": self.training} if self.config.reference == "cached" else {})

    # Log-probs of whole sets, checkpoints

    def score_sets(self) -> dict[str, Tensor]:
        """Compute the log-probs of each of ``scored_sets``, by name."""
        return {name: self.score(encoded, progress=True) for name, encoded in self.scored_sets().items()}

    def score(self, encoded: Sequence[EncodedPair], progress: bool = False) -> Tensor:
        """Compute log-probs under the policy as it is now; each process computes its share.

        Returns:
            (len(encoded), 2) nats of chosen and rejected answers, on the CPU.
        """
        share, show = self.processes.share(encoded), progress and self.processes.first
        with self.precision.compute():
            own = reference_logps(self.processes.model, share, self.config.batch_size, show)
        return self.processes.gather(own, len(encoded))

    def _begin(self, resume: bool | Literal["auto"]) -> None:
        self.stop = False
        if found := self.run.begin(resume, self.global_step == 0, self.model, self.optimizer):
            state, self.best = found
            self.global_step, self.history = state["step"], History(state["history"])
            self.sums = MetricSums(**state["sums"])
            self.precision.scaler.load_state_dict(state["scaler"])

    def save(self, finished: bool = False) -> str:
        """Write a checkpoint.

        Args:
            finished: whether the run is complete, so that a new one in its folder may replace it.
        Returns:
            A sentence on where it is and how to go on from it.
        """
        state = {"step": self.global_step, "finished": finished, "history": self.history.rows}
        state |= {"sums": asdict(self.sums), "scaler": self.precision.scaler.state_dict()}
        return self.run.save(state, self.model, self.optimizer, self.best)

    def _rescue(self) -> str:
        return f"stopped after step {self.global_step}; {self.save()}" if self.run.unsaved(self.global_step) else ""

    def _finish(self) -> None:
        try:
            if self.config.saves:
                self.save(finished=True)
        finally:  # where there is no room for another checkpoint, there may be for the model alone
            if self.config.patience and self.best:
                self.model.load_state_dict(self.best, strict=False)
            if not adapters(self.model):
                self.model.source = ""  # it is no longer what was loaded
            self.run.finish(self.model, self.history)

    def _retry_or_refuse(self, indices: Sequence[int]) -> None:
        """Handle a gradient that is not finite: lower fp16's scale, or name the pairs that are to blame."""
        finite = self.metrics["loss"].isfinite()
        if self.precision.lower_scale() and finite.all():
            return
        pairs = [self.training[i].pair for group in self.passes(indices) for i in group]
        bad = [pair for pair, fine in zip(pairs, finite.tolist()) if not fine] or pairs
        self.optimizer.zero_grad()
        raise not_finite(self.global_step + 1, bad, self.save())
