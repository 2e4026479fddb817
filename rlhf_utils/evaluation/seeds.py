"""Runs that differ in their seed, merged: what holds for this recipe, not only for one run of it.

A seed changes the splits, the initial weights, the order of the data and every sampled token, so runs differ by more
than their prompts do. An interval of one run knows of its prompts only.
"""

import math
from collections.abc import Container, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rlhf_utils.data.prepared import cluster_key
from rlhf_utils.evaluation.statistics import TIE, mean_interval, outcomes_of, rate_interval, student_t, variance_of_sum
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json

SEEDS = "seeds.json"
# The column of samples.csv for each figure of a model.
_COLUMNS = {name: name for name in ("gold", "rougeL", "positivity")} | {"eos_rate": "ended", "mean_tokens": "tokens"}
RATES = ("win_rate", "accuracy", "eos_rate")
# Of one run: the values of a figure, one for each prompt or pair, and the clusters they belong to.
Values = tuple[Sequence[float], Sequence[Hashable]]


def merge(runs: Sequence[Values], rate: bool = False, **settings) -> dict:
    """A figure over runs of several seeds, from its values in each: `mean` of the runs' means, its `ci95` over seeds
    and prompts, `seed_sd`, the standard deviation of the runs' means (None of one run), `prompt_sd`, the one that they
    would have if runs differed in their prompts only, and those means, `by_seed`.

    Seeds are random effects: the interval is Student's t of the runs' means, which scatter by seed and by prompts, with
    one degree of freedom less than there are runs. What prompts add that runs share (the same cluster in several) is
    counted by the two-way variance V = V(seeds) + V(prompts) - V(prompts of one seed) of Cameron, Gelbach and Miller
    (2011). A few runs may lie close together by chance, so it is never narrower than what the prompts alone leave open
    (Roever, Knapp and Friede 2015): the interval of `mean_interval`, or of `rate_interval` for a `rate`, an outcome
    from 0 to 1, over all runs' clusters (`settings` are theirs). One run: that part alone.
    """
    values, clusters = [np.asarray(found, float) for found, _ in runs], [list(names) for _, names in runs]
    means = np.array([found.mean() for found in values])
    mean, seeds, low, high = float(means.mean()), len(runs), math.inf, -math.inf
    everyone = [name for names in clusters for name in names]
    if max(found.size for found in values) > 1:
        prompts = (rate_interval if rate else mean_interval)(np.concatenate(values), everyone, **settings)
        if prompts.low is not None:
            low, high = mean + prompts.low - prompts.mean, mean + prompts.high - prompts.mean
    parts = np.concatenate([(found - found.mean()) / (seeds * found.size) for found in values])
    own = variance_of_sum(parts, [(seed, name) for seed, names in enumerate(clusters) for name in names]) or 0.0
    if seeds > 1:
        shared = max((variance_of_sum(parts, everyone) or 0.0) - own, 0.0)
        half = student_t(seeds - 1) * math.sqrt(means.var(ddof=1) / seeds + shared)
        low, high = min(low, mean - half), max(high, mean + half)
    if rate:
        low, high = max(low, 0.0), min(high, 1.0)
    ends = [float(low), float(high)] if low <= high else None
    spread = float(means.std(ddof=1)) if seeds > 1 else None
    by_prompts = math.sqrt(seeds * own)
    return {"mean": mean, "ci95": ends, "seed_sd": spread, "prompt_sd": by_prompts, "by_seed": means.tolist()}


def effect_size(gains: np.ndarray, rewards: np.ndarray) -> np.ndarray | None:
    """One value (n,) for each prompt whose mean is Glass's delta (Hedges 1981): the mean of `gains` (n,) in standard
    deviations of `rewards` (n,). They scatter as this estimate does, that of the unit included (the delta method). None
    where `rewards` are constant."""
    if (unit := float(rewards.std())) == 0.0:
        return None
    return gains / unit - gains.mean() / unit / 2 * (((rewards - rewards.mean()) / unit) ** 2 - 1)


def read_samples(run: Path, name: str = "samples.csv") -> pd.DataFrame:
    """Prompts, responses and scores of the run in that folder. Every cell is a text: the response "NA" is no gap. The C
    engine of pandas 2 ends a text at a NUL byte, which an untrained model may write."""
    return pd.read_csv(run / "evaluation" / name, dtype=str, keep_default_na=False, engine="python")


def clusters_of(samples: pd.DataFrame) -> list[Hashable]:
    """The cluster of each prompt; where a run was published without its prompts, as it was noted then."""
    return [*samples["cluster"]] if "cluster" in samples else [cluster_key(prompt) for prompt in samples["prompt"]]


