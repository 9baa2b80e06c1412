"""The trainer of reinforcement learning: sample, score, weigh, update; one loop for all methods.

The policy is compared with its own state at the start, the reference. With a critic, a value head reads the policy's
states; no gradient of its loss reaches the policy, so the two share what the states say and nothing else.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import tiktoken
import torch
from torch import Tensor
from tqdm import tqdm

from dpo_core.config import DPOConfig
from dpo_core.data import batches
from dpo_core.errors import InputError, shown
from dpo_core.generate import Generation, encode_prompt, generate
from dpo_core.methods.lora import adapters
from dpo_core.metrics import History, MetricSums
from dpo_core.model import GPT
from dpo_core.rl.advantages import moving_baseline
from dpo_core.rl.answers import AnswerBatch, answer_logps, answer_states, collate_answers, token_entropy
from dpo_core.rl.config import RLConfig
from dpo_core.rl.methods import Rollout
from dpo_core.rl.metrics import answer_metrics, reward_line, update_metrics
from dpo_core.rl.objectives import value_loss
from dpo_core.rl.run import RLRun
from dpo_core.rl.value import ValueHead
from dpo_core.runs.checkpoint import fingerprint
from dpo_core.runs.checks import check_model
from dpo_core.runs.exits import Interrupt, delayed_interrupt, lasting_output, saved_on_error
from dpo_core.tokenizer import form_of

__all__ = ["RLTrainer", "Score"]

Score = Callable[[list[str], list[str]], Sequence[float] | Tensor]  # prompts and answers: one reward each
Callback = Callable[["RLTrainer", int, dict[str, float]], dict[str, float] | None]
Pass = tuple[slice, AnswerBatch]  # which of a step's answers, and they


class RLTrainer:
    """Train a model in place on answers of its own, so that they score higher.

    Args:
        model: the policy, and the reference as it is now; float32, without dropout; with ``add_lora`` its adapter
            alone is trained.
        encoding: its tokenizer.
        prompts: what is asked, each as for ``generate``.
        score: takes prompts and answers, in two lists of equal length, and returns one reward each; deterministic, if
            a resumed run shall be the same as one that never stopped.
        config: the settings.
        output: folder of the run; without one nothing is written.
    Raises:
        InputError: model, prompts, settings or folder do not fit.

    >>> from dpo_core.tokenizer import load_tokenizer
    >>> def shorter(prompts, answers):
    ...     return [-len(answer) / 10 for answer in answers]
    >>> config = RLConfig(steps=2, prompts_per_step=2, samples_per_prompt=2, max_new_tokens=4, log_every=1)
    >>> trainer = RLTrainer(GPT.from_pretrained("pocket"), load_tokenizer("pocket"), ["Why?", "Who?"], shorter, config)
    >>> history = trainer.train(progress=False)
    >>> [row["step"] for row in history.rows], history.rows[0]["objective/kl"]
    ([1, 2], 0.0)
    """

    def __init__(
        self,
        model: GPT,
        encoding: tiktoken.Encoding,
        prompts: Sequence[str],
        score: Score,
        config: RLConfig,
        output: str | Path | None = None,
    ) -> None:
        check_model(model, encoding, DPOConfig())
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts are {shown(prompts)}; give at least one, in a list")
        self.prompt_ids = {prompt: encode_prompt(model, encoding, prompt) for prompt in prompts}
        self.model, self.encoding, self.prompts, self.score = model, encoding, [*prompts], score
        self.config = config = config.resolve(model)
        self.method = config.bundle()
        self.run = RLRun(output, model.origin)
        self.run.identify(config, "float32", fingerprint(model, [], self.prompts), form_of(self.prompts))
        self.reference = copy.deepcopy(model).requires_grad_(False)
        self.critic = ValueHead(model.config.n_embd).to(model.device) if self.method.returns else None
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": self.parameters, "lr": config.learning_rate}]
        if self.critic:
            groups.append({"params": [*self.critic.parameters()], "lr": config.value_learning_rate})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.global_step = 0  # steps taken
        self.baseline: float | None = None  # running mean of the rewards
        self.history, self.sums = History(), MetricSums()
        self.stop = False

    # A step

    def step(self, prompts: Sequence[str]) -> float:
        """Sample answers, score them, and update the policy with them.

        Args:
            prompts: X of them.
        Returns:
            The gradient's norm before it was clipped, in the last update.
        Raises:
            InputError: a score or a gradient is not finite.
        """
        rollout, passes = self.rollout(prompts)  # K answers to each: B = X K
        advantages = self.method.advantages(rollout, self.config)  # (B, 1) or (B, T), once for all inner epochs
        count, norm = len(rollout.scores), 0.0
        for _ in range(self.config.inner_epochs):
            self.optimizer.zero_grad()
            for rows, batch in passes:
                part, states = rollout.part(rows), answer_states(self.model, batch)
                logps = answer_logps(self.model, batch, states)  # (b, T)
                losses = self.method.losses(logps, part, advantages[rows], self.config)  # (b,)
                (losses.sum() / count).backward()
                if self.critic:
                    self.teach_critic(states, batch, part, count)
                self.measure(logps, part, advantages[rows], losses)
            norm = self.clip_and_move()
        return norm

    def rollout(self, prompts: Sequence[str]) -> tuple[Rollout, list[Pass]]:
        """Sample answers and compute all that the update needs to know of the moment at which they were sampled.

        Args:
            prompts: X of them.
        Returns:
            The rollout of B answers, those to one prompt in a row, and the passes that they are computed in.
        """
        answers = self.sample(prompts)
        scores = self.scores(answers)
        passes = self.passes(answers)
        old, reference, values, entropy = self.tables(passes)
        mask = torch.cat([batch.mask for _, batch in passes])
        baseline = torch.tensor(math.nan if self.baseline is None else self.baseline, device=mask.device)
        rollout = Rollout(mask, scores, old, reference, values, baseline, mask.sum() / len(mask))
        if "baseline_decay" in self.method.own:
            rewards = rollout.rewards(self.config.beta)
            self.baseline = moving_baseline(self.baseline, rewards, self.config.baseline_decay)
        ended = torch.tensor([self.has_end(answer) for answer in answers], device=mask.device)
        self.sums.add(answer_metrics(rollout, ended, self.config.beta) | {"policy/entropy_avg": entropy})
        return rollout, passes

    def sample(self, prompts: Sequence[str]) -> list[Generation]:
        """Answer each prompt K times at temperature 1, so that the answers are the policy's own.

        The seed follows from that of the run and the step: a resumed run samples what it would have sampled.
        """
        asked = [prompt for prompt in prompts for _ in range(self.config.samples_per_prompt)]
        seed = random.Random(f"{self.config.seed} {self.global_step}").getrandbits(62)
        return generate(self.model, self.encoding, asked, max_new_tokens=self.config.max_new_tokens, seed=seed)

    def scores(self, answers: Sequence[Generation]) -> Tensor:
        """Score answers, less what it costs to have no end: (B,) float32."""
        given = self.score([answer.prompt for answer in answers], [answer.text for answer in answers])
        scores = torch.as_tensor(given, dtype=torch.float32, device=self.model.device).detach()
        if scores.shape != (len(answers),):
            raise InputError(f"{len(answers)} answers were scored, and {tuple(scores.shape)} rewards came back")
        if bad := [answer for answer, fine in zip(answers, scores.isfinite().tolist()) if not fine]:
            raise InputError(f"the reward of {shown(bad[0].text)} to {shown(bad[0].prompt)} is not finite")
        endless = torch.tensor([not self.has_end(answer) for answer in answers], device=scores.device)
        return scores - self.config.missing_eos_penalty * endless

    def has_end(self, answer: Generation) -> bool:
        """Tell whether an answer has its end-of-text token."""
        return answer.ids[-1] == self.encoding.eot_token

    def passes(self, answers: Sequence[Generation]) -> list[Pass]:
        """Divide a step's answers into passes of whole prompts, about ``batch_size`` answers each."""
        samples = [(self.prompt_ids[answer.prompt], answer.ids) for answer in answers]
        width, each = max(len(answer.ids) for answer in answers), self.config.samples_per_prompt
        size = max(1, self.config.batch_size // each) * each
        parts = [slice(at, min(at + size, len(samples))) for at in range(0, len(samples), size)]
        return [(rows, collate_answers(samples[rows], self.model.device, width)) for rows in parts]

    @torch.no_grad()
    def tables(self, passes: Sequence[Pass]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute log-probs under policy and reference, (B, T), the critic's values, (B, T), and entropies, (N,)."""
        rows = []
        for _, batch in passes:
            states = answer_states(self.model, batch)
            old, reference = answer_logps(self.model, batch, states), answer_logps(self.reference, batch)
            values = batch.table(self.critic(states)) if self.critic else torch.zeros_like(old)
            rows.append((old, reference, values, token_entropy(self.model, states)))
        old, reference, values, entropy = (torch.cat(each) for each in zip(*rows))
        return old, reference, values, entropy

    def teach_critic(self, states: Tensor, batch: AnswerBatch, part: Rollout, count: int) -> None:
        """Add the gradient of the value loss, the mean over the tokens of a step, to the critic's alone."""
        assert self.critic and self.method.returns
        values = batch.table(self.critic(states.detach()))  # detached: the critic must not move the policy
        returns = self.method.returns(part, self.config)
        losses = value_loss(values, part.values, returns, part.mask)
        (losses.sum() / (count * part.mean_length)).backward()
        self.sums.add({"loss/value_avg": losses.detach()[part.mask]})

    def clip_and_move(self) -> float:
        """Clip the gradients of policy and critic, each by itself, and move the weights against them."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm).item()
        if self.critic:
            torch.nn.utils.clip_grad_norm_(self.critic.parameters(), self.config.max_grad_norm)
        if not math.isfinite(norm):
            raise InputError(f"the gradient of step {self.global_step + 1} is not finite; lower the learning rate")
        self.optimizer.step()
        return norm

    def measure(self, logps: Tensor, part: Rollout, advantages: Tensor, losses: Tensor) -> None:
        """Count in how far the policy has moved from the one that sampled, and the losses."""
        moved = update_metrics(logps, part, advantages, self.method.whole_answers, self.config.clip)
        self.sums.add(moved | {"loss/policy_avg": losses.detach()})

    # The loop around it

    def train(
        self, *, progress: bool = True, resume: bool | Literal["auto"] = False, callbacks: Iterable[Callback] = ()
    ) -> History:
        """Train until ``config.steps`` are taken.

        Args:
            progress: print the rows as they are logged, and show a bar if there is a terminal.
            resume: go on from the last checkpoint in the output folder; with "auto" only if there is one.
            callbacks: functions of trainer, step and row, called when a row is logged; what they return is added to
                it. One that sets ``trainer.stop`` ends the training there.
        Returns:
            All rows; each averages the steps since the row before, measured before their updates.
        Raises:
            InputError: a score or a gradient is not finite, there is nothing to resume, checkpoints stand in the way,
                or another process trains there.
            KeyboardInterrupt: after Ctrl-C, once the step is done and a checkpoint is written; SystemExit after
                SIGTERM or SIGHUP.
        """
        with self.run.locked(), lasting_output():
            self._begin(resume)
            with delayed_interrupt() as interrupted:
                self._loop(progress, [*callbacks], interrupted)
                self._finish()
        return self.history

    def _loop(self, progress: bool, callbacks: Sequence[Callback], interrupted: Interrupt) -> None:
        config, self.stop = self.config, False
        bar = tqdm(total=config.steps, initial=self.global_step, disable=None if progress else True)
        order = self._order()
        with bar, saved_on_error(self.optimizer, interrupted, self._rescue) as moving:
            while self.global_step < config.steps and not self.stop:
                grad_norm = self.step(next(order))
                self.global_step += 1
                moving.clear()
                bar.update()
                if self.global_step % config.log_every == 0 or self.global_step == config.steps:
                    self._log(self.sums.means() | {"grad_norm": grad_norm}, progress, callbacks)
                if self.run.save_due(self.global_step):
                    self.save()
                if interrupted.is_set():
                    raise interrupted.stop(f"stopped after step {self.global_step}; {self.save()}")

    def _order(self) -> Iterator[list[str]]:
        """Yield the prompts of one step after another, from the next one on."""
        order = batches(len(self.prompts), self.config.prompts_per_step, self.config.seed)
        return ([self.prompts[i] for i in indices] for indices in islice(order, self.global_step, None))

    def _log(self, row: dict[str, float], progress: bool, callbacks: Sequence[Callback]) -> None:
        self.sums = MetricSums()
        self.history.log(self.global_step, **row)
        for callback in callbacks:
            self.history.log(self.global_step, **callback(self, self.global_step, self.history.rows[-1]) or {})
        self.run.write_history(self.history)
        if progress:
            tqdm.write(reward_line(self.history.rows[-1], self.config.steps))

    def _begin(self, resume: bool | Literal["auto"]) -> None:
        if found := self.run.begin(resume, self.global_step == 0, self.model, self.optimizer):
            state, weights = found
            if self.critic and weights:
                self.critic.load_state_dict(weights)
            self.global_step, self.history = state["step"], History(state["history"])
            self.sums, self.baseline = MetricSums(**state["sums"]), state["baseline"]

    def save(self, finished: bool = False) -> str:
        """Write a checkpoint.

        Args:
            finished: whether the run is complete, so that a new one in its folder may replace it.
        Returns:
            A sentence on where it is and how to go on from it.
        """
        state = {"step": self.global_step, "finished": finished, "history": self.history.rows}
        state |= {"sums": asdict(self.sums), "scaler": {}, "baseline": self.baseline}
        return self.run.save(state, self.model, self.optimizer, self.critic.state_dict() if self.critic else None)

    def _rescue(self) -> str:
        return f"stopped after step {self.global_step}; {self.save()}" if self.run.unsaved(self.global_step) else ""

    def _finish(self) -> None:
        self.save(finished=True)
        if not adapters(self.model):
            self.model.source = ""  # it is no longer what was loaded
        self.run.finish(self.model, self.history)
