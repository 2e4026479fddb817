"""Numbers with their uncertainty: bootstrap and Wilson intervals, win rates, the sign test, calibration.

Only numpy and the standard library, so that any part of the project can import it cheaply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from rlhf_utils.platforms.errors import InputError

BOOTSTRAP_CELLS = 4_000_000
"""Resampled values held in memory at a time (32 MB), whatever the number of values."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    `low` and `high` are None when a single value was given: one value says nothing about its own spread.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    def as_list(self) -> list[float] | None:
        """`[low, high]` as it is written to `summary.json`; None (null) when the spread is unknown."""
        return None if self.low is None or self.high is None else [self.low, self.high]

    def __format__(self, spec: str) -> str:
        """`0.53 [0.41, 0.66]`, each number by `spec`; the mean alone when the spread is unknown."""
        ends = "" if self.low is None or self.high is None else f" [{self.low:{spec}}, {self.high:{spec}}]"
        return f"{self.mean:{spec}}{ends}"

    def is_above(self, value: float = 0.0) -> bool:
        """True when the whole interval is known to lie above `value`."""
        return self.low is not None and self.low > value

    def is_below(self, value: float = 0.0) -> bool:
        """True when the whole interval is known to lie below `value`."""
        return self.high is not None and self.high < value

    def excludes(self, value: float = 0.0) -> bool:
        """True when the interval is known and `value` lies outside it."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def finite_array(values: Sequence[float], name: str) -> np.ndarray:
    """`values` as float64 of shape (n,), n >= 1.

    Raises InputError when it is empty or not a flat list of numbers, ValueError naming the position of the
    first NaN or infinity.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a flat list of numbers ({error}): pass numbers only") from error
    if array.ndim != 1:
        raise InputError(f"{name} must be a flat list of numbers, it has shape {array.shape}: flatten it")
    if array.size == 0:
        raise InputError(f"{name} is empty: pass at least one value")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        first = bad[0]
        raise ValueError(f"{name}[{first}] is {array[first]}, not finite ({bad.size} of {array.size} values)")
    return array


