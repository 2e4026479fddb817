"""Numbers with their uncertainty: the bootstrap over clusters, rates, tests, calibration."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from rlhf_utils.platforms.errors import InputError

LEVEL = 0.95
_TAIL, Z = (1.0 - LEVEL) / 2.0, NormalDist().inv_cdf(0.5 + LEVEL / 2.0)
_T = (12.706, 4.303, 3.182)
_BINS = 10
FLIPS = 20_000
TIE = 1e-9  # a difference of scores up to this is none
Numbers, Clusters = Sequence[float], Sequence[Hashable] | None


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


def mean_interval(values: Numbers, clusters: Clusters = None, samples: int = 2000, seed: int = 0) -> Interval:
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
    return Interval(float(array.mean()), *np.quantile(means, [end, 1.0 - end]).tolist(), array.size)


def refitted(
    fit: Callable[[np.ndarray], np.ndarray], n: int, clusters: Clusters = None, samples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """`fit`, which makes [S, ...] of weights [S, n] of all values, once of the values as they are and, for the ends
    [2, ...] of its 95 % interval, of resamples of whole clusters, but those it makes NaN of; None of one cluster."""
    place = cluster_places(np.empty(n), clusters)
    count, found = place.max() + 1, fit(np.ones((1, n)))[0]
    if count == 1:
        return found, None
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    return found, np.nanquantile(fit(drawn[:, place]), [tail(count), 1 - tail(count)], axis=0)


def tail(n: int) -> float:
    """The share of resamples that an interval from `n` draws leaves out at either end: 0.025 of many, less of few,
    where a bootstrap is too narrow by sqrt((n - 1) / n) and by t against z (Hesterberg 2015, section 4.1.1)."""
    return NormalDist().cdf(-student_t(n - 1) * math.sqrt(n / (n - 1)))


def student_t(free: int) -> float:
    """The 0.975 quantile of Student's t with `free` >= 1 degrees of freedom, to 0.3 %: a table up to 3, from there the
    expansion of Fisher and Cornish (1960) in 1 / free."""
    if free <= len(_T):
        return _T[free - 1]
    terms = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    terms += ((3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,)
    return Z + sum(term / free**power for power, term in enumerate(terms, 1))


def standard_error(values: Numbers, clusters: Clusters = None) -> float | None:
    """Standard error of the mean of `values` (n,) over clusters (Cochran 1977, chapter 9); None of a single one."""
    array = _numbers(values, "values")
    variance = variance_of_sum(array - array.mean(), clusters)
    return None if variance is None else math.sqrt(variance) / array.size


def variance_of_sum(residuals: np.ndarray, clusters: Clusters = None) -> float | None:
    """Variance of the sum of values that scatter by cluster, from their `residuals` (n,); None of a single cluster."""
    sums = _clustered(residuals, clusters)[1]
    return float(sums @ sums) * sums.size / (sums.size - 1) if sums.size > 1 else None


def rate_interval(outcomes: Numbers, clusters: Clusters = None, **_) -> Interval:
    """Mean of outcomes 0, 0.5 or 1 (n,) with Wilson's interval for the effective number of outcomes, the one whose
    binomial variance is that of the clusters (Franco et al. 2019); of equal outcomes as many as clusters. Near 0 and 1
    a bootstrap covers too little. Other settings of `mean_interval`, given to all alike, have no part in it."""
    array = _numbers(outcomes, "outcomes")
    rate, whole = float(array.mean()), _clustered(array, clusters)[0].size
    # Not less than that of independent outcomes: the variance between few clusters may be small by chance.
    if whole > 1 and (error := max(standard_error(array, clusters), standard_error(array))):
        whole = rate * (1 - rate) / error**2 * (Z / student_t(whole - 1)) ** 2
    return replace(proportion_interval(rate * whole, whole), mean=rate, n=array.size)


def figures(name: str, values: Numbers | None, **settings) -> dict:
    """`mean_interval` of `values`, with its `settings`, as `Interval.named` has it; null where there are none."""
    return mean_interval(values, **settings).named(name) if values is not None else {name: None, f"{name}_ci95": None}


def paired_difference(a: Numbers, b: Numbers, **settings) -> Interval:
    """`mean_interval`, with `settings`, of a - b over the same prompts, both (n,): what prompts scatter cancels."""
    return mean_interval(_differences(a, b), **settings)


def proportion_interval(k: float, n: float) -> Interval:
    """k successes of n with the Wilson score interval (Wilson 1927); `k` may count halves, `n` be effective."""
    p, whole = k / n, 1 + Z * Z / n
    center, half = (p + Z * Z / (2 * n)) / whole, Z / whole * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    low, high = 0.0 if k == 0 else max(0.0, center - half), 1.0 if k == n else min(1.0, center + half)
    return Interval(p, low, high, int(n))


def accuracy_of(margins: Numbers, **settings) -> Interval:
    """Share of margins (n,) above 0, those of 0 counted half, with its interval; `settings` are of `rate_interval`."""
    return rate_interval(outcomes_of(_numbers(margins, "margins")), **settings)


def win_rate(a: Numbers, b: Numbers, tolerance: float = TIE, **settings) -> dict:
    """How often `a` scores above `b` on the same prompts, both (n,): wins, losses, ties (|a - b| <= tolerance), rate
    with ties half, `ci95` (`rate_interval`, its `settings`), and `sign_test_p`, two-sided (Dixon and Mood 1946)."""
    outcomes = outcomes_of(_differences(a, b), tolerance)
    wins, losses = int(np.sum(outcomes == 1.0)), int(np.sum(outcomes == 0.0))
    counts = {"wins": wins, "losses": losses, "ties": outcomes.size - wins - losses}
    found = rate_interval(outcomes, **settings)
    lopsided = sum(math.comb(wins + losses, i) for i in range(min(wins, losses) + 1))
    p = min(1.0, 2 * lopsided / 2 ** (wins + losses))
    return {**counts, "rate": found.mean, "ci95": found.as_list(), "sign_test_p": p}


def sign_flip_p(differences: Numbers, clusters: Clusters = None, seed: int = 0, **_) -> float | None:
    """Two-sided p value of a mean difference of 0 over (n,) `differences`: the share of `FLIPS` random sign flips, of
    whole clusters, that leave a mean as far from 0 as the one observed, which counts as one of them (Phipson and Smyth
    2010); None of a single cluster. Exact where either sign is as likely, as of two models that respond alike; of a
    mean of 0 with skewed differences only as the clusters grow many, and too small before. Other settings of
    `mean_interval`, given to all alike, have no part in it."""
    sums = _clustered(_numbers(differences, "differences"), clusters)[1]
    if sums.size == 1:
        return None
    signs = np.random.default_rng(seed).integers(0, 2, size=(FLIPS, sums.size), dtype=np.int8)
    flipped = (2.0 * signs - 1.0) @ sums
    # A sum in another order differs in its last bits.
    as_far = np.abs(flipped) >= abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    return (1 + int(as_far.sum())) / (1 + FLIPS)


def holm(p_values: Numbers) -> list[float]:
    """`p_values` (m,) adjusted for m comparisons at once (Holm 1979): at most one in twenty families has a false claim
    among the values below 0.05, whatever depends on what."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def rank_correlation(
    a: Numbers, b: Numbers, clusters: Clusters = None, samples: int = 2000, seed: int = 0
) -> Interval | None:
    """Spearman's correlation of `a` and `b`, both (n,), ties at their mean rank, with its percentile bootstrap interval
    over clusters; None where one of them is constant, and no interval of a single cluster."""
    both = np.stack([_numbers(a, "a"), _numbers(b, "b")])
    observed, place = _spearman(both), cluster_places(both[0], clusters)
    if observed is None or place.max() == 0:
        return None if observed is None else Interval(observed, None, None, place.size)
    members = [np.flatnonzero(place == cluster) for cluster in range(place.max() + 1)]
    draws = np.random.default_rng(seed).integers(0, len(members), size=(samples, len(members)))
    found = [_spearman(both[:, np.concatenate([members[i] for i in drawn])]) for drawn in draws]
    ends = [tail(len(members)), 1.0 - tail(len(members))]
    return Interval(observed, *np.quantile([rho for rho in found if rho is not None], ends).tolist(), place.size)


