"""The exactly solvable world: a few prompts, a few answers to each, and a policy that is a table.

All terms in the derivation of DPO can be computed here without sampling: the objective of RLHF, its optimum in
closed form, the partition function, the preferences, the loss over all pairs. Tables are (X, Y), one row for each of X
prompts, which count alike, and one column for each of its Y answers. Policy and reference are tables of
log-probabilities in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.losses import dpo_loss

__all__ = [
    "TabularWorld", "example_world", "random_world", "kl_divergence", "total_variation", "rlhf_objective",
    "log_partition", "optimal_policy", "implied_rewards", "preference_probs", "deterministic", "population_loss",
    "ascend", "fit_rlhf", "fit_dpo", "reward_kl_frontier", "kl_ceiling",
]  # fmt: skip


@dataclass(frozen=True)
class TabularWorld:
    """Prompts, their possible answers, and what is true of them."""

    prompts: tuple[str, ...]  # X
    answers: tuple[tuple[str, ...], ...]  # X of Y
    reference: Tensor  # (X, Y) log ref(y|x)
    rewards: Tensor  # (X, Y) true reward, on the scale on which Bradley-Terry compares


EXAMPLE = {  # answer: percent of the reference, true reward
    "What is the capital of France?": {
        "Paris, on the Seine, the country's largest city.": (10, 2.0),
        "Paris.": (35, 1.0),
        "There are many capitals, and people ask about them.": (30, -0.5),
        "Look it up yourself.": (15, -1.5),
        "Lyon.": (10, -2.0),
    },
    "Why is the sky blue?": {
        "Air scatters blue light more than red, so it comes from all sides.": (5, 2.5),
        "Because light is scattered.": (25, 1.0),
        "The sky is blue because it is the sky.": (20, -0.5),
        "It mirrors the sea.": (40, -1.5),
        "Who cares?": (10, -2.0),
    },
    "Name three planets.": {
        "Mars, Venus and Jupiter.": (45, 1.5),
        "Mars, Venus and Jupiter; five more circle the Sun.": (15, 2.0),
        "Mars.": (20, 0.0),
        "Mars, Venus and the Moon.": (15, -1.0),
        "You name them.": (5, -2.0),
    },
}


def example_world() -> TabularWorld:
    """Make a world of three questions with five answers each, of which the reference rarely gives the best.

    >>> world = example_world()
    >>> world.answers[1][int(world.reference[1].argmax())]
    'It mirrors the sea.'
    """
    numbers = [list(rows.values()) for rows in EXAMPLE.values()]
    table = torch.tensor(numbers, dtype=torch.float64, device="cpu")  # (X, Y, 2)
    answers = tuple(tuple(rows) for rows in EXAMPLE.values())
    return TabularWorld(tuple(EXAMPLE), answers, (table[..., 0] / 100).log(), table[..., 1])


def random_world(prompts: int = 3, answers: int = 5, seed: int = 0) -> TabularWorld:
    """Make a world of X prompts with Y answers, whose reference logits and rewards are standard normal.

    Args:
        prompts: X.
        answers: Y.
        seed: of the draw.

    >>> random_world(prompts=2, answers=4).rewards.shape
    torch.Size([2, 4])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    draw = torch.randn(2, prompts, answers, dtype=torch.float64, generator=generator, device="cpu")
    texts = tuple(tuple(f"answer {y}" for y in range(answers)) for _ in range(prompts))
    return TabularWorld(tuple(f"prompt {x}" for x in range(prompts)), texts, draw[0].log_softmax(-1), draw[1])


def kl_divergence(policy: Tensor, reference: Tensor) -> Tensor:
    """Compute KL(policy || reference): the mean log-ratio over the policy's own answers.

    Args:
        policy, reference: (X, Y) log-probabilities.
    Returns:
        (X,) nats.
    Raises:
        InputError: tables of unlike shape.

    >>> kl_divergence(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.25, 0.75]]).log())  # ln 4
    tensor([1.3863])
    """
    _check(policy, reference)
    return torch.where(policy > -torch.inf, policy.exp() * (policy - reference), 0.0).sum(-1)


