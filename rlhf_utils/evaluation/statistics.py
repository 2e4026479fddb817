"""Numbers with their uncertainty: the bootstrap over clusters, rates, tests, calibration."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from rlhf_utils.platforms.errors import InputError

LEVEL = 0.95
_TAIL, _Z = (1.0 - LEVEL) / 2.0, NormalDist().inv_cdf(0.5 + LEVEL / 2.0)
_T = (12.706, 4.303, 3.182)
_BINS = 10
Clusters = Sequence[Hashable] | None


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; `low` and `high` are None of a single value, which says nothing of its spread."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def as_list(self) -> list[float] | None:
        """`[low, high]` as `summary.json` has it; None (null) when the spread is unknown."""
        return None if self.low is None else [self.low, self.high]

    def named(self, name: str) -> dict:
        """`{name: mean, name_ci95: [low, high]}` as the files of a run have them."""
        return {name: self.mean, f"{name}_ci95": self.as_list()}

    def __format__(self, spec: str) -> str:
        """`0.53 [0.41, 0.66]`, each number by `spec`; the mean alone when the spread is unknown."""
        return f"{self.mean:{spec}}" + ("" if self.low is None else f" [{self.low:{spec}}, {self.high:{spec}}]")

    @property
    def sign(self) -> int:
        """1 where the whole interval is known to lie above 0, -1 where it lies below, else 0."""
        return 0 if self.low is None else (self.low > 0.0) - (self.high < 0.0)


def mean_interval(values: Sequence[float], clusters: Clusters = None, samples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` (n,) with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13), the
    percentiles moved outward by `tail` so that it covers of few values too.

    `clusters` (n,) names the values that belong together, such as the responses to dialogues that begin alike: whole
    clusters are drawn, since values within one are not independent (Davison and Hinkley 1997, section 3.8). None: each
    value is its own. Constant values: low = high = mean, because no resample differs; a single cluster: no interval.
    """
    array = _numbers(values, "values")
    counts, sums = _clustered(array, clusters)
    if counts.size == 1 or np.all(array == array[0]):
        end = None if counts.size == 1 else float(array[0])
        return Interval(float(array.mean()), end, end, array.size)
    draws = np.random.default_rng(seed).integers(0, counts.size, size=(samples, counts.size))
    means, end = sums[draws].sum(axis=1) / counts[draws].sum(axis=1), tail(counts.size)
    low, high = np.quantile(means, [end, 1.0 - end]).tolist()
    return Interval(float(array.mean()), low, high, array.size)


def tail(n: int) -> float:
    """The share of resamples that an interval from `n` draws leaves out at either end: 0.025 of many, less of few,
    where a bootstrap is too narrow by sqrt((n - 1) / n) and by t against z (Hesterberg 2015, section 4.1.1)."""
    return NormalDist().cdf(-student_t(n - 1) * math.sqrt(n / (n - 1)))


