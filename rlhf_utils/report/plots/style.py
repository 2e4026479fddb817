"""One look for all pictures: colours, fonts, labels, the corner caption, and saving in one step.

Figures are made without pyplot, so that drawing neither needs a display nor leaves anything behind in a
notebook.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_utils.evaluation import LABELS as LABELS
from rlhf_utils.platforms.files import write_bytes
from rlhf_utils.report.plots.results import run_caption

# Okabe and Ito (2008): told apart with any kind of colour vision.
COLOURS = {"base": "#6E6E6E", "sft": "#0072B2", "sft_qlora": "#E69F00", "ppo": "#009E73"}
REWARD, GOLD, MUTED, PALE, INK = "#CC79A7", "#D55E00", "#767676", "#B5B5B5", "#222222"
WIDTH, HEIGHT, DPI = 8.0, 4.5, 150
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    # Names of runs and folders stand in pictures, and may well hold dollar signs.
    "text.parse_math": False,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def picture(path: Path, run: Path, title: str, note: str = "", height: float = HEIGHT) -> Iterator[Figure]:
    """A figure with a title, a note under it and the run in the corner; saved to `path` when the block ends.

    The file appears whole or not at all.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
        lines = textwrap.wrap(note, 116)
        top = 1 - (0.42 + 0.19 * len(lines)) / height
        figure.get_layout_engine().set(rect=(0.008, 0.2 / height, 0.984, top - 0.2 / height), w_pad=0.06)
        figure.text(0.012, 1 - 0.10 / height, title, ha="left", va="top", fontsize=12.5, weight="bold")
        figure.text(
            0.012,
            1 - 0.37 / height,
            "\n".join(lines),
            ha="left",
            va="top",
            fontsize=9,
            color="#555555",
            linespacing=1.35,
        )
        figure.text(0.988, 0.05 / height, run_caption(run), ha="right", va="bottom", fontsize=7.5, color=MUTED)
        yield figure
        content = io.BytesIO()
        # Figure.savefig would lay out and draw everything twice.
        FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def empty(axes: Axes, text: str) -> None:
    """An axes that says why there is nothing in it."""
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        "\n".join(textwrap.wrap(text, 44)),
        ha="center",
        va="center",
        color=MUTED,
        transform=axes.transAxes,
    )


def label_ends(axes: Axes, x: float, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write each (y, text, colour) at `x` in its colour, moved apart vertically where two would touch.

    Call after the limits of the axes are settled.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    gap = (high - low) * 13 / (axes.figure.get_figheight() * 72 * 0.66)
    at = -math.inf
    for y, text, colour in sorted(labels):
        at = max(y, at + gap)
        axes.annotate(
            text,
            (x, at),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            weight="bold",
            annotation_clip=False,
        )


def compact(value: float) -> str:
    """A count or amount in at most four characters and a suffix: 147k, 2.1M, 124M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def decimal(value: float, digits: int = 2) -> str:
    """A number with a fixed count of decimals and a true minus sign, as matplotlib writes on its axes."""
    # Adding 0 makes a negative zero, which rounding leaves of small negative numbers, a plain one.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\u2212")


def with_interval(mean: float, interval: tuple[float, float] | None, digits: int = 2) -> str:
    """`0.53 [0.41, 0.66]`, or the mean alone where no interval is known."""
    if interval is None:
        return decimal(mean, digits)
    return f"{decimal(mean, digits)} [{decimal(interval[0], digits)}, {decimal(interval[1], digits)}]"
