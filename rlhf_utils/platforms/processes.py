"""Several processes of one training: who writes, who waits, and what all of them know.

Every process runs the same code on its share of a batch. The main one alone writes files and prints. A process that no
launcher started is the only one and the main one, and then nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

from rlhf_utils.platforms.errors import InputError, TrainingError

T = TypeVar("T")

# What the main process does alone (merging, measuring, choosing a checkpoint) may take long while the others wait. A
# process that died is noticed by the launcher at once, not by this limit.
_PATIENCE = timedelta(hours=6)
# The launcher ends every process within a fraction of a second after one has failed.
_HEAD_START_SECONDS = 4.0
# Variables by which launchers tell a process that it is one of several.
_LAUNCHER_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHER_PREFIXES = ("GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return index() == 0


def wait() -> None:
    """Return once every process has come here."""
    if count() > 1:
        _state().wait_for_everyone()


def from_main(value: T) -> T:
    """What `value` is in the main process; that of the others is ignored. Every process has to call it."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    return broadcast_object_list([value])[0]


def gathered(value: T) -> list[T]:
    """`value` of every process, in their order; tensors have to be on the CPU. Every process has to call it."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    _state()
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


def without_launcher() -> dict[str, str]:
    """This process's environment for a program that is to run alone."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER_NAMES and not name.startswith(_LAUNCHER_PREFIXES)
    }


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """In the block only the main process prints, and an error is told once.

    Where all processes fail for the same reason, the others leave the word to the main one: by the time they would
    speak the launcher has ended them.
    """
    if count() == 1:
        yield
        return
    try:
        if is_main():
            yield
            return
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if is_main() and not isinstance(error, InputError | TrainingError):
            # Perhaps only the end of a connection, because another process has told its own error and ended.
            time.sleep(_HEAD_START_SECONDS / 2)
        let_main_speak()
        raise


def let_main_speak() -> None:
    """Before telling an error: give the main process the time to tell the same, upon which all are ended."""
    if not is_main():
        time.sleep(_HEAD_START_SECONDS)


def _state() -> Any:
    """accelerate's state of this process, connected to the others."""
    from accelerate import PartialState

    from rlhf_utils.platforms.runtime import detect_device

    if PartialState._shared_state:
        return PartialState()
    return PartialState(cpu=detect_device().kind == "cpu", timeout=_PATIENCE)


def start() -> None:
    """Connect this process with the others, and give it the GPU that the launcher chose for it."""
    if count() > 1:
        _state()


def end() -> None:
    """Part from the other processes; NCCL complains of those that leave without a word."""
    if count() > 1:
        _state().destroy_process_group()
