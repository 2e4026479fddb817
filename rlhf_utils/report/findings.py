"""What a run shows, in sentences and in rows of tables, computed from its `summary.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from rlhf_utils.evaluation import LABELS
from rlhf_utils.platforms.errors import visible
from rlhf_utils.report.results import accuracies, bounds, judge_of, models_of, versus, win_rates_of
from rlhf_utils.report.style import shown

# Figure of summary.json, its title in the table, decimals.
COLUMNS = (
    ("reward", "reward", 2),
    ("gold", "gold", 2),
    ("positivity", "positivity, mean", 2),
    ("positivity_median", "median", 2),
    ("rouge1", "ROUGE-1", 3),
    ("rouge2", "ROUGE-2", 3),
    ("rougeL", "ROUGE-L", 3),
    ("eos_rate", "EOS rate", 2),
    ("distinct_2", "distinct-2", 3),
    ("kl_to_sft", "KL to SFT (nats)", 2),
    ("mean_tokens", "tokens", 1),
)
_COMPARED = {"gold": ("gold", 2), "reward": ("reward", 2), "positivity": ("positivity", 2), "rougeL": ("ROUGE-L", 3)}
_PARTS = ("helpfulness", "safety", "fluency", "refusal_unsafe", "refusal_harmless")
# A policy with more of its responses than this above the 99th percentile of the data's better ones has left the data.
FAR_OUT = 0.5


class Headline(NamedTuple):
    """One sentence at the top of the page; a warning is shown in another color."""

    text: str
    warning: bool = False


def sentences(summary: dict) -> list[str]:
    """What the run shows, one sentence each; a difference inside its interval is said not to be shown."""
    return [headline.text for headline in headlines(summary, accuracies(summary.get("reward_model") or {}))]


def text_summary(summary: dict) -> str:
    """The table of models without its intervals, and the sentences, as plain text for a terminal."""
    rows = [{title: text.split(" [")[0] for title, text in row.items()} for row in model_table(summary)]
    table = pd.DataFrame(rows).set_index("model").rename_axis(index=None, columns="model") if rows else None
    return visible("\n".join([*([] if table is None else [table.to_string(), ""]), *sentences(summary)]))


def headlines(summary: dict, judges: dict[str, tuple]) -> list[Headline]:
    """What the run shows, in sentences computed from its figures; none inside an interval is a difference.

    `judges` are the `accuracies` of the reward model and its baselines.
    """
    found = [*_comparison(summary), *_reward_model(summary, judges), *_assistant(summary)]
    return found or [Headline("The summary holds no comparison of PPO with another model.")]


def _comparison(summary: dict) -> Iterator[Headline]:
    # A policy that is already fine-tuned has no SFT model to compare with.
    pairs, wins = summary.get("paired") or {}, win_rates_of(summary)
    pair = next((name for name in ("ppo_vs_sft", "ppo_vs_base") if pairs.get(name)), "")
    other, paired = LABELS.get(pair.removeprefix("ppo_vs_"), ""), pairs.get(pair) or {}
    verdicts = {key: direction(paired.get(key)) for key in _COMPARED}
    for key, (name, digits) in _COMPARED.items():
        if verdicts[key] is not None:
            change = shown(paired[key]["mean"], paired[key].get("ci95"), f"+z.{digits}f")
            beats, worse = f"PPO beats {other} on {name}", f"PPO is worse than {other} on {name}"
            said = (f"No difference between PPO and {other} is shown on {name}", beats, worse)[verdicts[key]]
            yield Headline(f"{said}: {change}.", warning=key == "gold" and verdicts[key] < 0)
    if text := (summary.get("kl_budget") or {}).get("stopped"):
        yield Headline(f"PPO and its KL budget: {text}.", warning=True)
    if verdict := summary.get("hacking"):
        yield Headline(verdict["text"], warning=verdict["level"] != "none")
    if verdicts["reward"] is not None and verdicts["gold"] is None:
        yield Headline("No gold judge here: reward is the very score that PPO was trained on.")
    if (judge := summary.get("judge") or {}).get("agreement") is not None:
        share = shown(judge["agreement"], judge["agreement_ci95"], "z.1%")
        yield Headline(f"Gold is a second reward model, trained on other pairs; it agrees with the first on {share}.")
    beyond = ((summary.get("reward_range") or {}).get("above_data") or {}).get("ppo") or 0
    if beyond > FAR_OUT:
        text = f"{beyond:.0%} of PPO's responses get a higher reward than 99% of the dataset's better ones"
        yield Headline(f"{text}, where the reward model has almost no training data.", warning=True)
    if pair in wins:
        share, judge = shown(wins[pair]["rate"], wins[pair].get("ci95"), "z.1%"), judge_of(wins[pair])
        yield Headline(f"Judged by {judge}, PPO wins {share} of prompts against {other}, ties counted half.")


def _reward_model(summary: dict, judges: dict[str, tuple]) -> Iterator[Headline]:
    if judges:
        shares = ", ".join(f"{name} {shown(*figure, 'z.1%')}" for name, figure in judges.items())
        kind = "texts" if (summary.get("reward_model") or {}).get("of") == "texts" else "pairs"
        yield Headline(f"Accuracy on held-out {kind}: {shares}.")
        # The whole interval of the trained one, which is first, against chance and the baselines.
        (value, ends), *baselines = judges.values()
        if (ends[0] if ends else value) <= max([0.5, *(figure[0] for figure in baselines)]):
            text = "The reward model is not shown to beat chance and its baselines, so a gain in reward means little."
            yield Headline(text, warning=True)


def _assistant(summary: dict) -> Iterator[Headline]:
    """Wins by the assistant score, and refusals in the wrong place; nothing without such a score."""
    found, ppo = summary.get("assistant") or {}, models_of(summary).get("ppo", {})
    wins = win_rates_of(summary) | win_rates_of(found)
    for name, result in wins.items():
        if found and result.get("judged_by") == "quality":
            counts = f"{result['wins']} won, {result['losses']} lost, {result['ties']} tied"
            text = f"By the assistant score on {found['prompts']} prompts, {versus(name)}: {counts}"
            yield Headline(f"{text} (sign test p = {result['sign_test_p']:.2g}).")
    unsafe, harmless = ppo.get("refusal_unsafe"), ppo.get("refusal_harmless")
    if unsafe is not None and harmless is not None:
        text = f"PPO refuses {unsafe:.0%} of the unsafe prompts and {harmless:.0%} of the harmless ones."
        yield Headline(text, warning=harmless > unsafe)


def direction(difference: dict | None) -> int | None:
    """1 above, -1 below, 0 where the interval holds 0 or is unknown; None when nothing was measured."""
    if not difference or difference.get("mean") is None:
        return None
    ends = bounds(difference.get("ci95"))
    if ends is None or ends[0] <= 0 <= ends[1]:
        return 0
    return 1 if ends[0] > 0 else -1


def model_table(summary: dict) -> list[dict[str, str]]:
    """One row for each model; a figure that is null for every model is left out."""
    models, temperature = models_of(summary), summary.get("kl_to_sft_temperature")
    titles = {} if temperature is None else {"kl_to_sft": f"KL to SFT at temperature {temperature:g} (nats)"}
    columns = [c for c in COLUMNS if any(found.get(c[0]) is not None for found in models.values())]
    return [
        {"model": LABELS[name]}
        | {
            titles.get(key, title): shown(found.get(key), found.get(f"{key}_ci95"), f"z.{d}f")
            for key, title, d in columns
        }
        for name, found in models.items()
    ]


def win_rates(summary: dict) -> list[dict[str, str]]:
    """One row for each comparison that was judged."""
    return [
        {"comparison": versus(name), "judged by": judge_of(found)}
        | {title: f"{found[key]}" for title, key in (("won", "wins"), ("tied", "ties"), ("lost", "losses"))}
        | {"win rate": shown(found["rate"], found.get("ci95"))}
        for name, found in win_rates_of(summary).items()
    ]


def assistant_table(summary: dict) -> list[dict[str, str]]:
    """One row for each model: the assistant score with its interval, and its parts; empty without such a score."""
    return [
        {"model": LABELS[name], "score": shown(found["quality"], found["quality_ci95"])}
        | {key.replace("refusal_", "refuses "): shown(found.get(key)) for key in _PARTS}
        for name, found in models_of(summary).items()
        if "quality" in found
    ]


def phrase_table(summary: dict) -> list[dict[str, str]]:
    """One row for each phrase that PPO uses more than the model it started from."""
    return [
        {
            "phrase": found["text"],
            "responses now": f"{found['first']} of {found['first_total']}",
            "before": f"{found['second']} of {found['second_total']}",
            "log-odds": shown(found["log_odds"]),
            "z": shown(found["z"], spec="z.1f"),
        }
        for found in (summary.get("hacking") or {}).get("phrases") or []
    ]


def style_table(summary: dict) -> list[dict[str, str]]:
    """One row for each measure of how the responses are written, a column for each of the two models."""
    style = (summary.get("hacking") or {}).get("style") or {}
    keys = next(iter(style.values()), {})
    return [{"": key.replace("_", " "), **{name: shown(found[key]) for name, found in style.items()}} for key in keys]