def same_length(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> None:
    """Raise InputError unless the two lists can be paired."""
    if len(a) != len(b):
        raise InputError(
            f"{names[0]} has {len(a)} values and {names[1]} has {len(b)}: they are compared in pairs, "
            "pass one value of each for every prompt"
        )


def mean_interval(values: Sequence[float], samples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of `values` (n,) with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    `samples` resamples of n values with replacement; the same seed gives the same interval. One value: the
    interval is unknown (None). Constant values: low = high = mean, because no resample differs; that is the
    absence of observed spread, not certainty. In the units of `values`.
    """
    array = finite_array(values, "values")
    check_level(level)
    if samples < 1:
        raise InputError(f"samples is {samples}: draw at least one bootstrap resample (2000 is usual)")
    n = array.size
    if n == 1:
        return Interval(float(array[0]), None, None, 1)
    if np.all(array == array[0]):
        value = float(array[0])
        return Interval(value, value, value, n)
    generator = np.random.default_rng(seed)
    rows = max(1, BOOTSTRAP_CELLS // n)
    means = np.concatenate(
        [
            array[generator.integers(0, n, size=(min(rows, samples - start), n))].mean(axis=1)
            for start in range(0, samples, rows)
        ]
    )
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(array.mean()), float(low), float(high), n)


def paired_difference(
    a: Sequence[float], b: Sequence[float], samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean of a - b over paired prompts, both of shape (n,), with its bootstrap interval over prompts.

    Pairing removes the spread that the prompts themselves cause, so this interval is narrower than the
    difference of two separate ones. Raises InputError when the lengths differ.
    """
    first, second = finite_array(a, "a"), finite_array(b, "b")
    same_length(first, second, ("a", "b"))
    return mean_interval(first - second, samples=samples, seed=seed, level=level)


def proportion_interval(k: float, n: int, level: float = 0.95) -> Interval:
    """k successes out of n with the Wilson score interval (Wilson 1927), which stays inside [0, 1].

    `k` may be a half-integer where ties count half. Raises InputError unless 0 <= k <= n and n >= 1.
    """
    check_level(level)
    if n < 1:
        raise InputError(f"n is {n}: a proportion needs at least one trial")
    if not 0 <= k <= n:
        raise InputError(f"k is {k} of n = {n}: successes must lie between 0 and n")
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return Interval(p, low, high, int(n))


def win_rate(a: Sequence[float], b: Sequence[float], tolerance: float = 1e-9) -> dict:
    """How often `a` scores above `b` on the same prompts, both of shape (n,).

    Returns wins, losses, ties (|a - b| <= tolerance), rate = (wins + ties / 2) / n, `ci95` of the rate by
    bootstrap over prompts, and `sign_test_p`, the exact two-sided binomial p of wins against losses without
    ties (Dixon and Mood 1946; 1.0 when every prompt ties). When every prompt has the same outcome the
    bootstrap cannot show any spread, and the Wilson interval is given instead.
    """
    first, second = finite_array(a, "a"), finite_array(b, "b")
    same_length(first, second, ("a", "b"))
    difference = first - second
    wins = int(np.sum(difference > tolerance))
    losses = int(np.sum(difference < -tolerance))
    ties = difference.size - wins - losses
    if difference.size in (wins, losses, ties):
        interval = proportion_interval(wins + ties / 2, difference.size)
    else:
        outcomes = np.where(difference > tolerance, 1.0, np.where(difference < -tolerance, 0.0, 0.5))
        interval = mean_interval(outcomes)
    return {
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "rate": (wins + ties / 2) / difference.size,
        "ci95": interval.as_list(),
        "sign_test_p": sign_test(wins, losses),
    }


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p of `wins` against `losses` under a fair coin; 1.0 when both are 0."""
    n, fewer = wins + losses, min(wins, losses)
    term, tail = 1, 1
    for i in range(1, fewer + 1):
        term = term * (n - i + 1) // i
        tail += term
    return min(1.0, 2 * tail / 2**n)


def calibration(margins: Sequence[float], bins: int = 10) -> dict:
    """Does sigma(margin) say how often the reward model is right? `margins` (n,) are r(chosen) - r(rejected).

    Every pair has the chosen answer first, so the prediction is read without that knowledge: the model names
    the answer it scores higher, with probability sigma(|margin|) in [0.5, 1], and is right when the margin is
    positive (a zero margin counts half). Bins of equal width over [0.5, 1]; empty ones are left out.

    Returns `pairs`, `expected_calibration_error` = sum over bins of share * |accuracy - predicted| (Guo et
    al. 2017), and `bins`: a list of low, high, predicted, accuracy, accuracy_ci95 (Wilson), count.
    """
    array = finite_array(margins, "margins")
    if bins < 1:
        raise InputError(f"bins is {bins}: use at least one (10 is usual)")
    predicted = 1.0 / (1.0 + np.exp(-np.abs(array)))
    correct = np.where(array > 0, 1.0, np.where(array < 0, 0.0, 0.5))
    place = np.minimum(((predicted - 0.5) * 2 * bins).astype(int), bins - 1)
    rows = []
    error = 0.0
    for index in range(bins):
        inside = place == index
        count = int(inside.sum())
        if not count:
            continue
        accuracy, mean_predicted = float(correct[inside].mean()), float(predicted[inside].mean())
        error += count / array.size * abs(accuracy - mean_predicted)
        rows.append(
            {
                "low": 0.5 + index / (2 * bins),
                "high": 0.5 + (index + 1) / (2 * bins),
                "predicted": mean_predicted,
                "accuracy": accuracy,
                "accuracy_ci95": proportion_interval(float(correct[inside].sum()), count).as_list(),
                "count": count,
            }
        )
    return {"pairs": int(array.size), "expected_calibration_error": error, "bins": rows}


def length_baseline(
    chosen_lengths: Sequence[float],
    rejected_lengths: Sequence[float],
    training_chosen_lengths: Sequence[float],
    training_rejected_lengths: Sequence[float],
) -> float:
    """Accuracy on held-out pairs of a judge that sees only the lengths of the two answers; a tie counts half.

    Whether longer or shorter is called better is decided on the training pairs (longer when they are even),
    so the held-out pairs do not choose their own rule. Lengths in any one unit; shapes (n,) and (m,).
    """

    def longer_wins(chosen: Sequence[float], rejected: Sequence[float], prefix: str) -> float:
        names = (f"{prefix}chosen_lengths", f"{prefix}rejected_lengths")
        first, second = finite_array(chosen, names[0]), finite_array(rejected, names[1])
        same_length(first, second, names)
        return float(np.mean((first > second) + 0.5 * (first == second)))

    held_out = longer_wins(chosen_lengths, rejected_lengths, "")
    longer_is_better = longer_wins(training_chosen_lengths, training_rejected_lengths, "training_") >= 0.5
    return held_out if longer_is_better else 1.0 - held_out


def accuracy_of(margins: Sequence[float], level: float = 0.95) -> Interval:
    """Share of margins above 0 with its Wilson interval; a margin of 0 is no decision and counts half. Shape (n,)."""
    found = finite_array(margins, "margins")
    return proportion_interval(float(np.sum((found > 0) + 0.5 * (found == 0))), found.size, level)


def length_rule(
    lengths: Sequence[float], labels: Sequence[int], training_lengths: Sequence[float], training_labels: Sequence[int]
) -> float:
    """Accuracy on held-out texts of a judge that sees only their lengths, for labels 0 and 1.

    It calls texts longer than the training texts' median 1, or 0, whichever is right more often on the training texts.
    Lengths in any one unit; shapes (n,), (n,), (m,), (m,).
    """
    train = finite_array(training_lengths, "training_lengths")
    middle = float(np.median(train))

    def longer_is_one(found: np.ndarray, wanted: Sequence[int], names: tuple[str, str]) -> float:
        known = finite_array(wanted, names[1])
        same_length(found, known, names)
        return float(np.mean((found > middle) == (known == 1)))

    right = longer_is_one(finite_array(lengths, "lengths"), labels, ("lengths", "labels"))
    names = ("training_lengths", "training_labels")
    return right if longer_is_one(train, training_labels, names) >= 0.5 else 1.0 - right


def check_level(level: float) -> None:
    """Raise InputError unless `level` is a confidence level strictly between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(f"level is {level}: a confidence level lies between 0 and 1, such as 0.95")
