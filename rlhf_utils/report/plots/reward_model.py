"""How good the reward model is, beside what costs nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from rlhf_utils.evaluation.statistics import proportion_interval
from rlhf_utils.report.plots.results import bounds, number, read_object
from rlhf_utils.report.plots.style import GOLD, PALE, REWARD, empty, picture


def accuracies(result: dict) -> list[tuple[str, float, tuple[float, float] | None]]:
    """Judge, held-out accuracy and 95 % interval: the trained model first, then the baselines.

    `result` is the content of reward_model.json; a judge without a figure is left out. The interval of the
    length baseline is Wilson's over the same pairs.
    """
    pairs, length = number(result.get("pairs")), number(result.get("length_baseline_accuracy"))
    length_interval = None
    if length is not None and pairs:
        length_interval = bounds(proportion_interval(length * pairs, int(pairs)).as_list())
    rows = (
        ("trained reward model", number(result.get("accuracy")), bounds(result.get("accuracy_ci95"))),
        ("untrained head", number(result.get("untrained_accuracy")), bounds(result.get("untrained_ci95"))),
        ("answer length alone", length, length_interval),
    )
    return [(name, value, interval) for name, value, interval in rows if value is not None]


def accuracy(run: Path, path: Path) -> None:
    """Held-out accuracy of the trained model, the untrained head and answer length alone, with intervals."""
    result = read_object(run, "reward_model")
    pairs, rows = number(result.get("pairs")), accuracies(result)
    count = "" if not pairs else f" on {int(pairs):,} held-out pairs"
    note = f"Share of pairs in which the chosen answer gets the higher score{count}; bars of 95 % confidence."
    with picture(path, run, "Reward model: how often it agrees with the preference", note, height=3.4) as figure:
        axes = figure.add_subplot()
        if not rows:
            empty(axes, "no accuracy was measured")
            return
        for place, (name, value, interval) in enumerate(rows):
            axes.barh(place, value, height=0.58, color=REWARD if name.startswith("trained") else PALE)
            end = value
            if interval is not None:
                axes.plot(interval, (place, place), color="black", linewidth=1.6, solid_capstyle="butt")
                end = max(value, interval[1])
            text = f"{value:.1%}" if interval is None else f"{value:.1%}  [{interval[0]:.1%}, {interval[1]:.1%}]"
            axes.annotate(text, (end, place), xytext=(6, 0), textcoords="offset points", va="center", weight="bold")
        axes.axvline(0.5, color="black", linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "chance",
            (0.5, -0.6),
            xytext=(4, -1),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
        )
        axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=9.5, color="black")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.36)
        axes.spines["bottom"].set_bounds(0, 1)
        axes.set_xticks(np.linspace(0, 1, 5))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("held-out accuracy", x=0.5 / 1.36)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)


def margins(run: Path, path: Path) -> None:
    """Histogram of r(chosen) - r(rejected), and predicted against observed accuracy."""
    result = read_object(run, "reward_model")
    note = "Right: is the model right as often as its margin says? Dashed: perfect; bars of 95 % confidence."
    with picture(path, run, "Reward model: margins and calibration", note) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        values = [value for value in map(number, result.get("margins") or []) if value is not None]
        if values:
            draw_histogram(left, np.asarray(values))
        else:
            empty(left, "no margins were recorded")
        calibration = result.get("calibration") or {}
        if calibration.get("bins"):
            draw_calibration(right, calibration)
        else:
            empty(right, "no calibration was recorded")


def by_length(run: Path, path: Path) -> None:
    """Held-out accuracy by the difference in length of the two answers, with intervals."""
    groups = read_object(run, "reward_model").get("by_length") or []
    note = (
        "Four groups of pairs, from those whose chosen answer is much shorter to those where it is much longer; 95 %."
    )
    with picture(path, run, "Reward model: does it read, or count?", note, height=3.6) as figure:
        axes = figure.add_subplot()
        if not groups:
            empty(axes, "no lengths were recorded")
            return
        for place, group in enumerate(groups):
            axes.bar(place, group["accuracy"], width=0.55, color=REWARD)
            ends = bounds(group.get("accuracy_ci95"))
            if ends is not None:
                axes.plot((place, place), ends, color="black", linewidth=1.6, solid_capstyle="butt")
            top = ends[1] if ends else group["accuracy"]
            axes.annotate(
                f"{group['accuracy']:.0%}", (place, top), xytext=(0, 4), textcoords="offset points", ha="center",
                weight="bold",
            )  # fmt: skip
        axes.axhline(0.5, color="black", linewidth=1, linestyle=(0, (4, 3)))
        names = [f"{group['from']:+d} to {group['to']:+d}\n{group['pairs']} pairs" for group in groups]
        axes.set_xticks(range(len(groups)), names, color="black", fontsize=9)
        axes.set_ylim(0, 1.15)
        axes.set_yticks(np.linspace(0, 1, 5))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("tokens of the chosen answer less those of the rejected one")
        axes.set_ylabel("held-out accuracy")
        axes.grid(False, axis="x")
        axes.tick_params(axis="x", length=0)


def draw_histogram(axes: Axes, values: np.ndarray) -> None:
    """Margins in bins that meet at zero, wrong ones in another colour."""
    width = max((np.quantile(values, 0.99) - np.quantile(values, 0.01)) / 30, 1e-6)
    low, high = np.floor(values.min() / width), np.ceil(values.max() / width) + 1
    if high - low > 200:
        width *= (high - low) / 200
        low, high = np.floor(values.min() / width), np.ceil(values.max() / width) + 1
    edges = np.arange(low, high + 1) * width
    for side, colour in ((values < 0, GOLD), (values >= 0, REWARD)):
        axes.hist(values[side], bins=edges, color=colour)
    axes.axvline(0, color="black", linewidth=1)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * 1.16)
    wrong, right = float(np.mean(values < 0)), float(np.mean(values > 0))
    for share, word, offset, side, colour in (
        (wrong, "wrong", -5, "right", GOLD),
        (right, "right", 5, "left", REWARD),
    ):
        axes.annotate(
            f"{share:.1%}\n{word}",
            (0, top * 1.14),
            xytext=(offset, 0),
            textcoords="offset points",
            ha=side,
            va="top",
            color=colour,
            weight="bold",
        )
    left, end = axes.get_xlim()
    axes.set_xlim(min(left, -0.22 * end), max(end, -0.22 * left))
    axes.set_title("margins")
    axes.set_xlabel("r(chosen) − r(rejected)")
    axes.set_ylabel("pairs")


def draw_calibration(axes: Axes, calibration: dict) -> None:
    """Observed against predicted accuracy with Wilson intervals; the diagonal is perfect calibration."""
    bins = calibration["bins"]
    axes.plot((0.5, 1), (0.5, 1), color="black", linewidth=1, linestyle=(0, (4, 3)))
    most = max(row["count"] for row in bins)
    floor = 0.5
    for row in bins:
        interval = bounds(row.get("accuracy_ci95"))
        if interval is not None:
            axes.plot((row["predicted"],) * 2, interval, color=REWARD, linewidth=1.4, alpha=0.8)
            floor = min(floor, interval[0])
        axes.scatter(row["predicted"], row["accuracy"], s=12 + 90 * row["count"] / most, color=REWARD, zorder=3)
        floor = min(floor, row["accuracy"])
    error = number(calibration.get("expected_calibration_error"))
    axes.set_title("calibration" if error is None else f"calibration: expected error {error:.3f}")
    axes.set_xlim(0.49, 1.01)
    axes.set_ylim(floor - 0.03, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("predicted: sigmoid of |margin|")
    axes.set_ylabel("observed accuracy (dot area: pairs)")
