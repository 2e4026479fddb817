"""Several runs side by side: one table, one picture, one page. Runs that differ in their seed alone are one row."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial, reduce
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlhf_utils.evaluation import LABELS
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import disk_errors, read_json, write_text
from rlhf_utils.report.page import embedded, render
from rlhf_utils.report.style import COLORS, DASHED, categories, dot, save, shown
from rlhf_utils.settings.sections import flat

# Figure: its places in summary.json and that of its interval, decimals, its value where there is no effect.
FIGURES = {
    "reward model accuracy": ("reward_model/accuracy", "reward_model/accuracy_ci95", 3, 0.5),
    "reward gain": ("paired/{pair}/reward/mean", "paired/{pair}/reward/ci95", 2, 0),
    "gold gain": ("paired/{pair}/gold/mean", "paired/{pair}/gold/ci95", 2, 0),
    "ROUGE-L gain": ("paired/{pair}/rougeL/mean", "paired/{pair}/rougeL/ci95", 3, 0),
    "win rate": ("win_rate/{pair}/rate", "win_rate/{pair}/ci95", 2, 0.5),
    "KL, nats": ("models/ppo/kl_to_sft", "", 2, None),
    "EOS rate": ("models/ppo/eos_rate", "", 2, None),
    "tokens": ("models/ppo/mean_tokens", "", 1, None),
}
# What makes two runs two seeds of one thing.
_SEEDS = ("seed", "ppo.seed")


class Result(NamedTuple):
    """One run: its settings as dotted keys, and each measured figure with its 95% CI (None where there is none)."""

    folder: Path
    settings: dict
    against: str
    figures: dict[str, tuple[float, list[float] | None]]
    hacking: str | None


def read_result(folder: str | Path) -> Result:
    """What the run in `folder` found; InputError where it is no run, or one that was not evaluated."""
    folder = Path(folder)
    for name, file in (("a run", folder / "run.json"), ("evaluated", folder / "evaluation" / "summary.json")):
        if not file.is_file():
            hint = f"{file.name} is missing; give folders such as outputs/instruct-tiny"
            raise InputError(f"{folder} is not {name}: {hint}")
    record, summary = read_json(folder / "run.json"), read_json(folder / "evaluation" / "summary.json")
    try:
        settings = flat({"recipe": record["recipe"], "scale": record["scale"], **record["settings"]})
        against = next((name for name in ("sft", "base") if f"ppo_vs_{name}" in summary["paired"]), "")
    except (KeyError, TypeError):
        raise InputError(f"{folder} was not made by this version; rerun the comparison notebook") from None

    def at(place: str) -> Any:
        keys = place.format(pair=f"ppo_vs_{against}").split("/")
        return reduce(lambda found, key: (found or {}).get(key), keys, summary)

    figures = {title: (at(value), at(ends)) for title, (value, ends, _, _) in FIGURES.items() if at(value) is not None}
    return Result(folder, settings, against, figures, at("hacking/level"))


def grouped(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs by their settings without the seed, in the order given; a group is named by what sets it apart."""
    keys = dict.fromkeys(key for result in results for key in result.settings if key not in _SEEDS)
    apart = [key for key in keys if len({repr(result.settings.get(key)) for result in results}) > 1]
    # Across recipes nearly everything differs, and the recipe says it all.
    named = [] if {"recipe", "scale"} & set(apart) else apart[:4]
    kinds: dict[tuple, list[Result]] = {}
    for result in results:
        kinds.setdefault(tuple(repr(result.settings.get(key)) for key in apart), []).append(result)
    groups: dict[str, list[Result]] = {}
    for runs in kinds.values():
        settings = runs[0].settings
        values = [f"{key}={settings[key]}" for key in named if key in settings]
        name = ", ".join([settings["recipe"], settings["scale"], *values])
        groups[f"{name} ({runs[0].folder})" if name in groups else name] = runs
    return groups


def table(groups: dict[str, list[Result]]) -> list[dict[str, str]]:
    """One row for each group: figures as `mean [least, greatest]` over seeds, of one run with its 95% CI."""
    rows = []
    for name, runs in groups.items():
        row = {"run": name, "seeds": f"{len(runs)}", "against": LABELS.get(runs[0].against, "–")}
        for title, (_, _, digits, _) in FIGURES.items():
            found = [run.figures[title] for run in runs if title in run.figures]
            values = [value for value, _ in found]
            ends = found[0][1] if len(runs) == len(found) == 1 else [min(values, default=0), max(values, default=0)]
            row[title] = shown(fmean(values) if values else None, ends if values else None, f"z.{digits}f")
        rows.append(row | {"hacking": " / ".join(sorted({run.hacking for run in runs if run.hacking})) or "–"})
    return rows


def _draw(groups: dict[str, list[Result]], figure: Figure) -> str:
    """A panel for each figure: a dot with its 95% CI for every run, a diamond at the mean over several seeds."""
    measured = [title for title in FIGURES if any(title in run.figures for runs in groups.values() for run in runs)]
    lines = -(-len(measured) // 4)
    figure.set_size_inches(10, 0.9 + lines * (0.9 + 0.42 * len(groups)))
    for place, title in enumerate(measured):
        axes, neutral = figure.add_subplot(lines, 4, place + 1), FIGURES[title][-1]
        for row, runs in enumerate(groups.values()):
            found = [run.figures[title] for run in runs if title in run.figures]
            for at, (value, ends) in zip(np.linspace(-0.15, 0.15, len(found)), found, strict=True):
                dot(axes, value, row + at * (len(found) > 1), ends, COLORS["ppo"], axis="x", size=4.5)
            if len(found) > 1:
                axes.plot(fmean(value for value, _ in found), row, "D", markersize=7, color="black", fillstyle="none")
        if neutral is not None:
            axes.axvline(neutral, color="black", linewidth=0.9, linestyle=DASHED)
        axes.set_title(title, fontsize=9)
        categories(axes, [""] * len(groups) if place % 4 else [textwrap.fill(name, 30) for name in groups], "y")
    return ""


def compare(folders: Sequence[str | Path], output: str | Path) -> list[dict[str, str]]:
    """Compare the runs in `folders`; writes `comparison.{csv,png,html}` into `output` and returns the table's rows."""
    if not folders:
        raise InputError("compare needs at least one run; give folders such as outputs/instruct-tiny")
    results = [read_result(folder) for folder in folders]
    if len({result.folder.resolve() for result in results}) < len(results):
        raise InputError("compare was given the same run twice; give each folder once")
    groups, output = grouped(results), Path(output)
    rows = table(groups)
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    write_text(output / "comparison.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    save(output / "comparison.png", "Runs side by side", "", partial(_draw, groups))
    page = render("comparison.html.j2", rows=rows, groups=groups, picture=embedded(output / "comparison.png"))
    write_text(output / "comparison.html", page)
    return rows
