"""Mistakes in training and in what was paid for: trainer, KTO, settings, refusals, checkpoints, adapters."""

from tools.mutation.mistake import mistake
from tools.mutation.syntax import drop, never, swap

__all__ = ["RUNS"]

RUNS = [
    # A step
    mistake(
        "the cached reference moves",
        "trainer",
        "dpo_core.trainer:DPOTrainer.reference_logps",
        swap("self.reference['training'][_i].to(_d).unbind(1)", "pair_logps(copy.deepcopy(self.model), batch)"),
    ),
    mistake(
        "the live reference is the policy",
        "trainer",
        "dpo_core.trainer:DPOTrainer.__init__",
        swap("copy.deepcopy(_m).requires_grad_(False)", "_m"),
    ),
    mistake(
        "passes are averaged, not pairs",
        "trainer",
        "dpo_core.trainer:DPOTrainer.step",
        swap("_l.sum() / len(_i)", "_l.mean() / self.config.grad_accum"),
    ),
    mistake(
        "gradients of the last step stay",
        "trainer",
        "dpo_core.trainer:DPOTrainer.step",
        drop("self.optimizer.zero_grad()"),
    ),
    mistake(
        "gradients are not clipped",
        "mutants_trainer",
        "dpo_core.trainer:DPOTrainer.clip_and_move",
        swap("self.config.max_grad_norm", "1e9"),
    ),
    mistake(
        "a policy unlike its reference is not refused",
        "trainer",
        "dpo_core.runs.checks:check_start",
        never("_a > _b"),
    ),
    mistake(
        "a loss that is not finite is trained on",
        "trainer",
        "dpo_core.trainer:DPOTrainer.clip_and_move",
        swap("math.isfinite(_g)", "True"),
        "dpo_core.trainer:DPOTrainer._loop",
        swap("math.isfinite(_g)", "math.isfinite(_g) or True"),
    ),
    # The run
    mistake(
        "a resumed run begins the order anew",
        "trainer",
        "dpo_core.trainer:DPOTrainer._loop",
        swap("islice(_b, self.global_step, None)", "islice(_b, 0, None)"),
    ),
    mistake(
        "patience keeps the last weights",
        "trainer",
        "dpo_core.trainer:DPOTrainer._finish",
        drop("self.model.load_state_dict(self.best, strict=False)"),
    ),
    mistake(
        "a trained model bears the old name",
        "trainer",
        "dpo_core.trainer:DPOTrainer._finish",
        drop("self.model.source = ''"),
    ),
    mistake(
        "a run does not say on which pairs",
        "cli",
        "dpo_core.runs.run:Run.begin",
        swap("{'start': _a, 'key': _b, 'form': _c}", "{'start': _a, 'form': _c}"),
    ),
    mistake(
        "stale best weights come back",
        "trainer",
        "dpo_core.runs.run:Run._load",
        swap("_a if self.config.patience else None", "_a"),
    ),
    # KTO
    mistake(
        "kto's reference point is of the answers' own prompts",
        "trainer_losses",
        "dpo_core.trainers.kto:mismatched_pairs",
        swap("replace(_e, prompt=_f[_j].prompt[-_r:])", "replace(_e, prompt=_e.prompt[-_r:])"),
    ),
    mistake(
        "kto's reference point never moves",
        "trainer_losses",
        "dpo_core.trainers.kto:KTOTrainer.drift",
        swap("_n - _r", "0 * (_n - _r)"),
    ),
    mistake(
        "kto's cache does not know the lent prompts",
        "trainer_losses",
        "dpo_core.trainers.kto:KTOTrainer.key",
        swap("[_t, _v, *_m]", "[_t, _v]"),
    ),
    # Settings
    mistake(
        "warm-up begins at 0",
        "trainer",
        "dpo_core.config:DPOConfig.learning_rate_at",
        swap("(step + 1) / _w", "step / _w"),
    ),
    mistake(
        "beta's schedule runs backwards",
        "trainer",
        "dpo_core.config:DPOConfig.beta_at",
        swap("self.beta + (_e - self.beta) * _s / _n", "_e + (self.beta - _e) * _s / _n"),
    ),
    mistake(
        "every loss is DPO's",
        "trainer_losses",
        "dpo_core.config:DPOConfig.pair_loss",
        swap("choose_loss(_l, _w, **_s)", "choose_loss('dpo', _w)"),
    ),
    mistake(
        "label smoothing does not reach the loss",
        "trainer_losses",
        "dpo_core.config:DPOConfig.pair_loss",
        swap("self.label_smoothing or None", "None"),
    ),
    mistake(
        "numbers of steps may be broken",
        "trainer",
        "dpo_core.formats.settings:Kind.takes",
        swap("_a if _b else self.type", "(int, float, str, object)"),
    ),
    # What is refused
    mistake("dropout is not refused", "trainer", "dpo_core.runs.checks:check_model", never("model.config.dropout")),
    mistake(
        "a run may be written into a model's folder",
        "cli",
        "dpo_core.runs.checks:check_folder",
        never("(_o / 'model.safetensors').exists()"),
    ),
    mistake(
        "other weights may be trained beside an adapter",
        "lora",
        "dpo_core.runs.checks:check_model",
        never("'.lora_' not in _n"),
    ),
    mistake(
        "a trained adapter may be switched off for the reference",
        "lora trainer",
        "dpo_core.runs.checks:check_model",
        never("_l.lora_B.any()"),
    ),
    # Checkpoints
    mistake(
        "a checkpoint may have lost all moments",
        "faults",
        "dpo_core.runs.checkpoint:load_checkpoint",
        swap("_t or stepped", "_t"),
    ),
    mistake(
        "moments may be no numbers",
        "faults",
        "dpo_core.runs.checkpoint:load_checkpoint",
        swap("not _t.isfinite().all()", "False"),
    ),
    mistake(
        "a checkpoint may be of any step",
        "faults",
        "dpo_core.runs.checkpoint:read_state",
        never("0 <= _a <= _b"),
    ),
    # Adapters
    mistake("a merged model bears the old name", "lora", "dpo_core.methods.lora:merge_lora", drop("model.source = ''")),
    mistake(
        "an adapter may have any rank", "lora", "dpo_core.methods.adapter_files:load_adapted", never("_r['r'] > _l")
    ),
    mistake(
        "the adapter stays on in the reference", "lora", "dpo_core.methods.lora:adapter_off", drop("_l.on = False")
    ),
    mistake(
        "the adapter's scale is its rank times alpha",
        "lora",
        "dpo_core.methods.lora:LoRAConfig.scale",
        swap("_a / _r", "_a * _r"),
    ),
]
