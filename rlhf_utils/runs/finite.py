"""Stopping where a loss, a reward or a gradient is no number any more, with the batch kept for inspection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.platforms.files import whole_folder, write_json

# GradScaler begins at 2**16 and halves its factor at each overflow; after so many in a row it is far below 1.
MOST_SKIPPED = 20


def not_finite(
    what: str, advice: str, folder: Path, tensors: Mapping[str, Any], texts: Mapping[str, Sequence[str]] | None = None
) -> TrainingError:
    """The error to raise: says `what`, gives `advice`, and names the folder with the batch, `not_finite` in `folder`.

    `tensors` goes to batch.safetensors (what is no tensor is left out), `texts` with the message to batch.json.
    """
    from safetensors.torch import save_file

    where = Path(folder) / "not_finite"
    with whole_folder(where) as whole:
        # Copies: one storage may stand behind several names, which safetensors refuses.
        kept = {
            name: torch.clone(value).cpu().contiguous() for name, value in tensors.items() if torch.is_tensor(value)
        }
        save_file(kept, whole / "batch.safetensors")
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
