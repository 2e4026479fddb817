"""Reading the files that a run leaves, and naming what is in them. Nothing here computes a new result."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.statistics import proportion_interval
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json

MODELS = tuple(LABELS)
_NOTEBOOKS = {"sft": "02_full_finetuning", "sft_qlora": "03_qlora", "ppo": "02_ppo_training"}
_JUDGES = {"gold": "the gold score", "reward": "the reward model", "quality": "the assistant score"}


def existing(path: Path, notebook: str) -> Path:
    """`path`; raises InputError naming the notebook that writes it when it is not there."""
    if not path.is_file():
        first = f"run notebook {notebook} first, or `python -m rlhf_utils run` for the whole series"
        raise InputError(f"{path} is missing: {first}")
    return path


def read_object(run: Path, name: str) -> dict:
    """The content of `evaluation/<name>.json`."""
    notebook = "02_reward_model" if name == "reward_model" else "01_compare_models"
    return read_json(existing(Path(run) / "evaluation" / f"{name}.json", notebook))


def read_samples(run: Path) -> pd.DataFrame:
    """`evaluation/samples.csv` with every cell as text: the response "NA" or "None" is a text, not a gap."""
    path = existing(Path(run) / "evaluation" / "samples.csv", "01_compare_models")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_metrics(run: Path, stage: str) -> tuple[pd.DataFrame, dict]:
    """`checkpoints/<stage>/metrics.jsonl`: the logged lines, and the closing line (`"summary": true`), which may be
    empty. InputError names a bad line."""
    path = existing(Path(run) / "checkpoints" / stage / "metrics.jsonl", _NOTEBOOKS[stage])
    rows = []
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows += [dict(json.loads(line))] if line.strip() else []
        except (ValueError, TypeError):
            raise InputError(f"{path} line {place} is not a JSON object: rerun {_NOTEBOOKS[stage]}") from None
    if not rows:
        raise InputError(f"{path} is empty: rerun notebook {_NOTEBOOKS[stage]}")
    closing = [row for row in rows if row.get("summary")]
    return pd.DataFrame([row for row in rows if row not in closing]), closing[-1] if closing else {}


def curve(lines: pd.DataFrame, x: str, y: str) -> pd.Series:
    """`y` against `x`, of the lines that have both."""
    return lines.reindex(columns=[x, y]).astype(float).dropna().set_index(x)[y]


def bounds(interval: list | tuple | None) -> tuple[float, float] | None:
    """`[low, high]` of a file; None when the interval is null or has a null end."""
    return None if not interval or None in interval else (interval[0], interval[1])


def models_of(summary: dict) -> dict[str, dict]:
    """The models that `summary` holds, in the order of the series."""
    found = summary.get("models") or {}
    return {name: found[name] for name in MODELS if found.get(name)}


def win_rates_of(summary: dict) -> dict[str, dict]:
    """The comparisons of `summary` that were judged."""
    found = summary.get("win_rate") or {}
    return {name: result for name, result in found.items() if result and result.get("rate") is not None}


def accuracies(result: dict) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """Accuracy on held-out data and its 95% CI: the trained reward model first, then the baselines that were measured.

    `result` is the content of reward_model.json. The interval of the length baseline is Wilson's over the same pairs.
    """
    pairs, length = result.get("pairs"), result.get("length_baseline_accuracy")
    length_ends = proportion_interval(length * pairs, int(pairs)).as_list() if pairs and length is not None else None
    found = {
        "trained reward model": (result.get("accuracy"), bounds(result.get("accuracy_ci95"))),
        "randomly initialized head": (result.get("untrained_accuracy"), bounds(result.get("untrained_ci95"))),
        "response length alone": (length, bounds(length_ends)),
    }
    return {name: figure for name, figure in found.items() if figure[0] is not None}


def judge_of(result: dict) -> str:
    """Who decided the prompts of an entry of `win_rate`."""
    return _JUDGES[result.get("judged_by", "gold")]


def versus(name: str) -> str:
    """`ppo_vs_sft` as `PPO vs SFT`."""
    return " vs ".join(LABELS.get(model, model) for model in name.split("_vs_"))


def run_caption(run: Path) -> str:
    """Recipe, scale and seed of the run, from run.json and summary.json; the folder's name where neither says."""
    run, about = Path(run), {}
    for path in (run / "evaluation" / "summary.json", run / "run.json"):
        if path.is_file():
            about |= {key: value for key, value in read_json(path).items() if value is not None}
    name = f"{about['recipe']}, {about['scale']} scale" if {"recipe", "scale"} <= set(about) else run.resolve().name
    return name + (f" · seed {about['seed']}" if "seed" in about else "")
