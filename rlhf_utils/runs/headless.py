"""One notebook through papermill with nobody there: its progress on stderr, and how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import disk_errors, read_json
from rlhf_utils.platforms.runtime import HEADLESS
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stopping import Listener, Stopped

# What a kernel inherits: nobody is there to click on a form, and its debugger, which nobody attaches to, need not warn
# on stderr that Python's own frozen modules cannot be stepped into.
_KERNEL = {HEADLESS: "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
_POLL_SECONDS, _LINE_EVERY_SECONDS = 0.5, 30.0


def run_notebook(run: Run, notebook: Path, name: str, parameters: Mapping[str, Any], label: str) -> float:
    """Execute `notebook` into the run's folder as `name`; returns the seconds it took.

    Raises InputError or TrainingError with one line for a cell that failed, Stopped where a signal ended it; run.json
    says which, and what was executed so far stays as `.failed.ipynb`.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    target, root = run.notebooks / f"{name}.ipynb", notebook.parents[1]
    running, failed = target.with_suffix(".running.ipynb"), target.with_suffix(".failed.ipynb")
    where = notebook.relative_to(root)
    again = f"the same command{'' if parameters['resume'] else ' without --fresh'} goes on from there"
    started = time.time()
    # In a thread nbclient leaves signals alone; in the main one it would end the kernel in the middle of a step.
    listener = Listener(lambda: _signal_kernels(signal.SIGINT), lambda: _signal_kernels(signal.SIGKILL))
    try:
        with disk_errors(running), processes.environment(**_KERNEL), _progress_line(run.root / ".progress.json", label):
            listener.run(
                lambda: papermill.execute_notebook(
                    unformatted(notebook),
                    unformatted(running),
                    parameters=parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    cwd=str(root),
                    # At its own level the kernel warns on stderr, in every notebook, that it talks over local TCP.
                    extra_arguments=["--IPKernelApp.log_level=50"],
                )
            )
    except BaseException as error:
        told = isinstance(error, PapermillExecutionError | DeadKernelError)
        if told:
            os.replace(running, failed)
        running.unlink(missing_ok=True)
        if listener.asked is not None:
            # A kernel that hears of it while it starts dies before nbclient knows it.
            run.note_notebook(name, state="interrupted")
            raise Stopped(listener.asked) from None
        if isinstance(error, DeadKernelError):
            run.note_notebook(name, state="failed", error="the kernel died")
            raise TrainingError(
                f"{where}: the kernel died, most likely for want of memory (executed so far: {failed}); {again}"
            ) from None
        if not told:
            raise
        text = f"{error.ename}: {error.evalue}"
        run.note_notebook(name, state="failed", cell=error.cell_index, error=text[:500])
        if error.ename == "InputError":
            raise InputError(error.evalue) from None
        raise TrainingError(
            f"{where}, cell In [{error.exec_count}]: {text} (executed notebook: {failed}); {again}"
        ) from None
    os.replace(running, target)
    failed.unlink(missing_ok=True)
    if listener.asked is not None:
        raise Stopped(listener.asked)
    return round(time.time() - started, 1)


def unformatted(path: Path) -> str:
    """`path` for papermill, which puts its parameters into paths by `str.format`."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _signal_kernels(number: int) -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


@contextmanager
def _progress_line(source: Path, label: str) -> Iterator[None]:
    """In the block, what the kernel writes into `source` on stderr: one live line, or a line now and then in a log."""
    done, live = threading.Event(), sys.stderr.isatty()

    def show(text: str) -> None:
        print(f"\r\033[K{text[: os.get_terminal_size(2).columns - 1]}", file=sys.stderr, end="", flush=True)

    def watch() -> None:
        last = started = time.perf_counter()
        while not done.wait(_POLL_SECONDS):
            now, state = time.perf_counter(), read_json(source) if source.is_file() else {"text": "starting"}
            step = f" ({state['step']}/{state['total']})" if state.get("total") else ""
            text = f"{label}  {state['text']}{step}  {now - started:.0f} s"
            if live:
                show(text)
            elif now - last >= _LINE_EVERY_SECONDS:
                print(text, file=sys.stderr, flush=True)
                last = now

    source.unlink(missing_ok=True)
    if live:
        show(f"{label} ...")
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        source.unlink(missing_ok=True)
        if live:
            show("")
