"""Pictures made only from the numbers a run left on disk: `draw(run_folder)` writes `plots/*.png`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.report.plots import distribution, evaluation, ppo, reward_model, sft

PLOTS: dict[str, Callable[[Path, Path], None]] = {
    "01_sft_full_vs_qlora": sft.full_vs_qlora,
    "02_reward_model_accuracy": reward_model.accuracy,
    "02_reward_margins": reward_model.margins,
    "02_reward_by_length": reward_model.by_length,
    "03_ppo_training": ppo.training,
    "04_rouge_comparison": evaluation.rouge,
    "04_reward_comparison": evaluation.rewards,
    "04_reward_kl_frontier": evaluation.frontier,
    "04_win_rate": evaluation.win_rate,
    "04_reward_range": distribution.reward_range,
    "04_overoptimisation": ppo.overoptimisation,
}

# Pictures that not every run has the figures for: the file of `evaluation/` and the key.
_FIGURES = {"02_reward_by_length": ("reward_model", "by_length"), "04_reward_range": ("summary", "reward_range")}
# Pictures of what only some runs do, with the file of `evaluation/`.
_EXTRA = {"04_overoptimisation": "overoptimise.json"}
# Pictures of a training, with the stages that have to have been trained in the run.
_TRAINED = {"01_sft_full_vs_qlora": {"sft", "sft_qlora"}, "03_ppo_training": {"ppo"}}


def applicable(run: Path) -> list[str]:
    """The pictures that have a meaning for the run in folder `run`: without those of stages it did not train."""
    record = run / "run.json"
    absent = set(read_json(record).get("not_trained", [])) if record.is_file() else set()
    return [
        name
        for name in PLOTS
        if not _TRAINED.get(name, set()) & absent
        and _has_figures(run, name)
        and (name not in _EXTRA or (run / "evaluation" / _EXTRA[name]).is_file())
    ]


def _has_figures(run: Path, name: str) -> bool:
    """Whether the run measured what the picture shows; a file that is not there yet is for the picture to report."""
    if name not in _FIGURES:
        return True
    file, key = _FIGURES[name]
    path = run / "evaluation" / f"{file}.json"
    return not path.is_file() or bool(read_json(path).get(key))


def draw(run_folder: str | Path, name: str | None = None) -> list[Path]:
    """Draw every picture that applies to the run in `run_folder`, or the one called `name`; returns their paths.

    Reads `checkpoints/*/metrics.jsonl` and `evaluation/*`, writes `plots/<name>.png`, each in one step.
    Raises InputError for an unknown name, and for a file that is missing, naming the notebook that writes it.
    """
    run = Path(run_folder)
    wanted = applicable(run) if name is None else [name.removesuffix(".png")]
    paths = []
    for each in wanted:
        if each not in PLOTS:
            raise InputError(f"there is no plot called {name}: choose one of {', '.join(PLOTS)}")
        path = run / "plots" / f"{each}.png"
        PLOTS[each](run, path)
        paths.append(path)
    return paths
