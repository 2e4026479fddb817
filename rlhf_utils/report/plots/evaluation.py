"""The models compared on the same prompts with the same decoding."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from rlhf_utils.evaluation.statistics import mean_interval
from rlhf_utils.report.plots.results import MODELS, bounds, number, read_object, read_samples
from rlhf_utils.report.plots.style import (
    COLOURS,
    GOLD,
    LABELS,
    MUTED,
    REWARD,
    decimal,
    empty,
    picture,
    with_interval,
)

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def models_of(summary: dict) -> dict[str, dict]:
    """The models that `summary` holds, in the order of the series."""
    found = summary.get("models") or {}
    return {name: found[name] for name in MODELS if found.get(name)}


def prompts_of(summary: dict) -> str:
    """`200 held-out prompts`, or `held-out prompts` where the number is not recorded."""
    count = number(summary.get("prompts"))
    return "held-out prompts" if count is None else f"{int(count):,} held-out prompts"


def rouge(run: Path, path: Path) -> None:
    """ROUGE-1/2/L of each model; the intervals are bootstrapped from the answers in samples.csv."""
    summary = read_object(run, "summary")
    samples = read_samples(run)
    models = models_of(summary)
    note = f"Mean F1 against the reference answer on {prompts_of(summary)}; bars of 95 % confidence."
    with picture(path, run, "Overlap with the reference answers", note) as figure:
        axes = figure.add_subplot()
        shown = [name for name in models if any(number(models[name].get(key)) is not None for key in ROUGE)]
        if not shown:
            empty(axes, "this recipe has no reference answers, so ROUGE has no meaning here")
            return
        width = 0.84 / len(shown)
        for index, name in enumerate(shown):
            intervals = rouge_intervals(samples, name)
            for group, key in enumerate(ROUGE):
                value = number(models[name].get(key))
                if value is None:
                    continue
                place = group + (index - (len(shown) - 1) / 2) * width
                axes.bar(
                    place,
                    value,
                    width=width * 0.9,
                    color=COLOURS[name],
                )
                top = value
                if intervals is not None:
                    axes.plot((place, place), intervals[key], color="black", linewidth=1.3)
                    top = max(value, intervals[key][1])
                axes.annotate(
                    f"{value:.2f}",
                    (place, top),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8.5,
                )
        axes.set_xticks(range(len(ROUGE)), ROUGE.values(), fontsize=10, color="black")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.06)
        axes.set_ylabel("F1")
        axes.grid(False, axis="x")
        axes.tick_params(axis="x", length=0)
        keys = [Patch(color=COLOURS[name], label=LABELS[name]) for name in shown]
        axes.legend(
            handles=keys,
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=len(shown),
            handlelength=1,
            columnspacing=1.4,
        )


def rouge_intervals(samples: pd.DataFrame, model: str) -> dict[str, tuple[float, float]] | None:
    """95 % interval of each ROUGE mean; None when the answers of `model` are absent or fewer than two."""
    column = f"{model}_response"
    if column not in samples or "reference" not in samples:
        return None
    kept = samples[samples["reference"] != ""]
    if len(kept) < 2:
        return None
    from rlhf_utils.evaluation.rouge import Rouge  # brings torch with it, which takes seconds

    scores = Rouge().compute(
        predictions=kept[column].tolist(), references=kept["reference"].tolist(), use_aggregator=False
    )
    intervals = {key: mean_interval(values) for key, values in scores.items()}
    return {key: (interval.low, interval.high) for key, interval in intervals.items()}


def rewards(run: Path, path: Path) -> None:
    """Mean reward and mean gold score of each model with intervals, side by side."""
    summary = read_object(run, "summary")
    models = models_of(summary)
    note = f"Means on {prompts_of(summary)}, 95 % confidence."
    if any(number(figures.get("gold")) is not None for figures in models.values()):
        note += " PPO never saw the gold judge: reward that rises without gold is reward hacking."
    with picture(path, run, "Reward and gold score", note) as figure:
        left, right = figure.subplots(1, 2)
        draw_scores(left, models, "reward", "what PPO optimised", "mean reward (reward function's scale)")
        draw_scores(right, models, "gold", "held-out gold judge", "mean gold score (judge's scale)")


def draw_scores(axes: Axes, models: dict[str, dict], key: str, title: str, unit: str) -> None:
    """A point with its interval for each model that has this figure."""
    shown = [name for name in models if number(models[name].get(key)) is not None]
    if not shown:
        empty(axes, "this recipe has no gold judge" if key == "gold" else "no reward was measured")
        return
    for place, name in enumerate(shown):
        value, interval = number(models[name][key]), bounds(models[name].get(f"{key}_ci95"))
        if interval is not None:
            axes.plot((place, place), interval, color=COLOURS[name], linewidth=3, alpha=0.55, solid_capstyle="butt")
        axes.plot(place, value, marker="o", markersize=8, color=COLOURS[name])
        axes.annotate(
            decimal(value),
            (place, value),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[name],
            weight="bold",
        )
    axes.set_title(title)
    axes.set_xticks(range(len(shown)), [LABELS[name].replace(" (", "\n(") for name in shown], color="black", fontsize=9)
    axes.set_xlim(-0.5, len(shown) - 0.25)
    axes.margins(y=0.12)
    axes.set_ylabel(unit)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", length=0)


def frontier(run: Path, path: Path) -> None:
    """Reward and gold against the distance from SFT, checkpoint by checkpoint, with the chosen one marked."""
    content = read_object(run, "frontier")
    points = [point for point in content.get("points") or [] if distance(point) is not None]
    chosen = content.get("chosen_update")
    rule = content.get("rule")
    note = "Each point is a PPO checkpoint, its number the update; 95 % confidence."
    if chosen is not None:
        note += f" Ringed: update {chosen}, the one used" + (f" ({rule})." if rule else ".")
    best = content.get("best_of_n") or []
    if best:
        note += " Dashed: best of n samples of the SFT model, n beside it."
    with picture(path, run, "What each nat of KL buys", note) as figure:
        left, right = figure.subplots(1, 2)
        draw_frontier(left, points, "reward", chosen, REWARD, "reward (what PPO optimised)")
        draw_frontier(right, points, "gold", chosen, GOLD, "gold score (held-out judge)")
        temperature = number(content.get("kl_to_sft_temperature"))
        for axes, key in ((left, "reward"), (right, "gold")):
            draw_best_of_n(axes, best, key)
            if axes.get_xlabel() and temperature is not None:
                axes.set_xlabel(f"{axes.get_xlabel()} at temperature {temperature:g}")


def distance(point: dict) -> float | None:
    """KL to the SFT model of the responses that were measured; runs of version 0.1 knew only one KL."""
    return number(point.get("kl_to_sft", point.get("kl")))


def draw_frontier(axes: Axes, points: list[dict], key: str, chosen: int | None, colour: str, title: str) -> None:
    """The path of checkpoints in the order of training."""
    shown = sorted((p for p in points if number(p.get(key)) is not None), key=lambda p: p["update"])
    if not shown:
        empty(axes, "this recipe has no gold judge" if key == "gold" else "no reward was measured")
        return
    axes.plot([distance(p) for p in shown], [p[key] for p in shown], color=colour, linewidth=1.3, alpha=0.6)
    for point in shown:
        interval = bounds(point.get(f"{key}_ci95"))
        if interval is not None:
            axes.plot((distance(point),) * 2, interval, color=colour, linewidth=1.3, alpha=0.5)
        axes.plot(distance(point), point[key], marker="o", markersize=5.5, color=colour)
        if point["update"] == chosen:
            axes.plot(
                distance(point),
                point[key],
                marker="o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor="black",
                markeredgewidth=1.5,
            )
    axes.set_title(title)
    axes.margins(x=0.1, y=0.12)
    axes.set_xlabel("KL to SFT (nats per answer)")
    label_points(axes, shown, key, chosen)


def draw_best_of_n(axes: Axes, best: list[dict], key: str) -> None:
    """What sampling n answers and keeping the best by reward would have bought, at the KL that it costs."""
    shown = [point for point in best if number(point.get(key)) is not None]
    if not shown:
        return
    axes.plot([distance(p) for p in shown], [p[key] for p in shown], color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)))
    for point in shown:
        interval = bounds(point.get(f"{key}_ci95"))
        if interval is not None:
            axes.plot((distance(point),) * 2, interval, color=MUTED, linewidth=1, alpha=0.5)
        axes.plot(distance(point), point[key], marker="s", markersize=3.5, color=MUTED)
        axes.annotate(
            f"{point['n']}",
            (distance(point), point[key]),
            xytext=(4, -9),
            textcoords="offset points",
            fontsize=7.5,
            color=MUTED,
        )


def label_points(axes: Axes, points: list[dict], key: str, chosen: int | None) -> None:
    """The update beside its point: SFT and the chosen one first, then late to early where there is room."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    named: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p["update"] not in (0, chosen), -p["update"])):
        at = ((distance(point) - left) / (right - left), (point[key] - bottom) / (top - bottom))
        if any(math.dist(at, other) < 0.09 for other in named):
            continue
        named.append(at)
        first = point["update"] == 0
        label = axes.annotate(
            "SFT" if first else str(point["update"]),
            (distance(point), point[key]),
            xytext=(8, -10) if first else (-7, 6),
            textcoords="offset points",
            ha="left" if first else "right",
            fontsize=8.5,
        )
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def win_rate(run: Path, path: Path) -> None:
    """Wins, ties and losses by the run's judge, and the win rate with its interval against one half."""
    summary = read_object(run, "summary")
    rows = [
        (name, result)
        for name, result in (summary.get("win_rate") or {}).items()
        if result and number(result.get("rate")) is not None
    ]
    judges = " and ".join(dict.fromkeys(judge_of(result) for _, result in rows))
    note = f"Judged by {judges or 'nobody'}; a tie counts half; 95 % confidence."
    with picture(path, run, "Which answer is better, prompt by prompt", note, height=3.0 + 0.3 * len(rows)) as figure:
        if not rows:
            empty(figure.add_subplot(), "this recipe has no gold judge, so no win rate is claimed")
            return
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), sharey=True)
        names: list[str] = []
        for place, (name, result) in enumerate(rows):
            names.append(draw_outcomes(left, place, name, result))
            rate, interval = number(result["rate"]), bounds(result.get("ci95"))
            colour = COLOURS.get(name.split("_vs_")[0], MUTED)
            if interval is not None:
                right.plot(interval, (place, place), color=colour, linewidth=3, alpha=0.55, solid_capstyle="butt")
            # A rate of 1 is on the frame, and still a whole dot.
            right.plot(rate, place, marker="o", markersize=8, color=colour, clip_on=False)
            text = right.annotate(
                with_interval(rate, interval),
                (min(max(rate, 0.24), 0.76), place),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                weight="bold",
                color=colour,
                fontsize=9,
            )
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])
        left.set_yticks(range(len(rows)), names, color="black", fontsize=9.5, linespacing=1.5)
        left.set_ylim(len(rows) - 0.4, -0.6)
        left.set_title("prompts won, tied, lost")
        left.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        left.set_xlim(0, 1)
        left.set_xlabel("share of the prompts")
        left.grid(False, axis="y")
        left.tick_params(axis="y", length=0)
        right.axvline(0.5, color="black", linewidth=1, linestyle=(0, (4, 3)))
        right.set_xlim(0, 1)
        right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        right.set_title("win rate")
        right.set_xlabel("dashed: no difference")
        right.grid(False, axis="y")
        right.tick_params(axis="y", length=0)


