"""One stage by itself, in one process or in several that a launcher started.

`accelerate launch -m rlhf_utils train STAGE` comes to `train` in every process. `on_all_gpus` starts such a command
from a notebook: a kernel that has touched its GPU can no longer divide itself among several, as accelerate's notebook
launcher would have it do.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import write_json
from rlhf_utils.platforms.runtime import ALL_GPUS, detect_device, quiet_libraries
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.training import micro_batches
from rlhf_utils.stages.ready import MAKERS

# What the command line puts before the one line that says what is wrong, and what it stands for.
_KINDS = {"error: ": InputError, "failed: ": TrainingError}


def train(run: Run, stage: str) -> dict:
    """Make `stage` in every process that the launcher started; returns its figures.

    What it needs and nobody has to train (base model, data, ready models) is made first, by one process alone. Raises
    InputError for a stage that this recipe does not have, for one it needs that is not there, and for what is not
    supported under this launcher.
    """
    check_stage(run, stage)
    _check_machine()
    quiet_libraries()
    processes.start()
    if processes.is_main():
        run.make_folders()
    alone = {"base", "data", *run.fetched}
    for need in run.needs(stage):
        if need not in alone and not run.is_complete(need):
            raise InputError(
                f"{stage} is made from {need}, which is not there with these settings; `train {need}` first"
            )
    if processes.is_main():
        # From the last on: data bring their base model with them.
        for need in reversed(run.needs(stage)):
            if not run.is_complete(need):
                _make_alone(run, need)
        if stage in alone and processes.count() > 1:
            _make_alone(run, stage, fresh=not run.resume)
    processes.wait()
    # In a process of its own a stage was made anew already, if that was wanted.
    return run.results(stage) if stage in alone and processes.count() > 1 else _made(run, stage)


def on_all_gpus(run: Run, stage: str, count: int | None = None) -> dict:
    """Make `stage` with every GPU of this machine (`count` processes where it is given); returns its figures.

    With one GPU or none it is made in this process. What the processes say is printed as they say it. Raises InputError
    or TrainingError with the line that the processes ended with; an interrupt ends them, and the next call goes on from
    the last checkpoint.
    """
    count = count or visible_gpus()
    if run.skips(stage):
        return run.results(stage)
    if count < 2:
        return _made(run, stage)
    print(f"{stage}: {count} processes")
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", str(count)]
    # Named only so that the launcher does not warn of its defaults; the precision is the device's.
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "rlhf_utils"]
    with _command(run, stage, not run.resume) as command:
        _run(["-m", *launcher, *command], _all_gpus())
    run.note_made(stage)
    return run.results(stage)


def visible_gpus() -> int:
    """How many GPUs this process would see, had it not been given one of them."""
    code = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run([sys.executable, "-c", code], env=_all_gpus(), capture_output=True, text=True, check=True)
    return int(asked.stdout)


def check_stage(run: Run, stage: str) -> None:
    """Raise InputError where `run` has no such stage, or it does not work under this launcher."""
    if stage not in run.stages or stage not in MAKERS:
        offered = ", ".join(name for name in run.stages if name in MAKERS)
        raise InputError(f"there is no stage {stage!r} to train in recipe {run.recipe.name}; there are: {offered}")
    recipe = run.recipe
    settings = {"sft": recipe.sft, "sft_qlora": recipe.sft, "reward_model": recipe.reward_model}
    settings["judge_model"] = recipe.reward_model
    if stage == "ppo":
        processes.divided(recipe.ppo.rollout_batch_size, "ppo.rollout_batch_size")
        processes.divided(recipe.ppo.minibatch_size, "ppo.minibatch_size")
    elif stage in settings:
        micro_batches(settings[stage])
    if _told("ACCELERATE_USE_MEGATRON_LM"):
        raise InputError("Megatron-LM is not supported; use DDP, DeepSpeed ZeRO-2 or FSDP (configs/accelerate)")
    sharded = _sharded()
    if sharded is None:
        return
    if stage == "ppo":
        raise InputError(
            f"ppo does not run under {sharded}: its rollouts need the whole policy in every process; use a DDP config, "
            "ppo.method=lora for a larger policy, or a large-scale engine (docs/several_gpus.md)"
        )
    if stage == "sft_qlora":
        raise InputError(f"sft_qlora does not run under {sharded}, which cannot divide 4-bit weights; use a DDP config")
    if sharded == "FSDP" and stage != "sft":
        raise InputError(f"{stage} trains an adapter, which FSDP is not supported for; use a DDP or ZeRO-2 config")
    zero = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    if sharded == "DeepSpeed" and zero not in ("0", "1", "2"):
        raise InputError(
            f"DeepSpeed ZeRO stage {zero or 'of a file of its own'} is not supported, because no process has the whole "
            "model then; set zero_stage: 2 in the accelerate config (configs/accelerate/zero2_8xh100.yaml)"
        )
    if sharded == "FSDP" and os.environ.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT") != "FULL_STATE_DICT":
        raise InputError("FSDP needs fsdp_state_dict_type: FULL_STATE_DICT here (configs/accelerate/fsdp_8xh100.yaml)")


def _check_machine() -> None:
    """Raise InputError where this machine lacks what the launcher was told to use."""
    if _sharded() == "DeepSpeed" and importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            "DeepSpeed is not installed; `pip install deepspeed`, or use a DDP config (configs/accelerate)"
        )
    if _sharded() and detect_device().kind == "cpu":
        raise InputError(f"{_sharded()} needs GPUs, and this process sees none; use a DDP config (configs/accelerate)")


def _sharded() -> str | None:
    """What divides the weights among the processes."""
    return "DeepSpeed" if _told("ACCELERATE_USE_DEEPSPEED") else "FSDP" if _told("ACCELERATE_USE_FSDP") else None


def _told(name: str) -> bool:
    return os.environ.get(name, "").lower() == "true"


def _made(run: Run, stage: str) -> dict:
    MAKERS[stage](run)
    return run.results(stage)


def _make_alone(run: Run, stage: str, fresh: bool = False) -> None:
    """Make `stage` in this process, or, where it is one of several, in another one that knows nothing of them: a
    trainer would wait for the others."""
    if processes.count() == 1:
        train(run, stage)
        return
    with _command(run, stage, fresh) as command:
        _run(["-m", "rlhf_utils", *command], processes.without_launcher())


@contextmanager
def _command(run: Run, stage: str, fresh: bool) -> Iterator[list[str]]:
    """Arguments of `python -m rlhf_utils` that make `stage` with the settings of `run`, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.json"
        write_json(settings, run.recipe.model_dump(mode="json"))
        arguments = ["train", stage, "--settings", str(settings), "--output-dir", str(run.root.parent), "--no-figures"]
        yield [*arguments, "--fresh"] if fresh else arguments


def _all_gpus() -> dict[str, str]:
    """This environment with the GPUs that this process could see before it was given one of them."""
    environment = processes.without_launcher()
    seen = environment.pop(ALL_GPUS, None)
    if seen == "all":
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    elif seen is not None:
        environment["CUDA_VISIBLE_DEVICES"] = seen
    return environment


def _run(arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Run Python on `arguments`, and say what it says; raises what its one line of error tells."""
    # On Colab and Kaggle the package is not installed, only found.
    found_in = [str(Path(__file__).resolve().parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    environment = {**environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(found_in)}
    told: list[str] = []
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        listener = threading.Thread(target=lambda: told.extend(process.stderr), daemon=True)
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
