"""Stages made as their notebooks make them: the code cells run in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_utils.evaluation.reward_report import fetch_ready
from rlhf_utils.platforms.runtime import HEADLESS
from rlhf_utils.runs.base import make_base, make_data
from rlhf_utils.runs.run import Run
from rlhf_utils.series import SERIES, run_cells


@contextmanager
def headless() -> Iterator[None]:
    """Nothing that is missing is made, and no name is looked up: what is asked for is what is made."""
    before = os.environ.get(HEADLESS)
    os.environ[HEADLESS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[HEADLESS]
        else:
            os.environ[HEADLESS] = before


def make(run: Run, *stages: str) -> Run:
    """`run` with `stages` made, each by its notebook."""
    for stage in stages:
        if stage in ("base", "data"):
            (make_base if stage == "base" else make_data)(run)
            continue
        if stage in run.fetched:
            fetch_ready(run)
            continue
        entry = next(n for n in SERIES if stage in n.makes and n.form in (None, run.recipe.form))
        with headless():
            run_cells(run, entry)
        run.note_made(stage)
    return run
