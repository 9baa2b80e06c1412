"""Mistakes around training: commands and files, pretraining, what reads the curves, the pocket world."""

from tools.mutation.mistake import mistake
from tools.mutation.syntax import drop, drop_keyword, never, swap

__all__ = ["WORLD"]

WORLD = [
    mistake(
        "an older model passes for an unfinished run's",
        "cli",
        "dpo_core.cli.loading:open_model",
        never("_b != _f"),
    ),
    mistake(
        "a model may be written into a run's folder",
        "cli",
        "dpo_core.cli.commands:_train_lm",
        never("list_checkpoints(_)"),
    ),
    mistake(
        "a fine-tuned model forgets its start",
        "cli",
        "dpo_core.cli.commands:_train_lm",
        swap("save_trained(_m, _o, _a, _r)", "save_trained(_m, _o, _a, {})"),
    ),
    mistake(
        "pairs by hand are written over the file",
        "cli",
        "dpo_core.cli.commands:_data",
        swap("add_pair(_o, _p)", "save_pairs(_o, [_p])"),
    ),
    mistake("pairs are written under a packed name", "cli", "dpo_core.cli.commands:_data", never("_o.suffix == '.gz'")),
    mistake(
        "an evaluation hides what it drops", "cli", "dpo_core.cli.commands:_reward_accuracy", drop("print(_a.report())")
    ),
    mistake(
        "another model's encoding is taken",
        "trainer generate",
        "dpo_core.tokenizer:check_encoding",
        swap("_n in _k or _m > _v", "_m > _v"),
    ),
    mistake("bad answers are learned", "pretrain", "dpo_core.formats.readers:read_example", never("_l is False")),
    mistake(
        "documents without an answer are trained on",
        "pretrain",
        "dpo_core.lm.pretrain:train_lm",
        swap("[_d for _d in _e if len(_i) > _s]", "list(_e)"),
    ),
    # What reads the curves
    mistake(
        "a schedule's evaluations are compared",
        "diagnose",
        "dpo_core.study.diagnose:Curves.__init__",
        never("len(_s) > 1"),
    ),
    mistake(
        "exchanged labels are looked for in training alone",
        "diagnose",
        "dpo_core.study.diagnose:_swapped",
        swap("_m <= 0 or _h or _a", "_m >= 0"),
    ),
    mistake("every fall is harmless", "diagnose", "dpo_core.study.diagnose:_harmful", swap("ODD_PER_ANSWER", "1e9")),
    mistake(
        "odd tokens are odd to the policy",
        "diagnose",
        "dpo_core.study.watch:_sample",
        swap("_next_logits(reference, _p, _i)", "_next_logits(trainer.model, _p, _i)"),
    ),
    # The pocket world
    mistake(
        "all bad styles are rejected alike",
        "pocket",
        "dpo_core.pocket.corpus:preference_pairs",
        swap("_a[0] if contrast else _b", "_b"),
    ),
    mistake(
        "habits are those of the school",
        "pocket",
        "dpo_core.pocket.corpus:_style",
        swap("_s.habit if _h else _s.school", "_s.school"),
    ),
    mistake("no habits are learned", "pocket_build", "dpo_core.pocket.build:documents", drop_keyword("habits")),
]
