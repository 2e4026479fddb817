"""The published run, copied and cut to what a test needs, for the tests of pictures, report and cards."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from rlhf_utils.platforms.files import read_json, write_json

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "example_run" / "instruct-tiny"


def make_run(root: Path, gold: bool = True, prompts: int = 12) -> Path:
    """Fill `root`/instruct-tiny; without `gold` every figure of the gold judge is null, as on real data."""
    run = shutil.copytree(PUBLISHED, root / "instruct-tiny", ignore=shutil.ignore_patterns("plots", "report.html"))
    samples = run / "evaluation" / "samples.csv"
    rows = pd.read_csv(samples, dtype=str, keep_default_na=False)[:prompts]
    rows.to_csv(samples, index=False, quoting=csv.QUOTE_NONNUMERIC)
    if not gold:
        change(run, "summary", _without_gold)
        change(run, "frontier", lambda f: [p.update(gold=None) for p in f["points"] + f["best_of_n"]])
    return run


def _without_gold(summary: dict) -> None:
    for figures in summary["models"].values():
        figures |= {"gold": None, "gold_ci95": None}
    for pair, wins in summary["win_rate"].items():
        summary["paired"][pair]["gold"], wins["judged_by"] = None, "reward"
    summary["judge"] = None


def change(run: Path, name: str, edit: Callable[[dict], object]) -> None:
    """Have `edit` change the content of `evaluation/<name>.json`."""
    path = run / "evaluation" / f"{name}.json"
    value = read_json(path)
    edit(value)
    write_json(path, value)