def total_variation(first: Tensor, second: Tensor) -> Tensor:
    """Compute the most by which two policies differ on any set of answers: half the sum of the differences.

    Args:
        first, second: (X, Y) log-probabilities.
    Returns:
        (X,) from 0 for the same policy to 1 for policies that share no answer.
    Raises:
        InputError: tables of unlike shape.

    >>> total_variation(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.2, 0.8]]).log())
    tensor([0.3000])
    """
    _check(first, second)
    return (first.exp() - second.exp()).abs().sum(-1) / 2


def rlhf_objective(policy: Tensor, reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Compute what RLHF maximises: mean reward minus beta times the KL divergence (Rafailov et al. 2023, Eq. 3).

    Args:
        policy, reference, rewards: (X, Y).
        beta: price of a nat of divergence, in units of reward.
    Returns:
        (X,) one value per prompt; the objective is their mean.
    Raises:
        InputError: beta not above 0, tables of unlike shape.

    >>> world = example_world()
    >>> rlhf_objective(world.reference, world.reference, world.rewards, beta=1.0)  # KL 0: the mean reward
    tensor([-0.0250, -0.5250,  0.7250], dtype=torch.float64)
    """
    _check(policy, reference, rewards, beta=beta)
    return (policy.exp() * rewards).sum(-1) - beta * kl_divergence(policy, reference)


def log_partition(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Compute log Z(x), Z(x) being the sum of ref(y|x) exp(r(x, y) / beta) over y (Rafailov et al. 2023, below Eq. 4).

    Args:
        reference, rewards: (X, Y).
        beta: weight of the KL term.
    Returns:
        (X,) one number per prompt, the same for all of its answers.
    Raises:
        InputError: beta not above 0, tables of unlike shape.

    >>> log_partition(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 1.0]]), beta=0.5)  # ln e^2
    tensor([2.])
    """
    _check(reference, rewards, beta=beta)
    return (reference + rewards / beta).logsumexp(-1)


def optimal_policy(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Compute what maximises the objective: ref(y|x) exp(r(x, y) / beta) / Z(x) (Rafailov et al. 2023, Eq. 4).

    Args:
        reference, rewards: (X, Y).
        beta: weight of the KL term; a higher one keeps the policy closer to the reference.
    Returns:
        (X, Y) log-probabilities.
    Raises:
        InputError: beta not above 0, tables of unlike shape.

    >>> reference, rewards = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]])
    >>> [round(optimal_policy(reference, rewards, beta).exp()[0, 0].item(), 3) for beta in (0.1, 1.0, 10.0)]
    [1.0, 0.731, 0.525]
    """
    log_z = log_partition(reference, rewards, beta)[..., None]  # (X, 1)
    return reference + rewards / beta - log_z


def implied_rewards(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Compute rewards under which a policy is optimal, up to beta log Z(x): beta log(pi(y|x) / ref(y|x)).

    Rafailov et al. 2023, Eq. 5.

    Args:
        policy, reference: (X, Y) log-probabilities.
        beta: weight of the KL term.
    Returns:
        (X, Y).
    Raises:
        InputError: beta not above 0, tables of unlike shape.

    >>> policy, reference = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.2, 0.8]]).log()
    >>> implied_rewards(policy, reference, beta=0.5)  # ln 4 / 2
    tensor([[ 0.6931, -0.6931]])
    """
    _check(policy, reference, beta=beta)
    return beta * (policy - reference)


def preference_probs(rewards: Tensor) -> Tensor:
    """Compute how often answer i is preferred to answer j: sigmoid(r_i - r_j) (Bradley and Terry 1952).

    Args:
        rewards: (X, Y).
    Returns:
        (X, Y, Y), row i against column j; one half on the diagonal.

    >>> preference_probs(torch.tensor([[1.0, 0.0]]))
    tensor([[[0.5000, 0.7311],
             [0.2689, 0.5000]]])
    """
    return torch.sigmoid(rewards[..., :, None] - rewards[..., None, :])


