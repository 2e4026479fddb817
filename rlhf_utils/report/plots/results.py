"""Reading the files a run leaves, for the pictures and the report. Nothing here computes a new result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_utils.evaluation import LABELS
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json

MODELS = tuple(LABELS)
NOTEBOOKS = {
    "base": "01_data_and_baseline",
    "sft": "02_full_finetuning",
    "sft_qlora": "03_qlora",
    "reward_model": "02_reward_model",
    "ppo": "02_ppo_training",
    "evaluation": "01_compare_models",
}


def existing(run: Path, relative: str, stage: str) -> Path:
    """`run`/`relative`; raises InputError naming the notebook that writes it when it is not there."""
    path = Path(run) / relative
    if not path.is_file():
        raise InputError(
            f"{path} is missing: run notebook {NOTEBOOKS[stage]} first (stage {stage}), "
            "or `python -m rlhf_utils run` for the whole series"
        )
    return path


def number(value: Any) -> float | None:
    """`value` as a float; None for null, a missing figure, NaN or infinity, which are never drawn as 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def bounds(value: Any) -> tuple[float, float] | None:
    """`[low, high]` as floats; None when the interval is null or has a null end."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def read_metrics(run: Path, stage: str) -> list[dict]:
    """The lines of `checkpoints/<stage>/metrics.jsonl`; InputError names a bad line."""
    path = existing(run, f"checkpoints/{stage}/metrics.jsonl", stage)
    rows = []
    for place, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} line {place} is not valid JSON ({error.msg}): run the stage again") from None
        if not isinstance(row, dict):
            raise InputError(f"{path} line {place} is not a JSON object: run the stage again")
        rows.append(row)
    if not rows:
        raise InputError(f"{path} is empty: run notebook {NOTEBOOKS[stage]} again")
    return rows


def series(rows: list[dict], x: str, y: str) -> tuple[list[float], list[float]]:
    """The rows that have both figures, as two lists of equal length."""
    pairs = [(number(row.get(x)), number(row.get(y))) for row in rows if not row.get("summary")]
    kept = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [a for a, _ in kept], [b for _, b in kept]


def closing_line(rows: list[dict]) -> dict:
    """The line marked `"summary": true`; empty when the stage left none."""
    return next((row for row in reversed(rows) if row.get("summary")), {})


def read_object(run: Path, name: str) -> dict:
    """`evaluation/<name>.json` as an object; InputError when missing or of another kind."""
    path = existing(run, f"evaluation/{name}.json", "reward_model" if name == "reward_model" else "evaluation")
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not an object: run the evaluation again")
    return value


def read_samples(run: Path) -> pd.DataFrame:
    """`evaluation/samples.csv` with every cell as text: an answer "NA" or "None" is a text, not a gap."""
    path = existing(run, "evaluation/samples.csv", "evaluation")
    try:
        samples = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path} cannot be read ({error}): run notebook 01_compare_models again") from None
    if "prompt" not in samples:
        raise InputError(f"{path} has no column `prompt`: run notebook 01_compare_models again")
    return samples


def figures(samples: pd.DataFrame, column: str) -> pd.Series:
    """A column of numbers of `samples`, NaN where the cell is empty; all NaN when the column is absent."""
    if column not in samples:
        return pd.Series(math.nan, index=samples.index)
    return pd.to_numeric(samples[column], errors="coerce")


def run_caption(run: Path) -> str:
    """Recipe, scale and seed of the run for the corner of a picture, from run.json or summary.json."""
    run = Path(run)
    about: dict = {}
    for path in (run / "evaluation" / "summary.json", run / "run.json"):
        if path.is_file():
            about.update({key: value for key, value in read_json(path).items() if value is not None})
    name = f"{about['recipe']}, {about['scale']}" if {"recipe", "scale"} <= set(about) else run.resolve().name
    parts = [f"{name} scale" if "scale" in about and "recipe" in about else name]
    if "seed" in about:
        parts.append(f"seed {about['seed']}")
    return " · ".join(parts)
