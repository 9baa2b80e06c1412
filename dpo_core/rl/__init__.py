"""Reinforcement learning on answers of the model's own: what DPO does without.

A reward model; the methods from REINFORCE to GRPO in one loop; best-of-n and preferred-SFT, which need no loop. The
methods differ in what an action is, in what its reward is compared with, and in where the KL divergence from the
reference stands:

- ``reinforce``: an answer; a running mean of rewards; the KL in the reward.
- ``rloo``: an answer; the mean of the prompt's other answers; the KL in the reward.
- ``grpo``: a token; the group's mean, over its standard deviation; the KL in the loss, as k3.
- ``dr_grpo``: a token; the group's mean; the KL in the reward (with beta 0 nowhere, as in its paper).
- ``ppo``: a token; what the critic expected; the KL in the reward of each token.
- ``online_dpo``: a pair of answers; no advantage; the KL in the loss, as DPO has it.
"""

from __future__ import annotations

from dpo_core.rl.config import RLConfig
from dpo_core.rl.methods import METHODS, Method
from dpo_core.rl.reward import RewardConfig, RewardModel, train_reward
from dpo_core.rl.trainer import RLTrainer

__all__ = ["METHODS", "Method", "RLConfig", "RLTrainer", "RewardConfig", "RewardModel", "train_reward"]
