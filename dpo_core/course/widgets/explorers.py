"""The loss of one pair and the best policy under beta, to be moved by hand; both live in a page without a kernel."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch

from dpo_core.course.widgets.embed import embed
from dpo_core.errors import InputError
from dpo_core.losses import PairLogps
from dpo_core.methods.family import LOSSES
from dpo_core.study.tabular import TabularWorld, example_world, kl_divergence, optimal_policy

__all__ = ["BetaExplorer", "LossExplorer"]

SMOOTHED = {"cdpo": True, "robust": True, "hinge": False}  # functions of the margin, and whether they smooth labels


@dataclass(frozen=True)
class LossExplorer:
    """The loss of one pair and its weight in the gradient, with sliders; the arguments say where those stand at first.

    Args:
        h: log-ratio of the chosen answer minus that of the rejected one, nats.
        beta: as in the DPO loss (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7).
        smoothing: share of labels assumed wrong.
        loss: ``cdpo``, which is DPO where nothing is smoothed, ``robust`` or ``hinge``.
    Raises:
        InputError: another loss.

    >>> LossExplorer(h=10, beta=0.1).values()
    {'margin': 1.0, 'loss': 0.3133, 'weight': 0.2689}
    """

    h: float = 0.0
    beta: float = 0.1
    smoothing: float = 0.0
    loss: str = "cdpo"

    def __post_init__(self) -> None:
        if self.loss not in SMOOTHED:
            raise InputError(f"no loss {self.loss!r} in the explorer; it has {', '.join(SMOOTHED)}")

    def values(self) -> dict[str, float]:
        """Compute reward margin, loss, and weight, which is minus the loss's slope in the margin."""
        h = torch.tensor([self.h], dtype=torch.float64, requires_grad=True)
        zero, one = torch.zeros_like(h), torch.ones_like(h)
        smoothing = {"label_smoothing": self.smoothing} if SMOOTHED[self.loss] else {}
        loss = LOSSES[self.loss](PairLogps(h, zero, zero, zero, one, one), self.beta, **smoothing).loss
        (slope,) = torch.autograd.grad(loss.sum(), h)
        values = {"margin": self.beta * self.h, "loss": loss.item(), "weight": -slope.item() / self.beta}
        return {name: round(value, 4) for name, value in values.items()}

    def _repr_html_(self) -> str:
        summary = "At a reward margin of {margin} the loss is {loss} and its weight in the gradient {weight}."
        return embed("loss_explorer", asdict(self), summary.format(**self.values()))


@dataclass(frozen=True)
class BetaExplorer:
    """The policy that is best for known rewards, and what it costs in KL, with a slider for beta.

    Args:
        world: prompts, answers, reference and rewards; ``example_world`` if none is given.
        beta: where the slider stands at first, from 0.01 to 30.
    Raises:
        InputError: beta out of range.

    >>> BetaExplorer(beta=1.0).values()
    {'kl': [0.526, 0.895, 0.307], 'reward': [1.178, 1.309, 1.527]}
    """

    world: TabularWorld = field(default_factory=example_world, repr=False)
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.01 <= self.beta <= 30:
            raise InputError(f"beta is {self.beta}; the slider goes from 0.01 to 30")

    def values(self) -> dict[str, list[float]]:
        """Compute the optimum's KL from the reference, in nats, and its mean reward, by prompt.

        The optimum is that of Rafailov et al. 2023, Eq. 4.
        """
        policy = optimal_policy(self.world.reference, self.world.rewards, self.beta)
        kl, reward = kl_divergence(policy, self.world.reference), (policy.exp() * self.world.rewards).sum(-1)
        return {"kl": [round(v, 3) for v in kl.tolist()], "reward": [round(v, 3) for v in reward.tolist()]}

    def _repr_html_(self) -> str:
        world, values = self.world, self.values()
        tables = (world.reference.exp().tolist(), world.rewards.tolist())
        prompts = [
            {"prompt": prompt, "answers": answers, "reference": [round(p, 6) for p in reference], "rewards": rewards}
            for prompt, answers, reference, rewards in zip(world.prompts, world.answers, *tables)
        ]
        summary = (
            f"“{world.prompts[0]}” at β {self.beta}: the best policy has a KL of {values['kl'][0]} nats from the"
            f" reference and a mean reward of {values['reward'][0]}."
        )
        return embed("beta_explorer", {"prompts": prompts, "beta": self.beta}, summary)
