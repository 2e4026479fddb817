"""Several runs in one picture: a panel for each figure, a line for each group of seeds."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_utils.platforms.files import write_bytes
from rlhf_utils.report.plots.style import COLOURS, DPI, MUTED, STYLE, WIDTH

# Panels whose value without any effect is worth a line.
_NEUTRAL = {"reward": 0.0, "gold": 0.0, "rougeL": 0.0, "win_rate": 0.5, "reward_model": 0.5}
_COLUMNS = 4


def draw_comparison(groups: Sequence, figures: Sequence[tuple[str, str, int]], path: Path) -> None:
    """A dot with its 95 % interval for every run, and a diamond at the mean where a group has several seeds."""
    shown = [(key, title) for key, title, _ in figures if any(key in run.figures for g in groups for run in g.runs)]
    rows = -(-len(shown) // _COLUMNS)
    height = 0.9 + rows * (0.9 + 0.42 * len(groups))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH + 2, height), dpi=DPI, layout="constrained", facecolor="white")
        figure.suptitle("Runs side by side", x=0.012, ha="left", fontsize=12.5, weight="bold")
        panels = figure.subplots(rows, _COLUMNS, squeeze=False)
        for place, (key, title) in enumerate(shown):
            _panel(panels[place // _COLUMNS][place % _COLUMNS], groups, key, title, names=place % _COLUMNS == 0)
        for empty in range(len(shown), rows * _COLUMNS):
            panels[empty // _COLUMNS][empty % _COLUMNS].set_axis_off()
        content = io.BytesIO()
        FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def _panel(axes, groups: Sequence, key: str, title: str, names: bool) -> None:
    for place, group in enumerate(groups):
        measured = [run.figures[key] for run in group.runs if key in run.figures]
        for i, (value, ends) in enumerate(measured):
            at = place + 0.3 * (i - (len(measured) - 1) / 2) / max(1, len(measured) - 1)
            if ends is not None:
                axes.plot(ends, (at, at), color=COLOURS["ppo"], linewidth=1.6, alpha=0.55, solid_capstyle="butt")
            axes.plot(value, at, marker="o", markersize=4.5, color=COLOURS["ppo"])
        if len(measured) > 1:
            mean = sum(value for value, _ in measured) / len(measured)
            axes.plot(mean, place, marker="D", markersize=7, color="black", markerfacecolor="none")
    if key in _NEUTRAL:
        axes.axvline(_NEUTRAL[key], color="black", linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_title(title, fontsize=9)
    labels = ["\n".join(textwrap.wrap(group.name, 30)) for group in groups] if names else [""] * len(groups)
    axes.set_yticks(range(len(groups)), labels, fontsize=8, color="black")
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, colors=MUTED if not names else "black")
