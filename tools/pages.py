"""The generated parts of the pages.

    python tools/pages.py               README.md (what stands in marks), docs/settings.md, docs/published_runs.md
    python tools/pages.py site FOLDER   the sources of the site, with an API page per folder of the package

README.md keeps its own text; what stands between `<!-- name -->` and `<!-- end -->` is written here.
"""

import csv
import inspect
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import nbformat

from rlhf_utils.evaluation.seeds import between_seeds
from rlhf_utils.platforms.bootstrap import written_address
from rlhf_utils.platforms.errors import visible
from rlhf_utils.platforms.files import read_json, write_text
from rlhf_utils.platforms.names import PACKAGED
from rlhf_utils.report import alternatives as methods
from rlhf_utils.report.findings import headlines, model_table, refusals, score_title, shown, text_summary
from rlhf_utils.report.seeds import ENOUGH, by_seed, seed_sentences, seeds_text
from rlhf_utils.series import ROOT, SERIES
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.settings.sections import Section

PUBLISHED = ROOT / "docs" / "example_run"
RUN = PUBLISHED / "instruct-tiny"
MODELS = {"base_response": "base", "sft_response": "SFT", "ppo_response": "PPO"}


def notebooks() -> str:
    """Every notebook with the question it answers."""
    lines = []
    for entry in SERIES:
        opening = nbformat.read(ROOT / entry.path, as_version=4).cells[0].source
        title, *rest = [part for part in opening.split("\n\n") if part.strip() and not part.startswith("[![")]
        question = re.sub(r"^\*\*.*?\*\*\s*", "", " ".join(rest[0].split()))
        lines.append(f"- [{title.lstrip('# ')}]({entry.path}): {question}")
    return "\n".join(lines)


def examples(run: Path = RUN, most: int = 1) -> str:
    """The first held-out prompts, whatever they show, with the responses of three models."""
    lines = []
    with (run / "evaluation" / "samples.csv").open(encoding="utf-8", newline="") as file:
        for row, _ in zip(csv.DictReader(file), range(most), strict=False):
            lines.append(f"> **{_plain(row['prompt'])}**\n>")
            lines += [f"> {name}: *{_plain(row[column])}*\n>" for column, name in MODELS.items() if column in row]
            lines[-1] = lines[-1].removesuffix("\n>") + "\n"
    return "\n".join(lines).rstrip()


