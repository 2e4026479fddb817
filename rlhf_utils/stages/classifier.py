"""Stage `reward_model` of a recipe whose data are labelled texts: a classifier, ready or trained here."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from torch import Tensor
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from rlhf_utils.data import PreparedData
from rlhf_utils.evaluation.judge import length_alone
from rlhf_utils.evaluation.statistics import accuracy_of, calibration
from rlhf_utils.models.loading import (
    load_classifier,
    load_classifier_tokenizer,
    load_tokenizer,
    parameter_counts,
    save_model,
)
from rlhf_utils.models.lora import lora_config, merge_adapter
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_json
from rlhf_utils.platforms.memory import phase
from rlhf_utils.platforms.runtime import detect_device, peak_memory_bytes
from rlhf_utils.rewards.functions import LABEL_FILE, class_logits, positions
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.training import RunCallback, common_arguments, train_resumably, write_history

LABELS = ("NEGATIVE", "POSITIVE")


def classifier_trainer(run: Run, work: Path) -> Trainer:
    """transformers' trainer as this series uses it for a classifier: cross-entropy on the label, LoRA on the policy's
    trunk plus a `score` head."""
    data, tokenizer = PreparedData.load(run.folder("data")), load_tokenizer(run.folder("sft"))
    settings = run.recipe.reward_model
    train = labelled_tokens(data.splits["reward"], tokenizer, run.recipe.data.max_response_tokens)
    arguments = common_arguments(run, settings, len(train), work)
    # Of trl's trainers: here the texts are cut while they are tokenised.
    del arguments["max_length"]
    model = _fresh_head(run)
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = Trainer(
        model=get_peft_model(model, lora_config(settings.lora, "SEQ_CLS", model.config)),
        args=TrainingArguments(**arguments),
        train_dataset=train,
        eval_dataset=labelled_tokens(data.splits["development"], tokenizer, run.recipe.data.max_response_tokens),
        data_collator=DataCollatorWithPadding(_right_padding(tokenizer)),
        callbacks=[RunCallback(run, "classifier")],
    )
    # transformers takes this model's loss for one over the whole batch, since it would accept the number of rows; it is
    # the mean of a microbatch, and has to be averaged over microbatches and processes.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    return trainer


def labelled_tokens(split: Dataset, tokenizer: PreTrainedTokenizerBase, most: int) -> Dataset:
    """A split as a classifier takes it: `input_ids` of the first `most` tokens of each text, and `labels`."""
    rows = tokenizer(list(split["text"]), truncation=True, max_length=most)["input_ids"]
    return Dataset.from_dict({"input_ids": rows, "labels": list(split["label"])})


def make_classifier(run: Run) -> dict:
    """Train a classifier, or take the ready one, and measure it; leaves `checkpoints/reward_model` and
    `evaluation/reward_model.json`."""
    ready = run.ready_model("reward_model")
    with run.stage("reward_model") as stage:
        data, label = PreparedData.load(run.folder("data")), run.recipe.reward_model.label
        about, untrained = {"method": "ready", "source": ready}, None
        if ready:
            run.progress(f"loading {ready}")
            base = run.adapter_base
            model = load_classifier(ready, detect_device(), base=base)
            tokenizer = load_classifier_tokenizer(ready, base)
        else:
            tokenizer = load_tokenizer(run.folder("sft"))
            with phase("load"):
                trainer = classifier_trainer(run, stage.work)
            untrained = _fresh_head(run)
            started = time.perf_counter()
            train_resumably(trainer, stage.work)
            stage.leave_to_main()
            about = {
                "method": "trained",
                **parameter_counts(trainer.model),
                "peak_memory_bytes": peak_memory_bytes(),
                "seconds": round(time.perf_counter() - started, 1),
            }
            trainer.model.save_pretrained(stage.work / "adapter")
            model = merge_adapter(_fresh_head(run), stage.work / "adapter")
        # Of the two tables of labels a configuration may lack the other one.
        if label not in (labels := model.config.id2label.values()):
            names = ", ".join(map(str, labels))
            raise InputError(f"the classifier has no label {label!r}; set reward_model.label to one of {names}")
        run.progress("classifier: measuring held-out texts")
        with phase("evaluate"):
            report = classifier_report(run, model, untrained, tokenizer, data)
        stage.results = {
            **about,
            **{
                key: report[key]
                for key in ("accuracy", "accuracy_ci95", "untrained_accuracy", "length_baseline_accuracy", "pairs")
            },
        }
        write_json(run.evaluation / "reward_model.json", report)
        with stage.publish() as folder:
            save_model(model, tokenizer, folder)
            write_json(folder / LABEL_FILE, {"label": label, "joint": run.recipe.template.joint})
            if not ready:
                write_history(trainer, folder, stage.results)
    return run.results("reward_model")


def classifier_report(
    run: Run, model: PreTrainedModel, untrained: PreTrainedModel | None, tokenizer, data: PreparedData
) -> dict:
    """Held-out accuracy with its interval, beside an untrained head, the commoner label and a rule on length alone.

    Texts are read as far as the classifier reads, at most `data.max_response_tokens` tokens; how many were cut is in
    the report. A margin is the logit of the true label minus the larger of the others.
    """
    held_out, device = data.first("evaluation", run.recipe.evaluation.reward_pairs), detect_device()
    most = min(run.recipe.data.max_response_tokens, positions(model) or sys.maxsize)
    whole = tokenizer(list(held_out["text"]), verbose=False)["input_ids"]
    rows = tokenizer(list(held_out["text"]), truncation=True, max_length=most)["input_ids"]
    labels = torch.tensor(held_out["label"])
    if int(labels.max()) >= model.config.num_labels:
        raise InputError(
            f"the texts have label {int(labels.max())}, but the classifier knows {model.config.num_labels} labels"
        )
    found = margins(class_logits(model, rows, device), labels)
    right, fresh = accuracy_of(found.tolist()), None
    if untrained is not None:
        fresh = accuracy_of(margins(class_logits(untrained, rows, device), labels).tolist())
    train = data.splits["reward"]
    common = Counter(train["label"]).most_common(1)[0][0]
    return {
        "of": "texts",
        "accuracy": right.mean,
        "accuracy_ci95": right.as_list(),
        "untrained_accuracy": fresh.mean if fresh else None,
        "untrained_ci95": fresh.as_list() if fresh else None,
        "length_baseline_accuracy": length_alone(train, held_out, tokenizer),
        "commoner_label_accuracy": sum(label == common for label in held_out["label"]) / len(held_out),
        "pairs": len(found),
        "texts_cut": sum(len(row) > most for row in whole),
        "margins": found.tolist(),
        "calibration": calibration(found.tolist()),
    }


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the true label minus the largest other logit [n], from logits [n, labels] and labels [n]."""
    true = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[true] - logits.masked_fill(true, -torch.inf).max(dim=1).values


def _fresh_head(run: Run) -> PreTrainedModel:
    # The head starts at random: the seed makes it the same head in every run and after every restart.
    set_seed(run.recipe.seed)
    return load_classifier(run.folder("sft"), detect_device(), LABELS)


def _right_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.padding_side = "right"
    return tokenizer
