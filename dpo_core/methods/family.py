"""The family of DPO's loss: other losses of the log-probabilities of a chosen and a rejected answer.

``LOSSES`` has them by name; each is called as ``LOSSES[name](logps, beta, ...)`` and gives one loss per pair. The beta
in its signature is the one it is trained with if none is given: losses of means over tokens need a larger one.

In the formulas c is the log-ratio log pi(y_w|x)/ref(y_w|x) of the chosen answer, l that of the rejected one, h = c - l;
n_w and n_l are the numbers of tokens and s is the logistic function. The rewards are those that TRL logs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.errors import InputError
from dpo_core.losses import EXAMPLE, Loss, PairLogps, PairLoss, check_beta, check_label_smoothing, dpo
from dpo_core.methods.kto import reference_point

__all__ = [
    "LOSSES", "choose_loss", "loss_name", "own_settings",
    "dpo", "cdpo", "robust", "hinge", "ipo", "sigmoid_norm", "dpop", "apo_zero", "apo_down",
    "kto", "simpo", "orpo", "sft",
]  # fmt: skip


def _rewards(logps: PairLogps, beta: float) -> tuple[Tensor, Tensor]:
    """Compute the implicit rewards beta c and beta l, (B,) each."""
    check_beta(beta)
    return beta * logps.chosen_ratios, beta * logps.rejected_ratios


def _mean_rewards(logps: PairLogps, beta: float) -> tuple[Tensor, Tensor]:
    """Compute rewards without a reference, (B,) each: beta times the policy's mean log-probability of a token."""
    check_beta(beta)
    return beta * logps.policy_chosen / logps.chosen_lengths, beta * logps.policy_rejected / logps.rejected_lengths


# Functions of the margin


def cdpo(logps: PairLogps, beta: float = 0.1, label_smoothing: float = 0.1) -> PairLoss:
    """Compute conservative DPO, which assumes a share e of flipped labels: -(1-e) log s(beta h) - e log s(-beta h).

    It wants a margin of log((1-e)/e) and no more (Mitchell 2023, ericmitchell.ai/cdpo.pdf).

    Args:
        logps: of B pairs.
        beta: as in DPO.
        label_smoothing: e, in [0, 0.5).

    >>> round(cdpo(EXAMPLE, beta=0.5, label_smoothing=0.1).loss.item(), 4)  # 0.9 x 0.3133 + 0.1 x 1.3133
    0.4133
    """
    return dpo(logps, beta, label_smoothing)


def robust(logps: PairLogps, beta: float = 0.1, label_smoothing: float = 0.1) -> PairLoss:
    """Compute robust DPO, corrected for a share e of flipped labels (Chowdhury et al. 2024, arXiv:2403.00409).

    It is (-(1-e) log s(beta h) + e log s(-beta h)) / (1-2e). When a share e of labels is flipped at random, its mean is
    what DPO's would be without the flips. It has no lower bound: far on the right side it keeps falling.

    Args:
        logps: of B pairs.
        beta: as in DPO.
        label_smoothing: e, in [0, 0.5).

    >>> round(robust(EXAMPLE, beta=0.5, label_smoothing=0.1).loss.item(), 4)  # (0.9 x 0.3133 - 0.1 x 1.3133) / 0.8
    0.1883
    """
    check_label_smoothing(label_smoothing)
    chosen, rejected = _rewards(logps, beta)
    right, flipped = -F.logsigmoid(chosen - rejected), -F.logsigmoid(rejected - chosen)
    loss = ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return PairLoss(loss, chosen.detach(), rejected.detach())


def hinge(logps: PairLogps, beta: float = 0.1) -> PairLoss:
    """Compute the hinge loss max(0, 1 - beta h), which has no gradient once the margin is 1.

    It is the loss of SLiC (arXiv:2305.10425) and RSO (arXiv:2309.06657).

    Args:
        logps: of B pairs.
        beta: as in DPO.

    >>> hinge(EXAMPLE, beta=0.25).loss.item()
    0.5
    """
    chosen, rejected = _rewards(logps, beta)
    return PairLoss(F.relu(1 - (chosen - rejected)), chosen.detach(), rejected.detach())