def _plain(text: str) -> str:
    """A model's text on one line, in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(visible(text).split()))


def results(run: Path = RUN) -> str:
    """The seeds merged, where more than one was run, and what `make run` prints at its end."""
    summary, merged = read_json(run / "evaluation" / "summary.json"), between_seeds(run)
    about = f"`{summary['recipe']}`, `{summary['scale']}`, {summary['prompts']} held-out prompts"
    single = f"One run, seed {summary['seed']}: {about}. In brackets: 95% CIs over its prompts."
    parts = [single, _printed(text_summary(summary))]
    if merged:
        several = f"{len(merged['seeds'])} seeds: {about} each. In brackets: 95% CIs over seeds and prompts."
        parts = [several, _printed(seeds_text(merged)), *parts]
    return "\n\n".join(parts)


def _printed(text: str) -> str:
    """What a terminal shows, its long lines folded."""
    lines = [textwrap.fill(line, 130, subsequent_indent="  ") if len(line) > 150 else line for line in text.split("\n")]
    return "\n".join(["```", *lines, "```"])


def best_of_n(run: Path = RUN) -> str:
    """How many samples of the SFT model it takes to do as well as the published policy, on the development prompts."""
    found = read_json(run / "evaluation" / "frontier.json")
    used = next(point for point in found["points"] if point["update"] == found["chosen_update"])
    key = "reward" if used["gold"] is None else "gold"
    as_good = [point for point in found["best_of_n"] if point[key] >= used[key]]
    point = min(as_good or found["best_of_n"], key=lambda point: point["n"] if as_good else -point["n"])
    verb = "reaches" if as_good else "does not reach"
    name = key if key == "reward" else score_title(read_json(run / "evaluation" / "summary.json"))
    both = " and ".join(shown(one[key], one[f"{key}_ci95"]) for one in (point, used))
    prompts, drawn = f"On {found['prompts']} development prompts", f"best of {point['n']} of the SFT model"
    return f"{prompts} {drawn} {verb} what the published policy has: {name} {both}."


def simpler(run: Path = RUN) -> str:
    """PPO beside the methods of notebook 4.3, over seeds where there are several."""
    found, merged = read_json(run / "evaluation" / "alternatives.json"), between_seeds(run) or {}
    if merged.get("alternatives"):
        rows, said = methods.seed_table(merged), methods.seed_sentences(merged)
        rows = [{title: cell for title, cell in row.items() if title != "by seed"} for row in rows]
    else:
        rows, said = methods.method_table(found), methods.method_sentences(found)
    costs = {row.pop("method"): row for row in methods.cost_table(found)}
    blank = dict.fromkeys(next(iter(costs.values())), "–")
    over = " over seeds and prompts" if merged.get("alternatives") else ""
    about = f"In brackets: 95% CIs{over}; costs are of seed {found['seed']}."
    return "\n\n".join([_markdown([row | costs.get(row["method"], blank) for row in rows]), " ".join([about, *said])])


def _markdown(rows: list[dict[str, str]]) -> str:
    table = [[*rows[0]], ["---"] + ["---:"] * (len(rows[0]) - 1), *([*row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def real() -> str:
    """What the published runs of scale small show, in short: the first with its table, picture and texts."""
    first, *others = _runs_on_real_texts()
    summary, folder = read_json(first / "evaluation" / "summary.json"), f"docs/example_run/{first.name}"
    judge, merged = summary["judge"], between_seeds(first)
    kept = ("model", score_title(summary), "positivity (reward model)") if judge else ("model", "reward", "ROUGE-L")
    rows = [
        {name: cell for name, cell in row.items() if name in kept or name.startswith("KL")}
        for row in model_table(summary)
    ]
    about = f"{_policy(first)}, {summary['prompts']} held-out prompts, judge: {judge['kind'] if judge else 'none'}"
    about += f", seed {summary['seed']}" + (f" of {len(merged['seeds'])}" if merged else "")
    texts = examples(first) if read_json(first / "run.json")["settings"]["form"] == "continuation" else ""
    return "\n\n".join(filter(None, [
        f"**{_title(first)}** (`{first.name}`; {about}; in brackets 95% CIs):",
        _markdown(rows),
        f"![Mean scores of every model]({folder}/plots/04_reward_comparison.png)",
        _in_short(first),
        "The first held-out prompt, before and after:" if texts else "",
        texts,
        *(part for run in others for part in (f"**{_title(run)}** (`{run.name}`, {_policy(run)}):", _in_short(run))),
    ]))  # fmt: skip


def control(run: Path = RUN) -> str:
    """What the synthetic control shows, in short."""
    return _in_short(run)


def _title(run: Path) -> str:
    return read_json(run / "run.json")["settings"]["title"]


def _policy(run: Path) -> str:
    name = read_json(run / "run.json")["settings"]["policy"]
    return PACKAGED[name].hub.rpartition("/")[2] if name in PACKAGED else name


def _runs_on_real_texts() -> list[Path]:
    """Those whose gains a judge has seen come first."""
    judged = {run: read_json(run / "evaluation" / "summary.json")["judge"] for run in PUBLISHED.glob("*-small")}
    return sorted(judged, key=lambda run: (judged[run] is None, run.name))


def _in_short(run: Path) -> str:
    """PPO against SFT, the verdict on reward hacking, refusals, every warning, and what the seeds show together."""
    summary, merged = read_json(run / "evaluation" / "summary.json"), between_seeds(run)
    told = [*headlines(summary, summary.get("reward_model", {}))]
    verdict = (summary.get("hacking") or {}).get("text")
    always = {told[0][0], verdict, refusals(summary) if summary.get("refusals") else None}
    said = [text for text, warns in told if warns or text in always]
    if merged and len(merged["seeds"]) >= ENOUGH:
        said = [*seed_sentences(merged)[2:], *(f"Seed {summary['seed']}: {text}" for text in said[1:])]
    elif merged:
        said.append(by_seed(merged))
    return "\n".join(f"- {text}" for text in said)


def published_runs() -> str:
    """docs/published_runs.md: the runs of scale small, and the synthetic control."""
    opening = (
        "Runs of scale `small`, a language model of GPT-2's size on real texts, and the synthetic control at scale "
        "`tiny`, all on two CPU cores. The policy "
        "`smollm2` is [SmolLM2-135M-Instruct from PyPI](your_own.md#models). "
        "`python -m rlhf_utils show NAME` opens each. The texts are those of the first held-out prompts, whatever they "
        "show; some prompts of hh-rlhf are meant to offend. The files of texts are not part of the repository: reviews "
        "are of IMDB (Maas et al. 2011), pairs of hh-rlhf (Bai et al. 2022, MIT license); a file of yours with their "
        "columns takes their place. `base` is the policy as it comes, instruction-tuned and without its chat template; "
        "SFT (QLoRA) is the adapter merged into the full-precision base. Generated by `python tools/pages.py` from the "
        "published files of each run."
    )
    return "\n\n".join(["# Published runs", opening, *map(_of_run, [*_runs_on_real_texts(), RUN])]) + "\n"


def _of_run(run: Path) -> str:
    """What the page says of one run: data, results, pictures, texts, and where the time went."""
    record, judge = read_json(run / "run.json"), read_json(run / "evaluation" / "summary.json")["judge"]
    settings, stages = record["settings"], record["stages"]
    rows = ", ".join(f"{name} {count:,}" for name, count in stages["data"]["results"]["rows"].items() if count)
    memory = max(stage.get("peak_host_bytes") or 0 for stage in stages.values()) / 1e9
    times = {name: about["seconds"] for name, about in sorted(record["notebooks"].items())}
    pictures = ("04_reward_comparison", "03_ppo_training", "04_reward_kl_frontier", "01_sft_full_vs_qlora")
    merged = between_seeds(run)
    seeds = len(merged["seeds"]) if merged else 1
    made = f"make small RECIPE={settings['name']} DATA={settings['dataset']} SEEDS={seeds}"
    made = "make notebooks" if run == RUN else made
    commits = dict.fromkeys((stage["git_commit"] or "unknown")[:7] for stage in stages.values())
    links = [f"example_run/{run.name}/plots/{name}.png" for name in pictures]
    return "\n\n".join([
        f"## {settings['title']}: `{run.name}`",
        f"Policy `{settings['policy']}`, data `{settings['dataset']}` (rows: {rows}), judge: "
        f"{judge['kind'] if judge else 'none'}. {sum(times.values()) / 60:.0f} minutes for the first seed on "
        f"{stages['ppo']['device']['name']}, at most {memory:.1f} GB. "
        f"Made by `{made}` at commit {', '.join(f'`{commit}`' for commit in commits)}.",
        results(run),
        best_of_n(run),
        *(f"![{Path(link).stem}]({link})" for link in links if (ROOT / "docs" / link).is_file()),
        "### Before and after",
        examples(run, 10),
        "### Where the time went",
        "\n".join(["| notebook | seconds |", "|---|---|", *(f"| {name} | {s:.0f} |" for name, s in times.items())]),
    ])  # fmt: skip


def filled(text: str) -> str:
    """README.md with its generated parts."""
    for part in (real, notebooks, examples, control, simpler):
        start = f"<!-- {part.__name__} -->\n"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{part()}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def settings() -> str:
    """docs/settings.md: every setting with its type and default."""
    head = (
        "# Settings\n\nEverything that `--set key=value` and a notebook's `overrides` can change, with the defaults of "
        "the code. What a recipe sets at each scale is in "
        "[`rlhf_utils/settings/recipes`](../rlhf_utils/settings/recipes), and a run's `run.json` holds the values it "
        "used. Generated by `python tools/pages.py`.\n"
    )
    return head + "".join(_section(Recipe, "", "The recipe"))


def _section(kind: type[Section], path: str, title: str) -> Iterator[str]:
    """A section's heading, text and table, then those of the sections in it."""
    fields = kind.model_fields
    about = inspect.cleandoc(kind.__doc__ or "")
    # Docstrings explain single settings as `name: meaning`.
    intro, *found = re.split(rf"^({'|'.join(fields)}): ", about, flags=re.MULTILINE)
    meanings = {name: " ".join(text.split()) for name, text in zip(found[::2], found[1::2], strict=True)}
    yield f"\n## {title}\n\n{intro.strip()}\n\n| setting | type | default | |\n|---|---|---|---|\n"
    inner = {}
    for name, field in fields.items():
        default = "required" if field.is_required() else f"`{json.dumps(field.default, default=str)}`"
        type_and_default = f"{_kind(field.annotation)} | {default}"
        for found in (field.annotation, *get_args(field.annotation)):
            if isinstance(found, type) and issubclass(found, Section):
                inner[name], anchor = found, re.sub(r"[^\w-]", "", f"{path}{name}".lower())
                type_and_default = f"[a section](#{anchor}){'' if field.default else ', or `null` (the default)'} |"
        yield f"| `{path}{name}` | {type_and_default} | {meanings.get(name, '')} |\n"
    for name, section in inner.items():
        yield from _section(section, f"{path}{name}.", f"`{path}{name}`")


