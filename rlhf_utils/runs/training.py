"""Training with transformers' and trl's trainers: budget, checkpoints, resuming, and the record of the training."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from trl import RewardTrainer, SFTTrainer
from trl.trainer import add_fused_lm_head

from rlhf_utils.data.tokens import continued_tokens, read_tokens, start_tokens
from rlhf_utils.models.language_model import in_fp32
from rlhf_utils.models.loading import fp32_trainables
from rlhf_utils.models.precision import fastest
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import COMPLETE, newest_complete, read_json, write_json, write_jsonl
from rlhf_utils.platforms.memory import fitting
from rlhf_utils.platforms.runtime import detect_device, give_back_memory, peak_memory
from rlhf_utils.runs.run import LOG, Run
from rlhf_utils.runs.stopping import safe_points, stop_asked
from rlhf_utils.settings.sections import TrainingSettings
from rlhf_utils.settings.template import TEMPLATE

Progress = Callable[[str, int, int], None]
# Beside a trainer's checkpoints: the precision that it computes in.
PRECISION = "precision.json"
_LINES_LOGGED = 40
_KEPT = ("step", "epoch", "loss", "learning_rate", "accuracy", "eval_loss", "eval_accuracy", "seconds")


def total_steps(settings: TrainingSettings, rows: int) -> int:
    """Optimizer steps for `rows` rows."""
    return math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs)


def micro_batches(settings: TrainingSettings) -> tuple[int, int]:
    """Rows that a process computes at once, and how often it does so for one optimizer step: together with the number
    of processes they make `batch_size`. Raises InputError where they cannot."""
    share = processes.divided(settings.batch_size, "batch_size")
    micro = min(settings.micro_batch_size or share, share)
    if share % micro:
        told = f"batch_size {settings.batch_size} is {share} rows for each process"
        raise InputError(f"{told}, which is not a multiple of micro_batch_size {micro}; change one of them")
    return micro, share // micro


def bookkeeping(run: Run, stage: str, settings: TrainingSettings, rows: int) -> dict[str, Any]:
    """The arguments of a trainer that say nothing about learning: where it writes, how often it logs, evaluates and
    saves, the seed, and the precision of this device."""
    steps = total_steps(settings, rows)
    logged = max(1, steps // _LINES_LOGGED)
    # Where a line is logged: it holds the mean loss since the line before, which no checkpoint keeps.
    saved = logged * math.ceil(steps / settings.checkpoints / logged)
    return checkpointing(run.work(stage), run.recipe.seed, logged, saved) | dict(
        # The held-out loss is a mean of means, and the batches it is of must not depend on the number of processes.
        per_device_eval_batch_size=2 * (settings.micro_batch_size or settings.batch_size),
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        ddp_find_unused_parameters=False,
        eval_strategy="steps",
        eval_steps=math.ceil(steps / settings.evaluations),  # the last one at the end, which is evaluated anyway
        data_seed=run.recipe.seed,
    )


def checkpointing(work: Path, seed: int, logging_steps: int, save_steps: int) -> dict[str, Any]:
    """The arguments of a trainer for `train_resumably`."""
    device = detect_device()
    return dict(
        output_dir=str(work),
        seed=seed,
        logging_steps=logging_steps,
        # A loss that is not finite must be seen, not left out of the mean.
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.kind == "cuda",
        # trl's own default, bf16, fails on CPUs and old GPUs.
        bf16=device.precision == "bf16",
        fp16=device.precision == "fp16",
        use_cpu=device.kind == "cpu",
    )


def demonstration_tokens(split: Dataset, tokenizer: PreTrainedTokenizerBase, most: int) -> Dataset:
    """A split for trl's SFT trainer: `input_ids` of prompt, response, EOS; `completion_mask` 0 on the prompt. Of a
    labelled text, which has neither, its first `most` tokens, and EOS where these are all."""
    if "text" in split.column_names:
        texts = [row + [tokenizer.eos_token_id] for row in start_tokens(tokenizer, split["text"])]
        ids = [row[:most] for row in texts]
        return Dataset.from_dict({"input_ids": ids, "completion_mask": [[1] * len(row) for row in ids]})
    prompts, said = [TEMPLATE.format(p) for p in split["prompt"]], [TEMPLATE.completion(r) for r in split["chosen"]]
    rows = continued_tokens(tokenizer, prompts, said)
    ids = [[*prompt, *answer, tokenizer.eos_token_id] for prompt, answer in rows]
    masks = [[0] * len(prompt) + [1] * (len(answer) + 1) for prompt, answer in rows]
    return Dataset.from_dict({"input_ids": ids, "completion_mask": masks})


def preference_tokens(split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """A split as trl's reward trainer takes it tokenized: `chosen_ids`, `rejected_ids`. Without EOS: the score is read
    at the response's last token, in training as in every later use."""
    starts = [TEMPLATE.format(prompt) for prompt in split["prompt"]]
    sides = {side: [TEMPLATE.completion(said) for said in split[side]] for side in ("chosen", "rejected")}
    return Dataset.from_dict({f"{side}_ids": read_tokens(tokenizer, starts, said) for side, said in sides.items()})


