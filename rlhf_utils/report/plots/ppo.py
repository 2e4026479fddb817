"""PPO training as small multiples, one panel for each thing that can go wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.report.plots.results import number, read_metrics, read_object, series
from rlhf_utils.report.plots.style import COLOURS, MUTED, decimal, empty, picture


def training(run: Path, path: Path) -> None:
    """Reward, the gold judge where there is one, KL, entropy, losses, clip fractions, share of ended answers and
    answer length against update."""
    rows = [row for row in read_metrics(run, "ppo") if not row.get("summary")]
    if not rows:
        raise InputError(f"checkpoints/ppo/metrics.jsonl of {run} holds no update: run notebook 02_ppo_training again")
    first, last = rows[0], rows[-1]
    note = f"{len(rows)} update{'s' if len(rows) > 1 else ''}." + "".join(
        f" {name} {decimal(first[key])} → {decimal(last[key])}{unit}."
        for name, key, unit in (("Reward", "reward", ""), ("KL to SFT", "kl", " nats per answer"))
        if number(first.get(key)) is not None and number(last.get(key)) is not None
    )
    judged = any(number(row.get("gold")) is not None for row in rows)
    with picture(path, run, "PPO training", note, height=5.6) as figure:
        panels = figure.subplots(2, 4, sharex=True).ravel()
        draw_reward(panels[0], rows)
        if judged:
            draw_lines(panels[1], rows, "gold judge\n(not trained on)", ("gold",), from_zero=False)
        else:
            draw_lines(panels[1], rows, "explained variance\nof the returns", ("explained_variance",))
        draw_lines(panels[2], rows, "KL, nats per answer\n(dashed: k3)", ("kl", "kl_k3"))
        draw_lines(panels[3], rows, "entropy,\nnats per token", ("entropy",))
        draw_lines(panels[4], rows, "loss of the policy\n(dashed: value)", ("policy_loss", "value_loss"))
        draw_lines(panels[5], rows, "clipped ratios\n(dashed: values)", ("clip_fraction", "value_clip_fraction"))
        draw_lines(panels[6], rows, "answers\nthat end", ("eos_rate",))
        draw_lines(panels[7], rows, "answer length,\ntokens", ("response_tokens",))
        panels[6].set_ylim(0, 1.04)
        for percent in (panels[5], panels[6]):
            percent.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axes in panels[4:]:
            axes.set_xlabel("update")
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def overoptimisation(run: Path, path: Path) -> None:
    """What PPO without restraint was paid, and what the judge thought of it, update by update."""
    found = read_object(run, "overoptimise")
    rows = found.get("curve") or []
    note = (
        f"PPO against a reward model of {found.get('pairs')} pairs with hardly any price on KL. Left what it was paid, "
    )
    note += "right what a judge thought of it that it never saw."
    with picture(path, run, "What cheating looks like", note, height=3.9) as figure:
        left, right = figure.subplots(1, 2)
        draw_lines(left, rows, "reward (weak reward model)", ("reward",), from_zero=False)
        draw_lines(right, rows, "gold judge", ("gold",), from_zero=False)
        for axes in (left, right):
            axes.set_xlabel("update")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def draw_reward(axes: Axes, rows: list[dict]) -> None:
    """Mean reward with the 95 % band of the batch mean, and the mean of what is paid for an answer, KL included."""
    axes.set_title("reward\n(dashed: optimized)", fontsize=9)
    updates, rewards = series(rows, "update", "reward")
    if not updates:
        empty(axes, "not logged")
        return
    axes.plot(updates, rewards, color=COLOURS["ppo"], **dots(rows))
    full = [
        row for row in rows if None not in (number(row.get(k)) for k in ("update", "reward", "reward_std", "episodes"))
    ]
    if full:
        at, mean, spread, episodes = (
            np.array([row[key] for row in full], dtype=float) for key in ("update", "reward", "reward_std", "episodes")
        )
        # `episodes` may be a running total: then what one update used is the step between two lines.
        per_update = np.diff(episodes, prepend=0) if episodes[-1] > episodes[0] else episodes
        half = 1.96 * spread / np.sqrt(np.maximum(per_update, 1))
        axes.fill_between(at, mean - half, mean + half, color=COLOURS["ppo"], alpha=0.2, linewidth=0)
    updates, objective = series(rows, "update", "objective")
    axes.plot(updates, objective, color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)))


def dots(rows: list[dict]) -> dict:
    """Markers while there are few updates: a line of one update would be invisible."""
    return {"marker": "o", "markersize": 3} if len(rows) < 30 else {}


def draw_lines(axes: Axes, rows: list[dict], title: str, keys: tuple[str, ...], from_zero: bool = True) -> None:
    """One or two figures against update, on an axis that holds zero unless told; the second one thin and dashed."""
    axes.set_title(title, fontsize=9)
    styles = (
        {"color": COLOURS["ppo"], **dots(rows)},
        {"color": MUTED, "linewidth": 1.2, "linestyle": (0, (4, 2))},
    )
    drawn: list[float] = []
    for key, style in zip(keys, styles, strict=False):
        updates, values = series(rows, "update", key)
        axes.plot(updates, values, **style)
        drawn += values
    if not drawn:
        empty(axes, "not logged")
        return
    if not from_zero:
        return
    top = max(max(drawn), 0.0) or 0.01
    axes.set_ylim(min(min(drawn), 0.0) * 1.08, top * 1.08)
