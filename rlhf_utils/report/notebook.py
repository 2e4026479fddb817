"""What the notebooks show: pictures in one look, saved in one step, and tables.

Figures are made without pyplot, so that drawing neither needs a display nor leaves anything behind in a notebook.
"""

import io
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import Image, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_utils.evaluation import GOLD_SCALE
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_bytes
from rlhf_utils.platforms.names import EMBEDDED
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.template import Template

# Okabe and Ito (2008): told apart with any kind of color vision.
COLORS = {"base": "#6E6E6E", "sft": "#0072B2", "sft_qlora": "#E69F00", "ppo": "#009E73"}
COLORS |= {"reward": "#CC79A7", "gold": "#D55E00", "muted": "#767676", "pale": "#B5B5B5"}
# Where there is no effect.
NEUTRAL = {"color": "black", "linewidth": 1, "linestyle": (0, (4, 3))}
DPI, _STYLE = 150, str(resources.files(__package__) / "templates" / "plots.mplstyle")
_SCORES = {"reward": "reward (what PPO optimizes)", "gold": "gold score (not optimized)"}


class NotMeasured(InputError):
    """The run has no such figures, or they have no meaning for its recipe."""


@contextmanager
def drawing(path: Path, title: str, width: float = 8, height: float = 4.5) -> Iterator[Figure]:
    """An empty figure of `width` x `height` inches to draw into. When the block ends without error it gets its title
    and, below it, its `note`, which the block sets; `path` then is the new PNG or, after a crash, still the old one. Of
    several processes the main one writes."""
    with matplotlib.rc_context(fname=_STYLE):
        figure = Figure((width, height), DPI)
        figure.note = ""
        yield figure
        figure.suptitle(title, x=0.01, ha="left")
        note = textwrap.fill(figure.note, int(15 * width))
        figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color="#555555", linespacing=1.35)
        content = io.BytesIO()
        figure.savefig(content, metadata={"Software": None, "Title": title, "Description": figure.note})
    if processes.is_main():
        write_bytes(path, content.getvalue())


@contextmanager
def picture(run: Run, name: str, title: str, height: float = 4.5) -> Iterator[Figure]:
    """`drawing` of `plots/<name>.png` of the run, which is named in the note; a notebook shows it. A block that raises
    NotMeasured leaves the picture out, and the reason is shown in its place."""
    path, left_out = run.plots / f"{name}.png", None
    try:
        with drawing(path, title, height=height) as figure:
            yield figure
            figure.note += " Run: {recipe}, {scale} scale, seed {seed}.".format_map(run.record())
    except NotMeasured as reason:
        path.unlink(missing_ok=True)  # of an earlier run in this folder
        left_out = Markdown(f"*{reason}*")
    except FileNotFoundError as error:
        raise NotMeasured(f"{error.filename} is missing; run the cells above first") from None
    if get_ipython():
        display(left_out or Image(filename=path, width=900))


def score_axis(axes: Axes, key: str, run: Run) -> None:
    """Have the vertical axis of figure `key` show 0, and a synthetic dataset's gold score its whole scale."""
    if key == "gold" and _has_gold(run):
        axes.set_ylim(GOLD_SCALE)
    axes.axhline(0, linewidth=0)


def _has_gold(run: Run) -> bool:
    """Whether the gold preference of a synthetic dataset judges, and no model in its place."""
    return run.recipe.dataset == EMBEDDED and not run.judging_stage


def by_score(figure: Figure, run: Run, measured: Collection[dict]) -> Iterator[tuple[Axes, str]]:
    """A panel for reward, and one for gold where the recipe has a judge: each with its key in `measured`."""
    keys = [key for key in _SCORES if any(found[key] is not None for found in measured)]
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        axes.set_title(_SCORES[key] if _has_gold(run) else _SCORES[key].replace("gold", "judge's"))
        axes.margins(x=0.12, y=0.12)
        score_axis(axes, key, run)
        yield axes, key


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


def parts(row: Mapping[str, Any], template: Template) -> tuple[str, str]:
    """A row's text as a model sees it: the prompt up to where a response begins, and the response."""
    prompt = template.format(row["prompt"])
    return prompt, template.completion(row["chosen"]) if row["chosen"] is not None else row["text"][len(prompt) :]


def table(rows: Mapping[str, Sequence] | Sequence[Mapping]) -> Any:
    """Rows as a table with whole texts and without row numbers; text from data or models is escaped."""
    frame = pd.DataFrame(rows).reset_index(drop=True)
    left = {"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top"}
    return frame.style.format(precision=3, escape="html", na_rep="-").hide(axis="index").set_properties(**left)