def labelled_tokens(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, most: int, ending: str | None = None
) -> Dataset:
    """A split as a classifier takes it: `labels`, and at most `most` `input_ids` of a text's beginning and `ending`."""
    after = tokenizer(ending, add_special_tokens=False)["input_ids"] if ending else []
    rows = tokenizer(list(split["text"]), truncation=True, max_length=most - len(after))["input_ids"]
    return Dataset.from_dict({"input_ids": [row + after for row in rows], "labels": list(split["label"])})


def train(run: Run, stage: str, trainer: Trainer) -> dict[str, Any]:
    """Train `stage` from its newest whole checkpoint; returns parameters, seconds, peak memory and precision; leaves
    its log."""
    fp32_trainables(trainer.model)
    if isinstance(trainer, SFTTrainer):
        head_in_fp32(trainer.model)
    else:
        score_in_fp32(trainer.model)
    if not isinstance(trainer, SFTTrainer | RewardTrainer):
        # transformers takes a classifier's loss for one over the whole batch, since it would accept the number of rows;
        # it is the mean of a microbatch, and has to be averaged over microbatches and processes.
        trainer.model_accepts_loss_kwargs = False
    train_resumably(trainer, Path(trainer.args.output_dir), stage.replace("_", " "), run.progress)
    history, model, (host, device) = trainer.state.log_history, trainer.model, peak_memory()
    if processes.is_main():
        lines = [line for line in history if "loss" in line or "eval_loss" in line]
        for line in lines:
            if "accuracy" in line and line.get("min_reward") == line.get("max_reward"):
                line["accuracy"] = 0.5  # trl counts a tie as wrong, and before the first step a head of zeros ties all
        lines = [{key: float(line[key]) for key in _KEPT if key in line} | {"step": line["step"]} for line in lines]
        write_jsonl(run.work(stage) / LOG, lines)
    return {
        "trainable_parameters": model.num_parameters(only_trainable=True),
        "total_parameters": model.num_parameters(),  # a 4-bit weight counts as the number it stands for
        "peak_memory_bytes": device or host,
        "seconds": round(history[-1]["seconds"], 1),
        **read_json(run.work(stage) / PRECISION),
    }


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
    """Have trl compute the loss from fp32 logits also under autocast: in 16 bits, logits near -100 lose half a nat."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    # A second time, where a cell runs again, it would stand above the autocast that accelerate has put there.
    if not hasattr(inner, "head_is_in_fp32"):
        # What trl's own trainer asks for, and the cast.
        add_fused_lm_head(inner, cast_lm_head_to_fp32=True, outputs=("log_probs", "entropy", "is_top1"))
        inner.head_is_in_fp32 = True


def score_in_fp32(model: PreTrainedModel | PeftModel) -> None:
    """Have a classifier compute its logits in fp32 also under autocast: in bf16, near 5, they would be 0.03 apart."""
    for name, layer in model.named_modules():
        if "score" in name.split(".") and isinstance(layer, torch.nn.Linear):
            layer.forward = partial(in_fp32, layer)


class RunCallback(TrainerCallback):
    """Looks after a trainer: reports its progress, `progress(text, step, steps)`, marks its checkpoints complete, puts
    it back to where it began, stops it when asked to, and where a loss or gradient that is logged is not finite."""

    def __init__(self, trainer: Trainer, title: str, progress: Progress | None):
        self.trainer, self.title, self.progress = trainer, title, progress
        self.learning = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        # On the disk: in memory it would be half a gigabyte of GPT-2's size, through the whole training.
        self.start = Path(trainer.args.output_dir) / "start.safetensors"
        if processes.count() == 1:  # several do not try again (`memory.fitting`)
            self.start.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: weight.detach().contiguous() for name, weight in self.learning.items()}, self.start)
        self.random = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all()

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the trainer as it was when this was made: its weights, the random numbers, and no optimizer."""
        self.trainer.optimizer = self.trainer.lr_scheduler = None
        self.trainer.model_wrapped = self.trainer.model
        self.trainer.model.zero_grad()
        if processes.count() == 1:
            with safe_open(self.start, framework="pt") as start:
                for name, weight in self.learning.items():
                    weight.copy_(start.get_tensor(name))
        setters = random.setstate, np.random.set_state, torch.set_rng_state, torch.cuda.set_rng_state_all
        for setter, state in zip(setters, self.random, strict=True):
            setter(state)
        # accelerate keeps what it prepared, and under fp16 an optimizer and its step hold each other: until they are
        # collected, a retry would have the moments of the attempt that ran out of memory beside its own.
        self.trainer.accelerator.free_memory()
        if scaler := self.trainer.accelerator.scaler:
            scaler._per_optimizer_states.clear()
        clear_device_cache(garbage_collection=True)

    def on_train_begin(self, args, state, control, **_):
        # A training that goes on has taken what its checkpoint says already.
        before = [line["seconds"] for line in state.log_history if "seconds" in line]
        self.started = time.perf_counter() - (before[-1] if before else 0.0)

    def on_log(self, args, state, control, logs=None, **_):
        # Under fp16 the scaler steps over a gradient that overflows.
        for name in ("loss",) if self.trainer.accelerator.scaler else ("loss", "grad_norm"):
            if name in logs and not math.isfinite(logs[name]):
                raise TrainingError(
                    f"{self.title}, step {state.global_step}: {name} is {logs[name]}; lower the learning_rate, or "
                    "choose precision fp32; the same command goes on from the last checkpoint"
                )
        if self.progress and "loss" in logs:
            self.progress(f"{self.title}: loss {float(logs['loss']):.3f}", state.global_step, state.max_steps)
        # The trainer's own history has no clock; the comparison of methods needs one.
        if state.log_history:
            state.log_history[-1]["seconds"] = round(time.perf_counter() - self.started, 2)

    def on_step_end(self, args, state, control, **_):
        give_back_memory()
        # trl's trainers that sample begin anew with a batch of responses when they resume.
        at_once = getattr(args, "steps_per_generation", 1) * getattr(args, "num_iterations", 1)
        if stop_asked() and state.global_step * args.gradient_accumulation_steps % at_once == 0:
            control.should_training_stop = True
            # What is not finite would be gone on from; the next logged line would have said so.
            control.should_save = all(p.isfinite().all() for p in self.trainer.model.parameters() if p.requires_grad)

    def on_evaluate(self, args, state, control, metrics=None, **_):
        if processes.is_main():
            step = f"step {state.global_step:>5}/{state.max_steps}"
            print(f"{self.title}: {step}   held-out loss {metrics['eval_loss']:.3f}", flush=True)

    def on_save(self, args, state, control, **_):
        processes.wait()  # every process has written its random state
        if processes.is_main():
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class BatchesByLength(Sampler):
    """The indices of `rows` in the random order of accelerate's sampler, those of each whole batch by length: its
    micro-batches then hold less padding. The batches are those that chance drew, so the gradient of each is the same up
    to rounding (and the masks of dropout). Each row has token ids in fields that end in `_ids`; `epoch` says which one
    begins or goes on: it is asked, since accelerate's shards pass no `set_epoch` on to an epoch that is resumed."""

    def __init__(self, rows: Sequence[dict], batch: int, seed: int, epoch: Callable[[], int]):
        self.order, self.batch, self.epoch = SeedableRandomSampler(rows, data_seed=seed), batch, epoch
        self.lengths = [max(len(ids) for name, ids in row.items() if name.endswith("_ids")) for row in rows]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        self.order.set_epoch(self.epoch())
        order = list(self.order)
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            # Losses of pairs are means of the micro-batches' means: where the last one is small, its rows, which count
            # for more, must not always be the short ones.
            yield from sorted(rows, key=self.lengths.__getitem__, reverse=True) if len(rows) == self.batch else rows


