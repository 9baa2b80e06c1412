"""Mistakes in reinforcement learning: advantages, losses, where the KL stands, what is sampled and scored."""

from tools.mutation.mistake import mistake
from tools.mutation.syntax import drop, swap, uncall

__all__ = ["RL"]

RL = [
    # Advantages
    mistake(
        "rl: the sign of the advantage is flipped",
        "rl_objectives rl_methods",
        "dpo_core.rl.objectives:policy_gradient",
        swap("-_a * logps", "_a * logps"),
    ),
    mistake(
        "rl: RLOO's baseline includes the answer itself",
        "rl_advantages",
        "dpo_core.rl.advantages:rloo_advantages",
        swap("(_s - rewards) / (_k - 1)", "_s / _k"),
    ),
    mistake(
        "rl: advantages are those of the wrong group",
        "rl_methods",
        "dpo_core.rl.methods:grouped",
        swap("_r.view(-1, _k)", "_r.view(_k, -1).T"),
    ),
    mistake(
        "rl: all prompts are one group",
        "rl_advantages",
        "dpo_core.rl.advantages:grpo_advantages",
        swap("rewards.mean(1, keepdim=True)", "rewards.mean()"),
    ),
    mistake(
        "rl: the standard deviation has the divisor K",
        "rl_advantages",
        "dpo_core.rl.advantages:grpo_advantages",
        swap("rewards.std(1, keepdim=True)", "rewards.std(1, correction=0, keepdim=True)"),
    ),
    mistake(
        "rl: GAE looks at the padding",
        "rl_advantages",
        "dpo_core.rl.advantages:gae",
        swap("(rewards * mask, values * mask)", "(rewards, values)"),
    ),
    mistake(
        "rl: GAE leaves the next value out",
        "rl_advantages",
        "dpo_core.rl.advantages:gae",
        swap("rewards + gamma * _f - values", "rewards - values"),
    ),
    mistake(
        "rl: reinforce takes the baseline of the step itself",
        "rl_methods",
        "dpo_core.rl.methods:running_baseline_advantages",
        swap("reinforce_advantages(_r, _b)", "reinforce_advantages(_r)"),
    ),
    # Losses
    mistake(
        "rl: the ratio is not detached from the old policy",
        "rl_objectives",
        "dpo_core.rl.objectives:ratio",
        uncall("detach"),
    ),
    mistake(
        "rl: the clip stands on the wrong side",
        "rl_objectives",
        "dpo_core.rl.objectives:clipped_surrogate",
        swap("torch.min(_a, _b)", "torch.max(_a, _b)"),
    ),
    mistake(
        "rl: nothing is clipped",
        "rl_objectives",
        "dpo_core.rl.objectives:clipped_surrogate",
        swap("_r.clamp(1 - clip, 1 + clip)", "_r"),
    ),
    mistake(
        "rl: the value loss counts masked tokens",
        "rl_objectives",
        "dpo_core.rl.objectives:value_loss",
        swap("_l / 2 * mask", "_l / 2"),
    ),
    mistake(
        "rl: GRPO sums where it should average over the answer",
        "rl_methods",
        "dpo_core.rl.methods:grpo_losses",
        swap("masked_sum(_t, _m) / _l", "masked_sum(_t, _m)"),
    ),
    mistake(
        "rl: online DPO takes the worse answer as chosen",
        "rl_methods",
        "dpo_core.rl.methods:preferences",
        swap("(_a - _b).sign()", "(_b - _a).sign()"),
    ),
    # The divergence
    mistake(
        "rl: the KL is added to the reward",
        "rl_objectives rl_methods",
        "dpo_core.rl.objectives:kl_reward",
        swap("scores - _k", "scores + _k"),
    ),
    mistake(
        "rl: the KL is that of the reference from the policy",
        "rl_objectives",
        "dpo_core.rl.objectives:k1",
        swap("logps - reference_logps", "reference_logps - logps"),
    ),
    mistake(
        "rl: k3 is of the other direction",
        "rl_objectives",
        "dpo_core.rl.objectives:k3",
        swap("reference_logps.detach() - logps", "logps - reference_logps.detach()"),
    ),
    mistake(
        "rl: the score stands at the last column, not at the answer's end",
        "rl_objectives",
        "dpo_core.rl.objectives:token_rewards",
        swap("mask.sum(1, keepdim=True) - 1", "torch.full_like(mask.sum(1, keepdim=True), mask.shape[1] - 1)"),
    ),
    mistake(
        "rl: GRPO's scores hold the KL, too",
        "rl_methods",
        "dpo_core.rl.methods:scaled_advantages",
        swap("rollout.scores", "rollout.rewards(config.beta)"),
    ),
    # Answers, critic, reward model
    mistake(
        "rl: the end-of-text is missing",
        "rl_trainer",
        "dpo_core.rl.trainer:RLTrainer.passes",
        swap("(_p, _a.ids)", "(_p, _a.ids[:-1])"),
    ),
    mistake(
        "rl: the states are those of the token to be predicted",
        "rl_reward",
        "dpo_core.rl.answers:collate_answers",
        swap("(_t >= _f - 1) & (_t < _f + _l - 1)", "(_t >= _f) & (_t < _f + _l)"),
    ),
    mistake(
        "rl: the critic moves the policy",
        "rl_trainer",
        "dpo_core.rl.trainer:RLTrainer.teach_critic",
        uncall("detach", nth=1),
    ),
    mistake(
        "rl: the critic learns whitened advantages",
        "rl_methods",
        "dpo_core.rl.methods:value_targets",
        swap("gae_advantages(_r, _c)", "whitened_advantages(_r, _c)"),
    ),
    mistake(
        "rl: the reference moves with the policy",
        "rl_trainer",
        "dpo_core.rl.trainer:RLTrainer.__init__",
        swap("copy.deepcopy(model).requires_grad_(False)", "model"),
    ),
    mistake(
        "rl: every step samples with the same seed",
        "rl_trainer",
        "dpo_core.rl.trainer:RLTrainer.sample",
        swap("random.Random(_s).getrandbits(62)", "self.config.seed"),
    ),
    mistake(
        "rl: the gradients of the inner epochs add up",
        "rl_trainer",
        "dpo_core.rl.trainer:RLTrainer.step",
        drop("self.optimizer.zero_grad()"),
    ),
    mistake(
        "rl: the reward model is fed the prompt only",
        "rl_reward",
        "dpo_core.rl.reward:RewardModel.forward",
        swap("_s[_r, _b.last]", "_s[_r, _b.last - _b.mask.sum(1)]"),
    ),
    mistake(
        "rl: the reward loss prefers the rejected answer",
        "rl_reward",
        "dpo_core.rl.reward:reward_loss",
        swap("chosen - rejected", "rejected - chosen"),
    ),
    mistake(
        "rl: best of n takes the worst",
        "rl_reward",
        "dpo_core.rl.best_of:best_of_n",
        swap("_s.argmax(1)", "_s.argmin(1)"),
    ),
]
