"""One look for all pictures: colors, titles, the corner caption, intervals, and saving in one step.

Figures are made without pyplot, so that drawing neither needs a display nor leaves anything behind in a notebook.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_utils.platforms.files import write_bytes
from rlhf_utils.report.results import bounds

# Okabe and Ito (2008): told apart with any kind of color vision.
COLORS = {"base": "#6E6E6E", "sft": "#0072B2", "sft_qlora": "#E69F00", "ppo": "#009E73"}
COLORS |= {"reward": "#CC79A7", "gold": "#D55E00", "muted": "#767676", "pale": "#B5B5B5"}
DASHED, DPI = (0, (4, 3)), 150
_STYLE = matplotlib.rc_params_from_file(
    str(resources.files(__package__) / "templates" / "plots.mplstyle"), use_default_template=False
)


class Plot(NamedTuple):
    """A picture of a run: `draw(run, figure)` draws into an empty figure and returns the note under its title.

    `measured` is a file of `evaluation/` and a key without which the picture has no meaning, `trained` are the stages
    that have to have been trained in the run.
    """

    draw: Callable[[Path, Figure], str]
    title: str
    measured: tuple[str, str] | None
    trained: frozenset[str]


PLOTS: dict[str, Plot] = {}


class NothingToShow(Exception):
    """Why a picture stays empty."""


def plot(name: str, title: str, measured: tuple[str, str] | None = None, trained: Sequence[str] = ()) -> Callable:
    """Enter the function under it into `PLOTS`."""

    def enter(draw: Callable[[Path, Figure], str]) -> Callable:
        PLOTS[name] = Plot(draw, title, measured, frozenset(trained))
        return draw

    return enter


def save(path: Path, title: str, caption: str, draw: Callable[[Figure], str]) -> None:
    """Draw a figure with a title, the note that `draw` returns, and a caption in the corner; write it whole or not at
    all."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.5), dpi=DPI, layout="constrained", facecolor="white")
        try:
            note = draw(figure)
        except NothingToShow as reason:
            note = ""
            empty(figure.add_subplot(), str(reason))
        width, height = figure.get_size_inches()
        lines = textwrap.wrap(note, int(14.5 * width))
        top = 1 - (0.42 + 0.19 * len(lines)) / height
        figure.get_layout_engine().set(rect=(0.008, 0.2 / height, 0.984, top - 0.2 / height), w_pad=0.06)
        figure.text(0.012, 1 - 0.10 / height, title, va="top", fontsize=12.5, weight="bold")
        look = {"va": "top", "fontsize": 9, "color": "#555555", "linespacing": 1.35}
        figure.text(0.012, 1 - 0.37 / height, "\n".join(lines), **look)
        figure.text(0.988, 0.05 / height, caption, ha="right", va="bottom", fontsize=7.5, color=COLORS["muted"])
        content = io.BytesIO()
        # Figure.savefig would lay out and draw everything twice.
        FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def empty(axes: Axes, text: str) -> None:
    """An axes that says why there is nothing in it."""
    axes.set_axis_off()
    look = {"ha": "center", "va": "center", "color": COLORS["muted"], "transform": axes.transAxes}
    axes.text(0.5, 0.5, textwrap.fill(text, 44), **look)


def categories(axes: Axes, names: Sequence[str], axis: str = "x") -> None:
    """Name the places 0, 1, ... of an axis; the vertical one runs from top to bottom."""
    getattr(axes, f"set_{axis}ticks")(range(len(names)), names, color="black", fontsize=9)
    axes.grid(False, axis=axis)
    axes.tick_params(axis=axis, length=0)
    if axis == "y":
        axes.set_ylim(len(names) - 0.4, -0.6)


def reach(values: Sequence[float], intervals: Sequence) -> np.ndarray:
    """Lengths `[2, n]` of the error bars below and above each value; 0 where no interval is known."""
    ends = [bounds(interval) or (value, value) for value, interval in zip(values, intervals, strict=True)]
    return np.abs(np.array(ends).T - np.array(values))


def dot(axes: Axes, x: float, y: float, interval, color: str, axis: str = "y", size: float = 8) -> None:
    """A dot with its interval along `axis`."""
    error = {f"{axis}err": reach([x if axis == "x" else y], [interval])}
    look = {"color": color, "ecolor": (color, 0.55), "markersize": size, "elinewidth": size * 0.38}
    axes.errorbar(x, y, **error, fmt="o", **look, clip_on=False)


def beside(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **look) -> None:
    """`text` at `offset` points from a place of the data, in bold unless told."""
    axes.annotate(text, at, offset, textcoords="offset points", **{"weight": "bold", "va": "center"} | look)


def shown(value: float | None, interval=None, spec: str = "z.2f") -> str:
    """`0.53 [0.41, 0.66]` with true minus signs; a dash for None, which is never shown as 0.

    `spec` is Python's: `+z.2f`, `z.1%`; z makes a plain zero of the negative one that rounding leaves.
    """
    if value is None:
        return "–"
    text, ends = format(value, spec), bounds(interval)
    if ends is not None:
        text += f" [{', '.join(format(end, spec.lstrip('+')) for end in ends)}]"
    return text.replace("-", "\u2212")
