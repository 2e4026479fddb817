"""The pictures of a run, made only from the numbers it left on disk: `draw(run, name)` writes `plots/<name>.png`."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_utils.evaluation import LABELS
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.report import findings
from rlhf_utils.report.findings import NotMeasured, curve, read_metrics, read_object, shown
from rlhf_utils.report.style import COLORS, NEUTRAL, PERCENT, PLOTS, SECOND, bars, categories, dots, plot, save

ERRORS = "Error bars show the 95% CI."
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
SCORES = {"reward": "reward (what PPO optimizes)", "gold": "gold score (held-out judge)"}


def draw(run: Path, name: str) -> Path:
    """Draw the picture `name` and return its path. Raises InputError for an unknown name, and NotMeasured where the run
    has no such figures, naming the notebook that makes them."""
    if name not in PLOTS:
        raise InputError(f"there is no plot called {name}: choose one of {', '.join(PLOTS)}")
    title, drawn = PLOTS[name]
    about = f" Run: {findings.run_caption(run)}."
    return save(run / "plots" / f"{name}.png", title, lambda figure: drawn(run, figure) + about)


@plot("01_sft_full_vs_qlora", "Full fine-tuning compared with low-rank adapters")
def full_vs_qlora(run: Path, figure: Figure) -> str:
    """Training and held-out loss of both, and bars for ROUGE-L, trainable parameters, memory and time."""
    logs = {stage: read_metrics(run, stage) for stage in ("sft", "sft_qlora")}
    colors, method = [COLORS[stage] for stage in logs], logs["sft_qlora"][1]["method"]
    names = ["full", "LoRA" if method.startswith("LoRA") else "QLoRA"]
    panels = {
        "rougeL": ("ROUGE-L (F1)", 1, ".3f"),
        "trainable_parameters": ("trained weights (M)", 1e6, ".2f"),
        "peak_memory_bytes": ("peak memory (GB)", 1e9, ".2f"),
        "seconds": ("training time (s)", 1, ",.0f"),
    }
    layout = [["loss", *row] for row in np.reshape([*panels], (2, 2))]
    axes = figure.subplot_mosaic(layout, width_ratios=(2.7, 1, 1))
    for (lines, _), name, color in zip(logs.values(), names, colors, strict=True):
        training, held_out = curve(lines, "step", "loss"), curve(lines, "step", "eval_loss")
        label = f"{name} {held_out.iloc[-1]:.3f}" if len(held_out) else name
        axes["loss"].plot(training, color=color, linewidth=1, alpha=0.55)
        axes["loss"].plot(held_out, color=color, marker="o", markersize=4, label=label)
    axes["loss"].set(xlabel="optimizer step", ylabel="loss on the response (nats per token)")
    axes["loss"].legend(loc="upper right", labelcolor="linecolor", title="held-out loss", alignment="right")
    for key, (title, unit, spec) in panels.items():
        values = [(closing.get(key) or 0) / unit for _, closing in logs.values()]
        bars(axes[key], (0, 1), values, (None, None), [format(v, spec) if v else "n/a" for v in values], color=colors)
        categories(axes[key], names)
        axes[key].set(xlim=(-0.6, 1.6), ylim=(0, 1.22 * max(values) or 1), yticks=[])
        axes[key].spines["left"].set_visible(False)
        axes[key].set_title(title, fontsize=9, weight="normal")
    return f"Same data and budget; the second by {method}. Thin: training loss; dots: held-out loss."


@plot("02_reward_margins", "Reward model: margins and calibration")
def margins(run: Path, figure: Figure) -> str:
    """Histogram of r(chosen) - r(rejected), and predicted against observed accuracy."""
    result, color = read_object(run, "reward_model"), COLORS["reward"]
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    values = np.asarray(result["margins"])
    # Bins that meet at zero, for the bulk of the margins; no more than 200 where a few lie far out.
    width = max(np.ptp(np.quantile(values, (0.01, 0.99))) / 30, np.ptp(values) / 198, 1e-6)
    edges = np.arange(np.floor(values.min() / width), np.ceil(values.max() / width) + 2) * width
    left.hist([values[values < 0], values[values >= 0]], edges, stacked=True, color=(COLORS["gold"], color))
    left.axvline(0, color="black", linewidth=1)
    left.set(title=f"margins: {np.mean(values < 0):.1%} wrong", xlabel="r(chosen) − r(rejected)", ylabel="pairs")

    bins, error = pd.DataFrame(result["calibration"]["bins"]), result["calibration"]["expected_calibration_error"]
    right.axline((0.5, 0.5), slope=1, **NEUTRAL)
    dots(right, bins["predicted"], bins["accuracy"], bins["accuracy_ci95"], color, fmt="none", elinewidth=1.4)
    size = 12 + 90 * bins["count"] / bins["count"].max()
    right.scatter(bins["predicted"], bins["accuracy"], s=size, color=color, zorder=3)
    right.xaxis.set_major_formatter(PERCENT)
    right.yaxis.set_major_formatter(PERCENT)
    right.set(title=f"calibration: ECE {error:.3f}", xlim=(0.49, 1.01))
    right.set(xlabel="predicted: sigmoid of |margin|", ylabel="observed accuracy (dot area: pairs)")
    return f"Right: accuracy against what the margin predicts. Dashed: perfect calibration. {ERRORS}"


@plot("02_reward_model_accuracy", "Reward model accuracy")
def accuracy(run: Path, figure: Figure) -> str:
    """Accuracy on held-out rows of the trained model, a randomly initialized head and response length alone."""
    result = read_object(run, "reward_model")
    found = findings.accuracies(result)
    figure.set_figheight(3.4)
    axes, values, ends = figure.add_subplot(), *zip(*found.values(), strict=True)
    texts, colors = [shown(*figures, "z.1%") for figures in found.values()], [COLORS["pale"]] * len(found)
    bars(axes, range(len(found)), values, ends, texts, lying=True, color=[COLORS["reward"], *colors[1:]])
    axes.axvline(0.5, **NEUTRAL)
    categories(axes, list(found), "y")
    axes.set(xlim=(0, 1.36), xticks=np.linspace(0, 1, 5))
    axes.xaxis.set_major_formatter(PERCENT)
    return f"Accuracy on {result['pairs']:,} held-out {result['of']}; dashed: chance. {ERRORS}"


@plot("03_ppo_training", "PPO training")
def ppo(run: Path, figure: Figure) -> str:
    """Small multiples against update, one panel for each thing that can go wrong."""
    lines, _ = read_metrics(run, "ppo")
    judge = {"gold judge\n(not trained on)": ("gold",)} if len(curve(lines, "update", "gold")) else None
    panels = {
        "reward\n(dashed: optimized)": ("reward", "objective"),
        **(judge or {"explained variance\nof the returns": ("explained_variance",)}),
        "KL, nats per response\n(dashed: k3)": ("kl", "kl_k3"),
        "entropy,\nnats per token": ("entropy",),
        "policy loss\n(dashed: value loss)": ("policy_loss", "value_loss"),
        "clip fraction\n(dashed: value)": ("clip_fraction", "value_clip_fraction"),
        "EOS rate": ("eos_rate",),
        "response length,\ntokens": ("response_tokens",),
    }
    figure.set_figheight(5.6)
    all_axes = figure.subplots(2, 4, sharex=True).ravel()
    for axes, (title, keys) in zip(all_axes, panels.items(), strict=True):
        _against_update(axes, lines, title, keys)
        if keys[0] not in SCORES:
            axes.axhline(0, linewidth=0)  # from 0
    # The 95% CI of an update's mean reward; `episodes` is a running total.
    found = lines[["update", "reward", "reward_std", "episodes"]].astype(float).dropna()
    half = 1.96 * found["reward_std"] / np.sqrt(np.diff(found["episodes"], prepend=0).clip(1))
    band = found["update"], found["reward"] - half, found["reward"] + half
    all_axes[0].fill_between(*band, color=COLORS["ppo"], alpha=0.2, linewidth=0)
    reward, kl = (" → ".join(shown(lines[key].iloc[at]) for at in (0, -1)) for key in ("reward", "kl"))
    return f"{len(lines)} updates. Reward {reward}. KL {kl} nats per response."


def _against_update(axes: Axes, lines: pd.DataFrame, title: str, keys: Collection[str]) -> None:
    """One or two figures against update, the second one thin and dashed."""
    axes.set_title(title, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    # A line of one update would be invisible.
    solid = {"color": COLORS["ppo"]} | ({"marker": "o", "markersize": 3} if len(lines) < 30 else {})
    for key, look in zip(keys, (solid, SECOND), strict=False):
        axes.plot(curve(lines, "update", key), **look)
    if axes.get_subplotspec().is_last_row():
        axes.set_xlabel("update")


@plot("04_overoptimisation", "What overoptimization looks like")
def overoptimization(run: Path, figure: Figure) -> str:
    """Reward by the weak reward model, and the gold score of the same responses, update by update."""
    found = read_object(run, "overoptimise")
    figure.set_figheight(3.9)
    for axes, key in _by_score(figure, found["curve"]):
        _against_update(axes, pd.DataFrame(found["curve"]), SCORES[key], [key])
    return f"PPO against a weak reward model, trained on {found['pairs']} pairs, with almost no KL penalty."


def _by_score(figure: Figure, measured: Collection[dict]) -> Iterator[tuple[Axes, str]]:
    """A panel for reward, and one for gold where the recipe has a judge."""
    keys = [key for key in SCORES if any(found[key] is not None for found in measured)]
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        axes.set_title(SCORES[key])
        axes.margins(x=0.12, y=0.12)
        yield axes, key


@plot("04_reward_comparison", "Reward and gold score")
def rewards(run: Path, figure: Figure) -> str:
    """Mean reward and mean gold score of each model with intervals, side by side."""
    summary = read_object(run, "summary")
    models = summary["models"]
    for axes, key in _by_score(figure, models.values()):
        for place, (name, found) in enumerate(models.items()):
            dots(axes, [place], [found[key]], [found[f"{key}_ci95"]], COLORS[name])
            axes.annotate(shown(found[key]), (place, found[key]), (8, 0), textcoords="offset points", va="center")
        categories(axes, [LABELS[name].replace(" (", "\n(") for name in models])
        axes.set(ylabel=f"mean {key}, on its own scale", xlim=(-0.5, len(models) - 0.25))
    hint = ("This recipe has no gold judge.", "Reward that rises without gold is reward hacking.")[len(figure.axes) - 1]
    return f"Means on {summary['prompts']:,} held-out prompts. {ERRORS} {hint}"


@plot("04_reward_kl_frontier", "Reward against KL")
def frontier(run: Path, figure: Figure) -> str:
    """Reward and gold against the distance from SFT, checkpoint by checkpoint, with the chosen one marked."""
    content = read_object(run, "frontier")
    chosen, best = content["chosen_update"], content["best_of_n"]
    points = sorted(content["points"], key=lambda point: point["update"])
    # A cluster of late checkpoints lies above the chosen one, and the path above SFT.
    labeled = {0: (8, -13), points[-1]["update"]: (-14, 8), chosen: (8, -13)}
    for axes, key in _by_score(figure, points):
        for line, color, style in ((best, COLORS["muted"], "s--"), (points, COLORS[key], "o-")):
            kl, values, ends = ([point[name] for point in line] for name in ("kl_to_sft", key, f"{key}_ci95"))
            dots(axes, kl, values, ends, color, fmt=style, markersize=5, elinewidth=1.3, linewidth=1.3)
        for point in best[1:]:  # the best of one is the SFT model
            look = {"fontsize": 7.5, "color": COLORS["muted"], "textcoords": "offset points"}
            axes.annotate(point["n"], (point["kl_to_sft"], point[key]), (4, -9), **look)
        for point in points:
            at, update = (point["kl_to_sft"], point[key]), point["update"]
            if update in labeled:
                axes.annotate(f"{update or 'SFT'}", at, labeled[update], textcoords="offset points", fontsize=8.5)
            if update == chosen:
                axes.plot(*at, "o", markersize=13, fillstyle="none", color="black", mew=1.5)
        axes.set(xlabel=f"KL to SFT (nats per response) at temperature {content['kl_to_sft_temperature']:g}")
    used = "" if chosen is None else f" Ringed: update {chosen}, the one used ({content['rule']})."
    dashed = "Dashed: best of n samples of the SFT model, labeled with n."
    return f"Each point is a PPO checkpoint; SFT, the chosen and the last one are labeled. {ERRORS}{used} {dashed}"


@plot("04_rouge_comparison", "Overlap with the reference responses")
def rouge(run: Path, figure: Figure) -> str:
    """ROUGE-1/2/L of each model."""
    summary = read_object(run, "summary")
    models = {name: found for name, found in summary["models"].items() if found["rougeL"] is not None}
    if not models:
        raise NotMeasured("this recipe has no reference responses, so ROUGE has no meaning here")
    axes, width = figure.add_subplot(), 0.84 / len(models)
    for index, (name, found) in enumerate(models.items()):
        values, intervals = [found[key] for key in ROUGE], [found.get(f"{key}_ci95") for key in ROUGE]
        places = np.arange(len(ROUGE)) + (index - (len(models) - 1) / 2) * width
        look = {"width": width * 0.9, "color": COLORS[name], "label": LABELS[name]}
        bars(axes, places, values, intervals, [f"{value:.2f}" for value in values], **look)
    categories(axes, list(ROUGE.values()))
    axes.set(ylim=(0, axes.get_ylim()[1] * 1.06), ylabel="F1")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(models), handlelength=1, handleheight=1)
    return f"Mean F1 against the reference response on {summary['prompts']:,} held-out prompts. {ERRORS}"


@plot("04_win_rate", "Win rate, prompt by prompt")
def win_rate(run: Path, figure: Figure) -> str:
    """The win rate by the run's judge with its interval, against one half."""
    found, names = read_object(run, "summary")["win_rate"], []
    figure.set_figheight(2.6 + 0.3 * len(found))
    axes = figure.add_subplot()
    for place, (name, result) in enumerate(found.items()):
        dots(axes, [result["rate"]], [place], [result["ci95"]], COLORS["ppo"], axis="x", clip_on=False)
        counted = "{wins} won, {ties} tied, {losses} lost: {rate:.2f}".format_map(result)
        names.append(f"{findings.versus(name)} by {findings.JUDGES[result['judged_by']]}\n{counted}")
    axes.axvline(0.5, **NEUTRAL)
    categories(axes, names, "y")
    axes.set(xlim=(0, 1), xlabel="win rate of PPO, ties counted half")
    axes.xaxis.set_major_formatter(PERCENT)
    return f"The judge is named on the left; dashed: no difference. {ERRORS}"
