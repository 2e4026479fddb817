"""A page about a run that holds everything itself, and several runs side by side in a table and a picture."""

import base64
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace as Result

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.judging import KEY, outcome
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_text
from rlhf_utils.report import findings
from rlhf_utils.report.findings import NotMeasured, existing, read_object, read_samples, run_caption, shown
from rlhf_utils.report.plots import draw
from rlhf_utils.report.style import COLORS, PLOTS, categories, dots, save
from rlhf_utils.settings.sections import flat

# Figures that runs are compared by, and their decimals.
FIGURES = {
    "reward model accuracy": 3, "reward gain": 2, "gold gain": 2, "ROUGE-L gain": 3, "win rate": 2, "KL, nats": 2,
    "EOS rate": 2, "tokens": 1,
}  # fmt: skip
# What makes two runs two seeds of one thing.
_SEEDS = ("seed", "ppo.seed")


def write_report(run: Path) -> Path:
    """Write `report.html` into the run's folder, in one step, and return its path.

    The pictures are redrawn, so that they show the numbers of the tables; those of what was not measured are left out.
    Needs `evaluation/summary.json` and `samples.csv`; InputError says which of them is missing.
    """
    summary, samples, pictures = read_object(run, "summary"), read_samples(run), []
    for name in sorted(PLOTS):
        with suppress(NotMeasured):
            pictures.append(draw(run, name))
    values = {"caption": run_caption(run), "summary": summary, "reward_model": read_object(run, "reward_model")}
    # The verdicts that outside judges gave on the blinded pairs.
    values["judged"] = outcome(run / "evaluation") if (run / "evaluation" / KEY).is_file() else {"judges": {}}
    # Up to eight prompts at even steps.
    values["samples"] = samples.iloc[:: -(-len(samples) // 8)].to_dict("records")
    # All text of data and models is escaped.
    loader = jinja2.PackageLoader("rlhf_utils.report", "templates")
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    templates.globals |= vars(findings)
    templates.filters["shown"] = shown
    templates.filters["embedded"] = lambda picture: base64.b64encode(picture.read_bytes()).decode("ascii")
    page = templates.get_template("report.html.j2").render(pictures=pictures, colors=COLORS, **values)
    write_text(run / "report.html", page)
    return run / "report.html"


def read_result(folder: Path) -> Result:
    """What the run in `folder` found: settings as dotted keys, each measured figure with its 95% CI or None. InputError
    where it is no run, or one that was not evaluated."""
    settings, summary = read_json(existing(folder, "run.json")).get("settings"), read_object(folder, "summary")
    if not settings or not summary.get("paired"):
        raise InputError(f"{folder} was not made by this version; rerun the comparison notebook")
    pair, gains = next(iter(summary["paired"].items()))
    model, ppo, wins = summary["reward_model"], summary["models"]["ppo"], summary["win_rate"][pair]
    found = [(model["accuracy"], model["accuracy_ci95"])]
    found += [(gains[key]["mean"], gains[key]["ci95"]) if gains[key] else None for key in ("reward", "gold", "rougeL")]
    found += [(wins["rate"], wins["ci95"]), *((ppo[key], None) for key in ("kl_to_sft", "eos_rate", "mean_tokens"))]
    figures = {title: figure for title, figure in zip(FIGURES, found, strict=True) if figure}
    about = {"against": LABELS[pair.removeprefix("ppo_vs_")], "hacking": summary["hacking"]["level"]}
    return Result(settings=flat(settings), figures=figures, **about)


def grouped(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs by their settings without the seed, in the order given; a group is named by its recipe, its scale and what
    sets it apart from others of this recipe and scale."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        own, name = result.settings, [result.settings["name"], result.settings["scale"]]
        alike = [other.settings for other in results if [other.settings["name"], other.settings["scale"]] == name]
        apart = [key for key in own if key not in _SEEDS and any(other.get(key) != own[key] for other in alike)]
        groups.setdefault(", ".join(name + [f"{key}={own[key]}" for key in apart]), []).append(result)
    return groups


def comparison_table(groups: dict[str, list[Result]]) -> list[dict[str, str]]:
    """One row for each group: figures as `mean [least, greatest]` over seeds, of one run with its 95% CI."""
    rows = []
    for name, runs in groups.items():
        row = {"run": name, "seeds": f"{len(runs)}", "against": runs[0].against}
        for title, digits in FIGURES.items():
            values, ends = zip(*[run.figures.get(title, (None, None)) for run in runs], strict=True)
            if None in values:
                row[title] = shown(None)
            else:
                spread = ends[0] if len(runs) == 1 else (min(values), max(values))
                row[title] = shown(fmean(values), spread, f"z.{digits}f")
        rows.append(row | {"hacking": " / ".join(sorted({run.hacking for run in runs}))})
    return rows


def _side_by_side(groups: dict[str, list[Result]], figure: Figure) -> str:
    """A panel for each figure: a dot with its 95% CI for every run."""
    figure.set_size_inches(10, 2.7 + 0.84 * len(groups))
    for axes, title in zip(figure.subplots(2, 4, sharey=True).flat, FIGURES, strict=True):
        for row, runs in enumerate(groups.values()):
            for value, ends in (run.figures[title] for run in runs if title in run.figures):
                dots(axes, [value], [row], [ends], COLORS["ppo"], axis="x", markersize=4.5, elinewidth=1.7)
        axes.set_title(title, fontsize=9)
        categories(axes, [textwrap.fill(name, 30) for name in groups], "y")
    return "A dot for each run with its 95% CI."


def compare(folders: Sequence[str | Path], output: str | Path) -> list[dict[str, str]]:
    """Compare the runs in `folders`; writes `comparison.{csv,png}` into `output` and returns the table's rows."""
    folders, output = [Path(folder) for folder in folders], Path(output)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("compare was given the same run twice; give each folder once")
    groups = grouped([read_result(folder) for folder in folders])
    rows = comparison_table(groups)
    write_text(output / "comparison.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    save(output / "comparison.png", "Runs side by side", partial(_side_by_side, groups))
    return rows