def figures_of(run: Path) -> dict[str, dict[str, Values]]:
    """What the run in that folder measured on each prompt, and on each pair of the reward model: by whose figure it is
    ("ppo", "ppo_vs_sft", "reward_model") and which ("gold", "win_rate", ...). A raw reward is not among them: its unit
    is another in every run, so its gain is an `effect_size` in that of the SFT model's responses, or else of those of
    the model that PPO is compared with. LookupError for a run of another version."""
    samples = read_samples(run)
    summary, measured = (read_json(run / "evaluation" / f"{name}.json") for name in ("summary", "reward_model"))
    if len(samples) != summary["prompts"]:
        raise InputError(f"{run} holds {len(samples)} of its {summary['prompts']} rows: its figures cannot be remade")
    keys, found = clusters_of(samples), {}

    def column(model: str, name: str) -> np.ndarray | None:
        texts = samples.get(f"{model}_{name}")
        return None if texts is None else texts.replace({"True": "1", "False": "0"}).to_numpy(float)

    for model in summary["models"]:
        found[model] = {figure: column(model, name) for figure, name in _COLUMNS.items()}
    for pair in summary["paired"]:
        new, old = pair.split("_vs_")
        both = {name: (column(new, name), column(old, name)) for name in ("gold", "rougeL", "positivity", "reward")}
        gains = found[pair] = {name: a - b for name, (a, b) in both.items() if a is not None}
        gains["win_rate"] = outcomes_of(gains[_judge(gains)], TIE)
        gains["effect_size"] = effect_size(gains.pop("reward"), column("sft" if "sft" in found else old, "reward"))
    found = {whose: {name: (v, keys) for name, v in all.items() if v is not None} for whose, all in found.items()}
    pairs = measured.get("clusters") or list(range(len(measured["margins"])))
    return found | {"reward_model": {"accuracy": (outcomes_of(np.array(measured["margins"])), pairs)}}


def alternatives_of(run: Path) -> dict[str, dict[str, Values]]:
    """What notebook 4.3 measured on each prompt of the run in that folder: of each method the judge's score (`gold`,
    without a judge none), and against PPO its difference, `gain`, and its `win_rate`. Empty where it was not run."""
    if not (run / "evaluation" / "alternatives.csv").is_file():
        return {}
    samples, found = read_samples(run, "alternatives.csv"), {}
    keys = clusters_of(samples)
    judge = _judge([name.removeprefix("ppo_") for name in samples.columns])
    ours = samples[f"ppo_{judge}"].to_numpy(float)
    for name in [column.removesuffix("_response") for column in samples.columns if column.endswith("_response")]:
        scores = samples[f"{name}_{judge}"].to_numpy(float)
        values = {"gold": scores} if judge == "gold" else {}
        if name != "ppo":
            values |= {"gain": scores - ours, "win_rate": outcomes_of(scores - ours, TIE)}
        found[name] = {figure: (one, keys) for figure, one in values.items()}
    return found


def merge_runs(runs: Sequence[Path]) -> dict:
    """The content of `seeds.json`: the figures that all of these runs have (`figures_of`), each merged (`merge`); the
    seeds, the judge of the win rates, and which evaluation of the first run it belongs to."""
    found, records = [figures_of(run) for run in runs], [read_json(run / "run.json") for run in runs]
    about = {key: records[0][key] for key in ("recipe", "scale")} | {"seeds": [record["seed"] for record in records]}
    about |= {"judge": read_json(runs[0] / "evaluation" / "summary.json").get("judge")}
    about |= {"judged_by": _judge(found[0]["ppo"]), "fingerprint": _fingerprint(records[0])}
    return {**about, "figures": _merged(found), "alternatives": _merged([*map(alternatives_of, runs)])}


def _merged(found: Sequence[Mapping[str, Mapping[str, Values]]]) -> dict[str, dict[str, dict]]:
    """The figures that all runs have, each merged."""
    every = {
        whose: {
            name: merge([figures[whose][name] for figures in found], rate=name in RATES)
            for name in figures
            if all(name in other.get(whose, ()) for other in found)
        }
        for whose, figures in found[0].items()
    }
    return {whose: figures for whose, figures in every.items() if figures}


def between_seeds(run: Path) -> dict | None:
    """What `seeds.json` of the run in that folder holds; None where there is none, or one of an earlier run."""
    path = run / "evaluation" / SEEDS
    merged = read_json(path) if path.is_file() else None
    return merged if merged and merged["fingerprint"] == _fingerprint(read_json(run / "run.json")) else None


def _fingerprint(record: dict) -> str:
    return record["stages"]["evaluation"]["fingerprint"]


def _judge(figures: Container[str]) -> str:
    return "gold" if "gold" in figures else "reward"