def ipo(logps: PairLogps, beta: float = 2.0) -> PairLoss:
    """Compute IPO, which draws the margin per token to a target: (c/n_w - l/n_l - 1/(2 beta))^2.

    The averages over tokens are the authors' practice, though not in the equation (Azar et al. 2023, arXiv:2310.12036,
    Eq. 17): over sums the target would mean another thing for every length. Their unit is a nat per token: a beta of 2
    asks for a quarter of one, as chapter 10 does, while TRL's 0.1 asks for five, which no training reaches.

    Args:
        logps: of B pairs.
        beta: the target is 1/(2 beta) nats per token.

    >>> ipo(EXAMPLE, beta=0.5).loss.item()  # (1/2 + 1/4 - 1)^2
    0.0625
    """
    chosen, rejected = _rewards(logps, beta)
    h = logps.chosen_ratios / logps.chosen_lengths - logps.rejected_ratios / logps.rejected_lengths  # (B,) per token
    return PairLoss((h - 1 / (2 * beta)) ** 2, chosen.detach(), rejected.detach())


def sigmoid_norm(logps: PairLogps, beta: float = 5.0) -> PairLoss:
    """Compute length-normalised DPO: -log s(beta (c/n_w - l/n_l)) (Tulu 3, arXiv:2411.15124; TRL's ``sigmoid_norm``).

    A token's share is smaller than a sum, so beta has to be larger, by about the length; Tulu 3 takes 5.

    Args:
        logps: of B pairs.
        beta: as in DPO, per token.

    >>> round(sigmoid_norm(EXAMPLE, beta=1.0).loss.item(), 4)  # -log s(1/2 + 1/4)
    0.3869
    """
    chosen, rejected = _rewards(logps, beta)
    loss = -F.logsigmoid(chosen / logps.chosen_lengths - rejected / logps.rejected_lengths)
    return PairLoss(loss, chosen.detach(), rejected.detach())


# Functions of both log-ratios, which also say where each of them should go


def dpop(logps: PairLogps, beta: float = 0.1, penalty: float = 50.0) -> PairLoss:
    """Compute DPO-Positive: -log s(beta (h - penalty max(0, -c))) (Pal et al. 2024, arXiv:2402.13228, Eq. 3).

    The margin counts for little as long as the chosen answer is less likely than under the reference.

    Args:
        logps: of B pairs.
        beta: as in DPO.
        penalty: the paper's lambda, at least 0.

    >>> fallen = replace(EXAMPLE, policy_chosen=torch.tensor([-11.5]))  # c = -0.5, h = 0.5
    >>> round(dpop(fallen, beta=0.5, penalty=3.0).loss.item(), 4)  # -log s(0.5 (0.5 - 1.5))
    0.9741
    """
    if penalty < 0:
        raise InputError(f"penalty is {penalty}; it must be at least 0, where dpop is dpo")
    chosen, rejected = _rewards(logps, beta)
    loss = -F.logsigmoid(chosen - rejected - penalty * F.relu(-chosen))
    return PairLoss(loss, chosen.detach(), rejected.detach())


def apo_zero(logps: PairLogps, beta: float = 0.1) -> PairLoss:
    """Compute APO-zero, the chosen up and the rejected down: 1 - s(beta c) + s(beta l) (arXiv:2408.06266, Eq. 7).

    For chosen answers that are better than what the model writes.

    Args:
        logps: of B pairs.
        beta: as in DPO.

    >>> round(apo_zero(EXAMPLE, beta=1.0).loss.item(), 4)  # s(-1) + s(-1)
    0.5379
    """
    chosen, rejected = _rewards(logps, beta)
    return PairLoss(torch.sigmoid(-chosen) + torch.sigmoid(rejected), chosen.detach(), rejected.detach())


