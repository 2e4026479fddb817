"""A notebook with nobody there, through papermill; and Python in processes of its own, with all GPUs."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import psutil

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import disk_errors, write_json
from rlhf_utils.platforms.runtime import ALL_GPUS, HEADLESS
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stopping import Stopped, handled

# How the variables begin by which launchers tell a process that it is one of several.
_LAUNCHER = ("RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
# What a kernel inherits: nobody is there to click on a form, and its debugger, which nobody attaches to, need not warn
# on stderr that Python's own frozen modules cannot be stepped into.
_KERNEL = {HEADLESS: "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
# CPU seconds of each kernel at every signal that it was sent.
_spent: dict[int, list[float]] = {}
# What the command line puts before the one line that says what is wrong, and what it stands for.
_KINDS = {"error: ": InputError, "failed: ": TrainingError}


def run_notebook(run: Run, notebook: Path, name: str, parameters: Mapping[str, Any], label: str) -> float:
    """Execute `notebook` into the run's folder as `name`; returns the seconds it took. InputError or TrainingError with
    one line for a cell that failed, Stopped where a signal ended it; what was executed stays as `.failed.ipynb`."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    target, root = run.notebooks / f"{name}.ipynb", notebook.parents[1]
    running, failed = target.with_suffix(".running.ipynb"), target.with_suffix(".failed.ipynb")
    started = time.time()
    run.progress_file.unlink(missing_ok=True)

    def work() -> None:
        # It puts the parameters into paths by `str.format`.
        paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, running)]
        # At its own level the kernel warns on stderr, in every notebook, that it talks over local TCP.
        how = {"cwd": str(root), "progress_bar": False, "extra_arguments": ["--IPKernelApp.log_level=50"]}
        papermill.execute_notebook(*paths, parameters=parameters, kernel_name="python3", **how)

    def tell() -> None:
        said = run.progress_file.read_text("utf-8") if run.progress_file.is_file() else "starting"
        print(f"{label}  {said}  {time.time() - started:.0f} s", file=sys.stderr, flush=True)

    try:
        with disk_errors(running), processes.environment(**_KERNEL):
            # In a thread nbclient leaves signals alone; in the main one it would end the kernel in the middle of it.
            attended(work, _signal_kernels, tell)
        os.replace(running, target)
    except Stopped:
        run.note("notebooks", name, {"state": "interrupted"})
        raise
    except (PapermillExecutionError, DeadKernelError) as error:
        os.replace(running, failed)
        of_cell = isinstance(error, PapermillExecutionError)
        text = f"{error.ename}: {error.evalue}" if of_cell else "the kernel died, most likely for want of memory"
        run.note("notebooks", name, {"state": "failed", "error": text[:500]})
        if of_cell and error.ename == "InputError":
            raise InputError(error.evalue) from None
        place = f"{notebook.relative_to(root)}{f', cell In [{error.exec_count}]' if of_cell else ''}"
        again = f"the same command{'' if parameters['resume'] else ' without --fresh'} goes on from there"
        raise TrainingError(f"{place}: {text} (executed: {failed}); {again}") from None
    finally:
        running.unlink(missing_ok=True)
        run.progress_file.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    return round(time.time() - started, 1)


def attended(work: Callable[[], None], send: Callable[[int], None], tell: Callable[[], None]) -> None:
    """Run `work` in a thread while this one listens for signals: at the first it sends SIGINT, repeated until the work
    ends, at the second SIGKILL; and `tell` now and then. Raises Stopped after a signal, else what `work` raises."""
    asked: list[int] = []

    def heard(number: int, _) -> None:
        if asked:
            send(signal.SIGKILL)
        asked.append(number)

    with ThreadPoolExecutor(1) as pool, handled(heard):
        done, told = pool.submit(work), time.monotonic()
        while not done.done():
            if asked:
                send(signal.SIGINT)
            if time.monotonic() - told > 20.0:
                tell()
                told = time.monotonic()
            wait([done], timeout=2.0 if asked else 0.2)
    if asked:
        # A kernel that hears of it while it starts dies before nbclient knows it: whatever was raised comes of that.
        raise Stopped(asked[0])
    done.result()


def _signal_kernels(number: int) -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            spent = _spent.setdefault(child.pid, [])
            spent.append(sum(child.cpu_times()[:2]))
            # A signal between two cells can cost a kernel the request for the next one, and it idles from then on.
            idle = len(spent) > 5 and spent[-1] - spent[-6] < 0.2
            child.send_signal(signal.SIGKILL if idle else number)


def on_all_gpus(run: Run, notebook: str, count: int | None = None) -> None:
    """Make the stages of `notebook` ("01_02") with every GPU of this machine (`count` processes if given). With
    fewer than two nothing is done: the cells that follow train in this process. Raises InputError or TrainingError with
    the line that the processes ended with; an interrupt ends them, and the next call resumes."""
    if count is None:
        asked = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
        count = int(subprocess.run(asked, env=all_gpus(), capture_output=True, text=True, check=True).stdout)
    if count < 2:
        return
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", str(count)]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    write_json(settings := run.root / ".settings.json", run.recipe.model_dump(mode="json"))
    command = ["train", notebook, "--settings", str(settings), "--output-dir", str(run.root.parent)]
    run_python("-m", *launcher, "-m", "rlhf_utils", *command, *([] if run.resume else ["--fresh"]))
    run.note_made(*filter(run.is_complete, run.stages))


def all_gpus() -> dict[str, str]:
    """This environment without a launcher's variables, with the GPUs that were seen before one of them was given."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER)}
    environment["CUDA_VISIBLE_DEVICES"] = environment.pop(ALL_GPUS, os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    return {name: value for name, value in environment.items() if (name, value) != ("CUDA_VISIBLE_DEVICES", "all")}


def run_python(*arguments: str) -> None:
    """Run Python on `arguments` with `all_gpus`, print its progress on stderr; raises what its line of error tells."""
    environment, told = all_gpus() | {"PYTHONUNBUFFERED": "1"}, ""
    # On Colab and Kaggle the package is not installed, only found.
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *arguments], env=environment, text=True, **streams) as process:
        try:
            for line in process.stderr:
                for sign, kind in _KINDS.items():
                    if line.startswith(sign):
                        raise kind(line.removeprefix(sign).strip())
                told = line.strip() or told
                print(line, end="", flush=True)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise TrainingError(f"a process ended with status {process.returncode}: {told}")
