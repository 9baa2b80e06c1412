"""The settings of reinforcement learning, each with what it does when it is raised or lowered.

The flags of ``python -m dpo_core rl`` are made of these fields.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from dpo_core.config import default_learning_rate
from dpo_core.errors import InputError
from dpo_core.formats.settings import COUNT, NOT_NEGATIVE, POSITIVE, SEED, SHARE, Kind, check, setting
from dpo_core.model import GPT
from dpo_core.rl.methods import METHODS, Method, method_name

__all__ = ["RLConfig"]

METHOD = Kind(
    object,
    "the name of a method, or a Method",
    lambda value: isinstance(value, (str, Method)),
    (*METHODS,),
)
BELOW_1 = Kind(float, "a number above 0 and below 1", lambda value: 0 < value < 1)


@dataclass(frozen=True)
class RLConfig:
    """The settings of a run.

    A step samples ``samples_per_prompt`` answers to each of ``prompts_per_step`` prompts and updates the policy
    ``inner_epochs`` times with them. What is None is the method's own value, or the model's.

    >>> RLConfig(method="ppo").resolve(GPT.from_pretrained("pocket")).inner_epochs
    4
    """

    # fmt: off
    method: str | Method = setting("rloo", METHOD, metavar="METHOD", group="the method",
        help="reinforce, rloo, grpo, dr_grpo, ppo or online_dpo; they differ in what an answer is compared with, in how"
        " far a step may go, and in where the KL stands")
    beta: float = setting(0.1, NOT_NEGATIVE,
        help="price of a nat of divergence from the start: higher keeps the policy closer; 0 lets it go")
    clip: float = setting(None, BELOW_1, unset="0.2, where the method clips",
        help="how far the ratio may go from 1: higher allows longer steps away from the policy that sampled")
    inner_epochs: int = setting(None, COUNT, unset="4 for ppo, else 1",
        help="updates with the same answers: more learn more of each answer, and move further from its sampler")
    baseline_decay: float = setting(None, SHARE, unset="0.9 for reinforce",
        help="share of the baseline that stays at each step: higher remembers longer")
    gae_lambda: float = setting(None, SHARE, unset="0.95 for ppo",
        help="1 trusts the rewards alone, 0 the critic's next value alone")
    value_learning_rate: float = setting(None, POSITIVE, unset="1e-3 for ppo",
        help="length of the critic's steps: higher follows the rewards faster")

    steps: int = setting(100, COUNT, group="the steps", help="more move the policy further, and some day too far")
    prompts_per_step: int = setting(16, COUNT, help="more give calmer gradients for more time")
    samples_per_prompt: int = setting(None, COUNT, unset="2 for online_dpo, else 4",
        help="answers to each prompt: more compare better and take longer")
    max_new_tokens: int = setting(128, COUNT, help="tokens of an answer; one that is cut there has no end-of-text")
    missing_eos_penalty: float = setting(0.0, NOT_NEGATIVE,
        help="taken off the score of an answer that did not end: higher teaches to come to an end")
    learning_rate: float = setting(None, POSITIVE, "--lr",
        unset="1e-4 for pocket, 1e-6 for GPT-2; for an adapter ten times that",
        help="length of an update: higher learns faster, and breaks the model's language sooner")
    max_grad_norm: float = setting(1.0, POSITIVE, help="longer gradients are shortened to this")
    batch_size: int = setting(32, COUNT, help="answers per pass: lower takes less memory, with the same result")
    seed: int = setting(0, SEED, help="of the order of the prompts and of the sampling")

    log_every: int = setting(10, COUNT, group="measuring and saving", help="steps averaged in one row of the history")
    save_every: int | None = setting(None, COUNT, unset="at the end alone",
        help="steps between checkpoints: lower loses less to a crash")
    # fmt: on

    def __post_init__(self) -> None:
        for found in fields(self):
            check(found, getattr(self, found.name))
        if isinstance(self.method, str) and self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}: there are {', '.join(METHODS)}")
        method, name = self.bundle(), method_name(self.method)
        every = {setting for each in METHODS.values() for setting in each.own}
        if odd := [setting for setting in sorted(every - method.own.keys()) if getattr(self, setting) is not None]:
            raise InputError(
                f"{odd[0]} is {getattr(self, odd[0])}, but the method {name} has no such setting; leave it out"
            )
        if not method.reuses and self.inner_epochs not in (None, 1):
            raise InputError(
                f"inner_epochs is {self.inner_epochs}; the method {name} has no ratio, so its answers serve one update"
            )
        low, high = method.samples
        if self.samples_per_prompt is not None and not low <= self.samples_per_prompt <= high:
            words = f"{low}" if low == high else f"at least {low}"
            raise InputError(f"samples_per_prompt is {self.samples_per_prompt}; the method {name} needs {words}")
        if name == "online_dpo" and not self.beta:
            raise InputError("beta is 0; it must be above 0 for online_dpo, in whose loss nothing else would count")

    def bundle(self) -> Method:
        """Look up the method."""
        return METHODS[self.method] if isinstance(self.method, str) else self.method

    def resolve(self, model: GPT) -> RLConfig:
        """Fill in the settings that depend on the method and the model.

        Args:
            model: the one to train, with its adapter if it has one.
        Returns:
            The same settings, in which all that the method has are numbers.
        """
        method = self.bundle()
        filled: dict[str, Any] = method.own | {
            "inner_epochs": method.inner_epochs,
            "learning_rate": default_learning_rate(model),
            "samples_per_prompt": max(method.samples[0], min(4, method.samples[1])),
        }
        own = {name: value for name, value in filled.items() if getattr(self, name) is None}
        return replace(self, **own)

    @property
    def patience(self) -> None:
        """Evaluations after which a run ends: there are none here but those of callbacks, which may stop it."""

    @property
    def saves(self) -> bool:
        """Whether checkpoints are written: there is one at the end."""
        return True

    def save_due(self, step: int, minutes: float) -> bool:
        """Tell whether to write a checkpoint now.

        Args:
            step: how many are done.
            minutes: since the last checkpoint; only steps are counted here.
        Returns:
            Never true after the last step, when the trainer writes one anyway.

        >>> [RLConfig(steps=4, save_every=2).save_due(step, minutes=9.0) for step in (1, 2, 4)]
        [False, True, False]
        """
        return self.save_every is not None and step % self.save_every == 0 and step < self.steps

    def record(self) -> dict[str, Any]:
        """Convert the settings to a dict that JSON can hold, with the method by its name."""
        return {found.name: getattr(self, found.name) for found in fields(self)} | {"method": method_name(self.method)}