def deterministic(preferences: Tensor) -> Tensor:
    """Take the noise out of preferences: who wins more often wins always; a tie stays one half.

    Args:
        preferences: (X, Y, Y) shares.
    Returns:
        (X, Y, Y) of 0, 1/2 and 1.

    >>> deterministic(preference_probs(torch.tensor([[1.0, 0.0]])))
    tensor([[[0.5000, 1.0000],
             [0.0000, 0.5000]]])
    """
    return ((preferences - 0.5).sign() + 1) / 2


def population_loss(
    policy: Tensor, reference: Tensor, preferences: Tensor, beta: float, weights: Tensor | None = None
) -> Tensor:
    """Compute the DPO loss of infinitely many labelled pairs: the mean over all pairs and both outcomes of each.

    Args:
        policy, reference: (X, Y) log-probabilities.
        preferences: (X, Y, Y) share of comparisons in which i is chosen and j rejected.
        beta: weight of the KL term.
        weights: (X, Y, Y) how often the pair is compared, symmetric; None for all alike. The diagonal does not count.
    Returns:
        A scalar in nats per pair.
    Raises:
        InputError: beta not above 0, tables of unlike shape, weights that leave no pair.

    >>> world = example_world()
    >>> population_loss(world.reference, world.reference, preference_probs(world.rewards), beta=0.5)  # ln 2
    tensor(0.6931, dtype=torch.float64)
    """
    _check(policy, reference)
    shares = _shares(preferences, weights)
    chosen = [table[..., :, None].expand_as(shares) for table in (policy, reference)]
    rejected = [table[..., None, :].expand_as(shares) for table in (policy, reference)]
    return (shares * dpo_loss(chosen[0], rejected[0], chosen[1], rejected[1], beta).loss).sum()


def ascend(value: Callable[[Tensor], Tensor], start: Tensor, *, steps: int, lr: float) -> Tensor:
    """Run plain gradient ascent on the logits of a policy.

    Args:
        value: from (X, Y) log-probabilities to what shall grow; summed if it is more than one number.
        start: (X, Y) log-probabilities.
        steps: how many.
        lr: the logits move by lr times the gradient.
    Returns:
        (X, Y) log-probabilities.

    >>> start = torch.tensor([[0.5, 0.5]]).log()
    >>> ascend(lambda policy: policy[:, 0], start, steps=1, lr=1.0).exp()  # the gradient is (1/2, -1/2)
    tensor([[0.7311, 0.2689]])
    """
    logits = start.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(value(logits.log_softmax(-1)).sum(), logits)
        with torch.no_grad():
            logits += lr * gradient
    return logits.detach().log_softmax(-1)


def fit_rlhf(reference: Tensor, rewards: Tensor, beta: float, steps: int = 20_000) -> Tensor:
    """Maximise the RLHF objective by gradient ascent from the reference, with its exact gradient.

    A logit moves in proportion to the answer's probability, so rare answers settle late.

    Args:
        reference, rewards: (X, Y).
        beta: weight of the KL term.
        steps: of size 2 / beta.
    Returns:
        (X, Y) log-probabilities.
    Raises:
        InputError: beta not above 0, tables of unlike shape.

    >>> world = random_world(prompts=1, answers=3)
    >>> policy = fit_rlhf(world.reference, world.rewards, beta=1.0, steps=1000)
    >>> bool(total_variation(policy, optimal_policy(world.reference, world.rewards, beta=1.0)) < 1e-6)
    True
    """
    _check(reference, rewards, beta=beta)
    return ascend(lambda policy: rlhf_objective(policy, reference, rewards, beta), reference, steps=steps, lr=2 / beta)


