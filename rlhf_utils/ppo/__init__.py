"""Proximal policy optimisation of language models: `PPOConfig` says how, `PPOTrainer` does it."""

from rlhf_utils.ppo.trainer import PPOTrainer
from rlhf_utils.settings.sections import PPOConfig

__all__ = ["PPOConfig", "PPOTrainer"]
