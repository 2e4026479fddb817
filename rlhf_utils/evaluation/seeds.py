"""Runs that differ in their seed, merged: what holds for this recipe, not only for one run of it.

A seed changes the splits, the initial weights, the order of the data and every sampled token, so runs differ by more
than their prompts do. An interval of one run knows of its prompts only.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rlhf_utils.data.prepared import conversation_key
from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.statistics import mean_interval, rate_interval, student_t
from rlhf_utils.platforms.files import read_json

SEEDS = "seeds.json"
# Column of samples.csv for each figure of a model; those of the comparisons are made of the first three.
_COLUMNS = {"gold": "gold", "rougeL": "rougeL", "positivity": "positivity", "eos_rate": "ended", "mean_tokens": "tokens"}
_RATES = ("win_rate", "accuracy", "eos_rate")
# Of one run: the values of a figure, one for each prompt or pair, and the clusters they belong to.
Values = tuple[Sequence[float], Sequence[Hashable]]


def merge(runs: Sequence[Values], rate: bool = False, samples: int = 2000) -> dict:
    """A figure over runs of several seeds, from its values in each: `mean` of the runs' means, its `ci95` over seeds
    and prompts, `seed_sd`, the standard deviation of the runs' means (None of one run), and those means, `by_seed`.

    Seeds are random effects: the interval is Student's t of the runs' means, which scatter by seed and by prompts, with
    one degree of freedom less than there are runs. Where runs share prompts (the same cluster in several of them) what
    those add is counted by the two-way variance V = V(seeds) + V(prompts) - V(prompts of one seed) of Cameron, Gelbach
    and Miller (2011, equation 2.13). It is never narrower than what the prompts alone leave open: a few runs can lie
    close together by chance (Roever, Knapp and Friede 2015, section 2.5). That part is the bootstrap over clusters of
    `mean_interval`, and of `rate_interval` for a `rate`, an outcome from 0 to 1. One run: that part alone.
    """
    values, clusters = [np.asarray(found, float) for found, _ in runs], [list(names) for _, names in runs]
    means = np.array([found.mean() for found in values])
    mean, seeds, low, high = float(means.mean()), len(runs), math.inf, -math.inf
    if max(found.size for found in values) > 1:
        everything = np.concatenate(values), [name for names in clusters for name in names]
        prompts = (rate_interval if rate else mean_interval)(*everything, samples=samples)
        if prompts.low is not None:
            low, high = mean + prompts.low - prompts.mean, mean + prompts.high - prompts.mean
    if seeds > 1:
        parts = [(found - found.mean()) / (seeds * found.size) for found in values]
        own = [[(seed, name) for name in names] for seed, names in enumerate(clusters)]
        variance = max(means.var(ddof=1) / seeds + _variance(parts, clusters) - _variance(parts, own), 0.0)
        half = student_t(seeds - 1) * math.sqrt(variance)
        low, high = min(low, mean - half), max(high, mean + half)
    if rate:
        low, high = max(low, 0.0), min(high, 1.0)
    ends = [float(low), float(high)] if low <= high else None
    spread = float(means.std(ddof=1)) if seeds > 1 else None
    return {"mean": mean, "ci95": ends, "seed_sd": spread, "by_seed": means.tolist()}


def _variance(parts: Sequence[np.ndarray], clusters: Sequence[Sequence[Hashable]]) -> float:
    """The variance of the sum of `parts`, values less their run's mean, that scatter by cluster."""
    sums: Counter = Counter()
    for names, run in zip(clusters, parts, strict=True):
        for name, part in zip(names, run.tolist(), strict=True):
            sums[name] += part
    return sum(total**2 for total in sums.values()) * len(sums) / max(len(sums) - 1, 1)
