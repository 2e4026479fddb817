"""One look for all pictures: colors, title and caption, intervals, and saving in one step.

Figures are made without pyplot, so that drawing neither needs a display nor leaves anything behind in a notebook.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_utils.platforms.files import write_bytes

# Okabe and Ito (2008): told apart with any kind of color vision.
COLORS = {"base": "#6E6E6E", "sft": "#0072B2", "sft_qlora": "#E69F00", "ppo": "#009E73"}
COLORS |= {"reward": "#CC79A7", "gold": "#D55E00", "muted": "#767676", "pale": "#B5B5B5"}
# Where there is no effect, and a second curve.
NEUTRAL = {"color": "black", "linewidth": 1, "linestyle": (0, (4, 3))}
SECOND = {"color": COLORS["muted"], "linewidth": 1.2, "linestyle": (0, (4, 2))}
DPI, PERCENT, _STYLE = 150, "{x:.0%}", str(resources.files(__package__) / "templates" / "plots.mplstyle")
Draw = Callable[[Path, Figure], str]
PLOTS: dict[str, tuple[str, Draw]] = {}
"""Title of every picture, and what draws it into an empty figure and returns the note under it."""


def plot(name: str, title: str) -> Callable[[Draw], Draw]:
    """Enter the function under it into `PLOTS`."""

    def enter(draw: Draw) -> Draw:
        PLOTS[name] = title, draw
        return draw

    return enter


def save(path: Path, title: str, draw: Callable[[Figure], str]) -> Path:
    """Draw a figure with its title, and below it the note that `draw` returns; write it whole or not at all."""
    with matplotlib.rc_context(fname=_STYLE):
        figure = Figure(dpi=DPI)
        note = draw(figure)
        figure.suptitle(title, x=0.01, ha="left")
        note = textwrap.fill(note, int(15 * figure.get_figwidth()))
        figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color="#555555", linespacing=1.35)
        content = io.BytesIO()
        figure.savefig(content, metadata={"Software": None})
    write_bytes(path, content.getvalue())
    return path


def categories(axes: Axes, names: Sequence[str], axis: str = "x") -> None:
    """Name the places 0, 1, ... of an axis; the vertical one runs from top to bottom."""
    getattr(axes, f"set_{axis}ticks")(range(len(names)), names, color="black", fontsize=9)
    axes.grid(False, axis=axis)
    axes.tick_params(axis=axis, length=0)
    if axis == "y":
        axes.set_ylim(len(names) - 0.4, -0.6)


def reach(values: Sequence[float], intervals: Sequence) -> np.ndarray:
    """Lengths `[2, n]` of the error bars below and above each value; 0 where no interval is known."""
    ends = [interval or (value, value) for value, interval in zip(values, intervals, strict=True)]
    return np.abs(np.array(ends).T - np.array(values))


def bars(axes: Axes, places, values, intervals, texts, width: float = 0.57, lying: bool = False, **look) -> None:
    """Bars from 0 with their intervals and, at their ends, `texts`."""
    errors = {f"{'x' if lying else 'y'}err": reach(values, intervals), "error_kw": {"elinewidth": 1.5}}
    drawn = (axes.barh if lying else axes.bar)(places, values, width, **errors, **look)
    axes.bar_label(drawn, texts, padding=4, weight="bold", fontsize=9)


def dots(axes: Axes, x, y, intervals, color: str, axis: str = "y", **look) -> None:
    """Dots with the intervals of their values along `axis`."""
    error = {f"{axis}err": reach(x if axis == "x" else y, intervals)}
    look = {"fmt": "o", "markersize": 8, "elinewidth": 3, "ecolor": (color, 0.55), "color": color} | look
    axes.errorbar(x, y, **error, **look)
