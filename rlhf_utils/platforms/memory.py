"""Batches that fit, and what a stage took: halves what runs out of memory, counts seconds and peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.platforms.runtime import peak_host_bytes

T = TypeVar("T")
# What fitted in this process, by name.
_known: dict[str, int] = {}


def fitting(name: str, most: int, attempt: Callable[[int], T], whole: int | None = None) -> T:
    """`attempt(size)`, with half the size after each time that memory ran out.

    Begins with `most` rows, or with fewer where more are known not to fit. With `whole` every size divides it. Raises
    TrainingError where one row does not fit, or where other processes would wait for this one.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    size = min(most, _known.get(name, most))
    while True:
        if whole is not None:
            size = next(divisor for divisor in range(size, 0, -1) if whole % divisor == 0)
        try:
            return attempt(size)
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            said = str(error).split("\n")[0][:200]
        # Only here, after the handler: until it is left, the traceback keeps the failed graph alive.
        clear_device_cache(garbage_collection=True)
        if size == 1 or processes.count() > 1:
            advice = "set gradient_checkpointing, shorten the texts, or choose a smaller policy"
            if size > 1:
                advice = f"with several processes set a micro-batch size below {size} yourself, or {advice}"
            raise TrainingError(f"{name}: out of memory with {size} row{'s' * (size > 1)} at once ({said}); {advice}")
        size = _known[name] = size // 2
        print(f"{name}: out of memory; continuing with {size} rows at once, the result stays the same", flush=True)


_phases: dict[str, float] | None = None
# Seconds of the phases inside each one that is open, the innermost last.
_inner: list[float] = []


@contextmanager
def measuring() -> Iterator[dict[str, Any]]:
    """A dictionary that holds, when the block ends, `peak_host_bytes` (of the process since its start),
    `peak_device_bytes` (of the block; None without a GPU) and `phase_seconds`."""
    import torch

    global _phases
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    found: dict[str, Any] = {}
    before, _phases = _phases, {}
    try:
        yield found
    finally:
        found["peak_host_bytes"] = peak_host_bytes()
        found["peak_device_bytes"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        found["phase_seconds"] = {name: round(seconds, 2) for name, seconds in _phases.items()}
        _phases = before


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the block's seconds to phase `name` of the stage that runs; those of a phase inside it count there only."""
    started = time.perf_counter()
    _inner.append(0.0)
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        add_seconds(name, seconds - _inner.pop())
        if _inner:
            _inner[-1] += seconds


def add_seconds(name: str, seconds: float) -> None:
    """Count seconds, measured elsewhere, to phase `name` of the stage that runs; nothing outside a stage."""
    if _phases is not None:
        _phases[name] = _phases.get(name, 0.0) + seconds
