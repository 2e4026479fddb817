"""Stopping where a loss, a reward or a gradient is no number any more, with the batch kept for inspection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.platforms.files import whole_folder, write_json

FOLDER = "not_finite"
# GradScaler begins at 2**16 and halves its factor at each overflow; after so many in a row it is far below 1.
MOST_SKIPPED = 20


def not_finite(
    what: str, advice: str, folder: Path, tensors: Mapping[str, Any], texts: Mapping[str, Sequence[str]] | None = None
) -> TrainingError:
    """The error to raise: says `what`, gives `advice`, and names the folder with the batch, `not_finite` in `folder`.

    `tensors` goes to batch.safetensors (what is no tensor is left out), `texts` with the message to batch.json. Under a
    launcher each process has a folder of its own: the figure may be wrong in one of them only.
    """
    from safetensors.torch import save_file

    where = Path(folder) / (FOLDER if processes.count() == 1 else f"{FOLDER}_{processes.index()}")
    kept = {name: value.detach().cpu() for name, value in tensors.items() if isinstance(value, Tensor)}
    with whole_folder(where) as whole:
        # Copies: one storage may stand behind several names, which safetensors refuses.
        save_file(
            {name: value.clone(memory_format=torch.contiguous_format) for name, value in kept.items()},
            whole / "batch.safetensors",
        )
        write_json(whole / "batch.json", {"error": what, "texts": {k: list(v) for k, v in (texts or {}).items()}})
    return TrainingError(
        f"{what}; {advice}; the batch is in {where}; the same command goes on from the last checkpoint, and fails at "
        "the same place unless a setting changes"
    )


def too_many_skipped(what: str) -> TrainingError:
    """The error for `MOST_SKIPPED` fp16 steps in a row that overflowed."""
    return TrainingError(
        f"{what}: fp16 overflowed in {MOST_SKIPPED} steps in a row, so nothing is learnt; lower the learning rate or "
        "the reward scale, or choose precision fp32 (bf16 on newer GPUs)"
    )


def watch_numbers(trainer, title: str, folder: Path, setting: str) -> None:
    """Make a transformers or trl trainer stop at the first loss or gradient that is not finite.

    `setting` is the learning rate's name, for the advice. Under fp16 a gradient that overflows is stepped over by the
    scaler; only `MOST_SKIPPED` of them in a row stop the training.
    """
    from transformers import TrainerCallback

    compute, seen = trainer.compute_loss, {"skipped": 0}
    advice = f"lower {setting}; under fp16 also try fp32 or bf16"

    def failure(what: str) -> TrainingError:
        inputs, tokenizer = seen["inputs"], trainer.processing_class
        texts = {}
        if tokenizer is not None and "input_ids" in inputs:
            texts["input_ids"] = tokenizer.batch_decode(inputs["input_ids"])
        return not_finite(f"{title}, step {trainer.state.global_step + 1}: {what}", advice, folder, inputs, texts)

    def compute_loss(model, inputs, *rest, **how):
        # The trainer takes labels out of its inputs, and cuts them up.
        if model.training:
            seen["inputs"] = dict(inputs)
        found = compute(model, inputs, *rest, **how)
        loss = found[0] if isinstance(found, tuple) else found
        if model.training and not loss.isfinite().all():
            raise failure(f"the loss is {loss.detach().mean().item()}")
        return found

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            if norm.isfinite():
                seen["skipped"] = 0
            elif trainer.accelerator.scaler is None:
                raise failure(f"the gradient norm is {norm.item()}")
            else:
                seen["skipped"] += 1
                if seen["skipped"] >= MOST_SKIPPED:
                    raise too_many_skipped(f"{title}, step {state.global_step + 1}")

    trainer.compute_loss = compute_loss
    trainer.add_callback(Watch())