def student_t(free: int) -> float:
    """The 0.975 quantile of Student's t with `free` >= 1 degrees of freedom, to 0.3 %: a table up to 3, from there the
    expansion of Fisher and Cornish (1960) in 1 / free."""
    if free <= len(_T):
        return _T[free - 1]
    terms = (_Z**3 + _Z) / 4, (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    terms += ((3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,)
    return _Z + sum(term / free**power for power, term in enumerate(terms, 1))


def standard_error(values: Sequence[float], clusters: Clusters = None) -> float | None:
    """Standard error of the mean of `values` (n,), by the residuals of whole clusters (Cochran 1977, chapter 9); None
    of a single cluster."""
    array = _numbers(values, "values")
    counts, sums = _clustered(array, clusters)
    if counts.size == 1:
        return None
    left = sums - counts * array.mean()
    return math.sqrt(counts.size / (counts.size - 1) * float(left @ left)) / array.size


def rate_interval(outcomes: Sequence[float], clusters: Clusters = None, **_) -> Interval:
    """Mean of outcomes 0, 0.5 or 1 (n,) with Wilson's interval for the effective number of outcomes, the one whose
    binomial variance is that of the clusters (Franco et al. 2019); of equal outcomes as many as clusters. Near 0 and 1
    a bootstrap covers too little. Other settings of `mean_interval`, given to all alike, have no part in it."""
    array = _numbers(outcomes, "outcomes")
    rate, whole = float(array.mean()), _clustered(array, clusters)[0].size
    # Not less than that of independent outcomes: the variance between few clusters may be small by chance.
    if whole > 1 and (error := max(standard_error(array, clusters), standard_error(array))):
        whole = rate * (1 - rate) / error**2 * (_Z / student_t(whole - 1)) ** 2
    return replace(proportion_interval(rate * whole, whole), mean=rate, n=array.size)


def figures(name: str, values: Sequence[float] | None, **settings) -> dict:
    """Mean and interval of `values` as `Interval.named` has them, null where there are none; `settings` are those of
    `mean_interval`."""
    return mean_interval(values, **settings).named(name) if values is not None else {name: None, f"{name}_ci95": None}


def paired_difference(a: Sequence[float], b: Sequence[float], **settings) -> Interval:
    """Mean of a - b over the same prompts, both (n,), with its interval: what the prompts scatter cancels. `settings`
    are those of `mean_interval`."""
    return mean_interval(_differences(a, b), **settings)


def proportion_interval(k: float, n: float) -> Interval:
    """k successes of n with the Wilson score interval (Wilson 1927); `k` may be a half where ties count half, `n` an
    effective number."""
    p, whole = k / n, 1 + _Z * _Z / n
    center, half = (p + _Z * _Z / (2 * n)) / whole, _Z / whole * math.sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n))
    low, high = 0.0 if k == 0 else max(0.0, center - half), 1.0 if k == n else min(1.0, center + half)
    return Interval(p, low, high, int(n))


def accuracy_of(margins: Sequence[float], **settings) -> Interval:
    """Share of margins (n,) above 0 with its interval; a margin of 0 is no decision and counts half. `settings` are
    those of `rate_interval`."""
    return rate_interval(_halves(_numbers(margins, "margins")), **settings)


def win_rate(a: Sequence[float], b: Sequence[float], tolerance: float = 1e-9, **settings) -> dict:
    """How often `a` scores above `b` on the same prompts, both (n,): wins, losses, ties (|a - b| <= tolerance), rate
    with ties counted half, its `ci95` (`settings` are those of `rate_interval`), and `sign_test_p`, exact and two-sided
    (Dixon and Mood 1946)."""
    outcomes = _halves(_differences(a, b), tolerance)
    wins, losses = int(np.sum(outcomes == 1.0)), int(np.sum(outcomes == 0.0))
    counts = {"wins": wins, "losses": losses, "ties": outcomes.size - wins - losses}
    found = rate_interval(outcomes, **settings)
    lopsided = sum(math.comb(wins + losses, i) for i in range(min(wins, losses) + 1))
    p = min(1.0, 2 * lopsided / 2 ** (wins + losses))
    return {**counts, "rate": found.mean, "ci95": found.as_list(), "sign_test_p": p}


def sign_flip_p(
    differences: Sequence[float], clusters: Clusters = None, samples: int = 2000, seed: int = 0
) -> float | None:
    """Two-sided p value of a mean difference of 0 over (n,) `differences`: the share of random sign flips, of whole
    clusters, that leave a mean as far from 0 as the one observed, which counts as one of them (Phipson and Smyth 2010);
    None of a single cluster."""
    sums = _clustered(_numbers(differences, "differences"), clusters)[1]
    if sums.size == 1:
        return None
    flipped = np.random.default_rng(seed).choice((-1.0, 1.0), size=(samples, sums.size)) @ sums
    # A sum in another order differs in its last bits.
    as_far = np.abs(flipped) >= abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    return (1 + int(as_far.sum())) / (1 + samples)


