"""Stages made as their notebooks make them: the code cells run in this process."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.names import EMBEDDED
from rlhf_utils.platforms.runtime import HEADLESS
from rlhf_utils.runs.ready import fetch_policy, make_data
from rlhf_utils.runs.run import Run
from rlhf_utils.series import ROOT, SERIES, fetch_ready, run_cells
from rlhf_utils.settings.recipes import load_recipe


def opened(recipe: str, scale: str, folder, overrides: Mapping[str, Any] | None = None, resume: bool = True) -> Run:
    """The run of these settings in `folder`, with its folders."""
    run = Run(load_recipe(recipe, scale, overrides), folder, resume)
    run.make_folders()
    return run


def make(run: Run, *stages: str) -> Run:
    """`run` with `stages` made, each by its notebook."""
    for stage in stages:
        if stage == "data":
            make_data(run)
        elif stage == "base" and run.recipe.policy != EMBEDDED:
            fetch_policy(run, stage)
        elif stage in run.fetched:
            fetch_ready(run)
        else:
            entry = next(n for n in SERIES if stage in n.makes and n.form in (None, run.recipe.form))
            # Nothing that is missing is made, and no name is looked up: what is asked for is what is made.
            with processes.environment(**{HEADLESS: "1"}):
                run_cells(run, entry)
            run.note_made(stage)
    return run


def cells(number: str, *marks: str, **variables: Any) -> SimpleNamespace:
    """What the code cells of notebook `number` ("04_01") that have these marks in them leave, given these variables."""
    entry = next(entry for entry in SERIES if entry.name.startswith(number))
    sources = ["".join(c["source"]) for c in read_json(ROOT / entry.path)["cells"] if c["cell_type"] == "code"]
    for mark in marks:
        exec(next(source for source in sources if mark in source), variables)
    return SimpleNamespace(**variables)