def draw_outcomes(axes: Axes, place: int, name: str, result: dict) -> str:
    """One bar: won in the first model's colour, ties pale, lost in the second's; returns its label."""
    better, _, other = name.partition("_vs_")
    colours = {"wins": COLOURS.get(better, MUTED), "ties": "#DDDDDD", "losses": COLOURS.get(other, MUTED)}
    counts = {key: int(number(result.get(key)) or 0) for key in colours}
    start, total = 0.0, max(sum(counts.values()), 1)
    for key, colour in colours.items():
        axes.barh(place, counts[key] / total, left=start, height=0.5, color=colour)
        start += counts[key] / total
    outcome = f"{counts['wins']} won, {counts['ties']} tied, {counts['losses']} lost"
    return f"{comparison(name)}\nby {judge_of(result)}\n{outcome}"


def judge_of(result: dict) -> str:
    """Who decided the prompts of an entry of `win_rate`."""
    judges = {"gold": "the gold score", "reward": "the reward model", "quality": "the assistant score"}
    return judges[result.get("judged_by", "gold")]


def comparison(name: str) -> str:
    """`ppo_vs_sft` as `PPO vs SFT`."""
    better, _, other = name.partition("_vs_")
    return f"{LABELS.get(better, better)} vs {LABELS.get(other, other)}"
