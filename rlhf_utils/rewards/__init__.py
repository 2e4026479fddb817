"""Reward functions: `(prompts, responses) -> FloatTensor[n]`, both lists of plain text."""

from rlhf_utils.rewards.reward_model import ClassifierReward, RewardModel, load_reward
from rlhf_utils.rewards.terms import FluencyReward, RewardFunction, RewardMixture

__all__ = ["ClassifierReward", "FluencyReward", "RewardFunction", "RewardMixture", "RewardModel", "load_reward"]
