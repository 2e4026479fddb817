"""What the trl trainers of the series have in common: budget, checkpoints, resuming, and the record of the training."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from rlhf_utils.data.tokens import continued_tokens, read_tokens
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_jsonl
from rlhf_utils.platforms.memory import fitting, phase, remembering
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.runs.finite import watch_numbers
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stopping import safe_points, stop_asked
from rlhf_utils.runs.trainer_checkpoints import mark_complete, newest_complete
from rlhf_utils.settings.sections import TrainingSettings
from rlhf_utils.settings.template import TEMPLATE

_LINES_LOGGED = 40


def common_arguments(run: Run, settings: TrainingSettings, rows: int, work: Path) -> dict:
    """Arguments that supervised fine-tuning and reward modelling share.

    Precision comes from the device, since trl's own default (bf16) fails on CPUs and old GPUs. `max_length` is None:
    over-long rows were counted and dropped with the data, so a trainer must neither truncate nor drop in silence.
    Batches are drawn at random: grouping rows by length saves padding, but then long answers and short ones (the curt
    ones, the refusals) come in turns, and the model, above all a LoRA adapter, learns them less well.
    """
    micro, accumulated = micro_batches(settings)
    steps = total_steps(settings, rows)
    logged = max(1, steps // _LINES_LOGGED)
    device = detect_device()
    return dict(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        max_length=None,
        per_device_train_batch_size=micro,
        # The held-out loss is a mean of means, and the batches it is of must not depend on the number of processes.
        per_device_eval_batch_size=2 * (settings.micro_batch_size or settings.batch_size),
        gradient_accumulation_steps=accumulated,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        # A loss that is no number must be seen, not left out of the mean.
        logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        optim="adamw_torch_fused",
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


def micro_batches(settings: TrainingSettings) -> tuple[int, int]:
    """Rows that a process computes at once, and how often it does so for one optimizer step: together with the number
    of processes they make `batch_size`.

    Raises InputError where they cannot.
    """
    share = processes.divided(settings.batch_size, "batch_size")
    micro = min(settings.micro_batch_size or share, share)
    if share % micro:
        raise InputError(
            f"batch_size {settings.batch_size} over {processes.count()} processes is {share} rows for each, which is "
            f"not a multiple of micro_batch_size {micro}; change one of them"
        )
    return micro, share // micro


def total_steps(settings: TrainingSettings, rows: int) -> int:
    """Optimizer steps for `rows` rows."""
    return math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs)


def demonstration_tokens(split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """A split as trl's SFT trainer takes it tokenised: `input_ids` of prompt + answer + EOS, `completion_mask` 1 on
    answer and EOS."""
    prompts, answers = [TEMPLATE.format(p) for p in split["prompt"]], [TEMPLATE.completion(r) for r in split["chosen"]]
    rows = continued_tokens(tokenizer, prompts, answers)
    return Dataset.from_dict(
        {
            "input_ids": [[*prompt, *answer, tokenizer.eos_token_id] for prompt, answer in rows],
            "completion_mask": [[0] * len(prompt) + [1] * (len(answer) + 1) for prompt, answer in rows],
        }
    )


def preference_tokens(split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """A split as trl's reward trainer takes it tokenised: `chosen_ids`, `rejected_ids`.

    Without EOS: the score is read at the answer's last token, in training as in every later use
    (`rewards.class_logits`).
    """

    def ids(column: str) -> list[list[int]]:
        starts, ends = [TEMPLATE.format(p) for p in split["prompt"]], [TEMPLATE.completion(r) for r in split[column]]
        return read_tokens(tokenizer, starts, ends)

    return Dataset.from_dict({"chosen_ids": ids("chosen"), "rejected_ids": ids("rejected")})


class RunCallback(TrainerCallback):
    """Reports progress of a trl trainer to the run and marks its checkpoints complete."""

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


def train_resumably(trainer: Trainer, work: Path) -> None:
    """Train from the newest complete checkpoint in `work`.

    Where memory runs out, the training goes on from there with half the micro-batch and the same batch: the mean over a
    batch, except that of an epoch's last, smaller one, of which trl's reward trainer weighs its parts alike.
    """
    arguments = trainer.args
    micro = arguments.per_device_train_batch_size
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    start = _Start(trainer)
    titles = [watcher.title for watcher in trainer.callback_handler.callbacks if isinstance(watcher, RunCallback)]
    watch_numbers(trainer, titles[0] if titles else work.name, work, "the stage's learning_rate")

    def attempt(size: int) -> None:
        if size != arguments.per_device_train_batch_size:
            arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = size, batch // size
            arguments.per_device_eval_batch_size = 2 * size
            # Read from the arguments only once, when the trainer was made.
            trainer._train_batch_size = arguments.train_batch_size
        newest = processes.from_main(newest_complete(work) if processes.is_main() else None)
        if start.left:
            start.restore(trainer)
        start.left = True
        trainer.train(resume_from_checkpoint=newest)

    try:
        with remembering(work), phase("train"), safe_points():
            fitting(work.name, micro, attempt, whole=batch)
    except BaseException:
        # Where the disk is full, what was cut off leaves no room to say so in the record of the run.
        if processes.is_main():
            newest_complete(work)
        raise


class _Start:
    """Where a training begins, for a second try: the weights that learn, on the host, and the random numbers."""

    def __init__(self, trainer: Trainer):
        self.left = False
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


def write_history(trainer: Trainer, folder: Path, summary: dict) -> None:
    """Write the training record as `metrics.jsonl`: one line per log, then `summary`."""
    wanted = ("step", "epoch", "loss", "learning_rate", "accuracy", "eval_loss", "eval_accuracy", "seconds")
    lines = [
        {key: float(line[key]) if key != "step" else line[key] for key in wanted if key in line}
        for line in trainer.state.log_history
        if "loss" in line or "eval_loss" in line
    ]
    write_jsonl(folder / "metrics.jsonl", [*lines, {"summary": True, **summary}])