def _kind(annotation: object) -> str:
    """A type as a reader writes it: `int`, `one of a, b`, `float or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_kind(argument) for argument in arguments)
    if origin is tuple:
        return "list of " + " and ".join(dict.fromkeys(_kind(a) for a in arguments if a is not Ellipsis))
    return {type(None): "`null`", str: "text"}.get(annotation) or ("mapping" if origin is dict else annotation.__name__)


def site(folder: Path) -> None:
    """Write the sources of the site into `folder`, laid out like the repository, so that links keep working."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("README.md", "CONTRIBUTING.md", "docs", "benchmarks", *(entry.path for entry in SERIES)):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.py", "__pycache__", ".*"))
        else:
            shutil.copyfile(source, target)
    for page in folder.rglob("*.md"):
        write_text(page, _linked(page.read_text(encoding="utf-8"), page, folder))
    for part in sorted(path.parent for path in (ROOT / "rlhf_utils").glob("*/__init__.py")):
        names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(part.rglob("*.py"))]
        pages = [f"::: {name.removesuffix('.__init__')}\n" for name in names]
        write_text(folder / "api" / f"{part.name}.md", "\n".join([f"# {part.name}\n", *pages]))


def _linked(text: str, page: Path, folder: Path) -> str:
    """A page's text, its links to what the site does not hold leading to the repository."""

    def link(found: re.Match) -> str:
        target = (page.parent / found[1]).resolve()
        if target.is_file() or not target.is_relative_to(folder):
            return found[0]
        return f"]({written_address()}/blob/main/{target.relative_to(folder).as_posix()})"

    return re.sub(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", link, text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["site"]:
        site(Path(sys.argv[2]).resolve())
    else:
        write_text(ROOT / "docs" / "settings.md", settings())
        write_text(ROOT / "docs" / "published_runs.md", published_runs())
        write_text(ROOT / "README.md", filled((ROOT / "README.md").read_text(encoding="utf-8")))
