"""Stopping when asked to: SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM end a training at its next safe point,
which saves the work since the last checkpoint; who asks twice is obeyed at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlhf_utils.runs.locks import SERIES

SIGNALS = (signal.SIGINT, signal.SIGTERM)
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
    """In the block a first signal only asks (`stop_asked`); the block then ends soon, and Stopped is raised.

    Several processes of one training are not asked at the same moment, so they stop at once, as do threads.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread() or "LOCAL_RANK" in os.environ:
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

    with _handled(ask):
        try:
            yield
        finally:
            asked, _asked = _asked, None
    if asked is not None:
        raise Stopped(asked)


@contextmanager
def terminable() -> Iterator[None]:
    """In the block SIGTERM ends this process like Ctrl-C does: whatever is open is closed on the way out.

    One of several processes is left to die of it, for its launcher sends it where another one has failed.
    """
    if "LOCAL_RANK" in os.environ:
        yield
        return

    def stop(number: int, _) -> None:
        raise Stopped(number)

    with _handled(stop, (signal.SIGTERM,)):
        yield


class Listener:
    """Runs work in a thread while this one listens for signals: `ask` at the first, repeated until the work ends, `end`
    at the second. `asked` is the signal's number, None without one."""

    REPEAT_SECONDS = 2.0

    def __init__(self, ask: Callable[[], None], end: Callable[[], None]):
        self.ask, self.end, self.asked = ask, end, None

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` to its end, asked or not; raises what it raises."""
        failure: list[BaseException] = []

        def worked() -> None:
            try:
                work()
            except BaseException as error:  # handed on to the caller below, whatever it is
                failure.append(error)

        def heard(number: int, _) -> None:
            if self.asked is None:
                self.asked = number
            else:
                self.end()

        thread = threading.Thread(target=worked, daemon=True)
        with _handled(heard):
            thread.start()
            while thread.is_alive():
                if self.asked is not None:
                    self.ask()
                thread.join(self.REPEAT_SECONDS if self.asked is not None else 0.2)
        if failure:
            raise failure[0]


@contextmanager
def _handled(handler, numbers=SIGNALS) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
