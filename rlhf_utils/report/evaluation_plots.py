"""The reward model beside its baselines, and the models compared on the same prompts with the same decoding."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.rouge import Rouge
from rlhf_utils.evaluation.statistics import mean_interval
from rlhf_utils.report.results import accuracies, judge_of, models_of, read_object, read_samples, versus, win_rates_of
from rlhf_utils.report.style import COLORS, DASHED, NothingToShow, beside, categories, dot, empty, plot, reach, shown

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
ERRORS = "Error bars show the 95% CI."
PERCENT = "{x:.0%}"
_SCORES = (("reward", "reward (what PPO optimizes)"), ("gold", "gold score (held-out judge)"))
_MISSING = {"reward": "no reward was measured", "gold": "this recipe has no gold judge"}


@plot("02_reward_model_accuracy", "Reward model accuracy")
def accuracy(run: Path, figure: Figure) -> str:
    """Accuracy on held-out pairs of the trained model, a randomly initialized head and response length alone."""
    result = read_object(run, "reward_model")
    found = accuracies(result)
    if not found:
        raise NothingToShow("no accuracy was measured")
    figure.set_figheight(3.4)
    axes = figure.add_subplot()
    values, ends = zip(*found.values(), strict=True)
    colors = [COLORS["reward" if name.startswith("trained") else "pale"] for name in found]
    errors = {"xerr": reach(values, ends), "error_kw": {"elinewidth": 1.6}}
    bars = axes.barh(range(len(found)), values, height=0.58, color=colors, **errors)
    texts = [shown(value, end, "z.1%") for value, end in found.values()]
    axes.bar_label(bars, texts, padding=6, weight="bold")
    axes.axvline(0.5, color="black", linewidth=1, linestyle=DASHED)
    beside(axes, "chance", (0.5, -0.6), (4, -1), va="top", fontsize=8.5, weight="normal")
    categories(axes, list(found), "y")
    axes.set(xlim=(0, 1.36), xticks=np.linspace(0, 1, 5))
    axes.spines["bottom"].set_bounds(0, 1)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("accuracy on held-out pairs", x=0.5 / 1.36)
    count = f"{int(result['pairs']):,} " if result.get("pairs") else ""
    return f"Share of {count}held-out pairs in which the chosen response gets the higher score. {ERRORS}"


@plot("02_reward_margins", "Reward model: margins and calibration")
def margins(run: Path, figure: Figure) -> str:
    """Histogram of r(chosen) - r(rejected), and predicted against observed accuracy."""
    result = read_object(run, "reward_model")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    if result.get("margins"):
        _histogram(left, np.asarray(result["margins"]))
    else:
        empty(left, "no margins were recorded")
    if (result.get("calibration") or {}).get("bins"):
        _calibration(right, result["calibration"])
    else:
        empty(right, "no calibration was recorded")
    return f"Right: accuracy against what the margin predicts. Dashed: perfect calibration. {ERRORS}"


def _histogram(axes: Axes, values: np.ndarray) -> None:
    """Margins in bins that meet at zero, those of the wrong sign in another color."""
    # Bins for the bulk of the margins; no more than 200 where a few lie far out.
    width = max((np.quantile(values, 0.99) - np.quantile(values, 0.01)) / 30, np.ptp(values) / 198, 1e-6)
    edges = np.arange(np.floor(values.min() / width), np.ceil(values.max() / width) + 2) * width
    axes.hist(values[values < 0], bins=edges, color=COLORS["gold"])
    axes.hist(values[values >= 0], bins=edges, color=COLORS["reward"])
    axes.axvline(0, color="black", linewidth=1)
    (left, right), top = axes.get_xlim(), 1.16 * axes.get_ylim()[1]
    axes.set(ylim=(0, top), xlim=(min(left, -0.22 * right), max(right, -0.22 * left)))
    wrong, correct = f"{np.mean(values < 0):.1%}\nwrong", f"{np.mean(values > 0):.1%}\ncorrect"
    beside(axes, wrong, (0, 0.98 * top), (-5, 0), ha="right", va="top", color=COLORS["gold"])
    beside(axes, correct, (0, 0.98 * top), (5, 0), ha="left", va="top", color=COLORS["reward"])
    axes.set(title="margins", xlabel="r(chosen) − r(rejected)", ylabel="pairs")


def _calibration(axes: Axes, calibration: dict) -> None:
    """Observed against predicted accuracy with Wilson intervals; the diagonal is perfect calibration."""
    bins, color = pd.DataFrame(calibration["bins"]), COLORS["reward"]
    errors = reach(bins["accuracy"], bins["accuracy_ci95"])
    axes.plot((0.5, 1), (0.5, 1), color="black", linewidth=1, linestyle=DASHED)
    axes.errorbar(bins["predicted"], bins["accuracy"], yerr=errors, fmt="none", ecolor=(color, 0.8), elinewidth=1.4)
    size = 12 + 90 * bins["count"] / bins["count"].max()
    axes.scatter(bins["predicted"], bins["accuracy"], s=size, color=color, zorder=3)
    error = calibration.get("expected_calibration_error")
    axes.set_title("calibration" if error is None else f"calibration: ECE {error:.3f}")
    axes.set(xlim=(0.49, 1.01), ylim=(min(0.5, (bins["accuracy"] - errors[0]).min()) - 0.03, 1.02))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set(xlabel="predicted: sigmoid of |margin|", ylabel="observed accuracy (dot area: pairs)")


@plot("02_reward_by_length", "Reward model accuracy by difference in length", measured=("reward_model", "by_length"))
def by_length(run: Path, figure: Figure) -> str:
    """Accuracy on held-out pairs by the difference in length of the two responses."""
    groups = read_object(run, "reward_model").get("by_length")
    if not groups:
        raise NothingToShow("no lengths were recorded")
    figure.set_figheight(3.6)
    axes, values = figure.add_subplot(), [group["accuracy"] for group in groups]
    errors = {"yerr": reach(values, [group["accuracy_ci95"] for group in groups]), "error_kw": {"elinewidth": 1.6}}
    bars = axes.bar(range(len(groups)), values, width=0.55, color=COLORS["reward"], **errors)
    axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=4, weight="bold")
    axes.axhline(0.5, color="black", linewidth=1, linestyle=DASHED)
    categories(axes, [f"{group['from']:+d} to {group['to']:+d}\n{group['pairs']} pairs" for group in groups])
    axes.set(ylim=(0, 1.15), yticks=np.linspace(0, 1, 5))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set(xlabel="tokens: chosen − rejected", ylabel="accuracy on held-out pairs")
    return f"Four groups of pairs, from the chosen response much shorter to much longer. {ERRORS}"


@plot("04_rouge_comparison", "Overlap with the reference responses")
def rouge(run: Path, figure: Figure) -> str:
    """ROUGE-1/2/L of each model; the intervals are bootstrapped from the responses in samples.csv."""
    summary, samples = read_object(run, "summary"), read_samples(run)
    models = {name: m for name, m in models_of(summary).items() if any(m.get(key) is not None for key in ROUGE)}
    if not models:
        raise NothingToShow("this recipe has no reference responses, so ROUGE has no meaning here")
    axes, width = figure.add_subplot(), 0.84 / len(models)
    for index, (name, found) in enumerate(models.items()):
        keys = [key for key in ROUGE if found.get(key) is not None]
        values, intervals = [found[key] for key in keys], _rouge_intervals(samples, name)
        places = [list(ROUGE).index(key) + (index - (len(models) - 1) / 2) * width for key in keys]
        errors = {"yerr": reach(values, [intervals.get(key) for key in keys]), "error_kw": {"elinewidth": 1.3}}
        bars = axes.bar(places, values, width=width * 0.9, color=COLORS[name], label=LABELS[name], **errors)
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8.5)
    categories(axes, list(ROUGE.values()))
    axes.set(ylim=(0, axes.get_ylim()[1] * 1.06), ylabel="F1")
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": len(models)}
    axes.legend(**place, handlelength=1, handleheight=1, columnspacing=1.4)
    return f"Mean F1 against the reference response on {_prompts(summary)}. {ERRORS}"


def _rouge_intervals(samples: pd.DataFrame, model: str) -> dict[str, list[float] | None]:
    """The 95% CI of each mean ROUGE; empty where there is no response of `model` with a reference."""
    kept = samples[samples["reference"] != ""] if {f"{model}_response", "reference"} <= set(samples) else ()
    texts = {"predictions": f"{model}_response", "references": "reference"}
    texts = {name: kept[column].tolist() for name, column in texts.items()} if len(kept) else None
    scores = Rouge().compute(**texts, use_aggregator=False) if texts else {}
    return {key: mean_interval(values).as_list() for key, values in scores.items()}


def _prompts(summary: dict) -> str:
    return f"{summary['prompts']:,} held-out prompts" if summary.get("prompts") else "held-out prompts"


@plot("04_reward_comparison", "Reward and gold score")
def rewards(run: Path, figure: Figure) -> str:
    """Mean reward and mean gold score of each model with intervals, side by side."""
    summary = read_object(run, "summary")
    for axes, (key, title) in zip(figure.subplots(1, 2), _SCORES, strict=True):
        found = {name: m for name, m in models_of(summary).items() if m.get(key) is not None}
        if not found:
            empty(axes, _MISSING[key])
            continue
        for place, (name, figures) in enumerate(found.items()):
            dot(axes, place, figures[key], figures.get(f"{key}_ci95"), COLORS[name])
            beside(axes, shown(figures[key]), (place, figures[key]), (8, 0), color=COLORS[name])
        categories(axes, [LABELS[name].replace(" (", "\n(") for name in found])
        axes.margins(y=0.12)
        axes.set(title=title, ylabel=f"mean {key}, on its own scale", xlim=(-0.5, len(found) - 0.25))
    judged = any(m.get("gold") is not None for m in models_of(summary).values())
    hint = " PPO is not trained on the gold judge: reward that rises without gold is reward hacking." if judged else ""
    return f"Means on {_prompts(summary)}. {ERRORS}{hint}"


@plot("04_reward_kl_frontier", "Reward against KL")
def frontier(run: Path, figure: Figure) -> str:
    """Reward and gold against the distance from SFT, checkpoint by checkpoint, with the chosen one marked."""
    content = read_object(run, "frontier")
    chosen, rule, temperature = (content.get(key) for key in ("chosen_update", "rule", "kl_to_sft_temperature"))
    kl = "KL to SFT (nats per response)" + (f" at temperature {temperature:g}" if temperature is not None else "")
    for axes, (key, title) in zip(figure.subplots(1, 2), _SCORES, strict=True):
        points, best = (
            [point for point in content.get(name) or [] if None not in (point.get("kl_to_sft"), point.get(key))]
            for name in ("points", "best_of_n")
        )
        if not points:
            empty(axes, _MISSING[key])
            continue
        points.sort(key=lambda point: point["update"])
        _path(axes, best, key, COLORS["muted"], linestyle=(0, (4, 2)), marker="s", markersize=3.5)
        _path(axes, points, key, COLORS[key], marker="o", markersize=5.5)
        axes.margins(x=0.1, y=0.12)
        axes.set(title=title, xlabel=kl)
        _label_points(axes, points, key, chosen)
        # The best of one is the SFT model.
        for point in (point for point in best if point["n"] > 1):
            look = {"fontsize": 7.5, "color": COLORS["muted"], "weight": "normal"}
            beside(axes, f"{point['n']}", (point["kl_to_sft"], point[key]), (4, -7), **look)
    note = f"Each point is a PPO checkpoint, labeled with its update. {ERRORS}"
    if chosen is not None:
        note += f" Ringed: update {chosen}, the one used" + (f" ({rule})." if rule else ".")
    return note + (" Dashed: best of n samples of the SFT model, labeled with n." if content.get("best_of_n") else "")


def _path(axes: Axes, points: list[dict], key: str, color: str, **look) -> None:
    """Points with their intervals, joined in their order."""
    if points:
        x, y = ([point[name] for point in points] for name in ("kl_to_sft", key))
        errors = reach(y, [point.get(f"{key}_ci95") for point in points])
        axes.errorbar(x, y, yerr=errors, color=color, ecolor=(color, 0.5), linewidth=1.3, elinewidth=1.3, **look)


def _label_points(axes: Axes, points: list[dict], key: str, chosen: int | None) -> None:
    """The update beside its point: SFT and the chosen one first, then late to early where there is room."""
    named: list[np.ndarray] = []
    for point in sorted(points, key=lambda point: (point["update"] not in (0, chosen), -point["update"])):
        at, marked = (point["kl_to_sft"], point[key]), point["update"] in (0, chosen)
        if point["update"] == chosen:
            axes.plot(*at, marker="o", markersize=13, markerfacecolor="none", markeredgecolor="black", mew=1.5)
        place = axes.transLimits.transform(at)
        if any(math.dist(place, other) < 0.09 for other in named):
            continue
        named.append(place)
        # A cluster of late checkpoints lies above the chosen one, and the path above SFT.
        look = {"ha": "left" if marked else "right", "fontsize": 8.5, "weight": "normal"}
        stroke = [withStroke(linewidth=2.5, foreground="white")]
        text = "SFT" if point["update"] == 0 else f"{point['update']}"
        beside(axes, text, at, (8, -11) if marked else (-7, 9), path_effects=stroke, **look)


@plot("04_win_rate", "Win rate, prompt by prompt")
def win_rate(run: Path, figure: Figure) -> str:
    """Prompts won, tied and lost by the run's judge, and the win rate with its interval against one half."""
    found = win_rates_of(read_object(run, "summary"))
    if not found:
        raise NothingToShow("this recipe has no gold judge, so no win rate is claimed")
    figure.set_figheight(3.0 + 0.3 * len(found))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), sharey=True)
    names, stroke = [], [withStroke(linewidth=3, foreground="white")]
    for place, (name, result) in enumerate(found.items()):
        first, last = (COLORS.get(model, COLORS["muted"]) for model in name.split("_vs_"))
        counts = np.array([result[key] for key in ("wins", "ties", "losses")])
        share = counts / max(counts.sum(), 1)
        left.barh(place, share, left=np.cumsum(share) - share, height=0.5, color=(first, "#DDDDDD", last))
        names.append("{}\nby {}\n{} won, {} tied, {} lost".format(versus(name), judge_of(result), *counts))
        dot(right, result["rate"], place, result.get("ci95"), first, axis="x")
        look = {"ha": "center", "va": "bottom", "color": first, "fontsize": 9, "path_effects": stroke}
        middle = (min(max(result["rate"], 0.24), 0.76), place)
        beside(right, shown(result["rate"], result.get("ci95")), middle, (0, 9), **look)
    right.axvline(0.5, color="black", linewidth=1, linestyle=DASHED, zorder=0)
    left.set(title="prompts won, tied, lost", xlabel="share of the prompts")
    right.set(title="win rate", xlabel="dashed: no difference")
    for axes in (left, right):
        categories(axes, names, "y")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PERCENT)
    judges = " and ".join(dict.fromkeys(judge_of(result) for result in found.values()))
    return f"Judged by {judges}; ties count half. {ERRORS}"


