"""Stages made as their notebooks make them: the code cells run in this process."""

from __future__ import annotations

import ast

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.runtime import HEADLESS
from rlhf_utils.runs.base import make_base, make_data
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stages import ROOT
from rlhf_utils.series import SERIES, fetch_ready, run_cells


def function(notebook: str, name: str):
    """The function `name` of a notebook: its cell as far as the definition."""
    cells = [ast.parse("".join(c["source"])) for c in read_json(ROOT / notebook)["cells"] if c["cell_type"] == "code"]
    cell = next(cell for cell in cells if name in [getattr(node, "name", None) for node in cell.body])
    cell.body = [node for node in cell.body if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)]
    exec(compile(cell, notebook, "exec"), names := {})
    return names[name]


def make(run: Run, *stages: str) -> Run:
    """`run` with `stages` made, each by its notebook."""
    for stage in stages:
        if stage in ("base", "data"):
            (make_base if stage == "base" else make_data)(run)
        elif stage in run.fetched:
            fetch_ready(run)
        else:
            # Nothing that is missing is made, and no name is looked up: what is asked for is what is made.
            with processes.environment(**{HEADLESS: "1"}):
                run_cells(run, next(n for n in SERIES if stage in n.makes and n.form in (None, run.recipe.form)))
            run.note_made(stage)
    return run
