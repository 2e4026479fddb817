"""Where the rewards lie: the data's own texts beside every model's answers."""

from __future__ import annotations

from pathlib import Path

from rlhf_utils.report.plots.results import read_object
from rlhf_utils.report.plots.style import COLOURS, LABELS, MUTED, empty, picture


def reward_range(run: Path, path: Path) -> None:
    """Median, middle half and 1st to 99th percentile of the reward, for data and models."""
    found = read_object(run, "summary").get("reward_range") or {}
    note = (
        "Dot: median; thick: middle half; thin: 1st to 99th percentile. Right of the dashed line (99th percentile of "
    )
    note += "the data's better texts) the reward model was never taught anything."
    rows = [(name, values, MUTED) for name, values in (found.get("data") or {}).items()]
    rows += [(LABELS[name], values, COLOURS[name]) for name, values in (found.get("models") or {}).items()]
    with picture(
        path, run, "Has the policy left what the reward model knows?", note, height=1.9 + 0.45 * len(rows)
    ) as figure:
        axes = figure.add_subplot()
        if not rows:
            empty(axes, "no rewards were recorded")
            return
        at = {quantile: place for place, quantile in enumerate(found["quantiles"])}
        for place, (_, values, colour) in enumerate(rows):
            axes.plot((values[at[0.01]], values[at[0.99]]), (place, place), color=colour, linewidth=1.3)
            axes.plot(
                (values[at[0.25]], values[at[0.75]]), (place, place), color=colour, linewidth=6, solid_capstyle="butt",
                alpha=0.6,
            )  # fmt: skip
            axes.plot(values[at[0.5]], place, marker="o", markersize=7, color=colour)
        top = next(iter(found["data"].values()))[at[0.99]]
        axes.axvline(top, color="black", linewidth=1, linestyle=(0, (4, 3)))
        above = found.get("above_data") or {}
        shares = [""] * len(found["data"]) + [f"\n{above.get(name, 0.0):.0%} beyond" for name in found["models"]]
        names = [f"{name}{share}" for (name, _, _), share in zip(rows, shares, strict=True)]
        axes.set_yticks(range(len(rows)), names, color="black", fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("reward")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
