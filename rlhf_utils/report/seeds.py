"""What several seeds found, as `evaluation.seeds.merge_runs` has it, in a table and in sentences."""

import pandas as pd

from rlhf_utils.evaluation import LABELS
from rlhf_utils.platforms.errors import visible
from rlhf_utils.report.findings import JUDGES, shown, versus

# Figure: its title, and how it is written.
_TITLES = {
    "gold": ("gold", "z.2f"), "rougeL": ("ROUGE-L", "z.3f"), "positivity": ("positivity", "z.2f"),
    "effect_size": ("reward, effect size", "z.2f"), "win_rate": ("win rate", "z.1%"), "accuracy": ("accuracy", "z.1%"),
}  # fmt: skip
ENOUGH = 5


def seed_table(merged: dict) -> list[dict[str, str]]:
    """One row for each figure: its mean with the 95% CI over seeds and prompts, how the seeds differ, each seed."""
    rows, names = [], LABELS | {"reward_model": "reward model"}
    for whose, figures in merged["figures"].items():
        for name, found in figures.items():
            if name in _TITLES:
                title, spec = _TITLES[name]
                who = names.get(whose) or versus(whose).replace("vs", "vs" if name == "win_rate" else "−")
                row = {"figure": f"{who}: {title}"}
                row["mean [95% CI]"] = shown(found["mean"], found["ci95"], spec)
                row["SD of seeds"] = shown(found["seed_sd"], None, spec)
                row["by seed"] = ", ".join(shown(value, None, spec) for value in found["by_seed"])
                rows.append(row)
    return rows


def seed_sentences(merged: dict) -> list[str]:
    """What the seeds show together, one sentence each."""
    seeds, figures = merged["seeds"], merged["figures"]
    said = [f"Seeds {', '.join(map(str, seeds))}. Brackets: 95% CIs over seeds and prompts; SD: of the seeds' means."]
    if len(seeds) < ENOUGH:
        said.append(f"{len(seeds)} seeds say little about how much runs differ, so the intervals are wide.")
    pair, gains = next((pair, found) for pair, found in figures.items() if "_vs_" in pair)
    other = LABELS[pair.removeprefix("ppo_vs_")]
    for name in ("gold", "rougeL", "positivity"):
        if found := gains.get(name):
            title, spec = _TITLES[name]
            above = sum(value > 0 for value in found["by_seed"])
            said.append(
                f"PPO − {other} on {title}: {shown(found['mean'], found['ci95'], f'+{spec}')}, above 0 in {above} of "
                f"{len(seeds)} runs."
            )
    wins = gains["win_rate"]
    share, judge = shown(wins["mean"], wins["ci95"], "z.1%"), JUDGES[merged["judged_by"]]
    said.append(f"Judged by {judge}, PPO wins {share} of prompts against {other}, ties counted half.")
    if found := gains.get("effect_size"):
        size = shown(found["mean"], found["ci95"], "+z.2f")
        said.append(
            f"Effect size of the reward gain: {size} standard deviations of {other}'s responses in the same run."
        )
    return said


def seeds_text(merged: dict) -> str:
    """The table and the sentences, as plain text for a terminal."""
    table = pd.DataFrame(seed_table(merged)).set_index("figure").rename_axis(index=None, columns="figure").to_string()
    return visible("\n".join([table, "", *seed_sentences(merged)]))
