"""Every model measured in the same way: ROUGE, reward, a held-out judge, intervals, and signs of reward hacking."""

LABELS = {"base": "base", "sft": "SFT", "sft_qlora": "SFT (QLoRA)", "ppo": "PPO"}
"""The policies of a run in the order of the series, and what readers are shown as their names."""
ALTERNATIVES = {"dpo": "DPO", "rloo": "RLOO", "grpo": "GRPO", "best_of_n": "best-of-n SFT"}
"""What PPO is compared with in notebook 4.3, by stage."""
GOLD_SCALE = (0.0, 10.0)
"""Least and greatest gold score of a synthetic dataset."""
GOLD_KIND = "gold preference"
"""What `summary.json` calls the judge that is the known preference of a synthetic dataset."""
