"""Curves of the trainings: full fine-tuning beside QLoRA, PPO, and PPO that is overoptimized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from rlhf_utils.report.results import curve, read_metrics, read_object
from rlhf_utils.report.style import COLORS, NothingToShow, categories, empty, plot, shown


@plot("01_sft_full_vs_qlora", "Full fine-tuning compared with low-rank adapters", trained=("sft", "sft_qlora"))
def full_vs_qlora(run: Path, figure: Figure) -> str:
    """Training and held-out loss of both, and bars for ROUGE-L, trainable parameters, memory and time."""
    logs = {stage: read_metrics(run, stage) for stage in ("sft", "sft_qlora")}
    method = logs["sft_qlora"][1].get("method") or "QLoRA"
    names = {"sft": "full", "sft_qlora": "LoRA" if method.startswith("LoRA") else "QLoRA"}
    grid = figure.add_gridspec(2, 3, width_ratios=(2.7, 1, 1))
    losses = figure.add_subplot(grid[:, 0])
    for stage, (lines, _) in logs.items():
        training, held_out = curve(lines, "step", "loss"), curve(lines, "step", "eval_loss")
        losses.plot(training.index, training, color=COLORS[stage], linewidth=1, alpha=0.55)
        last = f" {held_out.iloc[-1]:.3f}" if len(held_out) else ""
        losses.plot(held_out.index, held_out, color=COLORS[stage], marker="o", markersize=4, label=names[stage] + last)
    losses.set(xlabel="optimizer step", ylabel="loss on the response (nats per token)")
    losses.legend(loc="upper right", labelcolor="linecolor", title="held-out loss", alignment="right")
    panels = (
        ("ROUGE-L (F1)", "rougeL", "{:.3f}".format),
        ("trainable parameters", "trainable_parameters", EngFormatter(places=1, sep="")),
        ("peak memory (GB)", "peak_memory_bytes", lambda value: f"{value / 1e9:.2f}"),
        ("training time (s)", "seconds", "{:,.0f}".format),
    )
    for place, (title, key, text) in enumerate(panels):
        axes = figure.add_subplot(grid[place // 2, 1 + place % 2])
        values = [closing.get(key) for _, closing in logs.values()]
        bars = axes.bar((0, 1), [value or 0 for value in values], width=0.62, color=[COLORS[stage] for stage in logs])
        axes.bar_label(bars, ["n/a" if value is None else text(value) for value in values], padding=3, weight="bold")
        categories(axes, list(names.values()))
        axes.set(xlim=(-0.6, 1.6), ylim=(0, 1.22 * max([0, *filter(None, values)]) or 1), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_title(title, fontsize=9, weight="normal")
    return f"Same data and budget; the second by {method}. Thin: training loss; dots: held-out loss."


@plot("03_ppo_training", "PPO training", trained=("ppo",))
def ppo(run: Path, figure: Figure) -> str:
    """Small multiples against update, one panel for each thing that can go wrong."""
    lines, _ = read_metrics(run, "ppo")
    judge = ("gold judge\n(not trained on)", "gold")
    if curve(lines, "update", "gold").empty:
        judge = ("explained variance\nof the returns", "explained_variance")
    panels = (
        ("reward\n(dashed: optimized)", "reward", "objective"),
        judge,
        ("KL, nats per response\n(dashed: k3)", "kl", "kl_k3"),
        ("entropy,\nnats per token", "entropy"),
        ("policy loss\n(dashed: value loss)", "policy_loss", "value_loss"),
        ("clip fraction\n(dashed: value)", "clip_fraction", "value_clip_fraction"),
        ("EOS rate", "eos_rate"),
        ("response length,\ntokens", "response_tokens"),
    )
    figure.set_figheight(5.6)
    all_axes = figure.subplots(2, 4, sharex=True).ravel()
    for axes, (title, *keys) in zip(all_axes, panels, strict=True):
        _against_update(axes, lines, title, keys, from_zero=keys[0] not in ("reward", "gold"), ticks=4)
    _band(all_axes[0], lines)
    all_axes[6].set_ylim(0, 1.04)
    for axes in all_axes[5:7]:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in all_axes[4:]:
        axes.set_xlabel("update")
    note = f"{len(lines)} update{'s' if len(lines) > 1 else ''}."
    for name, key, unit in (("Reward", "reward", ""), ("KL to SFT", "kl", " nats per response")):
        if len(found := curve(lines, "update", key)):
            note += f" {name} {shown(found.iloc[0])} → {shown(found.iloc[-1])}{unit}."
    return note


def _band(axes: Axes, lines: pd.DataFrame) -> None:
    """The 95% CI of an update's mean reward; `episodes` is a running total."""
    found = lines.reindex(columns=["update", "reward", "reward_std", "episodes"]).astype(float).dropna()
    half = 1.96 * found["reward_std"] / np.sqrt(np.diff(found["episodes"], prepend=0).clip(1))
    low, high = found["reward"] - half, found["reward"] + half
    axes.fill_between(found["update"], low, high, color=COLORS["ppo"], alpha=0.2, linewidth=0)


@plot("04_overoptimisation", "What overoptimization looks like", measured=("overoptimise", "curve"))
def overoptimization(run: Path, figure: Figure) -> str:
    """Reward by the weak reward model, and the gold score of the same responses, update by update."""
    found = read_object(run, "overoptimise")
    if not found.get("curve"):
        raise NothingToShow("no update was recorded")
    figure.set_figheight(3.9)
    panels = (("reward (weak reward model)", "reward"), ("gold score (held-out judge)", "gold"))
    for axes, (title, key) in zip(figure.subplots(1, 2), panels, strict=True):
        _against_update(axes, pd.DataFrame(found["curve"]), title, [key], from_zero=False, ticks=6)
        axes.set_xlabel("update")
    return (
        f"PPO against a reward model trained on {found.get('pairs')} pairs, with almost no KL penalty. "
        "Left: the reward it optimizes. Right: a held-out judge of the same responses."
    )


def _against_update(axes: Axes, lines: pd.DataFrame, title: str, keys: list[str], from_zero: bool, ticks: int) -> None:
    """One or two figures against update, the second one thin and dashed."""
    axes.set_title(title, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    # A line of one update would be invisible.
    solid = {"color": COLORS["ppo"]} | ({"marker": "o", "markersize": 3} if len(lines) < 30 else {})
    dashed = {"color": COLORS["muted"], "linewidth": 1.2, "linestyle": (0, (4, 2))}
    drawn = [curve(lines, "update", key) for key in keys]
    for found, look in zip(drawn, (solid, dashed), strict=False):
        axes.plot(found.index, found, **look)
    values = pd.concat(drawn)
    if values.empty:
        empty(axes, "not logged")
    elif from_zero:
        axes.set_ylim(min(values.min(), 0) * 1.08, (max(values.max(), 0) or 0.01) * 1.08)
