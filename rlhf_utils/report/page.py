"""One self-contained page about a run, `report.html`: what happened, how sure it is, and answers to read."""

from __future__ import annotations

import base64
import math
from pathlib import Path

import jinja2
import pandas as pd

from rlhf_utils.evaluation.judging import KEY, PAIRS, outcome
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_text
from rlhf_utils.report.findings import (
    agreement_sentence,
    assistant_table,
    headlines,
    model_table,
    percent,
    phrase_table,
    style_table,
    win_rates,
)
from rlhf_utils.report.plots import applicable, draw
from rlhf_utils.report.plots.evaluation import models_of
from rlhf_utils.report.plots.results import bounds, figures, number, read_object, read_samples, run_caption
from rlhf_utils.report.plots.reward_model import accuracies
from rlhf_utils.report.plots.style import COLOURS, LABELS, decimal, with_interval

EXAMPLES = 8


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into the run's folder, in one step, and return its path.

    The pictures are drawn anew, so that they show the numbers of the tables; one that cannot be drawn yet is
    replaced by the reason. Needs `evaluation/summary.json` and `samples.csv`; InputError names the
    notebook to run when one of them is missing.
    """
    run = Path(run_folder)
    summary, samples = read_object(run, "summary"), read_samples(run)
    judges = judges_of(run, summary)
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf_utils.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = templates.get_template("report.html.j2").render(
        caption=run_caption(run),
        about=about(run, summary),
        headlines=headlines(summary, judges),
        model_table=model_table(summary),
        decoding=decoding(summary),
        win_rates=win_rates(summary),
        judges=[{"name": name, "accuracy": percent(value, ends)} for name, value, ends in judges],
        verdict=summary.get("hacking"),
        phrases=phrase_table(summary),
        style=style_table(summary),
        agreement=agreement_sentence(summary),
        assistant=assistant_table(summary),
        judged=judged(run),
        pictures=[picture(run, name) for name in applicable(run)],
        examples=examples(samples, list(models_of(summary))),
        colours=COLOURS,
    )
    path = run / "report.html"
    write_text(path, page)
    return path


def about(run: Path, summary: dict) -> str:
    """Recipe, scale, seed, number of prompts and data in one line."""
    parts = [run_caption(run)]
    if number(summary.get("prompts")) is not None:
        parts.append(f"{summary['prompts']} held-out prompts")
    if summary.get("data"):
        parts.append(f"data: {summary['data']}")
    return " · ".join(parts)


def judged(run: Path) -> list[dict]:
    """One row for each kind of outside judge that has given verdicts on the blinded pairs."""
    folder = run / "evaluation"
    if not (folder / PAIRS).is_file() or not (folder / KEY).is_file():
        return []
    found = outcome(folder)
    one, other = (LABELS.get(name, name) for name in found["models"])
    return [
        {
            "judge": kind,
            "comparison": f"{one} vs {other}",
            **{key: result[key] for key in ("wins", "ties", "losses")},
            "rate": with_interval(result["rate"], bounds(result["ci95"])),
        }
        for kind, result in found["judges"].items()
    ]


def decoding(summary: dict) -> str:
    """The decoding settings in brackets, empty where none are recorded."""
    settings = summary.get("decoding") or {}
    return f" ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else ""


def judges_of(run: Path, summary: dict) -> list[tuple[str, float, tuple[float, float] | None]]:
    """Accuracy of the reward model and its baselines, from reward_model.json where the recipe trained one."""
    trained = (run / "evaluation" / "reward_model.json").is_file()
    return accuracies(read_object(run, "reward_model") if trained else summary.get("reward_model") or {})


def picture(run: Path, name: str) -> dict:
    """A freshly drawn picture as base64, or the reason why there is none."""
    try:
        content = draw(run, name)[0].read_bytes()
    except InputError as error:
        return {"name": name, "data": "", "reason": str(error)}
    return {"name": name, "data": base64.b64encode(content).decode("ascii"), "reason": ""}


def examples(samples: pd.DataFrame, models: list[str]) -> list[dict]:
    """Up to `EXAMPLES` prompts at even steps through the samples, with every model's answer and scores."""
    count = min(EXAMPLES, len(samples))
    chosen = [place * len(samples) // count for place in range(count)]
    scores = {
        (model, key): figures(samples, f"{model}_{key}") for model in models for key in ("reward", "gold", "rougeL")
    }
    shown = []
    for place in chosen:
        row = samples.iloc[place]
        answers = [{"model": "reference", "name": "reference", "scores": "", "text": row.get("reference", "")}]
        for model in models:
            values = {key: scores[model, key].iloc[place] for key in ("reward", "gold", "rougeL")}
            texts = [f"{key} {decimal(value)}" for key, value in values.items() if math.isfinite(value)]
            text = row.get(f"{model}_response", "")
            answers.append({"model": model, "name": LABELS[model], "scores": ", ".join(texts), "text": text})
        answers = [answer for answer in answers if answer["model"] != "reference" or answer["text"]]
        shown.append({"number": place + 1, "prompt": row["prompt"], "answers": answers})
    return shown
