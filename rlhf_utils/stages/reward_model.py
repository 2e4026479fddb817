"""Stage `reward_model`: one number for how good an answer is, learnt from pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, set_seed
from trl import RewardConfig, RewardTrainer

from rlhf_utils.data import PreparedData
from rlhf_utils.evaluation.judge import length_alone
from rlhf_utils.evaluation.statistics import accuracy_of, calibration, proportion_interval
from rlhf_utils.models.generation import answer_prompts
from rlhf_utils.models.loading import (
    fp32_trainables,
    load_classifier_tokenizer,
    load_policy,
    load_reward_model,
    load_tokenizer,
    parameter_counts,
    save_model,
)
from rlhf_utils.models.lora import lora_config, merge_adapter
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.platforms.memory import phase
from rlhf_utils.platforms.runtime import detect_device, peak_memory_bytes
from rlhf_utils.rewards.functions import RewardModel
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.training import RunCallback, common_arguments, preference_tokens, train_resumably, write_history
from rlhf_utils.settings.template import TEMPLATE
from rlhf_utils.stages.classifier import classifier_trainer, make_classifier

_SCALE_PROMPTS, _SCALE_LEAST = 200, 16
# Added to the recipe's seed for the second reward model and the weak one: their heads and batches are others.
_JUDGE_SEED = 1000
_WEAK_SEED = 2000
_LENGTH_GROUPS = 4
_REPORTED = ("accuracy", "accuracy_ci95", "untrained_accuracy", "length_baseline_accuracy", "pairs")


def reward_trainer(
    run: Run, work: Path, split: str = "reward", seed: int = 0, most: int | None = None
) -> RewardTrainer:
    """trl's reward trainer as this series uses it: -log sigmoid(r_chosen - r_rejected), LoRA on the SFT model plus
    a `score` head.

    `split` and `seed` (added to the recipe's) are others for the second reward model, which only judges; `most` pairs
    are used for a weak one.
    """
    data, tokenizer = PreparedData.load(run.folder("data")), load_tokenizer(run.folder("sft"))
    settings = run.recipe.reward_model
    pairs = data.splits[split]
    train = preference_tokens(pairs.select(range(min(most or len(pairs), len(pairs)))), tokenizer)
    # The head starts at random: the seed makes it the same head in every run and after every restart.
    set_seed(run.recipe.seed + seed)
    model = load_reward_model(run.folder("sft"), fresh_head=True)
    arguments = common_arguments(run, settings, len(train), work)
    arguments |= {"seed": run.recipe.seed + seed, "data_seed": run.recipe.seed + seed}
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments),
        train_dataset=train,
        eval_dataset=preference_tokens(data.splits["development"], tokenizer),
        processing_class=tokenizer,
        peft_config=lora_config(settings.lora, "SEQ_CLS", model.config),
        callbacks=[RunCallback(run, "reward model" if split == "reward" else "second reward model")],
    )
    trainer.remove_callback(PrinterCallback)
    fp32_trainables(trainer.model)
    return trainer


def trainer_of(run: Run) -> Callable[[Run, Path], Trainer]:
    """The function that makes the trainer of this recipe's reward model."""
    return classifier_trainer if run.recipe.form == "continuation" else reward_trainer


def train_reward_model(run: Run) -> dict:
    """Train and measure the reward model; leaves `checkpoints/reward_model` and `evaluation/reward_model.json`."""
    if run.skips("reward_model"):
        return run.results("reward_model")
    if run.recipe.form == "continuation":
        return make_classifier(run)
    if run.ready_model("reward_model"):
        return _measure_ready(run)
    with run.stage("reward_model") as stage:
        data, tokenizer, device = (
            PreparedData.load(run.folder("data")),
            load_tokenizer(run.folder("sft")),
            detect_device(),
        )
        held_out = data.first("evaluation", run.recipe.evaluation.reward_pairs)
        with phase("load"):
            trainer = reward_trainer(run, stage.work)
        untrained = _fresh_head(run)
        run.progress("reward model: measuring the untrained head")
        untrained_margins = margins(RewardModel(untrained, tokenizer, device), held_out)

        started = time.perf_counter()
        train_resumably(trainer, stage.work)
        stage.leave_to_main()
        reward = _merged(run, trainer, stage.work)
        seconds, memory, counts = time.perf_counter() - started, peak_memory_bytes(), parameter_counts(trainer.model)

        run.progress("reward model: measuring held-out pairs")
        with phase("evaluate"):
            found = margins(reward, held_out)
        report = reward_report(found, untrained_margins, data.splits["reward"], held_out, tokenizer)
        _calibrate_on_sft(run, reward, data.splits["development"])
        stage.results = {
            **counts,
            "peak_memory_bytes": memory,
            "seconds": round(seconds, 1),
            **{key: report[key] for key in _REPORTED},
        }
        write_json(run.evaluation / "reward_model.json", report)
        with stage.publish() as folder:
            save_model(reward.model, tokenizer, folder)
            reward.save_scale(folder)
            write_history(trainer, folder, stage.results)
    return run.results("reward_model")


def train_judge_model(run: Run) -> dict | None:
    """Train a second reward model on pairs that no other stage sees, from another random head; it only judges.

    None where the recipe has none: the embedded worlds have a gold judge, and without `data.shares.judge` there are no
    pairs for it. Its agreement with the first one on held-out pairs is among the results.
    """
    if "judge_model" not in run.stages:
        return None
    if run.skips("judge_model"):
        return run.results("judge_model")
    with run.stage("judge_model") as stage:
        data = PreparedData.load(run.folder("data"))
        trainer = reward_trainer(run, stage.work, "judge", seed=_JUDGE_SEED)
        train_resumably(trainer, stage.work)
        stage.leave_to_main()
        judge = _merged(run, trainer, stage.work, _JUDGE_SEED)
        own = margins(judge, data.first("evaluation", run.recipe.evaluation.reward_pairs))
        first = torch.tensor(read_json(run.evaluation / "reward_model.json")["margins"])
        _calibrate_on_sft(run, judge, data.splits["development"])
        right = accuracy_of(own.tolist())
        agreement = proportion_interval(((own > 0) == (first > 0)).double().sum().item(), len(own))
        stage.results = {
            "accuracy": right.mean,
            "accuracy_ci95": right.as_list(),
            "agreement": agreement.mean,
            "agreement_ci95": agreement.as_list(),
            "pairs": len(own),
            "trained_on": len(data.splits["judge"]),
        }
        with stage.publish() as folder:
            save_model(judge.model, judge.tokenizer, folder)
            judge.save_scale(folder)
            write_history(trainer, folder, stage.results)
    return run.results("judge_model")


def train_weak_model(run: Run, work: Path, pairs: int) -> tuple[RewardModel, float]:
    """A reward model of the first `pairs` training pairs, and its held-out accuracy; see `stages.overoptimise`."""
    data = PreparedData.load(run.folder("data"))
    trainer = reward_trainer(run, work, seed=_WEAK_SEED, most=pairs)
    train_resumably(trainer, work)
    weak = _merged(run, trainer, work, _WEAK_SEED)
    _calibrate_on_sft(run, weak, data.splits["development"])
    found = margins(weak, data.first("evaluation", run.recipe.evaluation.reward_pairs))
    return weak, accuracy_of(found.tolist()).mean


def _merged(run: Run, trainer: RewardTrainer, work: Path, seed: int = 0) -> RewardModel:
    """The trained adapter merged into a model with the head that the trainer began with (`seed` as there)."""
    trainer.model.save_pretrained(work / "adapter")
    model = merge_adapter(_fresh_head(run, seed), work / "adapter").eval()
    return RewardModel(model, trainer.processing_class, detect_device())


def _measure_ready(run: Run) -> dict:
    """The reward model that the recipe names, measured on the run's pairs and put on the scale of its SFT answers."""
    source = run.ready_model("reward_model")
    with run.stage("reward_model") as stage:
        run.progress(f"loading {source}")
        data, device = PreparedData.load(run.folder("data")), detect_device()
        held_out = data.first("evaluation", run.recipe.evaluation.reward_pairs)
        base = run.adapter_base
        model, tokenizer = load_reward_model(source, device, base=base), load_classifier_tokenizer(source, base)
        reward = RewardModel(model, tokenizer, device)
        run.progress("reward model: measuring held-out pairs")
        report = reward_report(margins(reward, held_out), None, data.splits["reward"], held_out, tokenizer)
        report["texts_cut"] = reward.cut
        _calibrate_on_sft(run, reward, data.splits["development"])
        stage.results = {"method": "ready", "source": source, **{key: report[key] for key in _REPORTED}}
        write_json(run.evaluation / "reward_model.json", report)
        with stage.publish() as folder:
            save_model(reward.model, reward.tokenizer, folder)
            reward.save_scale(folder)
    return run.results("reward_model")


def margins(reward: RewardModel, pairs: Dataset) -> torch.Tensor:
    """Logit of the chosen minus logit of the rejected answer [n]."""
    prompts = list(pairs["prompt"])
    return reward.logits(prompts, pairs["chosen"]) - reward.logits(prompts, pairs["rejected"])


def reward_report(
    trained: torch.Tensor, untrained: torch.Tensor | None, train: Dataset, held_out: Dataset, tokenizer
) -> dict:
    """Held-out accuracy with its interval, beside the untrained head and a rule that looks at length alone.

    The rule's direction, longer or shorter, is the one that does better on the training pairs.
    """
    right = accuracy_of(trained.tolist())
    right_untrained = accuracy_of(untrained.tolist()) if untrained is not None else None
    return {
        "of": "pairs",
        "accuracy": right.mean,
        "accuracy_ci95": right.as_list(),
        "untrained_accuracy": right_untrained.mean if right_untrained else None,
        "untrained_ci95": right_untrained.as_list() if right_untrained else None,
        "length_baseline_accuracy": length_alone(train, held_out, tokenizer),
        "pairs": len(trained),
        "margins": trained.tolist(),
        "calibration": calibration(trained.tolist()),
        "by_length": by_length(trained, length_differences(held_out, tokenizer)),
    }


def length_differences(pairs: Dataset, tokenizer) -> list[int]:
    """Tokens of the chosen answer less those of the rejected one, for each pair."""
    chosen, rejected = (
        [len(row) for row in tokenizer(list(pairs[side]), add_special_tokens=False)["input_ids"]]
        for side in ("chosen", "rejected")
    )
    return [a - b for a, b in zip(chosen, rejected, strict=True)]


def by_length(found: torch.Tensor, differences: Sequence[int]) -> list[dict]:
    """Accuracy by the difference in length, in four groups of nearly equal size from the shortest chosen answers to the
    longest: a model that counts instead of reading is wrong at one end."""
    order = sorted(range(len(differences)), key=differences.__getitem__)
    groups = []
    for part in range(_LENGTH_GROUPS):
        rows = order[part * len(order) // _LENGTH_GROUPS : (part + 1) * len(order) // _LENGTH_GROUPS]
        if not rows:
            continue
        right = accuracy_of(found[rows].tolist())
        groups.append(
            {
                "from": differences[rows[0]],
                "to": differences[rows[-1]],
                "pairs": len(rows),
                "accuracy": right.mean,
                "accuracy_ci95": right.as_list(),
            }
        )
    return groups


def _fresh_head(run: Run, seed: int = 0):
    set_seed(run.recipe.seed + seed)
    return load_reward_model(run.folder("sft"), detect_device(), fresh_head=True).eval()


def _calibrate_on_sft(run: Run, reward: RewardModel, split: Dataset) -> None:
    prompts = list(split["prompt"])[:_SCALE_PROMPTS]
    # The spread of very few answers says little, that of one nothing: few prompts are answered several times.
    prompts *= -(-_SCALE_LEAST // len(prompts))
    sft = load_policy(run.folder("sft"), reward.device).eval()
    answers = answer_prompts(
        sft,
        load_tokenizer(run.folder("sft")),
        [TEMPLATE.format(p) for p in prompts],
        run.recipe.generation,
        reward.device,
        run.recipe.seed,
    )
    reward.calibrate(prompts, [answer.text for answer in answers])
