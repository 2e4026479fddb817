"""A notebook's code cells in one process, or in several that a launcher started.

`accelerate launch -m rlhf_utils train 01_02` comes to `execute` in every process. `on_all_gpus` starts such a command
from inside a notebook: a kernel that has touched its GPU can no longer divide itself among several.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import write_json
from rlhf_utils.platforms.runtime import ALL_GPUS, detect_device
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
        run_python(["-m", *launcher, "-m", "rlhf_utils", *command, *([] if run.resume else ["--fresh"])], all_gpus())
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

    settings = {"sft": run.recipe.sft, "sft_qlora": run.recipe.sft}
    settings |= {"reward_model": run.recipe.reward_model, "judge_model": run.recipe.reward_model}
    for stage in stages:
        if stage in settings:
            micro_batches(settings[stage])
    if _told("ACCELERATE_USE_MEGATRON_LM"):
        raise InputError("Megatron-LM is not supported; use DDP, DeepSpeed ZeRO-2 or FSDP (configs/accelerate)")
    sharded = _sharded()
    if "ppo" in stages:
        for name in ("rollout_batch_size", "minibatch_size"):
            processes.divided(getattr(run.recipe.ppo, name), f"ppo.{name}")
    if sharded is None:
        return
    zero = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    if "ppo" in stages:
        why = "its rollouts need the whole policy in every process; use a DDP config, ppo.method=lora for a larger "
        raise InputError(f"ppo does not run under {sharded}: {why}policy, or a large-scale engine (docs)")
    if "sft_qlora" in stages:
        raise InputError(f"sft_qlora does not run under {sharded}, which cannot divide 4-bit weights; use a DDP config")
    if sharded == "FSDP" and "sft" not in stages:
        raise InputError(f"{stages[0]} trains an adapter, which FSDP is not supported for; use a DDP or ZeRO-2 config")
    if sharded == "DeepSpeed" and zero not in ("0", "1", "2"):
        raise InputError(
            f"DeepSpeed ZeRO stage {zero or 'of a file of its own'} is not supported, because no process has the whole "
            "model then; set zero_stage: 2 in the accelerate config (configs/accelerate/zero2_8xh100.yaml)"
        )
    if sharded == "FSDP" and os.environ.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT") != "FULL_STATE_DICT":
        raise InputError("FSDP needs fsdp_state_dict_type: FULL_STATE_DICT here (configs/accelerate/fsdp_8xh100.yaml)")


def check_machine() -> None:
    """Raise InputError where this machine lacks what the launcher was told to use."""
    sharded = _sharded()
    if sharded == "DeepSpeed" and importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            "DeepSpeed is not installed; `pip install deepspeed`, or use a DDP config (configs/accelerate)"
        )
    if sharded and detect_device().kind == "cpu":
        raise InputError(f"{sharded} needs GPUs, and this process sees none; use a DDP config (configs/accelerate)")


def _sharded() -> str | None:
    """What divides the weights among the processes."""
    return "DeepSpeed" if _told("ACCELERATE_USE_DEEPSPEED") else "FSDP" if _told("ACCELERATE_USE_FSDP") else None


def _listen(stream: Iterable[str], told: list[str], aloud: bool) -> None:
    for line in stream:
        told.append(line)
        if aloud and not line.startswith(tuple(_KINDS)):
            print(line, end="", flush=True)


def _told(name: str) -> bool:
    return os.environ.get(name, "").lower() == "true"


def run_python(arguments: Sequence[str], environment: Mapping[str, str], aloud: bool = False) -> None:
    """Run Python on `arguments`, and say what it says, its progress on stderr only where `aloud`; raises what its one
    line of error tells."""
    # On Colab and Kaggle the package is not installed, only found.
    found_in = [str(Path(__file__).resolve().parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    environment = {**environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(found_in)}
    pipe, told = subprocess.PIPE, []
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        listener = threading.Thread(target=_listen, args=(process.stderr, told, aloud), daemon=True)
        listener.start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
            listener.join()
    if process.returncode:
        for line in told:
            for sign, kind in _KINDS.items():
                if line.startswith(sign):
                    raise kind(line.removeprefix(sign).strip())
        last = "".join(told).strip().split("\n")[-1]
        raise TrainingError(f"a process ended with status {process.returncode}: {last}")
