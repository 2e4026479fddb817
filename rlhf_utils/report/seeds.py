"""What several seeds found, as `evaluation.seeds.merge_runs` has it, in a table and in sentences."""

from rlhf_utils.evaluation import LABELS
from rlhf_utils.report.findings import COMPARED, as_text, judge_name, score_title, shown, versus

_TITLES = COMPARED | {"win_rate": ("win rate", "z.1%"), "accuracy": ("accuracy", "z.1%")}
_TITLES |= {"effect_size": ("reward (effect size)", "z.2f")}
ENOUGH = 5


def seed_table(merged: dict) -> list[dict[str, str]]:
    """One row for each figure: its mean with the 95% CI over seeds and prompts, how the seeds differ, each seed."""
    rows, names, titles = [], LABELS | {"reward_model": "reward model"}, _titles(merged)
    for whose, figures in merged["figures"].items():
        for name, found in figures.items():
            if name in titles:
                title, spec = titles[name]
                who = names.get(whose) or (versus if name == "win_rate" else _difference)(whose)
                row = {"figure": f"{who}: {title}"}
                row["mean [95% CI]"] = shown(found["mean"], found["ci95"], spec)
                row["SD of seeds"] = shown(found["seed_sd"], None, spec)
                row["by prompts"] = shown(found["prompt_sd"], None, spec)
                row["by seed"] = ", ".join(shown(value, None, spec) for value in found["by_seed"])
                rows.append(row)
    return rows


def seed_sentences(merged: dict) -> list[str]:
    """What the seeds show together, one sentence each."""
    seeds, (pair, gains) = merged["seeds"], next(item for item in merged["figures"].items() if "_vs_" in item[0])
    said = [f"Seeds {', '.join(map(str, seeds))}. Brackets: 95% CIs over seeds and prompts."]
    said.append("SD of seeds: of the runs' means; by prompts: the SD they would have if only their prompts differed.")
    if len(seeds) < ENOUGH:
        said.append(f"{len(seeds)} seeds say little about how much runs differ.")
    for name in [name for name in gains if name != "win_rate"]:
        (title, spec), found = _titles(merged)[name], gains[name]
        size, above = shown(found["mean"], found["ci95"], f"+{spec}"), sum(value > 0 for value in found["by_seed"])
        said.append(f"{_difference(pair)} on {title}: {size}, above 0 in {above} of {len(seeds)} runs.")
    wins = shown(gains["win_rate"]["mean"], gains["win_rate"]["ci95"], "z.1%")
    judge = judge_name(merged, merged["judged_by"])
    said.append(f"{versus(pair)}, judged by {judge}: {wins} of prompts won, ties counted half.")
    if "effect_size" in gains:
        unit = LABELS["sft" if "sft" in merged["figures"] else pair.removeprefix("ppo_vs_")]
        said.append(
            f"Effect size: in standard deviations of the rewards of the {unit} model's responses in the same run."
        )
    return said


def by_seed(merged: dict) -> str:
    """The gains of PPO in each run, in one sentence: what there is to say of a few seeds."""
    pair, gains = next(item for item in merged["figures"].items() if "_vs_" in item[0])
    said = []
    for name, found in gains.items():
        title, spec = _titles(merged)[name]
        values = ", ".join(shown(value, None, spec if name == "win_rate" else f"+{spec}") for value in found["by_seed"])
        said.append(f"{title} {values}")
    seeds, first = merged["seeds"], next(name for name in ("gold", "effect_size", "win_rate") if name in gains)
    (title, spec), found = _titles(merged)[first], gains[first]
    text = f"{_difference(pair)} by seed ({', '.join(map(str, seeds))}): {'; '.join(said)}."
    overall = shown(found["mean"], found["ci95"], spec if first == "win_rate" else f"+{spec}")
    return f"{text} {len(seeds)} runs say little about how much runs differ: over seeds, {title} {overall}."


def _titles(merged: dict) -> dict[str, tuple[str, str]]:
    """How each figure is called and written."""
    return _TITLES | {"gold": (score_title(merged), "z.2f")}


def _difference(pair: str) -> str:
    return versus(pair).replace("vs", "−")


def seeds_text(merged: dict) -> str:
    """The table and the sentences, as plain text for a terminal."""
    return as_text(seed_table(merged), seed_sentences(merged))
