"""How good a reward model or a classifier is on held-out rows, and beside what; and models that are ready."""

import sys
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation.judge import length_alone
from rlhf_utils.evaluation.statistics import accuracy_of, calibration, proportion_interval
from rlhf_utils.models.loading import load_classifier, load_classifier_tokenizer, load_reward_model
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.rewards.reward_model import LABEL_FILE, ClassifierReward, RewardModel, class_logits, positions
from rlhf_utils.runs.base import calibrate_on_sft, fetch_policy, make_data
from rlhf_utils.runs.run import Run

_REPORTED = ("accuracy", "accuracy_ci95", "untrained_accuracy", "length_baseline_accuracy", "pairs")


def fetch_ready(run: Run) -> dict[str, dict]:
    """Make the stages of the run in which nothing is trained; returns their results by name."""
    makers = {"data": make_data, "reward_model": fetch_reward_model}
    for stage in run.fetched:
        makers[stage](run) if stage in makers else fetch_policy(run, stage)
    return {stage: run.results(stage) for stage in run.fetched}


def fetch_reward_model(run: Run) -> None:
    """The reward model or classifier that the recipe names, measured on the run's rows and, of one trained on pairs,
    put on the scale of its SFT responses."""
    if run.has("reward_model"):
        return
    source, base = run.ready_model("reward_model"), run.recipe.models.adapter_base
    with run.training("reward_model"):
        run.progress(f"loading {source}")
        load = load_classifier if run.recipe.form == "continuation" else load_reward_model
        model, tokenizer = load(source, detect_device(), base=base), load_classifier_tokenizer(source, base)
        publish_reward(run, model, tokenizer, method="ready", source=source)


def publish_reward(run: Run, model, tokenizer, untrained: PreTrainedModel | None = None, **results: Any) -> None:
    """Measure the run's reward model or classifier on held-out rows and publish it, with its scale or the label that is
    paid; leaves `evaluation/reward_model.json`. `untrained` is the same model with a randomly initialized head."""
    run.progress("reward model: measuring held-out rows")
    data, device = PreparedData.load(run.folder("data")), detect_device()
    train, held_out = data.splits["reward"], data.first("evaluation", run.recipe.evaluation.reward_pairs)
    if run.recipe.form == "continuation":
        about = {"label": run.recipe.reward_model.label, "joint": run.recipe.template.joint}
        ClassifierReward(model, tokenizer, about["label"], device)  # InputError where it has no such label
        labels = torch.tensor(held_out["label"])
        if (largest := int(labels.max())) >= (known := model.config.num_labels):
            raise InputError(f"the texts have label {largest}, but the classifier knows {known} labels")
        most = min(run.recipe.data.max_response_tokens, positions(model) or sys.maxsize)
        rows = tokenizer(list(held_out["text"]), truncation=True, max_length=most)["input_ids"]
        found, fresh = (one and label_margins(class_logits(one, rows, device), labels) for one in (model, untrained))
        extra = lambda folder: write_json(folder / LABEL_FILE, about)  # noqa: E731
    else:
        reward = RewardModel(model, tokenizer, device)
        fresh = untrained and margins(RewardModel(untrained, tokenizer, device), held_out)
        found, extra = margins(reward, held_out), reward.save_scale
        calibrate_on_sft(run, reward)
    report = reward_report(found, fresh, train, held_out, tokenizer)
    if processes.is_main():
        write_json(run.evaluation / "reward_model.json", report)
    results |= {key: report[key] for key in _REPORTED}
    run.publish("reward_model", model, tokenizer, fill=extra, **results)


def publish_judge(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Publish the second reward model, which only judges, with its accuracy and its agreement with the first one."""
    data, judge = PreparedData.load(run.folder("data")), RewardModel(model, tokenizer, detect_device())
    own = margins(judge, data.first("evaluation", run.recipe.evaluation.reward_pairs))
    first = torch.tensor(read_json(run.evaluation / "reward_model.json")["margins"])
    calibrate_on_sft(run, judge)
    same = proportion_interval(((own > 0) == (first > 0)).double().sum().item(), len(own))
    figures = accuracy_of(own).named("accuracy") | same.named("agreement")
    figures |= {"pairs": len(own), "trained_on": len(data.splits["judge"])}
    run.publish("judge_model", model, tokenizer, judge.save_scale, **figures)


def margins(reward: RewardModel, pairs: Dataset) -> Tensor:
    """Logit of the chosen minus logit of the rejected response [n]."""
    prompts = list(pairs["prompt"])
    return reward.logits(prompts, pairs["chosen"]) - reward.logits(prompts, pairs["rejected"])


def label_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the true label minus the largest other logit [n], from logits [n, labels] and labels [n]."""
    true = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[true] - logits.masked_fill(true, -torch.inf).max(dim=1).values


def reward_report(found: Tensor, untrained: Tensor | None, train: Dataset, held_out: Dataset, tokenizer) -> dict:
    """Held-out accuracy from margins [n], with its interval, beside the randomly initialized head and a rule that looks
    at length alone (longer or shorter, whichever does better on the training rows)."""
    fresh = None if untrained is None else accuracy_of(untrained)
    return {
        "of": "texts" if "label" in held_out.column_names else "pairs",
        **accuracy_of(found).named("accuracy"),
        "untrained_accuracy": fresh and fresh.mean,
        "untrained_ci95": fresh and fresh.as_list(),
        "length_baseline_accuracy": length_alone(train, held_out, tokenizer),
        "pairs": len(found),
        "margins": found.tolist(),
        "calibration": calibration(found.tolist()),
    }
