"""One self-contained page about a run, `report.html`: what happened, how sure it is, and responses to read."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2
import pandas as pd

from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.judging import KEY, PAIRS, outcome
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_text
from rlhf_utils.report import findings
from rlhf_utils.report.plots import applicable, draw
from rlhf_utils.report.results import accuracies, models_of, read_object, read_samples, run_caption
from rlhf_utils.report.style import COLORS, shown

EXAMPLES = 8


def render(template: str, **values) -> str:
    """A page of `report/templates/`, with all text of data and models escaped."""
    loader = jinja2.PackageLoader("rlhf_utils.report", "templates")
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return templates.get_template(template).render(**values)


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into the run's folder, in one step, and return its path.

    The pictures are redrawn, so that they show the numbers of the tables; one that cannot be drawn yet is replaced by
    the reason. Needs `evaluation/summary.json` and `samples.csv`; InputError names the notebook to run when one of
    them is missing.
    """
    run = Path(run_folder)
    summary, samples = read_object(run, "summary"), read_samples(run)
    trained = (run / "evaluation" / "reward_model.json").is_file()
    judges = accuracies(read_object(run, "reward_model") if trained else summary.get("reward_model") or {})
    page = render(
        "report.html.j2",
        caption=run_caption(run),
        summary=summary,
        headlines=findings.headlines(summary, judges),
        models=findings.model_table(summary),
        win_rates=findings.win_rates(summary),
        judges=[{"": name, "held-out accuracy": shown(*figure, "z.1%")} for name, figure in judges.items()],
        phrases=findings.phrase_table(summary),
        style=findings.style_table(summary),
        assistant=findings.assistant_table(summary),
        judged=_judged(run / "evaluation"),
        pictures=[_picture(run, name) for name in applicable(run)],
        examples=_examples(samples, list(models_of(summary))),
        colors={name: COLORS[name] for name in LABELS},
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def embedded(picture: Path) -> str:
    """A picture as base64, for a page that holds everything itself."""
    return base64.b64encode(picture.read_bytes()).decode("ascii")


def _judged(folder: Path) -> list[dict[str, str]]:
    """One row for each kind of outside judge that has given verdicts on the blinded pairs."""
    if not (folder / PAIRS).is_file() or not (folder / KEY).is_file():
        return []
    found = outcome(folder)
    compared = " vs ".join(LABELS.get(name, name) for name in found["models"])
    return [
        {"judge": kind, "comparison": compared}
        | {title: f"{result[key]}" for title, key in (("won", "wins"), ("tied", "ties"), ("lost", "losses"))}
        | {"win rate": shown(result["rate"], result["ci95"])}
        for kind, result in found["judges"].items()
    ]


def _picture(run: Path, name: str) -> dict[str, str]:
    """A freshly drawn picture as base64, or the reason why there is none."""
    try:
        return {"name": name, "data": embedded(draw(run, name)[0]), "reason": ""}
    except InputError as error:
        return {"name": name, "data": "", "reason": str(error)}


def _examples(samples: pd.DataFrame, models: list[str]) -> list[dict]:
    """Up to `EXAMPLES` rows at even steps through the samples, with every model's response and scores."""
    count, examples = min(EXAMPLES, len(samples)), []
    for place in (i * len(samples) // count for i in range(count)):
        row = samples.iloc[place]
        responses = [{"model": "reference", "name": "reference", "scores": "", "text": row.get("reference", "")}]
        for model in models:
            cells = {key: row.get(f"{model}_{key}", "") for key in ("reward", "gold", "rougeL")}
            scores = ", ".join(f"{key} {shown(float(cell))}" for key, cell in cells.items() if cell)
            text = row.get(f"{model}_response", "")
            responses.append({"model": model, "name": LABELS[model], "scores": scores, "text": text})
        # A recipe may have no references.
        shown_responses = [each for each in responses if each["model"] != "reference" or each["text"]]
        examples.append({"number": place + 1, "prompt": row["prompt"], "responses": shown_responses})
    return examples
