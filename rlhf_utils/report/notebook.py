"""What the notebooks need to show things: tables, pictures, texts."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from IPython import get_ipython
from IPython.display import Image, Markdown, display

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import (
    DRIVE,
    HEADLESS,
    detect_device,
    is_attended,
    is_on_drive,
    platform_name,
    prepare_environment,
    quiet_libraries,
)
from rlhf_utils.report.plots import draw
from rlhf_utils.runs.named import check_names
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.template import Template

# What the one cell tagged `parameters` of every notebook holds.
PARAMETERS = frozenset(("recipe", "scale", "output_dir", "overrides", "resume"))


def start(
    recipe: str, scale: str, output_dir: str, overrides: Mapping[str, Any], resume: bool, notebook: str = ""
) -> Run:
    """Open the notebook's run, say in one line what runs where, and what the recipe says of this notebook."""
    prepare_environment()
    quiet_libraries()
    _refuse_unknown_parameters()
    run = Run.open(recipe, scale, output_dir, overrides, resume)
    if HEADLESS not in os.environ:
        # The series has looked at them.
        check_names(run, [stage for stage in run.stages if not run.is_complete(stage)])
    device = detect_device()
    print(f"recipe {recipe}, scale {scale}, seed {run.recipe.seed} | {device.name}, {device.precision} | {run.root}")
    if platform_name() == "colab" and is_attended() and not is_on_drive(run.root):
        print(
            "Colab deletes this run with the session, and gives every notebook a machine of its own: "
            f'output_dir = "{DRIVE}/MyDrive/rlhf" in each of them keeps the run and lets the next one find it'
        )
    if text := run.recipe.reading.get(notebook):
        display(Markdown(text))
    return run


def _refuse_unknown_parameters() -> None:
    """papermill only warns of a parameter that no notebook has, and a misspelt one would run with the defaults.

    What it was given is the cell that it put in, which begins with a comment of its own.
    """
    shell = get_ipython()
    cells = shell.user_ns.get("In", []) if shell else []
    for cell in cells:
        if not cell.startswith("# Parameters\n"):
            continue
        given = {target.id for line in ast.parse(cell).body for target in getattr(line, "targets", [])}
        if unknown := sorted(given - PARAMETERS):
            raise InputError(
                f"unknown parameter {', '.join(unknown)}; there are: {', '.join(sorted(PARAMETERS))}, and settings go "
                'into overrides, for example {"sft.epochs": 2}'
            )


def parts(row: Mapping[str, Any], template: Template) -> tuple[str, str]:
    """A row's text as a model sees it: the prompt up to where a response begins, and the response."""
    prompt = template.format(row["prompt"])
    return prompt, template.completion(row["chosen"]) if row["chosen"] is not None else row["text"][len(prompt) :]


def candidates(row: Mapping[str, Any], template: Template) -> list[str]:
    """Responses to a row's prompt to be ranked: its own, and made-up ones."""
    if row["chosen"] is not None:
        return [row["chosen"], row["rejected"], "I don't know.", "Good luck! " * 8]
    # The beginning of the text: the whole may be longer than the classifier reads.
    beginning = " " + " ".join(parts(row, template)[1].split()[:30])
    return [beginning, " wonderful from start to finish.", " boring from start to finish.", " good" * 12]


def table(rows: Mapping[str, Sequence] | Sequence[Mapping]) -> Any:
    """Rows as a table with whole texts and without row numbers; text from data or models is escaped."""
    frame = pd.DataFrame(rows).reset_index(drop=True)
    left = {"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top"}
    return frame.style.format(precision=3, escape="html", na_rep="-").hide(axis="index").set_properties(**left)


def picture(run: Run, name: str) -> Image:
    """Draw the plot `name` from the files of the run, and show it."""
    return Image(filename=str(draw(run.root, name)[0]), width=900)
