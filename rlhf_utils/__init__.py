"""RLHF for GPT-2, end to end: supervised fine-tuning, reward modelling, PPO and evaluation."""

__version__ = "0.1.0"
