"""Checkpoints of transformers' Trainer: which of them are whole."""

from __future__ import annotations

import shutil
from pathlib import Path

_COMPLETE = "COMPLETE"


def mark_complete(work: Path, step: int) -> None:
    """Say that the checkpoint of `step` in `work` is whole."""
    (work / f"checkpoint-{step}" / _COMPLETE).touch()


def newest_complete(work: Path) -> str | None:
    """The newest whole checkpoint in `work`; those cut off while they were written are removed.

    transformers itself would raise on a partial newest checkpoint, go on in silence without a missing optimizer state,
    and count a partial one among those it keeps.
    """
    newest = None
    for folder in sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])):
        if (folder / _COMPLETE).exists():
            newest = str(folder)
        else:
            shutil.rmtree(folder)
    return newest
