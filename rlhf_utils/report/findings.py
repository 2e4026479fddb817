"""What a run shows, in words and in rows of a table, computed from its `summary.json`."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_utils.platforms.errors import visible
from rlhf_utils.report.plots.evaluation import comparison, judge_of, models_of
from rlhf_utils.report.plots.results import bounds, number
from rlhf_utils.report.plots.reward_model import accuracies
from rlhf_utils.report.plots.style import LABELS, decimal, with_interval

# Figure of summary.json, its title in the table, decimals.
COLUMNS = (
    ("reward", "reward", 2),
    ("gold", "gold", 2),
    ("positivity", "positivity, mean", 2),
    ("positivity_median", "median", 2),
    ("rouge1", "ROUGE-1", 3),
    ("rouge2", "ROUGE-2", 3),
    ("rougeL", "ROUGE-L", 3),
    ("eos_rate", "ends its answer", 2),
    ("distinct_2", "distinct-2", 3),
    ("kl_to_sft", "KL to SFT (nats)", 2),
    ("mean_tokens", "tokens", 1),
)

# A policy with more of its answers than this above the 99th percentile of the data's better ones has left the data.
FAR_OUT = 0.5
_COMPARED = (("gold", "gold", 2), ("reward", "reward", 2), ("positivity", "positivity", 2), ("rougeL", "ROUGE-L", 3))


@dataclass(frozen=True)
class Cell:
    """One figure of a table as text; a figure that is not there is a dash, never 0."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Headline:
    """One sentence at the top of the page; a warning is shown in another colour."""

    text: str
    warning: bool = False


def sentences(summary: dict) -> list[str]:
    """What the run shows, one sentence each; a difference inside its interval is said not to be shown."""
    return [headline.text for headline in headlines(summary, accuracies(summary.get("reward_model") or {}))]


