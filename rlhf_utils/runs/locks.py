"""One run, one writer: a second process that would write into the same run is refused and told who is there.

A series holds `.series.lock` from beginning to end; whoever makes a stage (a kernel of the series, a notebook by
itself) holds `.stage.lock` meanwhile, because the last kernel of a series that was killed may live on for a moment. The
operating system releases both when a process dies. Reading needs no lock.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_json

# In the environment of a series' kernels: the folder of the run that the series holds for them.
SERIES = "RLHF_SERIES"
_SERIES_LOCK, _STAGE_LOCK = ".series.lock", ".stage.lock"
# How long a kernel of a series that was killed may take to notice it.
PATIENCE_SECONDS = 5.0
# Locks that this process holds already.
_mine: set[Path] = set()


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
    with ExitStack() as stack:
        if os.environ.get(SERIES) != str(root.resolve()):
            stack.enter_context(_held(root, _SERIES_LOCK))
        stack.enter_context(_held(root, _STAGE_LOCK))
        yield


@contextmanager
def _held(root: Path, name: str, patience: float = 0.0) -> Iterator[None]:
    path, owner = root.resolve() / name, root / f"{name}.json"
    if path in _mine:
        yield
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise InputError(f"{root} is in use by {_told(owner)}; wait for it, or choose another --output-dir") from None
    except (NotImplementedError, OSError) as error:
        # Some network drives know no locks; a run on one of them is still better than none.
        warnings.warn(f"{root} cannot be locked ({error}): do not start a second run there", stacklevel=2)
        yield
        return
    _mine.add(path)
    try:
        since, command = time.strftime("%Y-%m-%d %H:%M:%S"), shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        about = {"process": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}
        write_json(owner, about)
        yield
    finally:
        _mine.discard(path)
        owner.unlink(missing_ok=True)
        lock.release()


def _told(owner: Path) -> str:
    try:
        about = read_json(owner)
        return f"process {about['process']} on {about['host']} since {about['since']} ({about['command'][:120]})"
    except (OSError, InputError, KeyError, TypeError):
        return "another process"
