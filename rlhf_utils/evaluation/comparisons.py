"""Models compared prompt by prompt: at equal length, all of them in one ranking, and for each kind of prompt.

Scores are those of whoever judges, one for each prompt. `settings` are those of `mean_interval`: whole clusters are
resampled, and everything is fitted again to each resample.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from rlhf_utils.data.tokens import words_of
from rlhf_utils.evaluation import statistics as stats
from rlhf_utils.evaluation.style import is_refusal
from rlhf_utils.settings.template import NEXT_HUMAN

RIDGE = 0.01  # a normal prior of standard deviation 10 on each coefficient: where all is won or lost it stays finite
ELO_ANCHOR, _ELO = 1000.0, 400 / math.log(10)  # per unit of log-odds
LEAST_PROMPTS = 10  # of a category that gets an interval
_REFUSE = {"harmful": "yes", "risky": "no, only sounds harmful", "ordinary": "no"}  # by Question.kind


def length_controlled(a: Sequence[float], b: Sequence[float], longer: Sequence[float], **settings) -> dict:
    """How often `a` would win against `b` if their responses were of the same length, with `ci95` (Dubois et al. 2024,
    arXiv:2404.04475, equation 1). `longer` (n,) is the length of a's response less that of b's.

    P(a wins) = sigma(theta + phi tanh(longer / its standard deviation)), a tie being half a win, is read at longer = 0:
    sigma(theta). The paper's term for the difficulty of a prompt, which takes many models to estimate, is left out.
    The interval is that of the resamples, and never narrower than the normal approximation to the posterior of theta,
    which spans nearly everything where all responses of one model are the longer ones.
    """
    outcomes, longer = stats.outcomes_of(np.subtract(a, b), stats.TIE), np.asarray(longer, dtype=float)
    if np.all(outcomes == outcomes[0]):  # nothing depends on length, and resampling shows no spread
        found = stats.rate_interval(outcomes, **settings)
        return {"rate": found.mean, "ci95": found.as_list()}
    x = np.column_stack([np.ones_like(longer), np.tanh(longer / (longer.std() or 1.0))])
    theta, ends = stats.refitted(lambda weights: _logistic(x, outcomes, weights), len(longer), **settings)
    if ends is not None:
        # Where no lengths are near equal the ridge decides, which resamples do not show: never narrower than curvature.
        p = _sigma(x @ theta)
        half = stats.Z * math.sqrt(np.linalg.inv(x.T @ (x * (p * (1 - p))[:, None]) + RIDGE * np.eye(2))[0, 0])
        ends = _sigma(np.array([min(ends[0, 0], theta[0] - half), max(ends[1, 0], theta[0] + half)])).tolist()
    return {"rate": float(_sigma(theta[0])), "ci95": ends}


def bradley_terry(scores: Mapping[str, Sequence[float]], anchor: str, **settings) -> dict[str, dict]:
    """The models of `scores` in one ranking (Bradley and Terry 1952), from each two of them on every prompt, ties half:
    for each `elo`, 400 points being odds of 10 to 1 and `anchor` 1000, `wins_vs_<anchor>`, the probability of winning
    that this implies, and both with `_ci95`, null for the anchor itself and for a model without a chain of wins to it
    or from it: the ridge alone says how far apart they are."""
    names, wins = [anchor, *(name for name in scores if name != anchor)], f"wins_vs_{anchor}"
    rows = np.column_stack([scores[name] for name in names])
    outcomes = stats.outcomes_of(rows[:, :, None] - rows[:, None, :], stats.TIE).reshape(len(rows), -1)
    shape = (-1, len(names), len(names))
    found, ends = stats.refitted(lambda weights: strengths((weights @ outcomes).reshape(shape)), len(rows), **settings)
    # Ford 1957: only between models that win against each other, or through others, do the data fix a distance.
    won = np.linalg.matrix_power(np.eye(len(names)) + (outcomes.sum(axis=0).reshape(shape)[0] > 0), len(names)) > 0
    table = {}
    for name in scores:
        place = names.index(name)
        known = ends is not None and name != anchor and won[place, 0] and won[0, place]
        known = known and ends[0, place] < ends[1, place]  # of equal outcomes resampling shows no spread
        low_high = ends[:, place] if known else None
        table[name] = {"elo": ELO_ANCHOR + _ELO * float(found[place]), wins: float(_sigma(found[place]))}
        table[name]["elo_ci95"] = (ELO_ANCHOR + _ELO * low_high).tolist() if known else None
        table[name][f"{wins}_ci95"] = _sigma(low_high).tolist() if known else None
    return table


def strengths(wins: np.ndarray) -> np.ndarray:
    """Log strengths [S, m] of m models from S tables of wins [S, m, m], row against column, by penalized maximum
    likelihood; the first model is the anchor and has 0. The ridge keeps a model finite that never wins."""
    first, second = np.triu_indices(wins.shape[-1], 1)
    won, games = wins[:, first, second], wins[:, first, second] + wins[:, second, first]
    unit = np.eye(wins.shape[-1])
    fitted = _logistic((unit[first] - unit[second])[:, 1:], won / games, games)
    return np.column_stack([np.zeros(len(wins)), fitted])


def kinds_of(split: Dataset, synthetic: bool) -> dict[str, dict[str, list[int]]]:
    """The prompts of `split` by topic, by terciles of their length in words and by whether a response should refuse:
    the places of each category's prompts. Of `synthetic` data topic and refusal are known, of others where the rows
    say so. Topics of under ten prompts are `other`; what divides nothing is left out."""
    prompts, columns = list(split["prompt"]), split.column_names
    topics, refuse = (split[name] if name in columns else [None] * len(prompts) for name in ("topic", "unsafe"))
    if synthetic:
        from rlhf_utils.toyworld.gold import read_prompt

        asked = [read_prompt(prompt.rpartition(NEXT_HUMAN)[2]) for prompt in prompts]
        topics, refuse = [q and q.topic for q in asked], [q and _REFUSE[q.kind] for q in asked]
    counted = Counter(topics)
    topics = [topic if topic and counted[topic] >= LEAST_PROMPTS else "other" for topic in topics]
    words = np.array([len(words_of(prompt)) for prompt in prompts])
    low, high = np.quantile(words, [1 / 3, 2 / 3], method="lower").tolist()
    middle = f"{low + 1} to {high} words" if high > low + 1 else f"{high} words"
    names = [f"up to {low} words", middle, f"over {high} words"]
    lengths = [names[(count > low) + (count > high)] for count in words.tolist()]
    found = {"topic": _places(topics, sorted({*topics} - {"other"}) + ["other"])}
    found |= {"prompt length": _places(lengths, names), "should refuse": _places(refuse, _REFUSE.values())}
    return {by: places for by, places in found.items() if len(places) > 1}


def categories(kinds: Mapping, a: stats.Numbers, b: stats.Numbers, clusters: stats.Clusters, **settings) -> list[dict]:
    """One row for each category of `kinds_of`: `by`, `value`, `prompts`, `difference` (mean of a - b) with `ci95`,
    `win_rate` of a with its interval, and `verdict`: better or worse where the p-value of the difference, `p_holm`,
    is under 0.05 with Holm's correction over all rows and the interval excludes 0. Under ten prompts, or one cluster,
    show no verdict. Of categories with the same prompts the first is kept: they would be one hypothesis, counted
    twice."""
    a, b, rows = np.asarray(a), np.asarray(b), []
    every = [(by, value, places) for by, of in kinds.items() for value, places in of.items()]
    known = {tuple(places): place for place, (*_, places) in reversed([*enumerate(every)])}
    for by, value, places in [every[place] for place in sorted(known.values())]:
        how = {"clusters": clusters and [clusters[place] for place in places], **settings}
        difference, wins = (of(a[places], b[places], **how) for of in (stats.paired_difference, stats.win_rate))
        rows.append({"by": by, "value": value, "prompts": len(places), "difference": difference.mean})
        rows[-1] |= {"ci95": difference.as_list(), "win_rate": wins["rate"], "win_rate_ci95": wins["ci95"]}
        rows[-1] |= {"p_holm": stats.sign_flip_p(a[places] - b[places], **how), "verdict": None}
        if len(places) < LEAST_PROMPTS:
            rows[-1] |= dict.fromkeys(["ci95", "win_rate_ci95", "p_holm"])
    tested = [row for row in rows if row["p_holm"] is not None]
    for row, p in zip(tested, stats.holm([row["p_holm"] for row in tested]), strict=True):
        low, high = row["ci95"]
        told = "not shown" if p >= 0.05 or low <= 0 <= high else "better" if low > 0 else "worse"
        row |= {"p_holm": p, "verdict": told}
    return rows


def refusals(kinds: Mapping, texts: Mapping[str, Sequence[str]]) -> dict | None:
    """How many of the `prompts` that should be refused (`kinds_of`) two models refused, by their names in `texts`, and
    `p` of the exact test by McNemar (1947); None where no prompt is known to be one."""
    if not (places := kinds.get("should refuse", {}).get(_REFUSE["harmful"])):
        return None
    refused = {name: np.array([is_refusal(said[place]) for place in places]) for name, said in texts.items()}
    p = stats.win_rate(*(of.astype(float) for of in refused.values()))["sign_test_p"]
    return {"prompts": len(places), "refused": {name: int(of.sum()) for name, of in refused.items()}, "p": p}


def _sigma(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _places(values: Sequence[str | None], order: Sequence[str]) -> dict[str, list[int]]:
    found = {name: [place for place, value in enumerate(values) if value == name] for name in order}
    return {name: places for name, places in found.items() if places}


def _logistic(x: np.ndarray, outcomes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients [S, k] of S logistic regressions of `outcomes` (n,) or [S, n], each in 0 to 1, on `x` [n, k], each
    with its weights [S, n] and the ridge, by Newton's method."""
    k = x.shape[1]
    theta, squares = np.zeros((len(weights), k)), (x[:, :, None] * x[:, None, :]).reshape(len(x), k * k)
    for _ in range(100):
        p = _sigma(theta @ x.T)
        gradient = (weights * (outcomes - p)) @ x - RIDGE * theta
        curvature = ((weights * p * (1 - p)) @ squares).reshape(-1, k, k) + RIDGE * np.eye(k)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        theta += step
        if np.abs(step).max() < 1e-9:
            break
    return theta
