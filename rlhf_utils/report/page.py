"""A page about a run that holds everything itself, and several runs side by side in a table and a picture."""

import base64
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace as Result

import jinja2
import pandas as pd
from PIL import Image

from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.frontier import completions_by_update
from rlhf_utils.evaluation.judging import KEY, outcome
from rlhf_utils.evaluation.seeds import RATES, between_seeds, figures_of, merge, read_samples
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_text
from rlhf_utils.report import alternatives as methods
from rlhf_utils.report import findings
from rlhf_utils.report.notebook import COLORS, categories, dots, drawing
from rlhf_utils.report.seeds import seed_sentences, seed_table
from rlhf_utils.settings.sections import flat

# Figures that runs are compared by: whose they are (None: PPO against the model before it) and which in
# `evaluation.seeds.figures_of`, and their decimals.
FIGURES = {
    "reward model accuracy": ("reward_model", "accuracy", 3), "reward gain, SFT SDs": (None, "effect_size", 2),
    "gold gain": (None, "gold", 2), "ROUGE-L gain": (None, "rougeL", 3), "win rate": (None, "win_rate", 2),
    "KL, nats": ("ppo", "kl_to_sft", 2), "EOS rate": ("ppo", "eos_rate", 2), "tokens": ("ppo", "mean_tokens", 1),
}  # fmt: skip


def write_report(run: Path) -> Path:
    """Write `report.html` into the run's folder, in one step, and return its path.

    It holds the pictures that are in `plots/`. InputError says which file of the evaluation is missing.
    """
    record, summary, reward_model = _evaluated(run)
    frontier, alternatives = (run / "evaluation" / f"{name}.json" for name in ("frontier", "alternatives"))
    # Of a run on somebody else's texts only some are published.
    samples = [row for row in read_samples(run).to_dict("records") if row["prompt"]]
    # All text of data and models is escaped.
    loader = jinja2.PackageLoader("rlhf_utils.report", "templates")
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    templates.globals |= (
        vars(findings) | vars(methods) | {"colors": COLORS, "seed_table": seed_table, "seed_sentences": seed_sentences}
    )
    templates.filters["shown"] = findings.shown
    page = templates.get_template("report.html.j2").render(
        record=record,
        summary=summary,
        reward_model=reward_model,
        # The verdicts that outside judges gave on the blinded pairs.
        judged=outcome(run / "evaluation") if (run / "evaluation" / KEY).is_file() else {"judges": {}},
        merged=between_seeds(run),
        alternatives=read_json(alternatives) if alternatives.is_file() else None,
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


def _evaluated(run: Path) -> list[dict]:
    """The record, summary and reward_model.json of the run; InputError where one of them or samples.csv is missing."""
    paths = [run / "run.json", *(run / "evaluation" / f"{name}.json" for name in ("summary", "reward_model"))]
    for path in [*paths, run / "evaluation" / "samples.csv"]:
        if not path.is_file():
            hint = "run the notebook of this stage, or `python -m rlhf_utils run` for the whole series"
            raise InputError(f"{path} is missing: {hint}")
    return list(map(read_json, paths))


def read_result(folder: Path) -> Result:
    """What the run in `folder` found: settings as dotted keys, each figure's values or None. InputError without."""
    record, summary, _ = _evaluated(folder)
    try:
        pair, settings = next(iter(summary["paired"])), flat(record["settings"])
        found = figures_of(folder)
        # Of the KL there is one value in a run, so its interval is known over seeds only.
        found["ppo"]["kl_to_sft"] = [summary["models"]["ppo"]["kl_to_sft"]], [str(folder)]
        values = {title: found[whose or pair].get(name) for title, (whose, name, _) in FIGURES.items()}
        about = {"against": LABELS[pair.removeprefix("ppo_vs_")], "hacking": summary["hacking"]["level"]}
        return Result(settings=settings, values=values, **about)
    except (LookupError, TypeError, AttributeError, StopIteration, ValueError):
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


def merged_figures(runs: Sequence[Result]) -> dict[str, dict | None]:
    """Each figure of a group's runs over their seeds (`merge`), one run's over its prompts; None where one has none."""
    how = {"samples": runs[0].settings["evaluation.bootstrap_samples"], "seed": runs[0].settings["seed"]}
    found = {title: [run.values[title] for run in runs] for title in FIGURES}
    rate = {title: name in RATES for title, (_, name, _) in FIGURES.items()}
    return {title: None if None in values else merge(values, rate[title], **how) for title, values in found.items()}


def comparison_table(groups: dict[str, list[Result]]) -> list[dict[str, str]]:
    """One row for each group: figures with their 95% CIs, over seeds and prompts, or of one run over its prompts."""
    rows = []
    for name, runs in groups.items():
        row = {"run": name, "seeds": f"{len(runs)}", "against": runs[0].against}
        for title, found in merged_figures(runs).items():
            ends = (found["mean"], found["ci95"]) if found else (None,)
            row[title] = findings.shown(*ends, spec=f"z.{FIGURES[title][2]}f")
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
        panels = [*figure.subplots(2, 4, sharey=True).flat]
        for axes, title in zip(panels, FIGURES, strict=True):
            axes.set_title(title, fontsize=9)
            categories(axes, [textwrap.fill(name, 30, max_lines=3, placeholder=" …") for name in groups], "y")
        for row, runs in enumerate(groups.values()):
            for axes, found in zip(panels, merged_figures(runs).values(), strict=True):
                if found:
                    value, ends = [found["mean"]], [found["ci95"]]
                    dots(axes, value, [row], ends, COLORS["ppo"], axis="x", markersize=4.5, elinewidth=1.7)
                    axes.scatter(found["by_seed"], [row + 0.25] * len(runs), 7, COLORS["muted"])
        figure.note = (
            "Means with 95% CIs: over seeds and prompts, of one run over its prompts. Small dots: single runs."
        )
    return rows
