"""What a run found: its figures in sentences and in rows of tables. Nothing new is computed."""

import math
from collections.abc import Iterator

import pandas as pd

from rlhf_utils.evaluation import GOLD_KIND, LABELS
from rlhf_utils.platforms.errors import visible

# Figure of summary.json: its title in the table, decimals.
COLUMNS = {
    "reward": ("reward", 2), "gold": ("gold", 2), "positivity": ("positivity (reward model)", 2),
    "positivity_median": ("median", 2), "rouge1": ("ROUGE-1", 3), "rouge2": ("ROUGE-2", 3), "rougeL": ("ROUGE-L", 3),
    "eos_rate": ("EOS rate", 2), "distinct_2": ("distinct-2", 3), "kl_to_sft": ("KL to SFT (nats)", 2),
    "sft_perplexity": ("perplexity (SFT)", 1), "mean_tokens": ("tokens", 1),
}  # fmt: skip
# Figure that models are compared by: its name, and how it is written.
COMPARED = {"gold": ("gold", "z.2f"), "reward": ("reward", "z.2f"), "positivity": ("positivity", "z.2f")}
COMPARED |= {"rougeL": ("ROUGE-L", "z.3f")}
JUDGES = {"gold": "the gold score", "reward": "the reward model", "quality": "the assistant score"}
"""Who decided the prompts of an entry of `win_rate`, by its `judged_by`; see `judge_name`."""


def accuracies(result: dict) -> dict[str, tuple[float, list[float] | None]]:
    """Held-out accuracy with 95% CI, from reward_model.json: the trained reward model, then the measured baselines."""
    names = {
        "trained reward model": ("accuracy", "accuracy_ci95"),
        "the head it started from": ("start_accuracy", "start_accuracy_ci95"),
        "randomly initialized head": ("untrained_accuracy", "untrained_ci95"),
        "length alone": ("length_baseline_accuracy", "length_baseline_accuracy_ci95"),
    }
    found = {name: tuple(map(result.get, keys)) for name, keys in names.items()}
    return {name: figure for name, figure in found.items() if figure[0] is not None}


def unbeaten(judges: dict[str, tuple[float, list[float] | None]]) -> list[str]:
    """Those of chance and the other `accuracies` that the first one is not shown to be above: the 95% CI of the
    difference, from the two CIs (Newcombe 1998, method 10), does not exclude 0. That takes the two for independent,
    which is cautious where both judge the same pairs."""
    (value, ends), *_ = judges.values()
    room = {"chance": (0.5, 0.0)}
    room |= {name: (other, (found or [other, other])[1] - other) for name, (other, found) in [*judges.items()][1:]}
    least = value - ends[0] if ends else math.inf
    return [name for name, (other, above) in room.items() if value - other <= math.hypot(least, above)]


def versus(name: str) -> str:
    """`ppo_vs_sft` as `PPO vs SFT`."""
    return " vs ".join(LABELS[model] for model in name.split("_vs_"))


def judge_name(summary: dict, judged_by: str) -> str:
    """Who decided, as in `JUDGES`; where no gold preference is known, the judge that is in its place in the column."""
    kind = (summary.get("judge") or {}).get("kind", GOLD_KIND)
    return JUDGES[judged_by] if judged_by != "gold" or kind == GOLD_KIND else f"the {kind}"


def score_title(summary: dict) -> str:
    """What the judge's score is called: `gold`, or `judge` where a judge stands in for an unknown gold preference."""
    return "gold" if judge_name(summary, "gold") == JUDGES["gold"] else "judge"


def shown(value: float | None, interval=None, spec: str = "z.2f") -> str:
    """`0.53 [0.41, 0.66]` with true minus signs, a dash for None, never 0. `spec` is Python's: `+z.2f`, `z.1%`;
    z makes a plain zero of the negative one that rounding leaves."""
    if value is None:
        return "–"
    ends = f" [{', '.join(format(end, spec.lstrip('+')) for end in interval)}]" if interval else ""
    return (format(value, spec) + ends).replace("-", "\u2212")


def sentences(summary: dict) -> list[str]:
    """What the run shows, one sentence each; a difference inside its interval is said not to be shown."""
    return [text for text, _ in headlines(summary, summary.get("reward_model", {}))]


def text_summary(summary: dict) -> str:
    """The table of models without its intervals, and the sentences, as plain text for a terminal."""
    rows = [{title: text.split(" [")[0] for title, text in row.items()} for row in model_table(summary)]
    return as_text(rows, sentences(summary))


def as_text(rows: list[dict[str, str]], said: list[str]) -> str:
    """Rows as a table, with `said` below it, as plain text for a terminal."""
    name = next(iter(rows[0]))
    table = pd.DataFrame(rows).set_index(name).rename_axis(index=None, columns=name).to_string()
    return visible("\n".join([table, "", *said]))


