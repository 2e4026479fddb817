"""PPO beside simpler methods (notebook 4.3): what `evaluation/alternatives.json` holds, in tables and in sentences."""

import re

from rlhf_utils.evaluation import ALTERNATIVES, LABELS
from rlhf_utils.report.findings import judge_name, score_title, shown

IN_TIME = "_in_time"
"""Ends the name of a method's policy that was there when PPO's training time was over."""


def name_of(method: str) -> str:
    """`rloo_in_time` as `RLOO, in PPO's time`, `best_of_16` as `best of 16`."""
    if drawn := re.fullmatch(r"best_of_(\d+)", method):
        return f"best of {drawn[1]}"
    name = (LABELS | ALTERNATIVES)[method.removesuffix(IN_TIME)]
    return f"{name}, in PPO's time" if method.endswith(IN_TIME) else name


def method_table(found: dict) -> list[dict[str, str]]:
    """One row for each method: how good its responses are, and how far from the SFT model's."""
    rows, judge = [], score_title(found)
    for method, line in found["methods"].items():
        rows.append({"method": name_of(method)})
        if line["gold"] is not None:
            rows[-1][judge] = shown(line["gold"], line["gold_ci95"])
        rows[-1]["reward"] = shown(line["reward"], line["reward_ci95"])
        for other in ("sft", "ppo"):
            rate = found["gains"].get(method, {}).get(other, {}).get("length_controlled", {"rate": None, "ci95": None})
            rows[-1][f"wins vs {LABELS[other]}, equal length"] = shown(rate["rate"], rate["ci95"], "z.0%")
        rows[-1] |= {
            "ROUGE-L": shown(line["rougeL"], line["rougeL_ci95"], "z.3f"),
            f"KL to SFT at temperature {found['temperature']:g} (nats)": shown(line["kl_to_sft"]),
            "entropy (nats/token)": shown(line["entropy"]),
            "distinct-2": shown(line["distinct_2"], spec="z.3f"),
            "EOS rate": shown(line["eos_rate"]),
            "tokens": shown(line["mean_tokens"], spec="z.1f"),
        }
    return rows


def cost_table(found: dict) -> list[dict[str, str]]:
    """One row for each method: what its training took, and each of its responses."""
    rows = []
    for method, line in found["methods"].items():
        if method != "sft":
            peak = line["peak_bytes"]
            rows.append({"method": name_of(method), "responses sampled in training": f"{line['responses']:,}"})
            rows[-1]["training, s"] = shown(line["seconds"], spec="z.0f")
            rows[-1]["peak memory, GB"] = shown(peak and peak / 1e9, spec="z.1f")
            rows[-1]["samples per response"] = f"{line['draws']}"
    return rows


def seed_table(merged: dict) -> list[dict[str, str]]:
    """One row for each method of runs merged over their seeds (`evaluation.seeds.merge_runs`): the judge's score, and
    against PPO the difference and the win rate."""
    rows, judge = [], score_title(merged)
    for method, figures in merged["alternatives"].items():
        rows.append({"method": name_of(method)})
        for name, title, spec in (
            ("gold", judge, "z.2f"),
            ("gain", f"{judge if 'gold' in figures else 'reward'} − PPO's", "+z.2f"),
            ("win_rate", "wins vs PPO", "z.0%"),
        ):
            found = figures.get(name)
            if name in figures or any(name in other for other in merged["alternatives"].values()):
                rows[-1][title] = shown(found["mean"], found["ci95"], spec) if found else shown(None)
        gain = figures.get("gain")
        rows[-1]["by seed"] = ", ".join(shown(value, None, "+z.2f") for value in gain["by_seed"]) if gain else ""
    return rows


def seed_sentences(merged: dict) -> list[str]:
    """Each method against PPO over the seeds, by whether its interval excludes no difference."""
    verdicts: dict[str, list[str]] = {"better than PPO": [], "worse than PPO": [], "not shown to differ from PPO": []}
    for method, figures in merged["alternatives"].items():
        if found := figures.get("gain"):
            low, high = found["ci95"]
            verdict = "better than PPO" if low > 0 else "worse than PPO" if high < 0 else "not shown to differ from PPO"
            verdicts[verdict].append(f"{name_of(method)} ({shown(found['mean'], found['ci95'], '+z.2f')})")
    by = judge_name(merged, merged["judged_by"])
    told = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items() if names)
    seeds = len(merged["seeds"])
    return [f"According to {by} over {seeds} seeds, {told}. The CIs are not corrected for the number of methods."]


def method_sentences(found: dict) -> list[str]:
    """Each method against PPO, in a sentence computed from the figures, and how many of them are better or worse."""
    by, said, verdicts = judge_name(found, found["judged_by"]), [], []
    for method, gains in found["gains"].items():
        if "ppo" not in gains:
            continue
        gain, name = gains["ppo"]["judge"], name_of(method)
        low, high = gain["ci95"] or (0, 0)
        if (gain["p_holm"] or 1.0) >= 0.05:
            low = high = 0
        verdict = "better" if low > 0 else "worse" if high < 0 else "not shown to differ"
        verdicts += [verdict] * (not method.endswith(IN_TIME))
        told = {"better": f"{name} beats PPO", "worse": f"PPO beats {name}"}
        told = told.get(verdict, f"No difference between {name} and PPO is shown")
        figure = shown(gain["mean"], gain["ci95"], "+z.2f")
        p = f", Holm-adjusted p = {gain['p_holm']:.2g}" if gain["p_holm"] else ""
        said.append(f"{told} according to {by}: {figure}{p}.")
    counts = ", ".join(f"{verdicts.count(one)} {one}" for one in ("better", "worse", "not shown to differ"))
    said.append(f"Of {len(verdicts)} alternatives to PPO: {counts}.")
    budget, methods = found["budget"], found["methods"]
    for method, line in methods.items():
        if method in ALTERNATIVES and line["seconds"] > budget["seconds"]:
            times = line["seconds"] / budget["seconds"]
            said.append(f"{name_of(method)} trained {times:.1f} times as long as PPO.")
    return said
