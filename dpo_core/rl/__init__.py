"""Reinforcement learning on answers of the model's own: what DPO does without.

A reward model, the methods from REINFORCE to GRPO in one loop, and best-of-n and preferred-SFT, which need no loop.

| method | an action is | its advantage is the reward less | the KL stands in | updates per sample |
|---|---|---|---|---|
| reinforce | an answer | a running mean | the reward | 1 |
| rloo | an answer | the mean of the prompt's other answers | the reward | clipped ratio of answers |
| grpo | a token | the group's mean, over its standard deviation | the loss, as k3 | clipped ratio of tokens |
| dr_grpo | a token | the group's mean | the reward; with beta 0 nowhere, as in its paper | clipped ratio of tokens |
| ppo | a token | what the critic expected (GAE) | the reward of each token | clipped ratio of tokens |
| online_dpo | a pair | - | the loss, as DPO has it | loss of pairs |
"""

from __future__ import annotations

from dpo_core.rl.config import RLConfig
from dpo_core.rl.methods import METHODS, Method
from dpo_core.rl.reward import RewardConfig, RewardModel, train_reward
from dpo_core.rl.trainer import RLTrainer

__all__ = ["METHODS", "Method", "RLConfig", "RLTrainer", "RewardConfig", "RewardModel", "train_reward"]
