"""What the notebooks need to show things: opening the run, source code, tables and pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import Image, Markdown

from rlhf_utils.plots import draw
from rlhf_utils.runs import Run
from rlhf_utils.runtime import detect_device, prepare_environment, quiet_libraries


def start(recipe: str, scale: str, output_dir: str, overrides: Mapping[str, Any], resume: bool) -> Run:
    """Open the notebook's run and say in one line what runs where."""
    prepare_environment()
    quiet_libraries()
    run = Run.open(recipe, scale, output_dir, overrides, resume)
    device = detect_device()
    print(f"recipe {recipe}, scale {scale}, seed {run.recipe.seed} | {device.name}, {device.precision} | {run.root}")
    return run


def source(*functions: Callable) -> Markdown:
    """The source code of these functions, as it is run."""
    return Markdown(
        "```python\n" + "\n\n".join(inspect.getsource(function).rstrip() for function in functions) + "\n```"
    )


def table(rows: Mapping[str, Sequence] | Sequence[Mapping]) -> Any:
    """Rows as a table with whole texts, not cut off, and without the row numbers. Text from data or models is
    escaped."""
    frame = pd.DataFrame(rows).reset_index(drop=True)
    left = {"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top"}
    return frame.style.format(precision=3, escape="html", na_rep="-").hide(axis="index").set_properties(**left)


def picture(run: Run, name: str) -> Image:
    """Draw the picture `name` from the files of the run, and show it."""
    return Image(filename=str(draw(run.root, name)[0]), width=900)
