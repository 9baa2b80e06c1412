"""Mistakes that a chapter has to notice when nbval compares its outputs: in the library, and in the chapter's cells."""

from __future__ import annotations

from tools.mutation.mistake import Mistake, mistake
from tools.mutation.planted import PLANTED
from tools.mutation.syntax import Edit, drop, swap, uncall

__all__ = ["CHAPTERS"]

BY_NAME = {each.name: each for each in PLANTED}


def _cell(chapter: str, cell: str, name: str, edit: Edit) -> Mistake:
    return mistake(name, "", f"{chapter}#{cell}" if ":" in cell else f"{chapter}#{cell}:", edit)


def _chapter(name: str, library: tuple[str, ...], cells: dict[str, dict[str, Edit]]) -> tuple[str, list[Mistake]]:
    """A chapter with the names of mistakes in the library, and by address those in its cells."""
    path = f"notebooks/{name}"
    own = [_cell(path, at, text, edit) for at, edits in cells.items() for text, edit in edits.items()]
    return path, [BY_NAME[each] for each in library] + own


CHAPTERS = dict(
    [
        _chapter(
            "02_preferences",
            ("the loss's sign is flipped", "the reference is left out", "Wilson's interval is the textbook one"),
            {
                "pref-005:prefer": {"the loser is preferred": swap("_a - _b", "_b - _a")},
                "pref-010:information": {"information is p squared": swap("_c * _p * (1 - _p)", "_c * _p * _p")},
                "pref-015:standard_errors": {"variances for errors": uncall("sqrt")},
                "pref-022:needed": {"z is not halved": swap("_z / 2", "_z")},
                "pref-031:fit_davidson": {"the difference is not halved": swap("_a / 2", "_a", nth=1)},
                "pref-034:accuracy": {"a tie is a hit": swap("_a / 2", "_a")},
                "pref-041:fit_reward": {"the rejected are fitted": swap("F.logsigmoid(_m)", "F.logsigmoid(-_m)")},
            },
        ),
        _chapter(
            "03_deriving_dpo",
            (
                "KL is taken the other way round", "Z leaves the reference out", "beta is upside down at the optimum",
                "the KL term is a reward", "the implied reward has no beta", "the worse answer is preferred",
                "the gradient's weight is s(margin), the loss is right", "beta is applied twice",
            ),
            {
                "derive-006:kl": {"KL is turned round": swap("_p.exp() * (_p - _q)", "_q.exp() * (_q - _p)")},
                "derive-012:star": {"the optimum without the reference": swap("ref + _r", "_r")},
                "derive-038:soft_loss": {"sum for mean": swap("_a.mean()", "_a.sum()")},
            },
        ),
        _chapter(
            "04_preference_data",
            (
                "answers that are the same once cut are kept", "votes are dropped as repeats",
                "held-out prompts are trained on", "answers have no end of text", "the reader swaps HH-RLHF's labels",
            ),
            {
                "data-014:margins": {"the margin's sign": swap("[1.0, -1.0]", "[-1.0, 1.0]")},
                "data-030:honest": {"left and right are mixed up": swap("_a > 0", "_a < 0", nth=1)},
                "data-038:slip_rate": {"a slip counts twice": swap("_a / 2", "_a")},
                "data-050:nats_per_token": {"nats of an answer, not of a token": swap("_a / _b", "_a")},
            },
        ),
        _chapter(
            "05_the_loss_in_code",
            (
                "the shift is dropped", "the prompt counts", "padding counts",
                "the average for the sum, in the textbook way", "the average for the sum, in the engine",
                "the rejected answer sees the chosen one", "the rejected answer's positions run on",
                "the chosen answer's end predicts the rejected one's start", "the reference is left out",
                "the margin's sign is flipped", "the head's gradient has the wrong sign",
            ),
            {
                "loss-007:next_token_logps": {"the wrong shift in the cell": swap("_a[:, :-1]", "_a[:, 1:]")},
                "loss-010:answer_sum": {
                    "mean for sum in the cell": swap("_a.sum(1)", "_a.mean(1)"),
                    "the prompt is not masked": swap("_a * _m", "_a"),
                },
                "loss-013": {"the reference is the policy": swap("copy.deepcopy(_m)", "_m")},
                "loss-016:my_dpo_loss": {"two numbers of four": swap("_c - _r", "_c", nth=3)},
                "loss-025": {"the pull is s(+margin)": swap("-beta * _h", "beta * _h")},
            },
        ),
        _chapter(
            "06_training",
            (
                "the live reference is the policy", "passes are averaged, not pairs",
                "gradients of the last step stay", "warm-up begins at 0", "gradients are not clipped",
                "a resumed run begins the order anew",
            ),
            {
                "tr-005:update": {
                    "means of passes": swap("_l.sum() / _n", "_l.mean()"),
                    "gradients pile up": drop("optimizer.zero_grad()"),
                },
                "tr-005:train": {"the cell's warm-up begins at 0": swap("(step + 1) / _w", "step / _w")},
                "tr-051:restored": {"Adam's averages are lost": drop("optimizer.load_state_dict(_s)")},
            },
        ),
        _chapter(
            "07_reading_the_curves",
            (
                "a tie counts as a hit", "reward accuracy is the policy's own ranking",
                "exchanged labels are looked for in training alone", "every fall is harmless",
                "the reference is left out",
            ),
            {
                "read-038": {"labels are not exchanged": swap("swap(_p)", "_p")},
                "read-060:reward_accuracy": {"the reference forgotten": swap("_a - _b > _c - _d", "_a > _c")},
                "read-068:gradient_weight": {"s(+margin)": swap("_a - _b", "_b - _a")},
            },
        ),
        _chapter(
            "08_beta_and_its_friends",
            (
                "beta is upside down at the optimum", "KL is taken the other way round",
                "the worse answer is preferred", "beta divides instead of multiplying",
            ),
            {
                "beta-005:variance_at": {"the mean's square is forgotten": swap("_a - _b ** 2", "_a")},
                "beta-009:thirty_steps": {"the margin without beta": swap("beta * _s", "_s")},
                "beta-013:mean": {"a sum for the mean": swap("statistics.mean(_v)", "sum(_v)")},
                "beta-034:stops": {"the highest loss for the lowest": swap("min(_a, key=_k)", "max(_a, key=_k)")},
                "beta-047:pull": {"the pull's sign": swap("-beta * _h", "beta * _h")},
            },
        ),
        _chapter(
            "09_measuring_alignment",
            (
                "Wilson's interval is the textbook one", "the sampled KL is of the reference",
                "the sampled KL counts the prompt", "KL is taken the other way round",
                "prompts are not drawn in pairs", "beta divides instead of multiplying",
            ),
            {
                "msr-014:wald": {"one deviation for two": swap("1.96 * _a", "_a")},
                "msr-028:estimators": {"k3 is of the other direction": swap("_a + _b", "_a - _b")},
                "msr-064:wilson": {"no square root": uncall("sqrt")},
            },
        ),
        _chapter(
            "10_the_family",
            (
                "the robust loss is the conservative one", "label smoothing's sign is flipped",
                "IPO takes sums for averages", "SimPO's margin is multiplied by beta", "the reference is left out",
            ),
            {
                "family-014:ratios": {"the wrong way round": swap("_a - _b", "_b - _a")},
                "family-018:gains": {"the other minus the one": swap("_a - _b", "_b - _a")},
                "family-036": {
                    "the reference point is of the answers' own prompts": swap("judged[_j].prompt", "p.prompt")
                },
                "family-023:per_token": {"nats of an answer, not of a token": swap("_a / _b", "_a")},
                "family-050:robust_loss": {"conservative for robust": swap("_a - _e * _f", "_a + _e * _f")},
            },
        ),
    ]
)  # fmt: skip
