"""A run's folder with plausible made-up figures, for the tests of pictures and report."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np

from rlhf_utils.evaluation import statistics
from rlhf_utils.evaluation.rouge import Rouge
from rlhf_utils.evaluation.text import distinct_n

ROUGE = Rouge()
MODELS = ("base", "sft", "sft_qlora", "ppo")
LEVELS = {
    "base": (-1.2, 2.1, 0.2),
    "sft": (-0.04, 4.35, 0.42),
    "sft_qlora": (-0.11, 4.2, 0.4),
    "ppo": (0.53, 5.6, 0.44),
}
SUBJECTS = (
    "a rainy Sunday",
    "a job interview",
    "my first marathon",
    "a small balcony garden",
    "a noisy neighbour",
)
ADVICE = "Start with a short list, pick the two steps you can do today, and ask a friend to check in with you."


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_object(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_run(root: Path, gold: bool = True, prompts: int = 60, seed: int = 0) -> Path:
    """Fill `root`/instruct-tiny; without `gold` every figure of the gold judge is null, as on real data."""
    run = root / "instruct-tiny"
    generator = np.random.default_rng(seed)
    write_object(run / "run.json", {"recipe": "instruct", "scale": "tiny", "seed": seed, "stages": {}})
    write_training(run, generator)
    write_reward_model(run, generator)
    write_evaluation(run, generator, gold, prompts, seed)
    return run


def write_training(run: Path, generator: np.random.Generator) -> None:
    for stage, floor, trainable, memory, seconds in (
        ("sft", 1.02, 2_112_000, 1_310_000_000, 52.3),
        ("sft_qlora", 1.09, 147_456, 1_120_000_000, 61.8),
    ):
        rows: list[dict] = []
        for step in range(10, 480, 10):
            loss = floor + 1.9 * math.exp(-step / 60) + generator.normal(0, 0.03)
            rows.append({"step": step, "epoch": step / 470, "loss": loss, "learning_rate": 1e-3, "seconds": step / 9})
            if step % 90 == 0:
                held_out = floor + 0.05 + 1.9 * math.exp(-step / 60)
                rows.append({"step": step, "eval_loss": held_out, "seconds": step / 9})
        method = "full" if stage == "sft" else "QLoRA 4-bit (nf4)"
        rows.append(
            {
                "summary": True,
                "trainable_parameters": trainable,
                "total_parameters": 2_112_000,
                "seconds": seconds,
            }
            | {"peak_memory_bytes": memory, "method": method, "rougeL": floor * 0.4, "eos_rate": 0.99}
        )
        write_lines(run / "checkpoints" / stage / "metrics.jsonl", rows)
    rows = []
    for update in range(1, 41):
        progress = 1 - math.exp(-update / 15)
        kl = 2.1 * progress
        reward = -0.04 + 0.57 * progress + generator.normal(0, 0.04)
        rows.append(
            {
                "update": update,
                "episodes": 128 * update,
                "reward": reward,
                "reward_std": 0.9,
                "kl": kl,
                "kl_k3": kl * 1.04,
            }
            | {"kl_coefficient": 0.1, "objective": reward - 0.1 * kl, "entropy": 1.5 - 0.4 * progress}
            | {"policy_loss": -0.02, "value_loss": 0.3, "clip_fraction": 0.03 + 0.05 * generator.random()}
            | {
                "value_clip_fraction": 0.01,
                "explained_variance": progress,
                "response_tokens": 61 + 5 * progress,
            }
            | {
                "eos_rate": 0.97 + 0.02 * progress,
                "learning_rate": 3e-4,
                "gradient_norm": 1.1,
                "seconds": 3.1,
            }
            | {"tokens_per_second": 2600.0}
        )
    write_lines(run / "checkpoints" / "ppo" / "metrics.jsonl", rows)


def write_reward_model(run: Path, generator: np.random.Generator) -> None:
    margins = generator.normal(2.6, 1.8, 800)
    right = int((margins > 0).sum())
    write_object(
        run / "evaluation" / "reward_model.json",
        {
            "accuracy": right / 800,
            "accuracy_ci95": statistics.proportion_interval(right, 800).as_list(),
            "untrained_accuracy": 0.47,
            "untrained_ci95": [0.435, 0.505],
            "length_baseline_accuracy": 0.53,
            "pairs": 800,
            "margins": margins.tolist(),
            "calibration": statistics.calibration(margins),
            "by_length": [
                {
                    "from": low,
                    "to": low + 9,
                    "pairs": 200,
                    "accuracy": share,
                    "accuracy_ci95": [share - 0.05, share + 0.04],
                }
                for low, share in ((-20, 0.86), (-10, 0.9), (0, 0.93), (10, 0.95))
            ],
        },
    )


def write_evaluation(run: Path, generator: np.random.Generator, gold: bool, prompts: int, seed: int) -> None:
    scores: dict[str, dict[str, np.ndarray]] = {}
    rows = []
    for place in range(prompts):
        subject = SUBJECTS[place % len(SUBJECTS)]
        rows.append(
            {
                "prompt": f"How do I get ready for {subject}, number {place}?",
                "reference": f"For {subject}: {ADVICE}",
            }
        )
    for model, (reward, judged, rouge) in LEVELS.items():
        scores[model] = {
            "reward": generator.normal(reward, 0.7, prompts),
            "gold": generator.normal(judged, 1.0, prompts),
        }
        for place, row in enumerate(rows):
            words = row["reference"].split()
            kept = [word if generator.random() < rouge + 0.2 else "well" for word in words]
            row[f"{model}_response"] = " ".join(kept)
            row[f"{model}_reward"] = float(scores[model]["reward"][place])
            if gold:
                row[f"{model}_gold"] = float(scores[model]["gold"][place])
            row[f"{model}_rougeL"] = ROUGE.compute(
                predictions=[row[f"{model}_response"]], references=[row["reference"]]
            )["rougeL"]
            row[f"{model}_tokens"] = len(kept)
            row[f"{model}_ended"] = True
    run.joinpath("evaluation").mkdir(parents=True, exist_ok=True)
    with open(run / "evaluation" / "samples.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    models = {}
    for model in MODELS:
        reward, judged = (statistics.mean_interval(scores[model][key]) for key in ("reward", "gold"))
        answers, references = [row[f"{model}_response"] for row in rows], [row["reference"] for row in rows]
        models[model] = {
            "reward": reward.mean,
            "reward_ci95": reward.as_list(),
            "gold": judged.mean if gold else None,
            "gold_ci95": judged.as_list() if gold else None,
            **ROUGE.compute(predictions=answers, references=references),
            "eos_rate": 0.99,
            "distinct_2": distinct_n(answers, 2),
            "kl_to_sft": {"base": None, "sft": 0.0, "sft_qlora": 0.6, "ppo": 2.1}[model],
            "mean_tokens": 61.0,
        }
    paired = {key: statistics.paired_difference(scores["ppo"][key], scores["sft"][key]) for key in ("reward", "gold")}
    paired = {key: {"mean": value.mean, "ci95": value.as_list()} for key, value in paired.items()}
    if not gold:
        paired["gold"] = {"mean": None, "ci95": None}
    wins = {f"ppo_vs_{m}": statistics.win_rate(scores["ppo"]["gold"], scores[m]["gold"]) for m in ("sft", "base")}
    write_object(
        run / "evaluation" / "summary.json",
        {
            "recipe": "instruct",
            "scale": "tiny",
            "seed": seed,
            "prompts": prompts,
            "data": "embedded",
            "decoding": {"temperature": 0.7, "max_new_tokens": 88},
            "reward_model": {
                "accuracy": 0.923,
                "accuracy_ci95": [0.909, 0.936],
                "untrained_accuracy": 0.47,
                "length_baseline_accuracy": 0.53,
            },
            "models": models,
            "hacking": {
                "level": "none",
                "text": "No sign of reward hacking: the gold judge finds PPO better too.",
                "evidence": ["reward of PPO less SFT: +0.60", "length in words: 24.00 -> 33.00"],
                "phrases": [
                    {"text": "i hope <b>", "first": 50, "second": 20, "first_total": 60, "second_total": 60}
                    | {"log_odds": 2.3, "z": 5.1, "growth": 0.5}
                ],
                "style": {"SFT": {"words": 24.0, "eos_rate": 0.97}, "PPO": {"words": 33.0, "eos_rate": 1.0}},
            },
            "agreement": {"same_preference": 0.81, "same_preference_ci95": [0.7, 0.9], "prompts": 58, "spearman": 0.74},
            "reward_range": {
                "quantiles": [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99],
                "data": {"chosen answers": [-1.5, -1, -0.2, 0.3, 0.8, 1.4, 1.8]},
                "models": {"sft": [-2, -1.4, -0.6, 0, 0.6, 1.2, 1.6], "ppo": [-1, -0.6, 0.2, 0.6, 1, 1.5, 1.9]},
                "above_data": {"sft": 0.004, "ppo": 0.02},
            },
            "win_rate": wins if gold else {"ppo_vs_sft": None, "ppo_vs_base": None},
            "paired": {"ppo_vs_sft": {**paired, "rougeL": {"mean": 0.01, "ci95": [-0.02, 0.04]}}},
        },
    )
    points = []
    for update in range(0, 41, 8):
        kl = 2.1 * (1 - math.exp(-update / 15))
        reward, judged = -0.04 + 0.28 * kl, 4.35 + 0.9 * kl - 0.17 * kl * kl
        points.append(
            {"update": update, "kl": 1.3 * kl, "kl_to_sft": kl}
            | {"reward": reward, "reward_ci95": [reward - 0.12, reward + 0.12]}
            | {"gold": judged if gold else None, "gold_ci95": [judged - 0.2, judged + 0.2] if gold else None}
        )
    curve = [{"update": u, "reward": 0.1 * u, "gold": 5 - 0.05 * u, "kl": 0.4 * u} for u in range(12)]
    write_object(run / "evaluation" / "overoptimise.json", {"pairs": 500, "curve": curve})
    write_object(
        run / "evaluation" / "frontier.json",
        {
            "points": points,
            "chosen_update": 32,
            "rule": "highest lower end of gold within the KL budget",
            "kl_to_sft_temperature": 0.7,
            "best_of_n": [
                {"n": n, "kl_to_sft": math.log(n) - (n - 1) / n, "reward": 0.3 * math.log(n), "reward_ci95": None}
                | {"gold": 4.3 + 0.4 * math.log(n) if gold else None, "gold_ci95": None}
                for n in (1, 2, 4, 8, 16)
            ],
        },
    )
