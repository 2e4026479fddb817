"""Stage `evaluation`: every model answers the same held-out prompts with the same decoding, and is measured the
same way."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from torch import nn

from rlhf_utils.data import PreparedData
from rlhf_utils.files import read_json, read_jsonl, write_json, write_text
from rlhf_utils.generation import Answer, answer_prompts
from rlhf_utils.metrics import Interval, distinct_n, mean_interval, paired_difference, rouge_per_sample, win_rate
from rlhf_utils.models import load_policy, load_tokenizer
from rlhf_utils.ppo.actor_critic import Episodes, answer_logprobs
from rlhf_utils.rewards import RewardModel, right_padded
from rlhf_utils.runs import Run
from rlhf_utils.runtime import detect_device
from rlhf_utils.stages.judge import gold_judge
from rlhf_utils.template import TEMPLATE

MODELS = ("base", "sft", "sft_qlora", "ppo")
_COMPARED = (("ppo", "sft"), ("ppo", "base"))


@dataclass
class Answered:
    """One model's answers to the evaluation prompts and what they measure; every list has one entry per prompt.

    `kl` is log pi(y) - log pi_sft(y) in nats per answer, at the sampling temperature.
    """

    answers: list[Answer]
    reward: list[float]
    gold: list[float] | None
    rouge: dict[str, list[float]]
    kl: list[float]

    @property
    def texts(self) -> list[str]:
        return [answer.text for answer in self.answers]


def evaluate_models(run: Run) -> dict:
    """Compare base, SFT, QLoRA-SFT and PPO; leaves `evaluation/{samples.csv,summary.json,frontier.json}`."""
    if run.skips("evaluation"):
        return read_json(run.evaluation / "summary.json")
    with run.stage("evaluation") as stage:
        evaluator = Evaluator(run)
        split = PreparedData.load(run.folder("data")).splits["evaluation"]
        split = split.select(range(min(run.recipe.evaluation.prompts, len(split))))
        answered = {}
        for i, name in enumerate(MODELS):
            run.progress(f"evaluating {name}", i, len(MODELS))
            answered[name] = evaluator.measure(load_policy(run.folder(name), evaluator.device), split)
        write_text(run.evaluation / "samples.csv", samples_csv(split, answered))
        write_json(run.evaluation / "frontier.json", frontier(run, evaluator))
        summary = summarise(run, split, answered)
        write_json(run.evaluation / "summary.json", summary)
        stage.results = {"prompts": len(split)}
        with stage.publish() as folder:
            write_json(folder / "summary.json", summary)
    return summary


class Evaluator:
    """Samples and scores answers of any policy of the run, always the same way."""

    def __init__(self, run: Run):
        self.run, self.device = run, detect_device()
        self.tokenizer = load_tokenizer(run.folder("sft"))
        self.reward = RewardModel.load(run.folder("reward_model"), self.device)
        self.reference = load_policy(run.folder("sft"), self.device).eval()
        self.judge = gold_judge(run.recipe)

    def measure(self, policy: nn.Module, split: Dataset) -> Answered:
        """Sample one answer per prompt of `split` and measure it."""
        prompts, settings = list(split["prompt"]), self.run.recipe.generation
        texts = [TEMPLATE.format(p) for p in prompts]
        answers = answer_prompts(policy.eval(), self.tokenizer, texts, settings, self.device, self.run.recipe.seed)
        responses = [answer.text for answer in answers]
        return Answered(
            answers,
            self.reward(prompts, responses).tolist(),
            self.judge(prompts, responses) if self.judge else None,
            rouge_per_sample(responses, list(split["chosen"])),
            self._kl(policy, texts, answers),
        )

    @torch.no_grad()
    def _kl(self, policy: nn.Module, texts: list[str], answers: list[Answer]) -> list[float]:
        settings, kl = self.run.recipe.generation, []
        prompts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for start in range(0, len(prompts), settings.batch_size):
            part = list(zip(prompts, answers, strict=True))[start : start + settings.batch_size]
            tokens, _ = right_padded([prompt + answer.tokens for prompt, answer in part], self.tokenizer.pad_token_id)
            lengths = torch.tensor([len(answer.tokens) for _, answer in part])
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            episodes = Episodes(
                tokens.to(self.device.kind),
                torch.tensor([len(prompt) for prompt, _ in part]).to(self.device.kind),
                mask.to(self.device.kind),
            )
            difference = answer_logprobs(policy, episodes, settings.temperature) - answer_logprobs(
                self.reference, episodes, settings.temperature
            )
            kl += difference.sum(dim=1).tolist()
        return kl


def summarise(run: Run, split: Dataset, answered: dict[str, Answered]) -> dict:
    """The content of `summary.json`: every figure with its interval, null where the recipe has no meaning for it."""
    samples = run.recipe.evaluation.bootstrap_samples

    def interval(values: list[float] | None) -> Interval | None:
        return mean_interval(values, samples=samples, seed=run.recipe.seed) if values is not None else None

    models, paired, wins = {}, {}, {}
    for name, result in answered.items():
        reward, gold = interval(result.reward), interval(result.gold)
        models[name] = {
            "reward": reward.mean,
            "reward_ci95": reward.as_list(),
            "gold": gold.mean if gold else None,
            "gold_ci95": gold.as_list() if gold else None,
            **{kind: sum(values) / len(values) for kind, values in result.rouge.items()},
            "rougeL_ci95": interval(result.rouge["rougeL"]).as_list(),
            "eos_rate": sum(answer.ended for answer in result.answers) / len(result.answers),
            "distinct_2": distinct_n(result.texts, 2),
            "kl_to_sft": sum(result.kl) / len(result.kl),
            "mean_tokens": sum(len(answer.tokens) for answer in result.answers) / len(result.answers),
        }
    for better, worse in _COMPARED:
        a, b = answered[better], answered[worse]
        pair = {
            "reward": (a.reward, b.reward),
            "gold": (a.gold, b.gold),
            "rougeL": (a.rouge["rougeL"], b.rouge["rougeL"]),
        }
        paired[f"{better}_vs_{worse}"] = {
            name: _difference(first, second, samples, run.recipe.seed) for name, (first, second) in pair.items()
        }
        # Without a gold judge the reward decides, and says so: it is the very thing PPO optimised.
        judge = "gold" if a.gold is not None else "reward"
        outcome = win_rate(*pair[judge])
        wins[f"{better}_vs_{worse}"] = {**outcome, "judged_by": judge}
    reward_model = read_json(run.evaluation / "reward_model.json")
    return {
        "recipe": run.recipe.name,
        "scale": run.recipe.scale,
        "seed": run.recipe.seed,
        "data": run.recipe.dataset,
        "prompts": len(split),
        "decoding": run.recipe.generation.model_dump(mode="json", exclude={"batch_size"}),
        "reward_model": {
            key: reward_model[key]
            for key in ("accuracy", "accuracy_ci95", "untrained_accuracy", "length_baseline_accuracy")
        },
        "models": models,
        "paired": paired,
        "win_rate": wins,
    }


def _difference(first: list[float] | None, second: list[float] | None, samples: int, seed: int) -> dict | None:
    if first is None or second is None:
        return None
    interval = paired_difference(first, second, samples=samples, seed=seed)
    return {"mean": interval.mean, "ci95": interval.as_list()}


def samples_csv(split: Dataset, answered: dict[str, Answered]) -> str:
    """One row per prompt: prompt, reference, and each model's response with its scores."""
    table = {"prompt": list(split["prompt"]), "reference": list(split["chosen"])}
    for name, result in answered.items():
        table |= {f"{name}_response": result.texts, f"{name}_reward": result.reward}
        if result.gold is not None:
            table[f"{name}_gold"] = result.gold
        table |= {
            f"{name}_rougeL": result.rouge["rougeL"],
            f"{name}_tokens": [len(answer.tokens) for answer in result.answers],
            f"{name}_ended": [answer.ended for answer in result.answers],
        }
    # Texts always in quotes: otherwise a carriage return, which a model may well sample, would begin a new row.
    return pd.DataFrame(table).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def frontier(run: Run, evaluator: Evaluator) -> dict:
    """Reward and gold against KL for the SFT model and the PPO policies saved along the way, on development prompts."""
    split = PreparedData.load(run.folder("data")).splits["development"]
    split = split.select(range(min(run.recipe.evaluation.frontier_prompts, len(split))))
    folders: list[tuple[int, Path]] = [(0, run.folder("sft"))]
    folders += [(int(path.name.split("-")[1]), path) for path in sorted((run.folder("ppo") / "frontier").iterdir())]
    points = []
    for i, (update, folder) in enumerate(folders):
        run.progress("evaluating the policies along the way", i, len(folders))
        result = evaluator.measure(load_policy(folder, evaluator.device), split)
        point = {"update": update, "kl": sum(result.kl) / len(result.kl)}
        for name, values in {"reward": result.reward, "gold": result.gold}.items():
            interval = mean_interval(values, seed=run.recipe.seed) if values is not None else None
            point |= {
                name: interval.mean if interval else None,
                f"{name}_ci95": interval.as_list() if interval else None,
            }
        points.append(point)
    published = int(run.results("ppo")["published"].split("-")[1])
    return {
        "points": points,
        "chosen_update": published,
        "prompts": len(split),
        "rule": "the last checkpoint within the KL budget",
        "training": [
            {key: line[key] for key in ("update", "kl", "reward")}
            for line in read_jsonl(run.folder("ppo") / "metrics.jsonl")
        ],
    }
