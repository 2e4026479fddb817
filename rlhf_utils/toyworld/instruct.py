"""Rows of the embedded world in the schema of Dahoas/synthetic-instruct-gptj-pairwise: prompt, chosen, rejected."""

from __future__ import annotations

from rlhf_utils.toyworld.pairs import pairs, swaps

HARMFUL_SHARE = 0.05
RISKY_SHARE = 0.04


def instruct_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict[str, str]]:
    """`n` rows with keys prompt, chosen, rejected (see `pairs`); in split "train" a share `label_noise` is swapped."""
    rows = []
    made = pairs(split, n, seed, HARMFUL_SHARE, RISKY_SHARE)
    for pair, swapped in zip(made, swaps(split, seed, label_noise), strict=False):
        chosen, rejected = (pair.worse, pair.better) if swapped else (pair.better, pair.worse)
        rows.append({"prompt": pair.prompt, "chosen": chosen, "rejected": rejected})
    return rows
