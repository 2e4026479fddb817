"""A page about a run that holds everything itself, and several runs side by side in a table and a picture."""

import base64
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace as Result

import jinja2
import pandas as pd
from PIL import Image

from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.frontier import completions_by_update
from rlhf_utils.evaluation.judging import KEY, outcome
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_text
from rlhf_utils.report import findings
from rlhf_utils.report.notebook import COLORS, categories, dots, drawing
from rlhf_utils.settings.sections import flat

# Figures that runs are compared by, and their decimals.
FIGURES = {
    "reward model accuracy": 3, "reward gain": 2, "gold gain": 2, "ROUGE-L gain": 3, "win rate": 2, "KL, nats": 2,
    "EOS rate": 2, "tokens": 1,
}  # fmt: skip


def write_report(run: Path) -> Path:
    """Write `report.html` into the run's folder, in one step, and return its path.

    It holds the pictures that are in `plots/`. Needs `evaluation/summary.json` and `samples.csv`; InputError says which
    of them is missing.
    """
    names = ("run.json", "evaluation/summary.json", "evaluation/reward_model.json")
    record, summary, reward_model = (read_json(_existing(run, name)) for name in names)
    # Every cell is a text: the response "NA" is no gap. The C engine of pandas 2 ends a text at a NUL byte, which an
    # untrained model may write.
    table, frontier = _existing(run, "evaluation/samples.csv"), run / "evaluation" / "frontier.json"
    samples = pd.read_csv(table, dtype=str, keep_default_na=False, engine="python").to_dict("records")
    # All text of data and models is escaped.
    loader = jinja2.PackageLoader("rlhf_utils.report", "templates")
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    templates.globals |= vars(findings) | {"colors": COLORS}
    templates.filters["shown"] = findings.shown
    page = templates.get_template("report.html.j2").render(
        record=record,
        summary=summary,
        reward_model=reward_model,
        # The verdicts that outside judges gave on the blinded pairs.
        judged=outcome(run / "evaluation") if (run / "evaluation" / KEY).is_file() else {"judges": {}},
        samples=samples[:: -(-len(samples) // 8)],
        completions=completions_by_update(read_json(frontier)) if frontier.is_file() else [],
        pictures=[_embedded(path) for path in sorted((run / "plots").glob("*.png"))],
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def _embedded(path: Path) -> dict[str, str]:
    """A PNG as an address that holds it, with its title and its note as the text for those who do not see it."""
    told = Image.open(path).text
    alt = "{}. {}".format(told.get("Title", path.stem), told.get("Description", ""))
    return {"alt": alt, "source": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")}


def _existing(run: Path, name: str) -> Path:
    """The file `name` of the run; raises InputError where it is not there."""
    if not (run / name).is_file():
        hint = "run the notebook of this stage, or `python -m rlhf_utils run` for the whole series"
        raise InputError(f"{run / name} is missing: {hint}")
    return run / name


def read_result(folder: Path) -> Result:
    """What the run in `folder` found: settings as dotted keys, each measured figure with its 95% CI or None. InputError
    where it is no run, or one that was not evaluated."""
    record, summary = (read_json(_existing(folder, name)) for name in ("run.json", "evaluation/summary.json"))
    try:
        pair, gains = next(iter(summary["paired"].items()))
        model, ppo, wins = summary["reward_model"], summary["models"]["ppo"], summary["win_rate"][pair]
        found = [(model["accuracy"], model["accuracy_ci95"])]
        found += [gains[key] and (gains[key]["mean"], gains[key]["ci95"]) for key in ("reward", "gold", "rougeL")]
        found += [(wins["rate"], wins["ci95"]), *((ppo[key], None) for key in ("kl_to_sft", "eos_rate", "mean_tokens"))]
        about = {"against": LABELS[pair.removeprefix("ppo_vs_")], "hacking": summary["hacking"]["level"]}
        return Result(settings=flat(record["settings"]), figures=dict(zip(FIGURES, found, strict=True)), **about)
    except (LookupError, TypeError, AttributeError, StopIteration):
        raise InputError(f"{folder} was not made by this version; rerun the comparison notebook") from None


def grouped(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs by their settings without the seed, in the order given; a group is named by its recipe, its scale and what
    sets it apart from others of this recipe and scale."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        own, name = result.settings, [result.settings["name"], result.settings["scale"]]
        alike = [other.settings for other in results if [other.settings["name"], other.settings["scale"]] == name]
        apart = [key for key, value in own.items() if any(other.get(key) != value for other in alike)]
        name += [f"{key}={own[key]}" for key in apart if key not in ("seed", "ppo.seed")]
        groups.setdefault(", ".join(name), []).append(result)
    return groups


def comparison_table(groups: dict[str, list[Result]]) -> list[dict[str, str]]:
    """One row for each group: figures as `mean [least, greatest]` over seeds, of one run with its 95% CI."""
    rows = []
    for name, runs in groups.items():
        row = {"run": name, "seeds": f"{len(runs)}", "against": runs[0].against}
        for title, digits in FIGURES.items():
            found, row[title] = [run.figures[title] for run in runs], findings.shown(None)
            if None not in found:
                values = [value for value, _ in found]
                spread = found[0][1] if len(runs) == 1 else (min(values), max(values))
                row[title] = findings.shown(fmean(values), spread, f"z.{digits}f")
        rows.append(row | {"hacking": " / ".join(sorted({run.hacking for run in runs}))})
    return rows


def compare(folders: Sequence[str | Path], output: str | Path) -> list[dict[str, str]]:
    """Compare the runs in `folders`; writes `comparison.{csv,png}` into `output` and returns the table's rows."""
    folders, output = [Path(folder) for folder in folders], Path(output)
    results = [read_result(folder) for folder in folders]
    if again := [f for i, f in enumerate(folders) if results[i].settings in [r.settings for r in results[:i]]]:
        raise InputError(f"{again[0]} is the same run twice: it has the settings and the seed of one before it")
    groups = grouped(results)
    rows = comparison_table(groups)
    write_text(output / "comparison.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    with drawing(output / "comparison.png", "Runs side by side", 10, 2.7 + 0.84 * len(groups)) as figure:
        for axes, title in zip(figure.subplots(2, 4, sharey=True).flat, FIGURES, strict=True):
            for row, runs in enumerate(groups.values()):
                for value, ends in (run.figures[title] for run in runs if run.figures[title]):
                    dots(axes, [value], [row], [ends], COLORS["ppo"], axis="x", markersize=4.5, elinewidth=1.7)
            axes.set_title(title, fontsize=9)
            categories(axes, [textwrap.fill(name, 30) for name in groups], "y")
        figure.note = "A dot for each run with its 95% CI."
    return rows