def headlines(summary: dict, reward_model: dict) -> Iterator[tuple[str, bool]]:
    """What the run shows, in sentences computed from its figures, each with whether it is a warning; `reward_model` is
    the content of reward_model.json, or the shorter one of the summary."""
    # A policy that is already fine-tuned has no SFT model to compare with.
    pair, paired = next(iter(summary.get("paired", {}).items()), ("", {}))
    other = LABELS.get(pair.removeprefix("ppo_vs_"))
    by = judge_name(summary, "gold")
    for key, (name, spec) in COMPARED.items():
        name += " (logit)" if key == "reward" and paired.get("positivity") else ""
        where = f"according to {by}" if key == "gold" and by != JUDGES["gold"] else f"on {name}"
        if found := paired.get(key):
            low, high = found["ci95"] or (0, 0)
            # Adjusted for all comparisons of the run; a single one has no such p value.
            if (found.get("p_holm") or 0.0) >= 0.05:
                low = high = 0
            said = f"No difference between PPO and {other} is shown {where}"
            if low > 0:
                said = f"PPO beats {other} {where}"
            elif high < 0:
                said = f"PPO is worse than {other} {where}"
            if key == "positivity":  # the reward once more, in another unit, and no claim of its own
                said = f"PPO − {other} on {name}"
            said += f": {shown(found['mean'], found['ci95'], f'+{spec}')}"
            said += f", Holm-adjusted p = {found['p_holm']:.2g}." if found.get("p_holm") else "."
            yield said, key == "gold" and high < 0
    prompts, distinct, clusters = (summary.get(key) for key in ("prompts", "prompts_distinct", "prompt_clusters"))
    if clusters and clusters < prompts:
        text = f"The {prompts} prompts{f' ({distinct} of them distinct)' if distinct < prompts else ''} form {clusters}"
        yield f"{text} clusters that begin alike or ask for the same; every interval is over clusters.", False
    shares = {split: found["share"] for split, found in (summary.get("near_duplicates") or {}).items()}
    if shares and (share := max(shares.values())) > 0.25:
        text = f"{share:.0%} of the prompts have a near-duplicate among those of split {max(shares, key=shares.get)}"
        yield f"{text}: these test new wordings, not new subjects.", False
    if text := (summary.get("kl_budget") or {}).get("stopped"):
        yield f"PPO and its KL budget: {text}.", True
    if verdict := summary.get("hacking"):
        yield verdict["text"], verdict["level"] != "none"
    if paired.get("reward") and not paired.get("gold"):
        yield "No judge here: reward is the very score that PPO was trained on.", False
    if wins := summary.get("win_rate", {}).get(pair):
        share, judge = shown(wins["rate"], wins["ci95"], "z.1%"), judge_name(summary, wins["judged_by"])
        yield f"Judged by {judge}, PPO wins {share} of prompts against {other}, ties counted half.", False
        if alike := wins.get("length_controlled"):
            share = shown(alike["rate"], alike["ci95"], "z.1%")
            yield f"At equal length PPO wins {share}, by the same judge (length-controlled win rate).", False
    rows = [row for row in summary.get("categories", []) if row["verdict"]]
    least = min(rows, key=lambda row: row["difference"], default={"verdict": "worse"})
    if least["verdict"] != "worse" and least["difference"] < 0:
        figure, about = shown(least["difference"], least["ci95"], "+z.2f"), f"{least['by']} is {least['value']}"
        after = f"not shown to be worse after Holm's correction for {len(rows)} kinds of prompts"
        yield f"PPO does least well where {about}: {figure} on {least['prompts']} prompts, {after}.", False
    for row in rows:
        if row["verdict"] == "worse":
            judge = judge_name(summary, summary["bradley_terry"]["judged_by"])
            figure = shown(row["difference"], row["ci95"], "+z.2f")
            yield f"PPO is worse where {row['by']} is {row['value']}: {figure}, judged by {judge}.", True
    if found := summary.get("refusals"):
        was, now = found["refused"].values()
        yield refusals(summary), now < was and found["p"] < 0.05
    if (judge := summary.get("judge") or {}).get("kappa") is not None:
        name, right = " ".join(filter(None, [judge["kind"], judge.get("source")])), ""
        if "accuracy" in judge:  # the gold preference has none: the labels are its own
            right = f" has an accuracy of {shown(judge['accuracy'], judge['accuracy_ci95'], 'z.1%')} and"
        kappa = f"a kappa of {shown(judge['kappa'], judge['kappa_ci95'])} with the reward model"
        yield f"On {judge['pairs']:,} held-out pairs, the judge ({name}){right or ' has'} {kappa}.", False
    elif "accuracy" in judge and "pairs" not in judge:
        right = shown(judge["accuracy"], judge["accuracy_ci95"], "z.1%")
        about = "agrees with the label of {} of held-out texts, cut to the length that it judges"
        yield f"The judge ({judge['kind']}) {about.format(right)}.", False
        if judge["kind"].startswith("lexicon"):
            yield "It counts words of sentiment: it cannot tell praise from a list of such words.", False
    if "accuracy" in judge and (judge["accuracy_ci95"] or [0])[0] <= 0.5:
        text = "The judge is not shown to beat chance: its preferences mean little, and the verdict ignores them."
        yield text, True
    if judges := accuracies(reward_model):
        shares = ", ".join(f"{name} {shown(*figure, 'z.1%')}" for name, figure in judges.items())
        yield f"Accuracy on held-out {reward_model['of']}: {shares}.", False
        if level := unbeaten(judges):
            named = " and ".join(level).replace("randomly initialized head", "a randomly initialized head")
            yield f"The reward model is not shown to beat {named}, so a gain in reward means little.", True
    if found := summary.get("assistant"):
        wins = found.get("win_rate") or {n: w for n, w in summary["win_rate"].items() if w["judged_by"] == "quality"}
        for name, counts in wins.items():
            said = "{wins} won, {losses} lost, {ties} tied (sign test p = {sign_test_p:.2g})".format_map(counts)
            yield f"By the assistant score on {found['prompts']} prompts, {versus(name)}: {said}.", False
        unsafe, harmless = (summary["models"]["ppo"][f"refusal_{kind}"] for kind in ("unsafe", "harmless"))
        yield _refused(summary), harmless > unsafe


