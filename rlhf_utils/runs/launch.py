"""A notebook's code cells in one process, or in several that a launcher started.

`accelerate launch -m rlhf_utils train 01_02` comes to `execute` in every process. `on_all_gpus` starts such a command
from inside a notebook: a kernel that has touched its GPU can no longer divide itself among several.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import write_json
from rlhf_utils.platforms.runtime import ALL_GPUS
from rlhf_utils.runs.run import Run

# What the command line puts before the one line that says what is wrong, and what it stands for.
_KINDS = {"error: ": InputError, "failed: ": TrainingError}


def execute(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Run the code cells of `notebook` in this process, with `parameters` in place of its own; returns its variables.

    The first cell, which installs, is left out. What a cell would display is only printed where it says so.
    """
    variables: dict[str, Any] = {"__name__": "__main__", "display": lambda *shown: None}
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        tags = cell["metadata"].get("tags", ())
        if cell["cell_type"] != "code" or "setup" in tags:
            continue
        if "parameters" in tags:
            variables |= parameters
            continue
        exec(compile("".join(cell["source"]), f"{notebook.name}[{number}]", "exec"), variables)
    return variables


def on_all_gpus(run: Run, notebook: str, count: int | None = None) -> None:
    """Make the stages of `notebook` ("01_02") with every GPU of this machine (`count` processes where it is given).

    With fewer than two nothing is done: the cells that follow train in this process. Raises InputError or TrainingError
    with the line that the processes ended with; an interrupt ends them, and the next call resumes.
    """
    if (count or visible_gpus()) < 2:
        return
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launcher += ["--num_processes", str(count or visible_gpus()), "--mixed_precision", "no", "--dynamo_backend", "no"]
    before = {stage for stage in run.stages if run.has(stage)}
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.json"
        write_json(settings, run.recipe.model_dump(mode="json"))
        command = ["train", notebook, "--settings", str(settings), "--output-dir", str(run.root.parent)]
        run_python(
            ["-m", *launcher, "-m", "rlhf_utils", *command, *([] if run.resume else ["--fresh"])],
            all_gpus(),
        )
    run.note_made(*(stage for stage in run.stages if stage not in before and run.is_complete(stage)))


def visible_gpus() -> int:
    """How many GPUs this process would see, had it not been given one of them."""
    code = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run([sys.executable, "-c", code], env=all_gpus(), capture_output=True, text=True, check=True)
    return int(asked.stdout)


def all_gpus() -> dict[str, str]:
    """This environment with the GPUs that this process could see before it was given one of them."""
    environment = processes.without_launcher()
    seen = environment.pop(ALL_GPUS, None)
    if seen == "all":
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    elif seen is not None:
        environment["CUDA_VISIBLE_DEVICES"] = seen
    return environment


def check_launcher(run: Run, stages: Sequence[str]) -> None:
    """Raise InputError where making `stages` is not supported under this launcher, or their batches do not divide among
    its processes."""
    from rlhf_utils.runs.training import micro_batches

    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true":
            raise InputError(
                f"{kind} is not supported: models of this size fit into every GPU, so use DDP (configs/accelerate); of "
                "larger ones docs/several_gpus.md speaks"
            )
    recipe = run.recipe
    settings = {"sft": recipe.sft, "sft_qlora": recipe.sft, "reward_model": recipe.reward_model}
    for stage in stages:
        if stage in settings:
            micro_batches(settings[stage])
        elif stage == "ppo":
            processes.divided(recipe.ppo.rollout_batch_size, "ppo.rollout_batch_size")
            processes.divided(recipe.ppo.minibatch_size, "ppo.minibatch_size")


def run_python(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run Python on `arguments`, and say what it says of its progress, on stderr; raises what its one line of error
    tells."""
    # On Colab and Kaggle the package is not installed, only found.
    found_in = [str(Path(__file__).resolve().parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    environment = {**environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(found_in)}
    command, told = [sys.executable, *arguments], ""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **streams) as process:
        try:
            for line in process.stderr:
                kind = next((kind for sign, kind in _KINDS.items() if line.startswith(sign)), None)
                if kind:
                    raise kind(line.partition(": ")[2].strip())
                told = line.strip() or told
                print(line, end="", flush=True)
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
    if process.returncode:
        raise TrainingError(f"a process ended with status {process.returncode}: {told}")