def fit_dpo(
    reference: Tensor, preferences: Tensor, beta: float, weights: Tensor | None = None, steps: int = 3000
) -> Tensor:
    """Minimise the population DPO loss by gradient descent from the reference.

    The loss is convex in the logits and its curvature at most beta²/2 times the largest share of comparisons that one
    answer takes part in. The step size is the inverse of this bound, so no step overshoots.

    Args:
        reference: (X, Y) log-probabilities.
        preferences, beta, weights: as in ``population_loss``.
        steps: how many.
    Returns:
        (X, Y) log-probabilities.
    Raises:
        InputError: beta not above 0, tables of unlike shape, weights that leave no pair.

    >>> world = random_world()
    >>> policy = fit_dpo(world.reference, preference_probs(world.rewards), beta=0.5, steps=500)
    >>> bool((total_variation(policy, optimal_policy(world.reference, world.rewards, beta=0.5)) < 1e-6).all())
    True
    """
    _check(beta=beta)
    shares = _shares(preferences, weights)
    takes_part = (shares + shares.mT).sum(-1).max().item()
    return ascend(
        lambda policy: -population_loss(policy, reference, preferences, beta, weights),
        reference,
        steps=steps,
        lr=2 / (beta**2 * takes_part),
    )


def reward_kl_frontier(reference: Tensor, rewards: Tensor, betas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Compute what the optimal policies cost in KL and earn; at their KL no policy earns more, and the slope is beta.

    Args:
        reference, rewards: (X, Y).
        betas: K of them.
    Returns:
        KL(policy || reference) in nats and expected reward, (K,) each, means over prompts.
    Raises:
        InputError: a beta not above 0, tables of unlike shape.

    >>> world = example_world()
    >>> kl, reward = reward_kl_frontier(world.reference, world.rewards, betas=[0.1, 1.0, 10.0])
    >>> kl.round(decimals=2).tolist(), reward.round(decimals=2).tolist()
    ([2.36, 0.58, 0.01], [2.16, 1.34, 0.21])
    """
    policies = torch.stack([optimal_policy(reference, rewards, beta) for beta in betas])  # (K, X, Y)
    kl = kl_divergence(policies, reference.expand_as(policies)).mean(-1)
    return kl, (policies.exp() * rewards).sum(-1).mean(-1)


def kl_ceiling(reference: Tensor, rewards: Tensor) -> Tensor:
    """Compute the divergence of a policy that gives only the best answer: minus the log of the reference's share of it.

    The optimum goes there as beta goes to 0; DPO goes there at any beta if labels are certain and follow the
    rewards' order (Azar et al. 2023).

    Args:
        reference: (X, Y) log-probabilities.
        rewards: (X, Y); answers that tie for the best count together.
    Returns:
        (X,) nats.
    Raises:
        InputError: tables of unlike shape.

    >>> kl_ceiling(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[1.0, 0.0]]))  # ln 4
    tensor([1.3863])
    """
    _check(reference, rewards)
    best = rewards == rewards.amax(-1, keepdim=True)
    return -reference.masked_fill(~best, -torch.inf).logsumexp(-1)


def _shares(preferences: Tensor, weights: Tensor | None) -> Tensor:
    """Compute the share of comparisons in which i is chosen and j rejected: (X, Y, Y), diagonal 0, summing to 1."""
    weights = torch.ones_like(preferences) if weights is None else weights
    _check(preferences, weights)
    same = torch.eye(preferences.shape[-1], dtype=torch.bool, device=preferences.device)
    shares = (preferences * weights).masked_fill(same, 0.0)
    if not shares.sum() > 0:
        raise InputError("no pair of unlike answers has a weight above 0: nothing is compared")
    return shares / shares.sum()


def _check(*tables: Tensor, beta: float = 1.0) -> None:
    if beta <= 0:
        raise InputError(f"beta is {beta}; it must be above 0 (at 0 the reference would not count at all)")
    shapes = [tuple(table.shape) for table in tables]
    if len(set(shapes)) > 1:
        raise InputError(f"tables of shapes {shapes}: they must be alike, one row per prompt, one column per answer")
