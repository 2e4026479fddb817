"""How often the 95% intervals of `rlhf_utils.evaluation.statistics` hold the true value, in simulations.

python benchmarks/coverage.py [--quick] [--out FILE]

Every line draws prompts from a distribution whose true value is known, as often as `--simulations` says, and counts
the intervals that hold it; beside it what they would cover if every response were taken for independent. Writes
docs/coverage.md. About twelve minutes on one CPU core; `--quick` checks the program and writes nothing without `--out`.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlhf_utils.evaluation.comparisons import length_controlled  # noqa: E402
from rlhf_utils.evaluation.statistics import (  # noqa: E402
    Interval,
    accuracy_of,
    kappa_interval,
    mean_interval,
    paired_difference,
    proportion_interval,
    rank_correlation,
    rate_interval,
    standard_error,
)

CLUSTERS = (36, 50, 100, 250, 1000)
SHARED = 0.5  # of the variance of a response's latent score, what the responses of one cluster have in common
LEAST, MOST = 0.93, 0.97
SIZES: dict[str, Callable] = {
    "independent": lambda source, n: np.ones(n, dtype=int),
    "1 to 5 per prompt": lambda source, n: source.integers(1, 6, n),
    "5 per prompt": lambda source, n: np.full(n, 5),
}
_normal = NormalDist()


class Line(NamedTuple):
    """One line of the page: `covered` of `simulations` intervals hold the true value; `plain` without clusters."""

    statistic: str
    sizes: str
    clusters: int
    covered: int
    plain: int
    simulations: int

    @property
    def within(self) -> bool:
        """Whether the coverage is 93% to 97%."""
        return LEAST <= self.covered / self.simulations <= MOST


def latent(source: np.random.Generator, names: np.ndarray) -> np.ndarray:
    """Standard normal numbers (n,), correlated by `SHARED` within a cluster of `names`."""
    common = source.normal(size=names.max() + 1)[names]
    return math.sqrt(SHARED) * common + math.sqrt(1 - SHARED) * source.normal(size=names.size)


def skewed(source: np.random.Generator, names: np.ndarray) -> np.ndarray:
    """Exponential scores (mean 1, skewness 2), correlated within a cluster: half the sum of two squared normals."""
    return (latent(source, names) ** 2 + latent(source, names) ** 2) / 2


def normal_interval(values: np.ndarray) -> Interval:
    """The usual interval of independent `values` (n,), which the bootstrap agrees with where they are many."""
    mean, half = float(values.mean()), _normal.inv_cdf(0.975) * standard_error(values)
    return Interval(mean, mean - half, mean + half, values.size)


def mean_of(source, names, **settings) -> tuple[float, Interval, Interval]:
    """The true mean of skewed scores, its interval, and that without clusters."""
    values = skewed(source, names)
    return 1.0, mean_interval(values, names, **settings), normal_interval(values)


def difference_of(source, names, **settings) -> tuple[float, Interval, Interval]:
    """A paired difference of skewed scores, one score in ten improved by 2."""
    before = skewed(source, names)
    after = before + 0.5 * latent(source, names) + 2.0 * (source.random(names.size) < 0.1)
    return 0.2, paired_difference(after, before, clusters=names, **settings), normal_interval(after - before)


def win_rate_of(source, names, **_) -> tuple[float, Interval, Interval]:
    """A win rate of 60%, a fifth of the prompts tied; without clusters by Wilson's interval."""
    score, cuts = latent(source, names), (_normal.inv_cdf(0.3), _normal.inv_cdf(0.5))
    outcomes = np.where(score > cuts[1], 1.0, np.where(score < cuts[0], 0.0, 0.5))
    return 0.6, rate_interval(outcomes, names), proportion_interval(outcomes.sum(), names.size)


def accuracy_at_95(source, names, **_) -> tuple[float, Interval, Interval]:
    """An accuracy of 95%; without clusters by Wilson's interval."""
    margins = latent(source, names) + _normal.inv_cdf(0.95)
    return 0.95, accuracy_of(margins, clusters=names), proportion_interval((margins > 0).sum(), names.size)


def equal_length_of(source, names, **settings) -> tuple[float, Interval, Interval]:
    """A win rate of 60% at equal length, where the longer response wins more often; one refit takes milliseconds."""
    longer, chance = latent(source, names) + 0.5, _normal.cdf
    odds = math.log(0.6 / 0.4) + np.tanh(longer)  # its standard deviation is 1
    drawn = np.array([chance(score) for score in latent(source, names)])  # uniform, correlated within a cluster
    wins = (drawn < 1 / (1 + np.exp(-odds))).astype(float)
    found = [
        length_controlled(wins, 1 - wins, longer, clusters=clusters, **settings)["ci95"] for clusters in (names, None)
    ]
    return 0.6, *(Interval(0.6, low, high, names.size) for low, high in found)


