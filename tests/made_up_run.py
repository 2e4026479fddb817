"""The published run, copied and cut to what a test needs, for the tests of pictures, report and cards."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.runs.run import Run

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "docs" / "example_run" / "instruct-tiny"


def make_run(root: Path, gold: bool = True, prompts: int = 12) -> Path:
    """Fill `root`/instruct-tiny; without `gold` every figure of the gold judge is null, as on real data."""
    run = shutil.copytree(
        PUBLISHED, root / "instruct-tiny", ignore=shutil.ignore_patterns("plots", "report.html", "seeds.json")
    )
    samples = run / "evaluation" / "samples.csv"
    rows = pd.read_csv(samples, dtype=str, keep_default_na=False)[:prompts]
    rows.to_csv(samples, index=False, quoting=csv.QUOTE_NONNUMERIC)
    change(run, "summary", lambda summary: summary.update(prompts=len(rows)))
    if not gold:
        (run / "evaluation" / "alternatives.json").unlink()  # test_alternatives.py has its tables without gold
        change(run, "summary", _without_gold)
        change(run, "frontier", lambda f: [p.update(gold=None) for p in f["points"] + f["best_of_n"]])
        change(run, "frontier", lambda f: [s.update(gold=None) for p in f["points"] for s in p.get("completions", ())])
    return run


def _without_gold(summary: dict) -> None:
    for figures in summary["models"].values():
        figures |= {"gold": None, "gold_ci95": None}
    for pair, wins in summary["win_rate"].items():
        summary["paired"][pair]["gold"], wins["judged_by"] = None, "reward"
    summary["judge"] = None
    summary.get("bradley_terry", {}).update(judged_by="reward")


def change(run: Path, name: str, edit: Callable[[dict], object]) -> None:
    """Have `edit` change the content of `evaluation/<name>.json`."""
    path = run / "evaluation" / f"{name}.json"
    value = read_json(path)
    edit(value)
    write_json(path, value)


def plot_cells(notebook: Path) -> list[str]:
    """The cells tagged `plot`, which draw from a run's files and need nothing but `run` and one another."""
    cells = read_json(notebook)["cells"]
    return ["".join(cell["source"]) for cell in cells if "plot" in cell["metadata"].get("tags", ())]


def draw(root: Path, name: str) -> Figure:
    """Draw the picture `name` of the run in `root` by the cells of its notebook."""
    wanted, variables = f'with picture(run, "{name}"', {"run": Run.load(root)}
    cells = next(cells for cells in map(plot_cells, sorted(ROOT.glob("0*/*.ipynb"))) if wanted in "".join(cells))
    for cell in cells:
        if wanted in cell or "with picture(" not in cell:
            exec(cell, variables)
    return variables["figure"]