@plot("04_reward_range", "Has the policy left the reward model's data?", measured=("summary", "reward_range"))
def reward_range(run: Path, figure: Figure) -> str:
    """Median, middle half and 1st to 99th percentile of the reward, for the data's own texts and the models."""
    found = read_object(run, "summary").get("reward_range")
    if not found:
        raise NothingToShow("no rewards were recorded")
    names = list(found["data"]) + [f"{LABELS[m]}\n{found['above_data'][m]:.0%} beyond" for m in found["models"]]
    colors = [COLORS["muted"]] * len(found["data"]) + [COLORS[model] for model in found["models"]]
    table = pd.DataFrame([*found["data"].values(), *found["models"].values()], columns=found["quantiles"])
    figure.set_figheight(1.9 + 0.45 * len(names))
    axes = figure.add_subplot()
    axes.hlines(table.index, table[0.01], table[0.99], color=colors, linewidth=1.3)
    axes.hlines(table.index, table[0.25], table[0.75], color=colors, linewidth=6, alpha=0.6)
    axes.scatter(table[0.5], table.index, s=49, color=colors, zorder=3)
    axes.axvline(table.loc[0, 0.99], color="black", linewidth=1, linestyle=DASHED)
    categories(axes, names, "y")
    axes.set_xlabel("reward")
    return (
        "Dot: median; thick: middle half; thin: 1st to 99th percentile. Right of the dashed line (99th percentile of "
        "the dataset's better texts) the reward model has almost no training data."
    )
