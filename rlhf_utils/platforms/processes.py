"""Several processes of one training, of which the main one alone writes and prints. A process that no launcher started
is the only one, and then nothing here imports torch."""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

from rlhf_utils.platforms.errors import InputError, TrainingError

T = TypeVar("T")
# The others wait while the main process merges or measures alone; of a process that died the launcher tells at once.
_PATIENCE = timedelta(hours=6)
# The launcher ends every process within a fraction of a second after one has failed.
_HEAD_START_SECONDS = 4.0


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return index() == 0


def start() -> Any:
    """Connect this process with the others, on the GPU that the launcher chose for it; accelerate's PartialState."""
    if count() == 1:
        return None
    from accelerate import PartialState

    from rlhf_utils.platforms.runtime import detect_device

    if PartialState._shared_state:
        return PartialState()
    return PartialState(cpu=detect_device().kind == "cpu", timeout=_PATIENCE)


def wait() -> None:
    """Return once every process has come here."""
    if count() > 1:
        start().wait_for_everyone()


def from_main(value: T) -> T:
    """What `value` is in the main process; that of the others is ignored. Every process has to call it."""
    return gathered(value)[0]


def gathered(value: T) -> list[T]:
    """`value` of every process, in their order; tensors have to be on the CPU. Every process has to call it."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    start()
    return gather_object([value])


def share(rows: int) -> slice:
    """This process's part of `rows` rows, which the number of processes divides."""
    size = rows // count()
    return slice(index() * size, (index() + 1) * size)


def divided(rows: int, name: str) -> int:
    """`rows` per process; raises InputError where setting `name` of `rows` rows cannot be divided among them."""
    if rows % count():
        raise InputError(f"{name} {rows} cannot be divided among {count()} processes; make it a multiple of {count()}")
    return rows // count()


@contextlib.contextmanager
def environment(**told: str) -> Iterator[None]:
    """In the block these variables are set in this process's environment, and in that of what it starts."""
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """In the block only the main process prints, and an error that all processes meet is told once, by the main one:
    the others wait before they tell theirs, and are ended meanwhile."""
    with contextlib.ExitStack() as silence:
        if not is_main():
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
            silence.enter_context(warnings.catch_warnings(action="ignore"))
        try:
            yield
            if count() > 1:
                start().destroy_process_group()  # NCCL complains of those that leave without a word
        except Exception as error:
            if not is_main():
                time.sleep(_HEAD_START_SECONDS)
            elif count() > 1 and not isinstance(error, InputError | TrainingError):
                # Perhaps only the end of a connection, because another process has told its own error and ended.
                time.sleep(_HEAD_START_SECONDS / 2)
            raise
