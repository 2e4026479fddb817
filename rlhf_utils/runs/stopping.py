"""One writer for each run, and signals: the first ends a training at a safe point, work saved, the second at once."""

import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_text
from rlhf_utils.platforms.runtime import HEADLESS

# In the environment: the folder of the run that this process, or the one that started it, holds.
HELD = "RLHF_HELD"
# A kernel looks every second whether the series that started it is still there.
LAST_BREATH_SECONDS = 3.0
_asked: int | None = None


class Stopped(KeyboardInterrupt):
    """Somebody asked this process to stop, by signal `number`."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; run it again to go on from here")
        self.number = number

    @staticmethod
    def at_once(number: int, _: Any) -> None:
        """A handler of signals: whatever is open is closed on the way out, as after Ctrl-C."""
        raise Stopped(number)


def stop_asked() -> bool:
    """Whether a training inside `safe_points` should save and end now."""
    return _asked is not None


@contextmanager
def safe_points() -> Iterator[None]:
    """In the block a first signal only asks (`stop_asked`); the block then ends soon, and Stopped is raised."""

    def ask(number: int, _) -> None:
        global _asked
        # A series repeats itself, in case the kernel was between two cells; it ends kernels that should end at once.
        if _asked is not None and HEADLESS not in os.environ:
            raise Stopped(number)
        if _asked is None:
            print("stopping at the next safe point", flush=True)
        _asked = number

    global _asked
    try:
        with handled(ask):
            yield
    finally:
        asked, _asked = _asked, None
    if asked is not None:
        raise Stopped(asked)


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """In the block `handler` hears SIGINT and SIGTERM; only the main thread hears any. Of several processes each ends
    at once: they are not asked at the same moment, and their launcher sends SIGTERM where another one has failed."""
    if threading.current_thread() is not threading.main_thread() or "LOCAL_RANK" in os.environ:
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Hold the run in `root` for this process and those that it starts; InputError where another process writes there.

    The operating system releases it when the process dies. Reading needs no lock.
    """
    folder = str(root.resolve())
    if os.environ.get(HELD) == folder:
        yield
        return
    lock, owner = FileLock(root / ".lock"), root / ".lock.txt"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        by = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        raise InputError(f"{root} is in use by {by}; wait for it, or choose another --output-dir") from None
    except (NotImplementedError, OSError) as error:
        # Some network drives know no locks; a run on one of them is still better than none.
        warnings.warn(f"{root} cannot be locked ({error}): do not start a second run there", stacklevel=2)
        yield
        return
    if owner.is_file():
        # Who held it was killed, and a kernel that it started may live on for a moment.
        time.sleep(LAST_BREATH_SECONDS)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()} since {since}")
        with processes.environment(**{HELD: folder}):
            yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