def kappa_of(source, names, **settings) -> tuple[float, Interval, Interval]:
    """The kappa of two judges of pairs who agree on 80% of them, counted in both orders: 2 x 0.8 - 1."""
    one = np.where(source.random(names.size) < 0.5, 1.0, -1.0)
    other = np.where(latent(source, names) < _normal.inv_cdf(0.8), one, -one)
    return 0.6, kappa_interval(one, other, names, **settings), kappa_interval(one, other, None, **settings)


def spearman_of(source, names, **settings) -> tuple[float, Interval, Interval]:
    """Spearman's correlation of normal scores whose own correlation is 0.6 (Kruskal 1958)."""
    common = latent(source, names)
    a, b = (math.sqrt(0.6) * common + math.sqrt(0.4) * latent(source, names) for _ in range(2))
    found = [rank_correlation(a, b, clusters, **settings) for clusters in (names, None)]
    return 6 / math.pi * math.asin(0.3), *found


STATISTICS = {
    "mean of skewed scores": mean_of,
    "paired difference": difference_of,
    "win rate with ties": win_rate_of,
    "accuracy near 95%": accuracy_at_95,
    "win rate at equal length": equal_length_of,
    "kappa of two judges": kappa_of,
    "Spearman's correlation": spearman_of,
}
# Whose intervals fit every resample again: a fifth of the simulations, and up to 250 prompts.
REFITTED = ("win rate at equal length", "kappa of two judges", "Spearman's correlation")


def simulate(statistic: str, sizes: str, clusters: int, simulations: int) -> Line:
    """Draw `simulations` data sets of so many `clusters` and count the intervals."""
    # As many resamples as in the series, fewer where they take long.
    covered, plain, samples = 0, 0, min(2000, 400_000 // clusters)
    if statistic in REFITTED:
        simulations, samples = simulations // 5, min(samples, 500)
    for number in range(simulations):
        source = np.random.default_rng([number, clusters])
        names = np.repeat(np.arange(clusters), SIZES[sizes](source, clusters))
        true, ours, theirs = STATISTICS[statistic](source, names, samples=samples, seed=number)
        covered += ours.low <= true <= ours.high
        plain += theirs.low <= true <= theirs.high
    return Line(statistic, sizes, clusters, int(covered), int(plain), simulations)


def page(lines: list[Line], command: str) -> str:
    """docs/coverage.md."""
    outside = [line for line in lines if not line.within]
    verdict = f"{len(lines) - len(outside)} of {len(lines)} lines cover 93% to 97%."
    if outside:
        where = "; ".join(
            f"{e.statistic}, {e.sizes}, {e.clusters} prompts ({e.covered / e.simulations:.2%})" for e in outside
        )
        verdict += f" Outside: {where}."
    head = (
        "# Do the intervals cover?\n\nA 95% CI should hold the true value in 95 of 100 repetitions. Here the truth is "
        f"known, because the data are simulated: each line is {lines[0].simulations:,} simulated evaluations (a fifth "
        "of that where the model is refitted to each resample: equal length, kappa, Spearman), and the brackets are "
        "the 95% CI of the coverage itself. Responses to one prompt share half of the variance of their latent score, "
        "so *clustered* is the interval that the series reports and *plain* is the one that treats every response as "
        "independent (Wilson for rates, the normal one for means, else the same bootstrap). Scores are exponential, "
        "with skewness "
        f"2.\n\n{verdict}\n\nMade by `{command}` ([source](../benchmarks/coverage.py)).\n\n"
        "| what | responses | prompts | clustered | plain |\n|---|---|---|---|---|\n"
    )
    rows = [(e.statistic, e.sizes, str(e.clusters), _share(e.covered, e), _share(e.plain, e)) for e in lines]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _share(covered: int, line: Line) -> str:
    return f"{proportion_interval(covered, line.simulations):.1%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="200 simulations of the small sizes")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="the page (default: docs/coverage.md)")
    asked, lines = parser.parse_args(), []
    simulations, clusters = (200, CLUSTERS[:2]) if asked.quick else (asked.simulations, CLUSTERS)
    for statistic in STATISTICS:
        for sizes in SIZES:
            for count in clusters[:4] if statistic in REFITTED else clusters:
                lines.append(simulate(statistic, sizes, count, simulations))
                print(f"{statistic}, {sizes}, {count} prompts: {_share(lines[-1].covered, lines[-1])}", file=sys.stderr)
    out = asked.out or (None if asked.quick else ROOT / "docs" / "coverage.md")
    text = page(lines, "python benchmarks/coverage.py")
    if out:
        out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
