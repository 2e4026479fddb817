"""RLHF for GPT-2, end to end: supervised fine-tuning, reward modelling, PPO and evaluation."""

from rlhf_utils.platforms.bootstrap import settle

__version__ = "0.1.0"

settle()