def train_resumably(trainer: Trainer, work: Path, title: str = "training", progress: Progress | None = None) -> None:
    """Train from the newest whole checkpoint in `work`, or from where the trainer stood when it first came here. Where
    memory runs out, the training goes on from there with half the micro-batch and the same batch. A CPU computes in the
    precision that `models.precision` finds the fastest for this model."""
    arguments = trainer.args
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    whole, seed = batch * processes.count(), arguments.seed if arguments.data_seed is None else arguments.data_seed

    def by_length(rows: Dataset | None = None) -> BatchesByLength:
        rows = trainer.train_dataset if rows is None else rows
        return BatchesByLength(rows, whole, seed, lambda: trainer.state.global_step // math.ceil(len(rows) / whole))

    # trl's trainers that sample take their prompts in groups, and know the precision from the start.
    samples = type(trainer)._get_train_sampler is not Trainer._get_train_sampler
    if not samples:
        trainer._get_train_sampler = by_length
    usual, noted = detect_device(), work / PRECISION
    device = usual if samples else fastest(usual, trainer.model, learning=True)
    if processes.is_main():
        if usual.kind == "cpu" and noted.is_file() and newest_complete(work):
            device = replace(usual, **read_json(noted))  # it goes on in the precision that it began in
        write_json(noted, {"precision": device.precision})
    device = replace(usual, precision=processes.from_main(device.precision))
    if device != usual:
        # The trainer was made for what `detect_device` says of every model.
        trainer.compute_loss_context_manager = device.autocast
    # A notebook's cell may run again after it was interrupted.
    ours = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, RunCallback)]
    if not ours:
        trainer.remove_callback(PrinterCallback)
        ours = [RunCallback(trainer, title, progress)]
        trainer.add_callback(ours[0])

    def attempt(size: int) -> None:
        if size != arguments.per_device_train_batch_size:
            arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = size, batch // size
            arguments.per_device_eval_batch_size = 2 * size
            # Read from the arguments only once, when the trainer was made.
            trainer._train_batch_size = arguments.train_batch_size
        newest = processes.from_main(newest_complete(work) if processes.is_main() else None)
        ours[0].put_back()
        if newest and processes.is_main():
            # transformers 5.0, Kaggle's, resumes with the size that the checkpoint was written with.
            state, size = Path(newest) / TRAINER_STATE_NAME, arguments.train_batch_size
            if (known := read_json(state))["train_batch_size"] != size:
                write_json(state, known | {"train_batch_size": size})
        trainer.train(resume_from_checkpoint=newest)

    try:
        with safe_points():
            if samples:  # their batches are part of the arithmetic of the groups
                attempt(arguments.per_device_train_batch_size)
            else:
                fitting(work.name, arguments.per_device_train_batch_size, attempt, whole=batch)
    except BaseException:
        # Where the disk is full, what was cut off leaves no room to say so in the record of the run.
        if processes.is_main():
            newest_complete(work)
        raise
