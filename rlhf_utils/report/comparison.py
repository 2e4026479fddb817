"""Several runs side by side: one table, one picture, one page. Runs that differ in their seed alone are one row."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import jinja2

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import disk_errors, read_json, write_text
from rlhf_utils.report.plots.comparison import draw_comparison
from rlhf_utils.report.plots.results import bounds, number
from rlhf_utils.report.plots.style import LABELS, decimal
from rlhf_utils.settings.sections import flat

# Name of the figure, its title, decimals.
FIGURES = (
    ("reward_model", "reward model accuracy", 3),
    ("reward", "reward gained", 2),
    ("gold", "gold gained", 2),
    ("rougeL", "ROUGE-L gained", 3),
    ("win_rate", "win rate", 2),
    ("kl", "KL, nats", 2),
    ("eos_rate", "answers end", 2),
    ("tokens", "tokens", 1),
)
# What makes two runs two seeds of one thing.
_SEEDS = ("seed", "ppo.seed")


@dataclass(frozen=True)
class Result:
    """One run: its settings as dotted keys, and each figure with its 95 % interval (None where there is none)."""

    folder: Path
    settings: dict
    against: str
    figures: dict[str, tuple[float, tuple[float, float] | None]]
    hacking: str | None

    @property
    def seed(self) -> int:
        return self.settings["seed"]


@dataclass
class Group:
    """Runs that differ in nothing but their seed."""

    name: str
    runs: list[Result] = field(default_factory=list)

    def spread(self, figure: str) -> tuple[float, float, float] | None:
        """Mean, least and greatest value over the seeds."""
        values = [run.figures[figure][0] for run in self.runs if figure in run.figures]
        return (fmean(values), min(values), max(values)) if values else None


def read_result(folder: str | Path) -> Result:
    """What the run in `folder` found; InputError where it is no run, or one that was not evaluated."""
    folder = Path(folder)
    for name, file in (("a run", folder / "run.json"), ("evaluated", folder / "evaluation" / "summary.json")):
        if not file.is_file():
            raise InputError(
                f"{folder} is not {name}: {file.name} is missing; give folders such as outputs/instruct-tiny"
            )
    record, summary = read_json(folder / "run.json"), read_json(folder / "evaluation" / "summary.json")
    try:
        settings = flat({"recipe": record["recipe"], "scale": record["scale"], **record["settings"]})
        against = next((name for name in ("sft", "base") if f"ppo_vs_{name}" in summary["paired"]), "")
        paired, wins = summary["paired"].get(f"ppo_vs_{against}", {}), summary["win_rate"].get(f"ppo_vs_{against}", {})
        judged, ppo = summary["reward_model"], summary["models"].get("ppo") or {}
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{folder} was not made by this version; run the comparison notebook again") from None
    found = {
        "reward_model": (judged.get("accuracy"), judged.get("accuracy_ci95")),
        **{key: ((paired.get(key) or {}).get("mean"), (paired.get(key) or {}).get("ci95")) for key in _GAINS},
        "win_rate": (wins.get("rate"), wins.get("ci95")),
        "kl": (ppo.get("kl_to_sft"), None),
        "eos_rate": (ppo.get("eos_rate"), None),
        "tokens": (ppo.get("mean_tokens"), None),
    }
    figures = {name: (float(value), bounds(ends)) for name, (value, ends) in found.items() if number(value) is not None}
    return Result(folder, settings, against, figures, (summary.get("hacking") or {}).get("level"))


_GAINS = ("reward", "gold", "rougeL")


def grouped(results: Sequence[Result]) -> list[Group]:
    """Runs by their settings without the seed, in the order given; a group is named by what sets it apart."""
    kinds: dict[tuple, list[Result]] = {}
    for result in results:
        key = tuple(sorted((k, repr(v)) for k, v in result.settings.items() if k not in _SEEDS))
        kinds.setdefault(key, []).append(result)
    members = list(kinds.values())
    settings = [runs[0].settings for runs in members]
    keys = [k for k in settings[0] if k not in _SEEDS and len({repr(s.get(k)) for s in settings}) > 1]
    groups = []
    for runs in members:
        first = runs[0].settings
        name = f"{first['recipe']}, {first['scale']}"
        # Across recipes nearly everything differs, and the recipe says it all.
        apart = [] if any(k in keys for k in ("recipe", "scale")) else [k for k in keys if k in first]
        groups.append(Group(", ".join([name, *(f"{k}={first[k]}" for k in apart[:4])]), runs))
    names = [group.name for group in groups]
    for group in groups:
        if names.count(group.name) > 1:
            group.name += f" ({group.runs[0].folder})"
    return groups


def table(groups: Sequence[Group]) -> list[dict[str, str]]:
    """One row for each group: figures as `mean [least, greatest]` over seeds, of one run with its 95 % interval."""
    rows = []
    for group in groups:
        row = {"run": group.name, "seeds": str(len(group.runs)), "against": LABELS.get(group.runs[0].against, "–")}
        for key, title, digits in FIGURES:
            row[title] = _cell(group, key, digits)
        levels = sorted({run.hacking for run in group.runs if run.hacking})
        rows.append({**row, "hacking": " / ".join(levels) or "–"})
    return rows


def _cell(group: Group, key: str, digits: int) -> str:
    spread = group.spread(key)
    if spread is None:
        return "–"
    mean, low, high = spread
    ends: tuple[float, float] | None = (low, high)
    if len(group.runs) == 1:
        ends = group.runs[0].figures[key][1]
    text = decimal(mean, digits)
    return text if ends is None else f"{text} [{decimal(ends[0], digits)}, {decimal(ends[1], digits)}]"


def compare(folders: Sequence[str | Path], output: str | Path) -> list[dict[str, str]]:
    """Compare the runs in `folders`; writes `comparison.{csv,png,html}` into `output` and returns the table's rows."""
    if not folders:
        raise InputError("compare needs at least one run; give folders such as outputs/instruct-tiny")
    results = [read_result(folder) for folder in folders]
    if len({result.folder.resolve() for result in results}) < len(results):
        raise InputError("compare was given the same run twice; give each folder once")
    groups = grouped(results)
    rows, output = table(groups), Path(output)
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output / "comparison.csv", text.getvalue())
    draw_comparison(groups, FIGURES, output / "comparison.png")
    picture = base64.b64encode((output / "comparison.png").read_bytes()).decode("ascii")
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf_utils.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = templates.get_template("comparison.html.j2").render(rows=rows, groups=groups, picture=picture)
    write_text(output / "comparison.html", page)
    return rows