def holm(p_values: Sequence[float]) -> list[float]:
    """`p_values` (m,) adjusted for m comparisons at once (Holm 1979): at most one in twenty families has a false claim
    among the values below 0.05, whatever depends on what."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def rank_correlation(
    a: Sequence[float], b: Sequence[float], clusters: Clusters = None, samples: int = 2000, seed: int = 0
) -> Interval | None:
    """Spearman's correlation of `a` and `b`, both (n,), ties at their mean rank, with its percentile bootstrap interval
    over clusters; None where one of them is constant, and no interval of a single cluster."""
    both = np.stack([_numbers(a, "a"), _numbers(b, "b")])
    observed, place = _spearman(both), cluster_places(both[0], clusters)
    if observed is None or place.max() == 0:
        return None if observed is None else Interval(observed, None, None, place.size)
    counts, rows, source = np.bincount(place), np.argsort(place, kind="stable"), np.random.default_rng(seed)
    members, found = np.split(rows, np.cumsum(counts)[:-1]), []
    for drawn in source.integers(0, counts.size, size=(samples, counts.size)):
        found.append(_spearman(both[:, np.concatenate([members[i] for i in drawn])]))
    end = tail(counts.size)
    low, high = np.quantile([rho for rho in found if rho is not None], [end, 1.0 - end]).tolist()
    return Interval(observed, low, high, place.size)


def _spearman(both: np.ndarray) -> float | None:
    """Correlation of the ranks of two rows (2, n); None where one is constant."""
    ranks = []
    for values in both:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place.reshape(-1)])
        ranks[-1] -= ranks[-1].mean()
    spread = np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1])
    return float(ranks[0] @ ranks[1] / spread) if spread else None


def calibration(margins: Sequence[float], clusters: Clusters = None) -> dict:
    """Does sigma(margin) say how often the reward model is right? `margins` (n,) are r(chosen) - r(rejected).

    The model names the response it scores higher with probability sigma(|margin|) in [0.5, 1], and is right when the
    margin is positive (0 counts half). Returns `pairs`, `expected_calibration_error` (Guo et al. 2017) and those of ten
    `bins` over [0.5, 1] that hold a pair: low, high, predicted, accuracy, accuracy_ci95 (`rate_interval`, by
    `clusters`), count.
    """
    array, names = _numbers(margins, "margins"), None if clusters is None else np.asarray(clusters)
    predicted, right = 1.0 / (1.0 + np.exp(-np.abs(array))), _halves(array)
    place = np.minimum(((predicted - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    bins, error = [], 0.0
    for index in np.unique(place).tolist():
        inside, ends = place == index, {"low": 0.5 + index / (2 * _BINS), "high": 0.5 + (index + 1) / (2 * _BINS)}
        claimed = float(predicted[inside].mean())
        found = rate_interval(right[inside], None if names is None else names[inside])
        error += found.n / array.size * abs(found.mean - claimed)
        bins.append({**ends, "predicted": claimed, **found.named("accuracy"), "count": found.n})
    return {"pairs": array.size, "expected_calibration_error": error, "bins": bins}


def _halves(differences: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """1 where a difference is above `tolerance`, 0 where it is below -tolerance, else one half."""
    return np.where(differences > tolerance, 1.0, np.where(differences < -tolerance, 0.0, 0.5))


def _clustered(values: np.ndarray, clusters: Clusters) -> tuple[np.ndarray, np.ndarray]:
    """The number of values in each cluster, and their sum."""
    place = cluster_places(values, clusters)
    return np.bincount(place), np.bincount(place, weights=values)


def cluster_places(values: np.ndarray, clusters: Clusters) -> np.ndarray:
    """The number of its cluster, from 0 on, for each of `values` (n,), whatever they are."""
    if clusters is None:
        return np.arange(values.size)
    if len(clusters) != values.size:
        raise InputError(f"{values.size} values and {len(clusters)} clusters: name the cluster of every value")
    places: dict[Hashable, int] = {}  # an array of them would flatten tuples and make one of 1 and "1"
    return np.array([places.setdefault(name, len(places)) for name in clusters])


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    if len(a) != len(b):
        raise InputError(f"a has {len(a)} values and b has {len(b)}: pass one value of each for every prompt")
    return _numbers(a, "a") - _numbers(b, "b")


def _numbers(values: Sequence[float], name: str) -> np.ndarray:
    """`values` as float64 (n,), n >= 1; InputError for anything else, ValueError where one is NaN or infinite."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be a flat list of at least one number, not {array.dtype} {array.shape}")
    if (bad := np.flatnonzero(~np.isfinite(array))).size:
        raise ValueError(f"{name}[{bad[0]}] is {array[bad[0]]}, not finite")
    return array.astype(np.float64)