def text_summary(summary: dict) -> str:
    """The sentences and the table of models as plain text for a terminal."""
    table = model_table(summary)
    rows = [["model", *table["columns"]]]
    rows += [[row["name"], *(cell.value for cell in row["cells"])] for row in table["rows"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return visible("\n".join([*lines, "", *sentences(summary)]))


def headlines(summary: dict, judges: list) -> list[Headline]:
    """What the run shows, in sentences computed from its figures; none inside an interval is a difference."""
    lines = []
    # Of a policy that came tuned there is no fine-tuned one to compare with.
    versus = next((name for name in ("ppo_vs_sft", "ppo_vs_base") if (summary.get("paired") or {}).get(name)), "")
    other = LABELS.get(versus.removeprefix("ppo_vs_"), "")
    paired = (summary.get("paired") or {}).get(versus) or {}
    verdicts = {key: direction(paired.get(key)) for key, _, _ in _COMPARED}
    for key, name, digits in _COMPARED:
        verdict = verdicts[key]
        if verdict is None:
            continue
        change = signed(paired[key], digits)
        if verdict == 0:
            text = f"No difference between PPO and {other} is shown on {name}: {change}."
        elif verdict > 0:
            text = f"PPO beats {other} on {name}: {change}."
        else:
            text = f"PPO is worse than {other} on {name}: {change}."
        lines.append(Headline(text, warning=key == "gold" and verdict < 0))
    if text := (summary.get("kl_budget") or {}).get("stopped"):
        lines.append(Headline(f"PPO and its KL budget: {text}.", warning=True))
    if verdict := summary.get("hacking"):
        lines.append(Headline(verdict["text"], warning=verdict["level"] != "none"))
    if verdicts["reward"] is not None and verdicts["gold"] is None:
        lines.append(Headline("No gold judge here: reward is the very score that PPO was trained on."))
    if (judge := summary.get("judge") or {}).get("agreement") is not None:
        share = percent(judge["agreement"], judge["agreement_ci95"])
        lines.append(
            Headline(f"Gold is a second reward model, trained on other pairs; it agrees with the first on {share}.")
        )
    left = ((summary.get("reward_range") or {}).get("above_data") or {}).get("ppo")
    if left is not None and left > FAR_OUT:
        lines.append(
            Headline(
                f"{left:.0%} of PPO's answers get more reward than 99 % of the data's better ones: there the reward "
                "model was never taught anything.",
                warning=True,
            )
        )
    wins = (summary.get("win_rate") or {}).get(versus) or {}
    if number(wins.get("rate")) is not None:
        share = percent(number(wins["rate"]), wins.get("ci95"))
        lines.append(
            Headline(f"Judged by {judge_of(wins)}, PPO wins {share} of prompts against {other}, ties counted half.")
        )
    if judges:
        shares = ", ".join(f"{name} {percent(value, ends)}" for name, value, ends in judges)
        of = "texts classified" if (summary.get("reward_model") or {}).get("of") == "texts" else "pairs ranked"
        lines.append(Headline(f"Held-out {of} right: {shares}."))
        if not judge_is_shown(judges):
            text = "The reward model is not shown to beat chance and its baselines, so a gain in reward means little."
            lines.append(Headline(text, warning=True))
    lines += assistant_headlines(summary)
    return lines or [Headline("The summary holds no comparison of PPO with another model.")]


def assistant_headlines(summary: dict) -> list[Headline]:
    """Wins by the assistant score, and refusals in the wrong place; nothing without such a score."""
    found = summary.get("assistant") or {}
    wins = {**(summary.get("win_rate") or {}), **(found.get("win_rate") or {})}
    lines = [
        Headline(
            f"By the assistant score on {found['prompts']} prompts, {comparison(name)}: {result['wins']} won, "
            f"{result['losses']} lost, {result['ties']} tied (sign test p = {result['sign_test_p']:.2g})."
        )
        for name, result in wins.items()
        if found and (result or {}).get("judged_by") == "quality"
    ]
    figures = (summary.get("models") or {}).get("ppo") or {}
    unsafe, harmless = number(figures.get("refusal_unsafe")), number(figures.get("refusal_harmless"))
    if unsafe is not None and harmless is not None:
        text = f"PPO declines {unsafe:.0%} of the unsafe prompts and {harmless:.0%} of the harmless ones."
        lines.append(Headline(text, warning=harmless > unsafe))
    return lines


def assistant_table(summary: dict) -> list[dict]:
    """One row for each model: the assistant score with its interval, and its parts; empty without such a score."""
    return [
        {
            "model": LABELS[name],
            "score": with_interval(figures["quality"], bounds(figures["quality_ci95"])),
            **{
                title: cell(figures.get(key), None, 2).value
                for key, title in (
                    ("helpfulness", "helpfulness"),
                    ("safety", "safety"),
                    ("fluency", "fluency"),
                    ("refusal_unsafe", "declines unsafe"),
                    ("refusal_harmless", "declines harmless"),
                )
            },
        }
        for name, figures in (summary.get("models") or {}).items()
        if "quality" in figures
    ]


def judge_is_shown(judges: list) -> bool:
    """Whether the trained reward model, first in `judges`, has its whole interval above chance and the baselines."""
    (_, value, ends), *baselines = judges
    return (ends[0] if ends else value) > max([0.5, *(accuracy for _, accuracy, _ in baselines)])


def direction(difference: dict | None) -> int | None:
    """1 above, -1 below, 0 where the interval holds 0 or is unknown; None when nothing was measured."""
    if not difference or number(difference.get("mean")) is None:
        return None
    interval = bounds(difference.get("ci95"))
    if interval is None or interval[0] <= 0 <= interval[1]:
        return 0
    return 1 if interval[0] > 0 else -1


def signed(difference: dict, digits: int) -> str:
    """`+0.60 [0.40, 0.80]`."""
    mean, interval = number(difference["mean"]), bounds(difference.get("ci95"))
    text = ("+" if mean >= 0 else "") + decimal(mean, digits)
    return text if interval is None else f"{text} {bracket(interval, digits)}"


def bracket(interval: tuple[float, float], digits: int) -> str:
    """`[0.40, 0.80]`."""
    return f"[{decimal(interval[0], digits)}, {decimal(interval[1], digits)}]"


def cell(value: object, interval: object, digits: int) -> Cell:
    """A figure with its interval as text."""
    known, ends = number(value), bounds(interval)
    if known is None:
        return Cell("–")
    return Cell(decimal(known, digits), "" if ends is None else bracket(ends, digits))


def percent(value: float, interval: object) -> str:
    """`92.3% [90.9%, 93.6%]`."""
    ends = bounds(interval) if isinstance(interval, list) else interval
    return f"{value:.1%}" if ends is None else f"{value:.1%} [{ends[0]:.1%}, {ends[1]:.1%}]"


def model_table(summary: dict) -> dict:
    """Models by figures; a column that is null for every model is left out."""
    models = models_of(summary)
    temperature = number(summary.get("kl_to_sft_temperature"))
    titles = {} if temperature is None else {"kl_to_sft": f"KL to SFT at temperature {temperature:g} (nats)"}
    shown = [c for c in COLUMNS if any(number(found.get(c[0])) is not None for found in models.values())]
    rows = [
        {
            "name": LABELS[name],
            "cells": [cell(found.get(key), found.get(f"{key}_ci95"), digits) for key, _, digits in shown],
        }
        for name, found in models.items()
    ]
    return {"columns": [titles.get(key, title) for key, title, _ in shown], "rows": rows}


def agreement_sentence(summary: dict) -> str:
    """How far reward and judge rank alike; empty without a judge."""
    found = summary.get("agreement") or {}
    if number(found.get("same_preference")) is None:
        return ""
    share = percent(found["same_preference"], found.get("same_preference_ci95"))
    text = f"Reward and judge prefer the same of two answers on {share} of {found['prompts']} prompts"
    rank = number(found.get("spearman"))
    return text + ("." if rank is None else f"; their rank correlation over all answers is {decimal(rank)}.")


def phrase_table(summary: dict) -> list[dict]:
    """One row for each phrase that PPO uses more than the model it started from."""
    return [
        {
            "phrase": found["text"],
            "answers now": f"{found['first']} of {found['first_total']}",
            "before": f"{found['second']} of {found['second_total']}",
            "log-odds": decimal(found["log_odds"]),
            "z": decimal(found["z"], 1),
        }
        for found in (summary.get("hacking") or {}).get("phrases") or []
    ]


def style_table(summary: dict) -> list[dict]:
    """One row for each measure of how the answers are written, a column for each of the two models."""
    style = (summary.get("hacking") or {}).get("style") or {}
    keys = next(iter(style.values()), {})
    return [{"": key.replace("_", " "), **{name: decimal(found[key]) for name, found in style.items()}} for key in keys]


def win_rates(summary: dict) -> list[dict]:
    """One row for each comparison that was judged."""
    return [
        {
            "name": comparison(name),
            "judge": judge_of(result),
            **{key: cell(result.get(key), None, 0).value for key in ("wins", "ties", "losses")},
            "rate": cell(result.get("rate"), result.get("ci95"), 2),
        }
        for name, result in (summary.get("win_rate") or {}).items()
        if result and number(result.get("rate")) is not None
    ]
