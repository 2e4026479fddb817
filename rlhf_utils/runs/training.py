"""Training with transformers' and trl's trainers: budget, checkpoints, resuming, and the record of the training."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from trl import RewardTrainer, SFTTrainer
from trl.trainer import add_fused_lm_head

from rlhf_utils.data.tokens import continued_tokens, read_tokens
from rlhf_utils.models.loading import fp32_trainables, parameter_counts
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import mark_complete, newest_complete, read_json, write_json, write_jsonl
from rlhf_utils.platforms.memory import fitting, phase
from rlhf_utils.platforms.runtime import detect_device, peak_memory_bytes
from rlhf_utils.runs.finite import watch_numbers
from rlhf_utils.runs.run import LOG
from rlhf_utils.runs.stopping import safe_points, stop_asked
from rlhf_utils.settings.sections import TrainingSettings
from rlhf_utils.settings.template import TEMPLATE

if TYPE_CHECKING:
    from rlhf_utils.runs.run import Run

_LINES_LOGGED = 40
_KEPT = ("step", "epoch", "loss", "learning_rate", "accuracy", "eval_loss", "eval_accuracy", "seconds")
TITLES = {
    "sft": "full fine-tuning",
    "sft_qlora": "QLoRA",
    "reward_model": "reward model",
    "judge_model": "second reward model",
    "overoptimise": "weak reward model",
}


def total_steps(settings: TrainingSettings, rows: int) -> int:
    """Optimizer steps for `rows` rows."""
    return math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs)


def micro_batches(settings: TrainingSettings) -> tuple[int, int]:
    """Rows that a process computes at once, and how often it does so for one optimizer step: together with the number
    of processes they make `batch_size`. Raises InputError where they cannot."""
    share = processes.divided(settings.batch_size, "batch_size")
    micro = min(settings.micro_batch_size or share, share)
    if share % micro:
        raise InputError(
            f"batch_size {settings.batch_size} over {processes.count()} processes is {share} rows for each, which is "
            f"not a multiple of micro_batch_size {micro}; change one of them"
        )
    return micro, share // micro


def bookkeeping(run: Run, stage: str, settings: TrainingSettings, rows: int) -> dict[str, Any]:
    """The arguments of a trainer that say nothing about learning: where it writes, how often it logs, evaluates and
    saves, the seed, and the precision of this device (trl's own default, bf16, fails on CPUs and old GPUs)."""
    steps, device = total_steps(settings, rows), detect_device()
    logged = max(1, steps // _LINES_LOGGED)
    return dict(
        output_dir=str(run.work(stage)),
        # The held-out loss is a mean of means, and the batches it is of must not depend on the number of processes.
        per_device_eval_batch_size=2 * (settings.micro_batch_size or settings.batch_size),
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        # A loss that is not finite must be seen, not left out of the mean.
        logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,
        logging_steps=logged,
        eval_strategy="steps",
        eval_steps=max(1, steps // settings.evaluations),
        save_strategy="steps",
        # Where a line is logged: it holds the mean loss since the line before, which no checkpoint keeps.
        save_steps=logged * math.ceil(steps / settings.checkpoints / logged),
        save_total_limit=2,
        seed=run.recipe.seed,
        data_seed=run.recipe.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.kind == "cuda",
        **device.trainer_flags,
    )


def demonstration_tokens(split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """A split as trl's SFT trainer takes it tokenized: `input_ids` of prompt + response + EOS, `completion_mask` 1 on
    response and EOS."""
    prompts, said = [TEMPLATE.format(p) for p in split["prompt"]], [TEMPLATE.completion(r) for r in split["chosen"]]
    rows = continued_tokens(tokenizer, prompts, said)
    return Dataset.from_dict(
        {
            "input_ids": [[*prompt, *answer, tokenizer.eos_token_id] for prompt, answer in rows],
            "completion_mask": [[0] * len(prompt) + [1] * (len(answer) + 1) for prompt, answer in rows],
        }
    )


def preference_tokens(split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """A split as trl's reward trainer takes it tokenized: `chosen_ids`, `rejected_ids`. Without EOS: the score is read
    at the response's last token, in training as in every later use."""

    def ids(column: str) -> list[list[int]]:
        starts, ends = [TEMPLATE.format(p) for p in split["prompt"]], [TEMPLATE.completion(r) for r in split[column]]
        return read_tokens(tokenizer, starts, ends)

    return Dataset.from_dict({"chosen_ids": ids("chosen"), "rejected_ids": ids("rejected")})


def labelled_tokens(split: Dataset, tokenizer: PreTrainedTokenizerBase, most: int) -> Dataset:
    """A split as a classifier takes it: `input_ids` of the first `most` tokens of each text, and `labels`."""
    rows = tokenizer(list(split["text"]), truncation=True, max_length=most)["input_ids"]
    return Dataset.from_dict({"input_ids": rows, "labels": list(split["label"])})


def train(run: Run, stage: str, trainer: Trainer) -> dict[str, Any]:
    """Train `stage` from its newest whole checkpoint; returns parameters, seconds and peak memory. The lines of its log
    are left in the work folder."""
    title = TITLES.get(stage, stage)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunCallback(run, title))
    fp32_trainables(trainer.model)
    if isinstance(trainer, SFTTrainer):
        head_in_fp32(trainer.model)
    elif not isinstance(trainer, RewardTrainer):
        # transformers takes a classifier's loss for one over the whole batch, since it would accept the number of rows;
        # it is the mean of a microbatch, and has to be averaged over microbatches and processes.
        trainer.model_accepts_loss_kwargs = False
    counts, started = parameter_counts(trainer.model), time.perf_counter()
    train_resumably(trainer, Path(trainer.args.output_dir), title)
    if processes.is_main():
        lines = [
            {key: float(line[key]) if key != "step" else line[key] for key in _KEPT if key in line}
            for line in trainer.state.log_history
            if "loss" in line or "eval_loss" in line
        ]
        write_jsonl(run.work(stage) / LOG, lines)
    seconds = round(time.perf_counter() - started, 1)
    return {**counts, "peak_memory_bytes": peak_memory_bytes(), "seconds": seconds}


def save_adapter(run: Run, stage: str, trainer: Trainer) -> Path:
    """The trained adapter of `stage` in a folder; without the path that peft records of this run on this machine."""
    folder = run.work(stage) / "adapter"
    if processes.is_main():
        trainer.model.save_pretrained(folder)
        about = folder / "adapter_config.json"
        write_json(about, {**read_json(about), "base_model_name_or_path": run.recipe.policy})
    processes.wait()
    return folder


def head_in_fp32(model: PreTrainedModel | PeftModel) -> None:
    """Have trl compute the loss from fp32 logits also under autocast: it rounds them to 16 bits, and logits around -100
    lose half a nat by that."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    # What trl's own trainer asks for, and the cast.
    add_fused_lm_head(inner, cast_lm_head_to_fp32=True, outputs=("log_probs", "entropy", "is_top1"))


class RunCallback(TrainerCallback):
    """Reports progress of a trainer to the run and marks its checkpoints complete."""

    def __init__(self, run: Run, title: str):
        self.run, self.title, self.started = run, title, time.perf_counter()

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self.run.progress(f"{self.title}: loss {float(logs['loss']):.3f}", state.global_step, state.max_steps)
        # The trainer's own history has no clock; the comparison of methods needs one.
        if state.log_history:
            state.log_history[-1]["seconds"] = round(time.perf_counter() - self.started, 2)

    def on_step_end(self, args, state, control, **_):
        if stop_asked():
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args, state, control, metrics=None, **_):
        if processes.is_main():
            step = f"step {state.global_step:>5}/{state.max_steps}"
            print(f"{self.title}: {step}   held-out loss {metrics['eval_loss']:.3f}", flush=True)

    def on_save(self, args, state, control, **_):
        processes.wait()  # every process has written its random state
        if processes.is_main():
            mark_complete(Path(args.output_dir), state.global_step)


def train_resumably(trainer: Trainer, work: Path, title: str = "training") -> None:
    """Train from the newest whole checkpoint in `work`. Where memory runs out, the training goes on from there with
    half the micro-batch and the same batch."""
    arguments = trainer.args
    micro = arguments.per_device_train_batch_size
    batch = micro * arguments.gradient_accumulation_steps
    start, tried = _Start(trainer), False
    watch_numbers(trainer, title, work, "the stage's learning_rate")

    def attempt(size: int) -> None:
        nonlocal tried
        if size != arguments.per_device_train_batch_size:
            arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = size, batch // size
            arguments.per_device_eval_batch_size = 2 * size
            # Read from the arguments only once, when the trainer was made.
            trainer._train_batch_size = arguments.train_batch_size
        newest = processes.from_main(newest_complete(work) if processes.is_main() else None)
        if tried:
            start.restore(trainer)
        tried = True
        trainer.train(resume_from_checkpoint=newest)

    try:
        with phase("train"), safe_points():
            fitting(work.name, micro, attempt, whole=batch)
    except BaseException:
        # Where the disk is full, what was cut off leaves no room to say so in the record of the run.
        if processes.is_main():
            newest_complete(work)
        raise


class _Start:
    """Where a training begins, for a second try: the weights that learn, on the host, and the random numbers."""

    def __init__(self, trainer: Trainer):
        # Several processes do not try again (`memory.fitting`).
        self.weights = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in trainer.model.named_parameters()
            if parameter.requires_grad and processes.count() == 1
        }
        self.random = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all()

    def restore(self, trainer: Trainer) -> None:
        """Make `trainer` as it was; whatever a failed try left of its optimizer is dropped."""
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.model_wrapped = trainer.model
        trainer.model.zero_grad()
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])
        random.setstate(self.random[0])
        np.random.set_state(self.random[1])
        torch.set_rng_state(self.random[2])
        torch.cuda.set_rng_state_all(self.random[3])