def kappa_interval(
    a: Sequence[float], b: Sequence[float], clusters: Clusters = None, samples: int = 2000, seed: int = 0
) -> Interval | None:
    """Agreement of two judges beyond chance, kappa (Cohen 1960): (p_o - p_e) / (1 - p_e), of their verdicts `a` and `b`
    (n,), numbers that name categories, with its bootstrap interval over clusters as `mean_interval` has it. Where they
    agree on everything, so that resampling shows no spread, the lower end is that of Wilson's interval for p_o. Where
    one of them gave a single verdict, kappa is 0 whatever the other says, and has no interval; None where both gave one
    and the same: there is no chance to be better than."""
    alike = 1.0 - np.abs(np.sign(_differences(a, b)))
    first, second = np.unique([*a, *b], return_inverse=True)[1].reshape(2, -1)
    kinds = int(max(first.max(), second.max())) + 1
    if kinds == 1:
        return None
    if 1 in (np.unique(first).size, np.unique(second).size):
        return Interval(0.0, None, None, alike.size)
    cells = np.eye(kinds * kinds)[first * kinds + second]
    tables = np.stack([_clustered(cell, clusters)[1] for cell in cells.T], axis=1)

    def kappas(counts: np.ndarray) -> np.ndarray:
        shares = (counts / counts.sum(axis=1, keepdims=True)).reshape(-1, kinds, kinds)
        chance = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (np.trace(shares, axis1=1, axis2=2) - chance) / (1.0 - chance)

    value, many = kappas(tables.sum(axis=0, keepdims=True)).item(), len(tables)
    if many == 1:
        return Interval(value, None, None, alike.size)
    if alike.all():
        chance = np.sum((np.bincount(first) / alike.size) ** 2)
        return Interval(1.0, float((proportion_interval(many, many).low - chance) / (1.0 - chance)), 1.0, alike.size)
    drawn = np.random.default_rng(seed).multinomial(many, np.full(many, 1.0 / many), size=samples) @ tables
    low, high = np.nanquantile(kappas(drawn), [tail(many), 1.0 - tail(many)]).tolist()
    return Interval(value, low, high, alike.size)


def agreement(a: Sequence[float], b: Sequence[float], clusters: Clusters = None, **settings) -> dict:
    """How far two judges of the same pairs agree. `a` and `b` (n,) are above 0 where a judge prefers the response that
    stands first, below 0 for the other, 0 for a tie: `pairs`, `agreement` (the share judged alike), `kappa`, and their
    intervals. Which response stands first is arbitrary, so kappa counts each pair in both orders; without ties it is
    2 * agreement - 1. `settings` are those of `mean_interval`."""
    one, other = np.sign(_numbers(a, "a")), np.sign(_numbers(b, "b"))
    clusters = list(range(one.size)) if clusters is None else list(clusters)
    same = rate_interval(1.0 - np.abs(np.sign(_differences(one, other))), clusters, **settings).named("agreement")
    kappa = kappa_interval([*one, *-one], [*other, *-other], clusters * 2, **settings)
    return {"pairs": one.size, **same, **(kappa.named("kappa") if kappa else {"kappa": None, "kappa_ci95": None})}
