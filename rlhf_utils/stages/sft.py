"""Stages `sft` and `sft_qlora`: supervised fine-tuning of the whole model, and of a LoRA adapter on its 4-bit copy."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer import add_fused_lm_head

from rlhf_utils.data import PreparedData, beginnings
from rlhf_utils.evaluation.rouge import Rouge
from rlhf_utils.models.generation import answer_prompts
from rlhf_utils.models.loading import (
    copy_model,
    fp32_trainables,
    has_bitsandbytes,
    load_policy,
    load_policy_4bit,
    load_tokenizer,
    parameter_counts,
    save_model,
)
from rlhf_utils.models.lora import lora_config, merge_adapter
from rlhf_utils.platforms.files import read_json, write_json, write_jsonl
from rlhf_utils.platforms.memory import phase
from rlhf_utils.platforms.runtime import detect_device, peak_memory_bytes
from rlhf_utils.rewards.functions import FluencyReward
from rlhf_utils.runs.run import Run, Stage
from rlhf_utils.runs.training import (
    RunCallback,
    common_arguments,
    demonstration_tokens,
    train_resumably,
    write_history,
)
from rlhf_utils.stages.base import publish_ready

_CHECKED_PROMPTS = 100


def sft_trainer(run: Run, model: PreTrainedModel, adapter, learning_rate: float, work: Path, title: str) -> SFTTrainer:
    """trl's SFT trainer as this series uses it: loss on the answer and its EOS only, the same budget for both
    methods."""
    data, tokenizer = PreparedData.load(run.folder("data")), load_tokenizer(run.folder("base"))
    train = demonstration_tokens(data.splits["sft"], tokenizer)
    arguments = common_arguments(run, run.recipe.sft, len(train), work) | {"learning_rate": learning_rate}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments, completion_only_loss=True),
        train_dataset=train,
        eval_dataset=demonstration_tokens(data.splits["development"], tokenizer),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[RunCallback(run, title)],
    )
    trainer.remove_callback(PrinterCallback)
    fp32_trainables(trainer.model)
    head_in_fp32(trainer.model)
    return trainer


def head_in_fp32(model: PreTrainedModel | PeftModel) -> None:
    """Have trl compute the loss of its `model` from fp32 logits also under autocast: it rounds them to 16 bits, and
    logits around -100 lose half a nat by that."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    # What trl's own trainer asks for, and the cast.
    add_fused_lm_head(inner, cast_lm_head_to_fp32=True, outputs=("log_probs", "entropy", "is_top1"))


def train_full(run: Run) -> dict:
    """Fine-tune every weight of the base model on the demonstrations; leaves `checkpoints/sft`."""
    if run.skips("sft"):
        return run.results("sft")
    if run.ready_model("sft"):
        return publish_ready(run, "sft")
    if run.recipe.tuned_policy:
        return _publish_tuned(run)
    with run.stage("sft") as stage:
        with phase("load"):
            model = load_policy(run.folder("base"), detect_device(), dropout=True)
            trainer = sft_trainer(run, model, None, run.recipe.sft.learning_rate, stage.work, "full fine-tuning")
        _train_and_publish(stage, trainer, "full", lambda: model)
    return run.results("sft")


def train_qlora(run: Run) -> dict:
    """Fine-tune a LoRA adapter on the 4-bit base model; leaves `checkpoints/sft_qlora`, merged into the fp32 base.

    Without bitsandbytes the base stays in fp32, which is plain LoRA; the result's `method` says which it was.
    """
    if run.skips("sft_qlora"):
        return run.results("sft_qlora")
    if run.ready_model("sft_qlora"):
        return publish_ready(run, "sft_qlora")
    quantised = has_bitsandbytes()
    method = "QLoRA 4-bit (nf4)" if quantised else "LoRA (bitsandbytes missing)"
    with run.stage("sft_qlora") as stage:
        settings = run.recipe.qlora
        with phase("load"):
            model = (load_policy_4bit if quantised else load_policy)(run.folder("base"), detect_device())
            trainer = sft_trainer(
                run, model, lora_config(settings, "CAUSAL_LM", model.config), settings.learning_rate, stage.work, method
            )

        def merged() -> PreTrainedModel:
            adapter = stage.work / "adapter"
            trainer.model.save_pretrained(adapter)
            # peft records the path of this run's folder on this machine.
            about = adapter / "adapter_config.json"
            write_json(about, {**read_json(about), "base_model_name_or_path": run.recipe.policy})
            return merge_adapter(load_policy(run.folder("base"), detect_device()), adapter)

        _train_and_publish(stage, trainer, method, merged)
    return run.results("sft_qlora")


def _with_weights(run: Run, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """The base model with the trained `weights` in place of its own."""
    model = load_policy(run.folder("base"), detect_device(), dropout=True)
    model.load_state_dict(weights)
    return model


def _publish_tuned(run: Run) -> dict:
    """The base model as it is, where it writes such texts already; its loss on held-out texts is the evidence."""
    with run.stage("sft") as stage, stage.publish() as folder:
        held_out = PreparedData.load(run.folder("data")).splits["development"]
        model, tokenizer = load_policy(run.folder("base"), detect_device()), load_tokenizer(run.folder("base"))
        texts = beginnings(list(held_out["text"]), tokenizer, run.recipe.data.max_response_tokens)
        prompts = list(held_out["prompt"])
        rests = [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
        likelihood = FluencyReward(model, tokenizer, detect_device(), run.recipe.template)(prompts, rests)
        stage.results = {
            "method": "already tuned",
            "held_out_loss": -likelihood.mean().item(),
            "held_out_texts": len(texts),
        }
        copy_model(run.folder("base"), folder)
        write_jsonl(folder / "metrics.jsonl", [{"summary": True, **stage.results}])
    return run.results("sft")


def _train_and_publish(stage: Stage, trainer: SFTTrainer, method: str, finished_model) -> None:
    run, tokenizer = stage.run, trainer.processing_class
    counts = parameter_counts(trainer.model)
    started = time.perf_counter()
    train_resumably(trainer, stage.work)
    seconds, memory = time.perf_counter() - started, peak_memory_bytes()
    if trainer.is_fsdp_enabled:
        # Every process holds a part of the weights, and all of them take part in putting them together.
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    stage.leave_to_main()
    if trainer.is_fsdp_enabled:
        finished_model = partial(_with_weights, run, weights)
    model = finished_model().eval()
    run.progress(f"{method}: sampling held-out answers")
    checked = PreparedData.load(run.folder("data")).first("development", _CHECKED_PROMPTS)
    answers = answer_prompts(
        model,
        tokenizer,
        [run.recipe.template.format(p) for p in checked["prompt"]],
        run.recipe.generation,
        detect_device(),
        run.recipe.seed,
    )
    stage.results = {
        "method": method,
        **counts,
        "peak_memory_bytes": memory,
        "seconds": round(seconds, 1),
        "rougeL": Rouge().compute(predictions=[a.text for a in answers], references=list(checked["chosen"]))["rougeL"],
        "eos_rate": sum(answer.ended for answer in answers) / len(answers),
        "checked_prompts": len(answers),
    }
    with stage.publish() as folder:
        save_model(model, tokenizer, folder)
        write_history(trainer, folder, stage.results)
        if (stage.work / "adapter").is_dir():
            shutil.copytree(stage.work / "adapter", folder / "adapter")
