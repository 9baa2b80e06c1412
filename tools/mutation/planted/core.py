"""Mistakes in what the chapters teach: loss, log-probs, pairs and batches, metrics, the exactly solvable world."""

from tools.mutation.mistake import mistake
from tools.mutation.syntax import drop, drop_context, drop_keyword, never, swap, uncall

__all__ = ["CORE"]

CORE = [
    # The loss
    mistake(
        "the loss's sign is flipped",
        "losses tabular",
        "dpo_core.losses:dpo_loss",
        swap(
            "-(1 - _s) * F.logsigmoid(_m) - _s * F.logsigmoid(-_m)",
            "(1 - _s) * F.logsigmoid(_m) + _s * F.logsigmoid(-_m)",
        ),
    ),
    mistake(
        "the margin's sign is flipped",
        "losses tabular",
        "dpo_core.losses:dpo_loss",
        swap("_m = _c - _r", "_m = _r - _c"),
    ),
    mistake(
        "beta divides instead of multiplying",
        "losses tabular",
        "dpo_core.losses:dpo_loss",
        swap("beta * (_p - _r)", "(_p - _r) / beta"),
    ),
    mistake(
        "beta is applied twice",
        "losses tabular",
        "dpo_core.losses:dpo_loss",
        swap("_m = _c - _r", "_m = beta * (_c - _r)"),
    ),
    mistake(
        "the reference is left out",
        "losses tabular",
        "dpo_core.losses:dpo_loss",
        swap("beta * (_p - _r)", "beta * _p"),
    ),
    mistake(
        "the rejected answer is left out",
        "losses tabular",
        "dpo_core.losses:dpo_loss",
        swap("_m = _c - _r", "_m = _c"),
    ),
    mistake(
        "the gradient's weight is s(margin), the loss is right",
        "losses tabular",
        "dpo_core.losses:dpo_loss",
        swap(
            "_l = -(1 - _s) * F.logsigmoid(_m) - _s * F.logsigmoid(-_m)",
            "_l = -F.logsigmoid(_m).detach() + _m.detach().sigmoid() * (_m.detach() - _m)",
        ),
    ),
    mistake(
        "label smoothing's sign is flipped",
        "losses",
        "dpo_core.losses:dpo_loss",
        swap("_a - _s * F.logsigmoid(-_m)", "_a + _s * F.logsigmoid(-_m)"),
    ),
    mistake(
        "the robust loss is the conservative one",
        "losses",
        "dpo_core.methods.family:robust",
        swap("(1 - _s) * _r - _s * _f", "(1 - _s) * _r + _s * _f"),
    ),
    mistake(
        "IPO takes sums for averages",
        "losses",
        "dpo_core.methods.family:ipo",
        swap("_c / _n - _r / _m", "_c - _r"),
    ),
    mistake(
        "SimPO's margin is multiplied by beta",
        "losses",
        "dpo_core.methods.family:simpo",
        swap("_m - gamma", "_m - beta * gamma"),
    ),
    mistake("the rewards keep their gradient", "losses", "dpo_core.losses:dpo_loss", uncall("detach")),
    # Log-probabilities
    mistake(
        "the shift is dropped",
        "logprobs",
        "dpo_core.logprobs:sequence_logps",
        swap("_m(_i)[:, :-1]", "_m(_i)[:, 1:]"),
    ),
    mistake(
        "the prompt counts",
        "logprobs",
        "dpo_core.logprobs:sequence_logps",
        swap("mask[:, 1:]", "mask.flip(1).cummax(1).values.flip(1)[:, 1:]"),
    ),
    mistake(
        "padding counts",
        "logprobs",
        "dpo_core.logprobs:sequence_logps",
        swap("mask[:, 1:]", "mask.cummax(1).values[:, 1:]"),
    ),
    mistake(
        "the average for the sum, in the textbook way",
        "logprobs",
        "dpo_core.logprobs:sequence_logps",
        swap("(_a * _m).sum(1)", "(_a * _m).sum(1) / _m.sum(1)"),
    ),
    mistake(
        "the average for the sum, in the engine",
        "logprobs",
        "dpo_core.logprobs:pair_logps",
        swap("_t.sum(1)", "(_t.sum(1) / (_t != 0).sum(1))"),
    ),
    mistake(
        "log-probs stay in bf16",
        "logprobs",
        "dpo_core.logprobs:token_logps",
        uncall("float"),
    ),
    mistake(
        "the head's gradient has the wrong sign",
        "logprobs",
        "dpo_core.kernels.head:_HeadLogps.backward",
        swap("_s.scatter_add_(1, _t, _g)", "_s.scatter_add_(1, _t, -_g)"),
    ),
    mistake(
        "not all chunks reach the head's gradient",
        "logprobs",
        "dpo_core.kernels.head:_HeadLogps.backward",
        swap("_g += _s", "_g += 0 * _s"),
        drop("_g.addmm_(_s, _t)"),
    ),
    mistake(
        "the reference's answers come in another order",
        "logprobs trainer",
        "dpo_core.logprobs:reference_logps",
        swap("_o[_i] = _v", "_o[sorted(_i)] = _v"),
    ),
    mistake(
        "the reference's log-probs keep a graph",
        "logprobs",
        "dpo_core.logprobs:reference_logps",
        drop_context("torch.no_grad()"),
    ),
    # Pairs and batches
    mistake(
        "the rejected answer sees the chosen one",
        "data logprobs",
        "dpo_core.data:PreferenceBatch.mask",
        swap("(_q == _k) | (_k == 0)", "_k >= 0"),
    ),
    mistake(
        "the rejected answer's positions run on",
        "data logprobs",
        "dpo_core.data:collate",
        swap("[*range(_p + _c), *range(_p, _p + _r)]", "[*range(_p + _c + _r)]"),
    ),
    mistake(
        "the chosen answer's end predicts the rejected one's start",
        "data logprobs",
        "dpo_core.data:collate",
        swap("[_p - 1, *range(_s, _t)]", "[_s - 1, *range(_s, _t)]"),
    ),
    mistake(
        "answers have no end of text",
        "data",
        "dpo_core.data:encode_pair",
        swap("[*_a, encoding.eot_token]", "_a"),
    ),
    mistake(
        "a cut answer gets its end back",
        "data",
        "dpo_core.data:audit_pairs",
        swap("_e.rejected[:max(_r, 0)]", "[*_e.rejected[:max(_r - 1, 0)], encoding.eot_token]"),
    ),
    mistake(
        "prompt and answer are encoded apart",
        "data",
        "dpo_core.data:encode_pair",
        swap(
            "[encoding.encode_ordinary(_p + _g + _t) for _t in _a]",
            "[encoding.encode_ordinary(_p + _g) + encoding.encode_ordinary(_t) for _t in _a]",
        ),
    ),
    mistake(
        "answers that are the same once cut are kept",
        "data",
        "dpo_core.data:audit_pairs",
        swap("_s.chosen == _s.rejected", "False", nth=2),
    ),
    mistake(
        "votes are dropped as repeats",
        "data",
        "dpo_core.data:audit_pairs",
        swap("_p in _s and not _c", "_p in _s"),
    ),
    mistake(
        "an empty answer is kept",
        "data",
        "dpo_core.data:audit_pairs",
        swap("min(_c, _r) < 2", "min(_c, _r) < 1"),
    ),
    mistake(
        "a further turn goes unnoticed",
        "data",
        "dpo_core.data:audit_pairs",
        swap("any(_t in _a for _a in _b)", "False"),
    ),
    mistake(
        "held-out prompts are trained on",
        "data trainer",
        "dpo_core.data:split_by_prompt",
        swap("[_e for _e in _f if _p not in _h]", "list(_f)"),
    ),
    mistake(
        "every epoch has the same order",
        "data trainer",
        "dpo_core.data:batches",
        swap("torch.randperm(_n, generator=_g, device=_d)", "torch.randperm(_n, generator=_g.manual_seed(0))"),
    ),
    mistake(
        "the reader swaps the labels",
        "data",
        "dpo_core.formats.pairs:_read_messages",
        swap("('chosen', 'rejected')", "('rejected', 'chosen')"),
    ),
    mistake(
        "the reader swaps HH-RLHF's labels",
        "data",
        "dpo_core.formats.pairs:_cut_dialogue",
        swap("(_p, _c, _r)", "(_p, _r, _c)"),
    ),
    # Metrics
    mistake(
        "a tie counts as a hit",
        "metrics trainer",
        "dpo_core.metrics:preference_metrics",
        swap("_o.chosen_rewards > _o.rejected_rewards", "_o.chosen_rewards >= _o.rejected_rewards"),
    ),
    mistake(
        "reward accuracy is the policy's own ranking",
        "metrics trainer",
        "dpo_core.metrics:preference_metrics",
        swap("_o.chosen_rewards > _o.rejected_rewards", "logps.policy_chosen > logps.policy_rejected"),
    ),
    mistake(
        "metrics are means of means",
        "metrics trainer",
        "dpo_core.metrics:MetricSums.add",
        swap("_p.sum().item()", "_p.mean().item()"),
        swap("_c + len(_o)", "_c + 1"),
    ),
    mistake(
        "chosen_delta is measured from 0",
        "metrics trainer",
        "dpo_core.metrics:preference_metrics",
        swap("_l.chosen_ratios", "_l.policy_chosen"),
    ),
    mistake(
        "a history's step may be endless",
        "metrics",
        "dpo_core.metrics:History.from_jsonl",
        swap("OverflowError", "AttributeError"),
    ),
    # The model
    mistake(
        "a token sees what follows",
        "model logprobs",
        "dpo_core.kernels.attention:scaled_dot_product_attention",
        drop_keyword("is_causal"),
    ),
    # The exactly solvable world
    mistake(
        "Z leaves the reference out",
        "tabular",
        "dpo_core.study.tabular:log_partition",
        swap("(_p + _r / _b).logsumexp(-1)", "(_r / _b).logsumexp(-1)"),
    ),
    mistake(
        "beta is upside down at the optimum",
        "tabular",
        "dpo_core.study.tabular:log_partition",
        swap("_r / beta", "_r * beta"),
        "dpo_core.study.tabular:optimal_policy",
        swap("_r / beta", "_r * beta"),
    ),
    mistake(
        "the KL term is a reward",
        "tabular",
        "dpo_core.study.tabular:rlhf_objective",
        swap("_a - beta * _k", "_a + beta * _k"),
    ),
    mistake(
        "KL is taken the other way round",
        "tabular",
        "dpo_core.study.tabular:kl_divergence",
        swap("_p.exp() * (_p - _q)", "_q.exp() * (_q - _p)"),
    ),
    mistake(
        "the implied reward has no beta",
        "tabular",
        "dpo_core.study.tabular:implied_rewards",
        swap("beta * _a", "_a"),
    ),
    mistake(
        "the worse answer is preferred",
        "tabular",
        "dpo_core.study.tabular:preference_probs",
        swap("_a - _b", "_b - _a"),
    ),
    # Measuring
    mistake(
        "the sampled KL is of the reference",
        "evaluate",
        "dpo_core.study.evaluate:_answer_kl",
        swap("_p.exp() * (_p - _q)", "_q.exp() * (_q - _p)"),
    ),
    mistake(
        "the sampled KL counts the prompt",
        "evaluate",
        "dpo_core.study.evaluate:_answer_kl",
        swap("_c >= len(_p) - 1", "_c >= 0"),
    ),
    mistake(
        "Wilson's interval is the textbook one",
        "evaluate",
        "dpo_core.study.evaluate:wilson_interval",
        swap("_s + _z * _z / (2 * _n)", "_s"),
    ),
    mistake("all wins end below 1", "evaluate", "dpo_core.study.evaluate:wilson_interval", never("wins == n")),
    mistake(
        "prompts are not drawn in pairs",
        "evaluate",
        "dpo_core.study.evaluate:paired_bootstrap",
        swap("_s(_a) - _s(_b)", "_s(_a) - _s(_b)[torch.randperm(len(_b))]"),
    ),
    mistake(
        "answers run on after their end",
        "generate",
        "dpo_core.generate:_extend",
        swap("_t == _e.eot_token", "False"),
    ),
    mistake("no bar is shown", "generate", "dpo_core.generate:generate", swap("_f or None", "True")),
]
