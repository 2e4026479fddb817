"""Full fine-tuning beside QLoRA: losses, and what each costs."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from rlhf_utils.report.plots.results import closing_line, number, read_metrics, series
from rlhf_utils.report.plots.style import COLOURS, MUTED, compact, empty, label_ends, picture

STAGES = ("sft", "sft_qlora")


def full_vs_qlora(run: Path, path: Path) -> None:
    """Training and held-out loss of both, and bars for ROUGE-L, trainable parameters, memory and time."""
    rows = {stage: read_metrics(run, stage) for stage in STAGES}
    closing = {stage: closing_line(rows[stage]) for stage in STAGES}
    method = closing["sft_qlora"].get("method") or "QLoRA"
    names = {"sft": "full", "sft_qlora": "LoRA" if method.startswith("LoRA") else "QLoRA"}
    note = f"Same data and budget; the second by {method}. Thin: training loss; dots: held-out loss."
    with picture(path, run, f"Full fine-tuning and {names['sft_qlora']}", note) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(2.7, 1, 1))
        loss = figure.add_subplot(grid[:, 0])
        draw_losses(loss, rows, names)
        panels = (
            ("ROUGE-L (F1)", "rougeL", lambda value: f"{value:.3f}"),
            ("trainable parameters", "trainable_parameters", compact),
            ("peak memory (GB)", "peak_memory_bytes", lambda value: f"{value / 1e9:.2f}"),
            ("training time (s)", "seconds", lambda value: f"{value:,.0f}"),
        )
        for place, (title, key, text) in enumerate(panels):
            axes = figure.add_subplot(grid[place // 2, 1 + place % 2])
            draw_bars(axes, {stage: number(closing[stage].get(key)) for stage in STAGES}, names, text)
            axes.set_title(title, fontsize=9, weight="normal")


def draw_losses(axes: Axes, rows: dict[str, list[dict]], names: dict[str, str]) -> None:
    """Loss against step: training thin, held-out with dots, the last held-out value written beside it."""
    ends = []
    for stage in STAGES:
        colour = COLOURS[stage]
        axes.plot(*series(rows[stage], "step", "loss"), color=colour, linewidth=1, alpha=0.55)
        steps, losses = series(rows[stage], "step", "eval_loss")
        axes.plot(steps, losses, color=colour, marker="o", markersize=4)
        if steps:
            ends.append((losses[-1], f"{names[stage]} {losses[-1]:.3f}", colour))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss on the answer (nats per token)")
    if not axes.has_data():
        empty(axes, "no losses were logged")
        return
    last = axes.dataLim.x1
    axes.set_xlim(0, last)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= last])
    axes.set_xlim(0, 1.32 * last)
    label_ends(axes, last, ends)


def draw_bars(axes: Axes, values: dict[str, float | None], names: dict[str, str], text) -> None:
    """Two upright bars from zero with their values; a missing value is said, not drawn."""
    shown = [value for value in values.values() if value is not None]
    top = max([*shown, 0.0]) or 1.0
    for place, (stage, value) in enumerate(values.items()):
        if value is not None:
            axes.bar(place, value, width=0.62, color=COLOURS[stage])
        label, colour = ("n/a", MUTED) if value is None else (text(value), COLOURS[stage])
        axes.annotate(
            label,
            (place, value or 0.0),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontsize=9,
            weight="bold",
        )
    axes.set_xlim(-0.6, 1.6)
    axes.set_ylim(0, top * 1.22)
    axes.set_xticks(range(len(values)), [names[stage] for stage in values])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=0)