def apo_down(logps: PairLogps, beta: float = 0.1) -> PairLoss:
    """Compute APO-down, both down and the rejected further: s(beta c) + 1 - s(beta h) (arXiv:2408.06266, Eq. 8).

    For chosen answers that are worse than what the model writes.

    Args:
        logps: of B pairs.
        beta: as in DPO.

    >>> round(apo_down(EXAMPLE, beta=1.0).loss.item(), 4)  # s(1) + s(-2)
    0.8503
    """
    chosen, rejected = _rewards(logps, beta)
    return PairLoss(torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen), chosen.detach(), rejected.detach())


def kto(
    logps: PairLogps, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> PairLoss:
    """KTO on pairs: (w_d (1 - s(beta (c - z0))) + w_u (1 - s(beta (z0 - l)))) / 2, z0 being the ``reference_point``.

    The mean over both answers, so that the mean over pairs is that over answers, as in the paper and in TRL. An answer
    without tokens is not there: what remains is the loss of the other one. The weights make up for labels of which one
    kind is rarer.

    >>> round(kto(EXAMPLE, beta=1.0).loss.item(), 4)  # (s(-0.5) + s(-1.5)) / 2
    0.28
    >>> round(kto(EXAMPLE, beta=1.0, desirable_weight=3.0).loss.item(), 4)  # (3 s(-0.5) + s(-1.5)) / 2
    0.6575
    """
    for name, weight in (("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight)):
        if weight < 0:
            raise InputError(f"{name} is {weight}; it must be at least 0, where such answers do not count")
    if logps.mismatched is None:
        raise InputError("kto needs PairLogps.mismatched, log-ratios of answers to other prompts: take KTOTrainer")
    chosen, rejected = _rewards(logps, beta)
    point = beta * reference_point(logps.mismatched)
    wanted, unwanted = logps.chosen_lengths > 0, logps.rejected_lengths > 0
    up, down = desirable_weight * torch.sigmoid(point - chosen), undesirable_weight * torch.sigmoid(rejected - point)
    loss = (up * wanted + down * unwanted) / (wanted.int() + unwanted.int())
    return PairLoss(loss, chosen.detach(), rejected.detach())


# Without a reference


def simpo(logps: PairLogps, beta: float = 2.0, gamma: float = 0.5) -> PairLoss:
    """Compute SimPO: -log s(beta (log pi(y_w)/n_w - log pi(y_l)/n_l) - gamma) (arXiv:2405.14734, Eq. 6).

    Args:
        logps: of B pairs; their reference is not used.
        beta: unit of the reward, per nat and token.
        gamma: margin to be reached, in units of the reward; some code wants it divided by beta.

    >>> round(simpo(EXAMPLE, beta=2.0, gamma=0.5).loss.item(), 4)  # -log s(2 (-5 + 3) - 0.5)
    4.511
    """
    chosen, rejected = _mean_rewards(logps, beta)
    return PairLoss(-F.logsigmoid(chosen - rejected - gamma), chosen.detach(), rejected.detach())


def orpo(logps: PairLogps, beta: float = 0.1) -> PairLoss:
    """Compute ORPO: -log p_w - beta log s(log odds(p_w)/odds(p_l)), log p = log pi(y)/n (arXiv:2403.07691, Eqs. 6, 7).

    The first term is ``sft``.

    Args:
        logps: of B pairs; their reference is not used.
        beta: the paper's lambda, weight of the second term.

    >>> round(orpo(EXAMPLE, beta=0.1).loss.item(), 4)  # 5 - 0.1 log s(-5 + 3 - log(1 - e^-5) + log(1 - e^-3))
    5.2166
    """
    chosen, rejected = _mean_rewards(logps, beta)
    log_p, log_q = (reward.div(beta).clamp(max=-1e-6) for reward in (chosen, rejected))  # odds of p = 1 are infinite
    log_odds_ratio = log_p - log_q - torch.log(-torch.expm1(log_p)) + torch.log(-torch.expm1(log_q))
    loss = sft(logps).loss - beta * F.logsigmoid(log_odds_ratio)
    return PairLoss(loss, chosen.detach(), rejected.detach())


def sft(logps: PairLogps, beta: float = 0.1) -> PairLoss:
    """Compute the fine-tuning loss on the chosen answers: -log pi(y_w|x) / n_w, the same weight for every pair.

    TRL gives every *token* the same weight, which is the same for answers of one length. Where the chosen answer is
    missing, as beside a labelled one that is not wanted, the loss is 0.

    Args:
        logps: of B pairs; their reference is used for the rewards alone.
        beta: of the rewards alone.

    >>> sft(EXAMPLE).loss.item()
    5.0
    """
    chosen, rejected = _rewards(logps, beta)
    return PairLoss(-logps.policy_chosen / logps.chosen_lengths.clamp(min=1), chosen.detach(), rejected.detach())


# By name, or one of your own

LOSSES: dict[str, Callable[..., PairLoss]] = {
    loss.__name__: loss
    for loss in (dpo, cdpo, robust, hinge, ipo, sigmoid_norm, dpop, apo_zero, apo_down, kto, simpo, orpo, sft)
} | {"sigmoid": dpo}  # as TRL calls it


def loss_name(loss: str | Loss) -> str:
    """Name a loss, for a record.

    Args:
        loss: one of ``LOSSES``, or a function.

    >>> loss_name("sigmoid"), loss_name(simpo), loss_name("another")
    ('dpo', 'simpo', 'another')
    """
    function: Any = LOSSES.get(loss, loss) if isinstance(loss, str) else loss
    while isinstance(function, partial):
        function = function.func
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


def own_settings(loss: str | Loss) -> dict[str, Any]:
    """Read from its signature the settings of a loss, with the values that they have if none are given.

    Args:
        loss: one of ``LOSSES``, or a function; a beta without a value is DPO's.

    >>> own_settings("simpo")
    {'beta': 2.0, 'gamma': 0.5}
    """
    function: Callable[..., PairLoss] = LOSSES[loss] if isinstance(loss, str) else loss
    _, *settings = inspect.signature(function).parameters.values()
    own = {found.name: found.default for found in settings if found.default is not found.empty}
    return {"beta": 0.1} | own


def choose_loss(loss: str | Loss = "dpo", sft_weight: float = 0.0, **settings: float) -> Loss:
    """Make the function that a trainer calls with log-probs and beta, with all other settings of a loss filled in.

    Args:
        loss: one of ``LOSSES``, or a function of ``PairLogps`` and beta that returns a ``PairLoss``.
        sft_weight: how much of ``sft`` is added, so that chosen answers stay likely.
        settings: those that the loss has besides beta.
    Returns:
        Function of ``PairLogps`` and beta.
    Raises:
        InputError: no such loss, no such setting, or a value out of range; when it is called, a function of your own
            that returns something else.

    >>> loss = choose_loss("cdpo", sft_weight=0.1, label_smoothing=0.1)
    >>> round(loss(EXAMPLE, 0.5).loss.item(), 4)  # 0.4133 + 0.1 x 5
    0.9133
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise InputError(f"no loss {loss!r}: there are {', '.join(LOSSES)}")
    function: Callable[..., PairLoss] = LOSSES[loss] if isinstance(loss, str) else loss
    name = loss_name(loss)
    known = [setting for setting in own_settings(loss) if setting != "beta"]
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise InputError(f"the loss {name!r} has no setting {unknown[0]!r}; it has {', '.join(known) or 'only beta'}")
    if sft_weight < 0:
        raise InputError(f"sft_weight is {sft_weight}; it must be at least 0")
    if isinstance(loss, str):
        function(EXAMPLE, **settings)  # what is out of range is refused here, before anything is trained

    def chosen(logps: PairLogps, beta: float) -> PairLoss:
        out = function(logps, beta, **settings)
        if not isinstance(out, PairLoss) or out.loss.shape != logps.policy_chosen.shape:
            raise InputError(
                f"the loss {name!r} must return a PairLoss with one loss and two rewards for each pair,"
                " PairLoss(loss, chosen_rewards, rejected_rewards)"
            )
        return replace(out, loss=out.loss + sft_weight * sft(logps, beta).loss) if sft_weight else out

    return chosen