def _spearman(both: np.ndarray) -> float | None:
    """Correlation of the ranks of two rows (2, n); None where one is constant."""
    ranks = []
    for values in both:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place.reshape(-1)])
        ranks[-1] -= ranks[-1].mean()
    spread = np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1])
    return float(ranks[0] @ ranks[1] / spread) if spread else None


def calibration(margins: Numbers, clusters: Clusters = None) -> dict:
    """Does sigma(margin) say how often the reward model is right? `margins` (n,) are r(chosen) - r(rejected).

    The model names the response it scores higher with probability sigma(|margin|) in [0.5, 1], and is right when the
    margin is positive (0 counts half). Returns `pairs`, `expected_calibration_error` (Guo et al. 2017) and those of ten
    `bins` over [0.5, 1] with pairs: low, high, predicted, accuracy, accuracy_ci95 (`rate_interval` by clusters), count.
    """
    array, names = _numbers(margins, "margins"), None if clusters is None else np.asarray(clusters)
    predicted, right = 1.0 / (1.0 + np.exp(-np.abs(array))), outcomes_of(array)
    place = np.minimum(((predicted - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    bins, error = [], 0.0
    for index in np.unique(place).tolist():
        inside, ends = place == index, {"low": 0.5 + index / (2 * _BINS), "high": 0.5 + (index + 1) / (2 * _BINS)}
        claimed = float(predicted[inside].mean())
        found = rate_interval(right[inside], None if names is None else names[inside])
        error += found.n / array.size * abs(found.mean - claimed)
        bins.append({**ends, "predicted": claimed, **found.named("accuracy"), "count": found.n})
    return {"pairs": array.size, "expected_calibration_error": error, "bins": bins}


def outcomes_of(differences: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """1 for a win, where a difference is above `tolerance`, 0 for a loss, below -tolerance, else 0.5 for a tie."""
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


def _differences(a: Numbers, b: Numbers) -> np.ndarray:
    if len(a) != len(b):
        raise InputError(f"a has {len(a)} values and b has {len(b)}: pass one value of each for every prompt")
    return _numbers(a, "a") - _numbers(b, "b")


def _numbers(values: Numbers, name: str) -> np.ndarray:
    """`values` as float64 (n,), n >= 1; InputError for anything else, ValueError where one is NaN or infinite."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be a flat list of at least one number, not {array.dtype} {array.shape}")
    if (bad := np.flatnonzero(~np.isfinite(array))).size:
        raise ValueError(f"{name}[{bad[0]}] is {array[bad[0]]}, not finite")
    return array.astype(np.float64)


def kappa_interval(
    a: Numbers, b: Numbers, clusters: Clusters = None, samples: int = 2000, seed: int = 0
) -> Interval | None:
    """Agreement of two judges beyond chance, kappa (Cohen 1960): (p_o - p_e) / (1 - p_e), of their verdicts `a` and `b`
    (n,), numbers that name categories, with its bootstrap interval over clusters as `mean_interval` has it. Where they
    agree on everything or on nothing, so that resampling shows no spread, the ends are those of Wilson's interval for
    p_o. Where one of them gave a single verdict, kappa is 0 whatever the other says, and has no interval; None where
    both gave one and the same: there is no chance to be better than."""
    alike = 1.0 - np.abs(np.sign(_differences(a, b)))
    first, second = np.unique([*a, *b], return_inverse=True)[1].reshape(2, -1)
    kinds = int(max(first.max(), second.max())) + 1
    if kinds == 1:
        return None
    if 1 in (np.unique(first).size, np.unique(second).size):
        return Interval(0.0, None, None, alike.size)
    cells = np.eye(kinds * kinds)[first * kinds + second]

    def kappas(weights: np.ndarray) -> np.ndarray:
        shares = (weights @ cells / weights.sum(axis=1, keepdims=True)).reshape(-1, kinds, kinds)
        chance = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (np.trace(shares, axis1=1, axis2=2) - chance) / (1.0 - chance)

    value, ends = refitted(kappas, alike.size, clusters, samples, seed)
    low, high = (None, None) if ends is None else ends.tolist()
    if ends is not None and (alike.all() or not alike.any()):
        many, shares = _clustered(alike, clusters)[0].size, [np.bincount(v, minlength=kinds) for v in (first, second)]
        chance = float(shares[0] @ shares[1]) / alike.size**2
        wilson = proportion_interval(many * alike[0], many).as_list()
        low, high = ((end - chance) / (1.0 - chance) for end in wilson)
    return Interval(float(value), low, high, alike.size)


def agreement(a: Numbers, b: Numbers, clusters: Clusters = None, **settings) -> dict:
    """How far two judges of the same pairs agree. `a` and `b` (n,) are above 0 where a judge prefers the response that
    stands first, below 0 for the other, 0 for a tie: `pairs`, `agreement` (the share judged alike), `kappa`, and their
    intervals. Which response stands first is arbitrary, so kappa counts each pair in both orders; without ties it is
    2 * agreement - 1. `settings` are those of `mean_interval`."""
    one, other = np.sign(_numbers(a, "a")), np.sign(_numbers(b, "b"))
    clusters = list(range(one.size)) if clusters is None else list(clusters)
    same = rate_interval(1.0 - np.abs(np.sign(_differences(one, other))), clusters, **settings).named("agreement")
    kappa = kappa_interval([*one, *-one], [*other, *-other], clusters * 2, **settings)
    return {"pairs": one.size, **same, **(kappa.named("kappa") if kappa else {"kappa": None, "kappa_ci95": None})}
