"""Stage `reward_model`: one number for how good an answer is, learnt from pairs."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from trl import RewardConfig, RewardTrainer

from rlhf_utils.data import PreparedData
from rlhf_utils.files import write_json
from rlhf_utils.generation import answer_prompts
from rlhf_utils.metrics import calibration, length_baseline, proportion_interval
from rlhf_utils.models import (
    fp32_trainables,
    load_policy,
    load_reward_model,
    load_tokenizer,
    lora_config,
    merge_adapter,
    parameter_counts,
    save_model,
)
from rlhf_utils.rewards import RewardModel
from rlhf_utils.runs import Run
from rlhf_utils.runtime import detect_device, peak_memory_bytes
from rlhf_utils.stages.training import RunCallback, common_arguments, preference_tokens, train_resumably, write_history
from rlhf_utils.template import TEMPLATE

_SCALE_PROMPTS = 200


def reward_trainer(run: Run, work: Path) -> RewardTrainer:
    """trl's reward trainer as this series uses it: -log sigmoid(r_chosen - r_rejected), LoRA on the SFT model plus
    a `score` head."""
    data, tokenizer = PreparedData.load(run.folder("data")), load_tokenizer(run.folder("sft"))
    settings = run.recipe.reward_model
    train = preference_tokens(data.splits["reward"], tokenizer)
    # The head starts at random: the seed makes it the same head in every run and after every restart.
    set_seed(run.recipe.seed)
    trainer = RewardTrainer(
        model=load_reward_model(run.folder("sft")),
        args=RewardConfig(**common_arguments(run, settings, len(train), work)),
        train_dataset=train,
        eval_dataset=preference_tokens(data.splits["development"], tokenizer),
        processing_class=tokenizer,
        peft_config=lora_config(settings.lora, "SEQ_CLS"),
        callbacks=[RunCallback(run, "reward model")],
    )
    trainer.remove_callback(PrinterCallback)
    fp32_trainables(trainer.model)
    return trainer


def train_reward_model(run: Run) -> dict:
    """Train and measure the reward model; leaves `checkpoints/reward_model` and `evaluation/reward_model.json`."""
    if run.skips("reward_model"):
        return run.results("reward_model")
    with run.stage("reward_model") as stage:
        data, tokenizer, device = (
            PreparedData.load(run.folder("data")),
            load_tokenizer(run.folder("sft")),
            detect_device(),
        )
        held_out = data.splits["evaluation"]
        held_out = held_out.select(range(min(run.recipe.evaluation.reward_pairs, len(held_out))))
        trainer = reward_trainer(run, stage.work)
        untrained = _fresh_head(run)
        run.progress("reward model: measuring the untrained head")
        untrained_margins = margins(RewardModel(untrained, tokenizer, device), held_out)

        started = time.perf_counter()
        train_resumably(trainer, stage.work)
        seconds, memory, counts = time.perf_counter() - started, peak_memory_bytes(), parameter_counts(trainer.model)
        adapter = stage.work / "adapter"
        trainer.model.save_pretrained(adapter)
        reward = RewardModel(merge_adapter(_fresh_head(run), adapter).eval(), tokenizer, device)

        run.progress("reward model: measuring held-out pairs")
        report = reward_report(margins(reward, held_out), untrained_margins, data.splits["reward"], held_out, tokenizer)
        _calibrate_on_sft(run, reward, data.splits["development"])
        stage.results = {
            **counts,
            "peak_memory_bytes": memory,
            "seconds": round(seconds, 1),
            **{
                key: report[key]
                for key in ("accuracy", "accuracy_ci95", "untrained_accuracy", "length_baseline_accuracy", "pairs")
            },
        }
        write_json(run.evaluation / "reward_model.json", report)
        with stage.publish() as folder:
            save_model(reward.model, tokenizer, folder)
            reward.save_scale(folder)
            write_history(trainer, folder, stage.results)
    return run.results("reward_model")


def margins(reward: RewardModel, pairs: Dataset) -> torch.Tensor:
    """Logit of the chosen minus logit of the rejected answer [n]."""
    prompts = list(pairs["prompt"])
    return reward.logits(prompts, pairs["chosen"]) - reward.logits(prompts, pairs["rejected"])


def reward_report(trained: torch.Tensor, untrained: torch.Tensor, train: Dataset, held_out: Dataset, tokenizer) -> dict:
    """Held-out accuracy with its interval, beside the untrained head and a rule that looks at length alone.

    The rule's direction, longer or shorter, is the one that does better on the training pairs.
    """

    def lengths(split: Dataset, column: str) -> list[int]:
        return [len(row) for row in tokenizer(list(split[column]), add_special_tokens=False)["input_ids"]]

    def accuracy(values: torch.Tensor):
        # A tie is no decision: it counts half.
        return proportion_interval(((values > 0).double() + (values == 0).double() / 2).sum().item(), len(values))

    right, right_untrained = accuracy(trained), accuracy(untrained)
    return {
        "accuracy": right.mean,
        "accuracy_ci95": right.as_list(),
        "untrained_accuracy": right_untrained.mean,
        "untrained_ci95": right_untrained.as_list(),
        "length_baseline_accuracy": length_baseline(
            lengths(held_out, "chosen"),
            lengths(held_out, "rejected"),
            lengths(train, "chosen"),
            lengths(train, "rejected"),
        ),
        "pairs": len(trained),
        "margins": trained.tolist(),
        "calibration": calibration(trained.tolist()),
    }


def _fresh_head(run: Run):
    set_seed(run.recipe.seed)
    return load_reward_model(run.folder("sft"), detect_device()).eval()


def _calibrate_on_sft(run: Run, reward: RewardModel, split: Dataset) -> None:
    prompts = list(split["prompt"])[:_SCALE_PROMPTS]
    sft = load_policy(run.folder("sft"), reward.device).eval()
    answers = answer_prompts(
        sft,
        reward.tokenizer,
        [TEMPLATE.format(p) for p in prompts],
        run.recipe.generation,
        reward.device,
        run.recipe.seed,
    )
    reward.calibrate(prompts, [answer.text for answer in answers])