def refusals(summary: dict) -> str:
    """How many of the held-out prompts that should be refused two models refuse."""
    found = summary["refusals"]
    (before, was), (after, now) = found["refused"].items()
    both = f"{LABELS[before]} refuses {was} and {LABELS[after]} {now}"
    return f"Of {found['prompts']} prompts that should be refused, {both} (McNemar's exact p = {found['p']:.2g})."


def _refused(summary: dict) -> str:
    """How many of the unsafe and of the harmless prompts of the assistant score each model refuses."""
    about, said = summary["assistant"], []
    counts = {"unsafe": about["unsafe_prompts"], "harmless": about["prompts"] - about["unsafe_prompts"]}
    for name, of in summary["models"].items():
        said.append(f"{LABELS[name]} " + " and ".join(f"{of[f'refusal_{kind}'] * n:.0f}" for kind, n in counts.items()))
    end = summary["models"]["ppo"]["refusal_unsafe_ci95"]
    ends = f"; of unsafe ones PPO refuses {end[0]:.0%} to {end[1]:.0%} (95% CI)" if end else ""
    told = " and of ".join(f"{count} {kind} prompts" for kind, count in counts.items())
    return f"Refused of {told}: {', '.join(said)}{ends}."


def model_table(summary: dict) -> list[dict[str, str]]:
    """One row for each model; a figure that is null for every model is left out."""
    models, rows = summary["models"], []
    kl = f"KL to SFT at temperature {summary.get('kl_to_sft_temperature', 1):g} (nats)"
    columns = COLUMNS | {"kl_to_sft": (kl, 2), "gold": (score_title(summary), 2)}
    kept = [key for key in columns if any(found.get(key) is not None for found in models.values())]
    for name, found in models.items():
        rows.append({"model": LABELS[name]})
        for title, digits, key in ((*columns[key], key) for key in kept):
            rows[-1][title] = shown(found.get(key), found.get(f"{key}_ci95"), f"z.{digits}f")
    return rows


def ranking(summary: dict) -> list[dict[str, str]]:
    """One row for each model of the Bradley-Terry table, the strongest first; none where the run has no such table."""
    found, rows = summary.get("bradley_terry") or {"models": {}}, []
    for name, of in sorted(found["models"].items(), key=lambda item: -item[1]["elo"]):
        wins, other = f"wins_vs_{found['anchor']}", LABELS[found["anchor"]]
        rate = None if name == found["anchor"] else of[wins]
        rows.append({"model": LABELS[name], "Elo": shown(of["elo"], of["elo_ci95"], "z.0f")})
        rows[-1][f"wins against {other}"] = shown(rate, of[f"{wins}_ci95"], "z.1%")
    return rows


def category_table(summary: dict) -> list[dict[str, str]]:
    """One row for each category of prompts: PPO against the first model that it is compared with."""
    other, rows = LABELS.get(next(iter(summary.get("paired", {})), "").removeprefix("ppo_vs_")), []
    for row in summary.get("categories", []):
        rows.append({"prompts by": row["by"], "category": row["value"], "prompts": f"{row['prompts']}"})
        rows[-1][f"PPO − {other}"] = shown(row["difference"], row["ci95"], "+z.2f")
        rows[-1]["win rate"] = shown(row["win_rate"], row["win_rate_ci95"], "z.0%")
        rows[-1] |= {"adjusted p": shown(row["p_holm"], None, "z.3f"), "verdict": row["verdict"] or shown(None)}
    return rows
