"""A run's folder with plausible made-up figures, for the tests of pictures, report and cards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from rlhf_utils.evaluation import statistics
from rlhf_utils.evaluation.rouge import Rouge
from rlhf_utils.platforms.files import write_json, write_jsonl

# Reward, gold and share of the reference's words of each model.
LEVELS = {"base": (-1.2, 2.1, 0.2), "sft": (-0.04, 4.35, 0.42), "sft_qlora": (-0.1, 4.2, 0.4), "ppo": (0.53, 5.6, 0.44)}
ADVICE = "Start with a short list, pick the two steps you can do today, and ask a friend to check in with you."


def make_run(root: Path, gold: bool = True, prompts: int = 60, seed: int = 0) -> Path:
    """Fill `root`/instruct-tiny; without `gold` every figure of the gold judge is null, as on real data."""
    run, generator = root / "instruct-tiny", np.random.default_rng(seed)
    for name in ("evaluation", "checkpoints/sft", "checkpoints/sft_qlora", "checkpoints/ppo"):
        (run / name).mkdir(parents=True, exist_ok=True)
    write_json(run / "run.json", {"recipe": "instruct", "scale": "tiny", "seed": seed, "stages": {}})
    _trainings(run / "checkpoints", generator)
    _reward_model(run / "evaluation", generator)
    _frontier(run / "evaluation", gold)
    _comparison(run / "evaluation", generator, gold, prompts, seed)
    return run


def _trainings(folder: Path, generator: np.random.Generator) -> None:
    for stage, floor, trainable, method in (
        ("sft", 1.02, 2_112_000, "full"),
        ("sft_qlora", 1.09, 147_456, "QLoRA 4-bit (nf4)"),
    ):
        steps = np.arange(10, 480, 10)
        losses = floor + 1.9 * np.exp(-steps / 60) + generator.normal(0, 0.03, len(steps))
        rows = [{"step": int(step), "loss": loss} for step, loss in zip(steps, losses, strict=True)]
        rows += [{"step": int(step), "eval_loss": floor + 0.05 + 1.9 * np.exp(-step / 60)} for step in steps[8::9]]
        closing = {"summary": True, "method": method, "trainable_parameters": trainable, "rougeL": 0.4 * floor}
        closing |= {
            "total_parameters": 2_112_000,
            "seconds": 52.3,
            "peak_memory_bytes": 1_310_000_000,
            "eos_rate": 0.99,
        }
        write_jsonl(folder / stage / "metrics.jsonl", [*rows, closing])
    rows = []
    for update in range(1, 41):
        progress = 1 - np.exp(-update / 15)
        reward = -0.04 + 0.57 * progress + generator.normal(0, 0.04)
        row = {"update": update, "episodes": 128 * update, "reward": reward, "reward_std": 0.9, "kl": 2.1 * progress}
        row |= {"kl_k3": 2.18 * progress, "objective": reward - 0.21 * progress, "entropy": 1.5 - 0.4 * progress}
        row |= {"policy_loss": -0.02, "value_loss": 0.3, "clip_fraction": 0.03 + 0.05 * generator.random()}
        row |= {"value_clip_fraction": 0.01, "explained_variance": progress, "response_tokens": 61 + 5 * progress}
        rows.append(row | {"eos_rate": 0.97 + 0.02 * progress, "learning_rate": 3e-4, "seconds": 3.1})
    write_jsonl(folder / "ppo" / "metrics.jsonl", rows)


def _reward_model(folder: Path, generator: np.random.Generator) -> None:
    margins = generator.normal(2.6, 1.8, 800)
    right = int((margins > 0).sum())
    result = {
        "accuracy": right / 800,
        "accuracy_ci95": statistics.proportion_interval(right, 800).as_list(),
        "pairs": 800,
    }
    result |= {"untrained_accuracy": 0.47, "untrained_ci95": [0.435, 0.505], "length_baseline_accuracy": 0.53}
    groups = [
        {"from": low, "to": low + 9, "pairs": 200, "accuracy": share, "accuracy_ci95": [share - 0.05, share + 0.04]}
        for low, share in ((-20, 0.86), (-10, 0.9), (0, 0.93), (10, 0.95))
    ]
    result |= {"margins": margins.tolist(), "calibration": statistics.calibration(margins), "by_length": groups}
    write_json(folder / "reward_model.json", result)


def _frontier(folder: Path, gold: bool) -> None:
    points, best = [], []
    for update in range(0, 41, 8):
        kl = 2.1 * (1 - np.exp(-update / 15))
        reward, judged = -0.04 + 0.28 * kl, 4.35 + 0.9 * kl - 0.17 * kl * kl
        point = {"update": update, "kl": 1.3 * kl, "kl_to_sft": kl, "reward": reward}
        point |= {"reward_ci95": [reward - 0.12, reward + 0.12], "gold": judged if gold else None}
        points.append(point | {"gold_ci95": [judged - 0.2, judged + 0.2] if gold else None})
    for n in (1, 2, 4, 8, 16):
        judged = 4.3 + 0.4 * np.log(n) if gold else None
        best.append({"n": n, "kl_to_sft": np.log(n) - (n - 1) / n, "reward": 0.3 * np.log(n), "gold": judged})
    content = {"points": points, "chosen_update": 32, "rule": "highest lower end of gold within the KL budget"}
    write_json(folder / "frontier.json", content | {"kl_to_sft_temperature": 0.7, "best_of_n": best})
    curve = [{"update": u, "reward": 0.1 * u, "gold": 5 - 0.05 * u, "kl": 0.4 * u} for u in range(12)]
    write_json(folder / "overoptimise.json", {"pairs": 500, "curve": curve})


def _comparison(folder: Path, generator: np.random.Generator, gold: bool, prompts: int, seed: int) -> None:
    samples = pd.DataFrame({"prompt": [f"How do I get ready for race number {i}?" for i in range(prompts)]})
    samples["reference"], scores, models = [f"For race {i}: {ADVICE}" for i in range(prompts)], {}, {}
    for model, (reward, judged, share) in LEVELS.items():
        found = {"reward": generator.normal(reward, 0.7, prompts), "gold": generator.normal(judged, 1.0, prompts)}
        texts = [
            " ".join(w if generator.random() < share + 0.2 else "well" for w in r.split()) for r in samples["reference"]
        ]
        samples[f"{model}_response"], scores[model] = texts, found
        for key, values in found.items():
            if gold or key == "reward":
                samples[f"{model}_{key}"] = values
        samples[f"{model}_rougeL"] = Rouge().compute(
            predictions=texts, references=list(samples["reference"]), use_aggregator=False
        )["rougeL"]
        intervals = {key: statistics.mean_interval(values) for key, values in found.items()}
        figures = {key: value.mean for key, value in intervals.items()}
        figures |= {f"{key}_ci95": value.as_list() for key, value in intervals.items()}
        figures |= {} if gold else {"gold": None, "gold_ci95": None}
        figures |= Rouge().compute(predictions=texts, references=list(samples["reference"])) | {
            "eos_rate": 0.99,
            "distinct_2": 0.27,
        }
        kl = {"base": None, "sft": 0.0, "sft_qlora": 0.6, "ppo": 2.1}[model]
        models[model] = figures | {"kl_to_sft": kl, "mean_tokens": 61.0}
    samples.to_csv(folder / "samples.csv", index=False)
    paired = {"rougeL": {"mean": 0.01, "ci95": [-0.02, 0.04]}, "gold": {"mean": None, "ci95": None}}
    for key in ("reward", "gold") if gold else ("reward",):
        found = statistics.paired_difference(scores["ppo"][key], scores["sft"][key])
        paired[key] = {"mean": found.mean, "ci95": found.as_list()}
    wins = {f"ppo_vs_{m}": statistics.win_rate(scores["ppo"]["gold"], scores[m]["gold"]) for m in ("sft", "base")}
    phrase = {"text": "i hope <b>", "first": 50, "second": 20, "first_total": 60, "second_total": 60, "log_odds": 2.3}
    hacking = {
        "level": "none",
        "text": "No sign of reward hacking: the gold judge finds PPO better too.",
        "evidence": ["reward: PPO − SFT: +0.60", "length in words: 24.00 -> 33.00"],
        "phrases": [phrase | {"z": 5.1, "growth": 0.5}],
        "style": {"SFT": {"words": 24.0, "eos_rate": 0.97}, "PPO": {"words": 33.0, "eos_rate": 1.0}},
    }
    spread = {
        "quantiles": [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99],
        "data": {"chosen responses": [-1.5, -1, -0.2, 0.3, 0.8, 1.4, 1.8]},
        "models": {"sft": [-2, -1.4, -0.6, 0, 0.6, 1.2, 1.6], "ppo": [-1, -0.6, 0.2, 0.6, 1, 1.5, 1.9]},
        "above_data": {"sft": 0.004, "ppo": 0.02},
    }
    judged = {"accuracy": 0.923, "accuracy_ci95": [0.909, 0.936], "untrained_accuracy": 0.47}
    summary = {"recipe": "instruct", "scale": "tiny", "seed": seed, "prompts": prompts, "data": "embedded"}
    summary |= {"decoding": {"temperature": 0.7, "max_new_tokens": 88}, "models": models, "hacking": hacking}
    summary |= {"reward_model": judged | {"length_baseline_accuracy": 0.53}}
    summary |= {"reward_range": spread, "paired": {"ppo_vs_sft": paired}}
    summary["win_rate"] = wins if gold else dict.fromkeys(wins)
    write_json(folder / "summary.json", summary)
