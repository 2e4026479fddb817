"""Pictures made only from the numbers a run left on disk: `draw(run_folder)` writes `plots/*.png`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.report import evaluation_plots, training_plots  # noqa: F401 (they enter their pictures)
from rlhf_utils.report.results import run_caption
from rlhf_utils.report.style import PLOTS, save


def applicable(run: Path) -> list[str]:
    """The pictures that have a meaning for the run: without those of stages it did not train and of what it did not
    measure."""
    record = run / "run.json"
    absent = set(read_json(record).get("not_trained", [])) if record.is_file() else set()

    def measured(file: str, key: str) -> bool:
        path = run / "evaluation" / f"{file}.json"
        return path.is_file() and bool(read_json(path).get(key))

    found = [name for name, plot in PLOTS.items() if not plot.trained & absent]
    return sorted(name for name in found if PLOTS[name].measured is None or measured(*PLOTS[name].measured))


def draw(run_folder: str | Path, name: str | None = None) -> list[Path]:
    """Draw every picture that applies to the run in `run_folder`, or the one called `name`; returns their paths.

    Reads `checkpoints/*/metrics.jsonl` and `evaluation/*`, writes `plots/<name>.png`, each in one step.
    Raises InputError for an unknown name, and for a file that is missing, naming the notebook that writes it.
    """
    run, paths = Path(run_folder), []
    for each in applicable(run) if name is None else [name.removesuffix(".png")]:
        if each not in PLOTS:
            raise InputError(f"there is no plot called {name}: choose one of {', '.join(sorted(PLOTS))}")
        paths.append(run / "plots" / f"{each}.png")
        save(paths[-1], PLOTS[each].title, run_caption(run), partial(PLOTS[each].draw, run))
    return paths
