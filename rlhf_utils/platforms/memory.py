"""Memory and time of a stage: what is free, what it took, and going on with smaller batches where it was not enough.

Parts that run in batches call `fitting`; what it learns is kept in the run's folder (`batch_sizes.json`), so that a
resumed run begins with the size that worked on this device.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.platforms.runtime import detect_device, peak_host_bytes

T = TypeVar("T")
FILE = "batch_sizes.json"
# The estimate was within a quarter of the one measurement it was compared with; less is not "clearly" too much.
CLEARLY_MORE = 1.25
# Weights and states of one row alone: no smaller batch helps.
ABSURD = 2.0
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_bytes() -> int:
    """Memory that this process can still take: of the GPU where there is one, else of the host or its container."""
    import psutil
    import torch

    if torch.cuda.is_available():
        # What torch has cached and does not use is free to us, though not to the driver.
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    free = psutil.virtual_memory().available
    for limit, used in _CGROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such cgroup, or its limit is the word "max"
            continue
    return max(free, 0)


def check_fit(stage: str, estimate: float, least: float) -> int:
    """Compare the estimated bytes of `stage` with what is free, which is returned; says so where it is clearly more.

    `least` is the estimate for batches of one row. Raises InputError where even that is far more than there is.
    """
    free = free_bytes()
    if least > ABSURD * free:
        raise InputError(
            f"stage {stage} needs about {least / 1e9:.1f} GB even for one row at a time, but {free / 1e9:.1f} GB are "
            "free; choose a smaller policy or a larger machine"
        )
    if estimate > CLEARLY_MORE * free:
        advice = "lower micro_batch_size (ppo.microbatch_size), set gradient_checkpointing, or choose a smaller policy"
        print(f"stage {stage} needs about {estimate / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; {advice}", flush=True)
    return free


# Batches that fit


@dataclass
class _Sizes:
    """Batch sizes that worked on `device`, by name; kept in `path` where there is one."""

    path: Path | None
    device: str
    known: dict[str, int] = field(default_factory=dict)


_sizes = _Sizes(None, "")


@contextmanager
def remembering(folder: Path) -> Iterator[None]:
    """In the block batch sizes are read from and kept in `folder`; an outer block, the run's own, comes first."""
    global _sizes
    if _sizes.path is not None:
        yield
        return
    path, device = Path(folder) / FILE, detect_device()
    name = f"{device.name}, {device.memory_bytes >> 20} MiB" if device.kind == "cuda" else "CPU"
    found = read_json(path) if path.exists() else {}
    # What did not fit on one device may fit on the next.
    before, _sizes = _sizes, _Sizes(path, name, found["sizes"] if found.get("device") == name else {})
    try:
        yield
    finally:
        _sizes = before


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a smaller batch may do (accelerate's rule)."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, Exception) and should_reduce_batch_size(error)


def fitting(name: str, most: int, attempt: Callable[[int], T], whole: int | None = None) -> T:
    """`attempt(size)`, with half the size after each time that memory ran out.

    Begins with `most` rows, or with fewer where more are known not to fit. With `whole` every size divides it. Raises
    TrainingError where one row does not fit, or where other processes would wait for this one.
    """
    size = min(most, _sizes.known.get(name, most))
    while True:
        if whole is not None:
            size = next(divisor for divisor in range(size, 0, -1) if whole % divisor == 0)
        try:
            return attempt(size)
        except Exception as error:
            if not out_of_memory(error):
                raise
            said = str(error).split("\n")[0][:200]
        # Only here, after the handler: until it is left, the traceback keeps the failed graph alive.
        _release()
        if size == 1 or processes.count() > 1:
            advice = "set gradient_checkpointing, shorten the texts, or choose a smaller policy"
            if size > 1:
                advice = f"with several processes set a micro-batch size below {size} yourself, or {advice}"
            raise TrainingError(f"{name}: out of memory with {size} row{'s' * (size > 1)} at once ({said}); {advice}")
        size //= 2
        print(f"{name}: out of memory; going on with {size} rows at once, the result stays the same", flush=True)
        _sizes.known[name] = size
        if _sizes.path is not None:
            write_json(_sizes.path, {"device": _sizes.device, "sizes": _sizes.known})


def _release() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# What a stage took


_phases: dict[str, float] | None = None
# Seconds of the phases inside each one that is open, the innermost last.
_inner: list[float] = []


@contextmanager
def measuring() -> Iterator[dict[str, Any]]:
    """A dictionary that holds, when the block ends, what it took: `peak_host_bytes`, `peak_device_bytes` (None without
    a GPU) and `phase_seconds`.

    The host's peak is that of the process since its start, which is that of the stage where a stage has a process of
    its own, as every notebook has; the GPU's is that of the block.
    """
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
