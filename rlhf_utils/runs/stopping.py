"""Stopping when asked to, and one writer for each run.

SIGINT and SIGTERM end a training at its next safe point, with the work saved; who asks twice is obeyed at once.

A series holds `.series.lock` from beginning to end; whoever makes a stage (a kernel of the series, a notebook by
itself) holds `.stage.lock` meanwhile: the last kernel of a series that was killed may live on for a moment. The
operating system releases both when a process dies. Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_text

# In the environment of a series' kernels: the folder of the run that the series holds for them.
SERIES = "RLHF_SERIES"
_SERIES_LOCK, _STAGE_LOCK = ".series.lock", ".stage.lock"
# How long a kernel of a series that was killed may take to notice it.
PATIENCE_SECONDS = 5.0
# Locks that this process holds already.
_mine: set[Path] = set()
_asked: int | None = None


class Stopped(KeyboardInterrupt):
    """Somebody asked this process to stop, by signal `number`."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; run it again to go on from here")
        self.number = number


def stop_asked() -> bool:
    """Whether a training inside `safe_points` should save and end now."""
    return _asked is not None


@contextmanager
def safe_points() -> Iterator[None]:
    """In the block a first signal only asks (`stop_asked`); the block then ends soon, and Stopped is raised. Several
    processes of one training are not asked at the same moment, so they stop at once."""
    global _asked
    if "LOCAL_RANK" in os.environ:
        yield
        return

    def ask(number: int, _) -> None:
        global _asked
        # A series repeats itself, in case the kernel was between two cells; it ends kernels that should end at once.
        if _asked is not None and SERIES not in os.environ:
            raise Stopped(number)
        if _asked is None:
            print("stopping at the next safe point", flush=True)
        _asked = number

    try:
        with handled(ask):
            yield
    finally:
        asked, _asked = _asked, None
    if asked is not None:
        raise Stopped(asked)


@contextmanager
def terminable() -> Iterator[None]:
    """In the block SIGTERM ends this process like Ctrl-C does: whatever is open is closed on the way out. One of
    several processes is left to die of it, for its launcher sends it where another one has failed."""

    def stop(number: int, _) -> None:
        raise Stopped(number)

    with contextlib.nullcontext() if "LOCAL_RANK" in os.environ else handled(stop, signal.SIGTERM):
        yield


@contextmanager
def handled(handler, *numbers: int) -> Iterator[None]:
    """In the block `handler` hears these signals, by default SIGINT and SIGTERM; only the main thread hears any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers or (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def series_lock(root: Path) -> Iterator[None]:
    """Hold the run in `root` for a series and the kernels it starts; InputError where another process writes there."""
    with _held(root, _SERIES_LOCK, PATIENCE_SECONDS):
        with _held(root, _STAGE_LOCK, PATIENCE_SECONDS):
            pass  # nobody makes a stage there by hand
        with processes.environment(**{SERIES: str(root.resolve())}):
            yield


@contextmanager
def stage_lock(root: Path) -> Iterator[None]:
    """Hold the run in `root` while a stage is made; InputError where another process writes there."""
    in_series = os.environ.get(SERIES) == str(root.resolve())
    with contextlib.nullcontext() if in_series else _held(root, _SERIES_LOCK), _held(root, _STAGE_LOCK):
        yield


@contextmanager
def _held(root: Path, name: str, patience: float = 0.0) -> Iterator[None]:
    path, owner = root.resolve() / name, root / f"{name}.txt"
    if path in _mine:
        yield
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        by = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        raise InputError(f"{root} is in use by {by}; wait for it, or choose another --output-dir") from None
    except (NotImplementedError, OSError) as error:
        # Some network drives know no locks; a run on one of them is still better than none.
        warnings.warn(f"{root} cannot be locked ({error}): do not start a second run there", stacklevel=2)
        yield
        return
    _mine.add(path)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()} since {since}")
        yield
    finally:
        _mine.discard(path)
        owner.unlink(missing_ok=True)
        lock.release()
