"""The numbers of the project: intervals, win rates, calibration, ROUGE, distinct-n.

`Rouge` is imported on first use, because `evaluate` brings torch with it and takes seconds.
"""

from rlhf_utils.evaluation.metrics.statistics import (
    Interval,
    accuracy_of,
    calibration,
    length_baseline,
    length_rule,
    mean_interval,
    paired_difference,
    proportion_interval,
    sign_test,
    win_rate,
)
from rlhf_utils.evaluation.metrics.text import distinct_n, rouge_per_sample, rouge_scores

__all__ = [
    "Interval",
    "Rouge",
    "accuracy_of",
    "calibration",
    "distinct_n",
    "length_baseline",
    "length_rule",
    "mean_interval",
    "paired_difference",
    "proportion_interval",
    "rouge_per_sample",
    "rouge_scores",
    "sign_test",
    "win_rate",
]


def __getattr__(name: str):
    if name == "Rouge":
        from rlhf_utils.evaluation.metrics.rouge import Rouge

        return Rouge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
