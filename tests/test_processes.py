"""Several processes: two gloo processes train as one does, resume exactly, and speak with one voice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from made import make
from processes_worker import UPDATES, ppo, ppo_of_other_kinds, stages
from safetensors.torch import load_file
from test_stages import open_run
from tiny import TIMING, one_thread, save_tiny  # noqa: F401

from rlhf_utils import series
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import content_hash, read_json, read_jsonl, write_json
from rlhf_utils.platforms.runtime import ALL_GPUS
from rlhf_utils.runs import launch
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.training import micro_batches
from rlhf_utils.settings.recipes import load_recipe, recipe_names
from rlhf_utils.settings.sections import TrainingSettings

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("processes_worker.py")
CLOCKS = {*TIMING, "peak_memory_bytes"}
LAST = f"checkpoints/update-{UPDATES:06d}/policy"


def started(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Two processes of this machine's CPU; the whole of what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def dropout_free(folder: Path) -> Path:
    """A tiny policy; masks of dropout are the one thing that two processes draw otherwise than one."""
    save_tiny(folder, eos_nats=3.0)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)})
    return folder


TRAINING = {"batch_size": 8, "micro_batch_size": 2, "epochs": 2, "learning_rate": 1e-3}
# Batches of 8 divide every split that is trained on.
SETTINGS = {
    "sft": TRAINING, "reward_model": TRAINING, "evaluation.reward_pairs": 8, "generation.max_new_tokens": 8,
    "data.split_rows.sft": 32, "data.split_rows.reward": 32, "data.split_rows.development": 8, "ppo.max_new_tokens": 8,
}  # fmt: skip


def made_data(folder: Path, policy: Path) -> Run:
    """A run with base and data."""
    texts = [(f"Question {i}?", f"A good answer{'!' * (i % 9)}", f"Bad {i}") for i in range(200)]
    rows = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in texts]
    return make(open_run(folder, policy, rows, **SETTINGS), "base", "data")


def close(first, second) -> None:
    """Every number of two figures, nested as they may be, is within 1e-5; clocks and memory are left out."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - CLOCKS:
            close(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            close(a, b)
    else:
        assert first == (pytest.approx(second, rel=1e-5, abs=1e-5) if isinstance(first, float) else second)


def without_clocks(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """A folder in which everything was trained once alone and once by two processes."""
    folder = tmp_path_factory.mktemp("processes")
    run = made_data(folder, dropout_free(folder / "policy"))
    write_json(folder / "settings.json", run.recipe.model_dump(mode="json"))
    for name in ("one", "two", "stopped"):
        shutil.copytree(run.root.parent, folder / name)
    done = started(WORKER, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    ppo(folder, "ppo-one")
    stages(folder, "one")
    ppo_of_other_kinds(folder, "ppo-one")
    return folder


@pytest.mark.slow
def test_ppo_in_two_processes_is_ppo_in_one(both):
    one, two = (both / name for name in ("ppo-one", "ppo-two"))
    history = read_jsonl(one / "metrics.jsonl")
    assert len({line["response_tokens"] for line in history}) > 1 and history[-1]["kl_coefficient"] != 0.05
    close(history, read_jsonl(two / "metrics.jsonl"))
    close(read_jsonl(one / "samples.jsonl"), read_jsonl(two / "samples.jsonl"))
    weights = [load_file(folder / LAST / "model.safetensors") for folder in (one, two)]
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) < 1e-4
    # So is PPO of an adapter, and with a critic of its own.
    for kind in ("lora", "critic"):
        lines = [read_jsonl(both / f"ppo-{name}-{kind}" / "metrics.jsonl") for name in ("one", "two")]
        assert len(lines[0]) == UPDATES
        close(*lines)


@pytest.mark.slow
def test_ppo_in_two_processes_resumes_exactly_and_in_one_process_closely(both):
    straight, stopped, more = (both / name for name in ("ppo-two", "ppo-stopped", "ppo-one-more"))
    found = [without_clocks(read_jsonl(folder / "metrics.jsonl")) for folder in (straight, stopped)]
    assert found[0] == found[1]
    for name in ("model.safetensors", "value_head.safetensors"):
        assert content_hash(straight / LAST / name) == content_hash(stopped / LAST / name)
    states = sorted(path.name for path in (stopped / LAST).parent.glob("training/random_states_*"))
    assert states == ["random_states_0.pkl", "random_states_1.pkl"]
    shutil.copytree(straight, more)
    shutil.rmtree((more / LAST).parent)
    assert (more / "checkpoints" / "update-000002").is_dir()
    ppo(both, "ppo-one-more")
    close(read_jsonl(both / "ppo-one" / "metrics.jsonl"), read_jsonl(more / "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_a_stage_in_two_processes_is_the_same_as_in_one_and_resumes_exactly(both, stage):
    runs = [Run.load(both / name / "instruct-tiny") for name in ("one", "two")]
    one, two = (read_jsonl(run.folder(stage) / "metrics.jsonl") for run in runs)
    assert [line["step"] for line in one if "loss" in line] == list(range(1, 9))
    close(one[:-1], two[:-1])
    assert [run.record()["stages"][stage]["processes"] for run in runs] == [1, 2]
    if stage == "sft":
        stopped = both / "stopped" / "instruct-tiny" / "checkpoints" / stage
        assert without_clocks(two) == without_clocks(read_jsonl(stopped / "metrics.jsonl"))
        assert content_hash(runs[1].folder(stage) / "model.safetensors") == content_hash(stopped / "model.safetensors")


@pytest.mark.slow
def test_all_gpus_from_a_notebook_make_also_what_is_missing(tmp_path, monkeypatch, capfd):
    """Its processes are the launcher's; here they are two on the CPU."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = made_data(tmp_path, dropout_free(tmp_path / "policy"))
    shutil.rmtree(run.root)
    capfd.readouterr()
    launch.on_all_gpus(run, "01_02", 2)
    said = capfd.readouterr()
    assert run.has("sft") and said.out.count("held-out loss") > 2
    assert "not there yet: base, data; running notebook 01_01 first" in said.out
    assert not said.err and "Warning" not in said.out and "Traceback" not in said.out, said
    made = {name: about["processes"] for name, about in run.record()["stages"].items()}
    assert made == {"base": 1, "data": 1, "sft": 2}


ONE_FAILS = """
import sys
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import TrainingError
try:
    with processes.one_voice():
        processes.start()
        print("process", processes.index())
        if not processes.is_main():
            raise TrainingError("update 3: the loss is nan")
        processes.wait()
except TrainingError as error:
    sys.exit(f"failed: {error}")
"""


@pytest.mark.slow
def test_processes_that_fail_end_all_and_tell_once(tmp_path):
    """Where the main process waits for the one that fails, it would otherwise complain of a lost connection."""
    script = tmp_path / "one_fails.py"
    script.write_text(ONE_FAILS)
    done = started(script)
    lines = [line for line in done.stderr.splitlines() if line.startswith("failed:") or "RuntimeError" in line]
    assert done.returncode and done.stdout == "process 0\n"
    assert lines == ["failed: update 3: the loss is nan"], done.stderr


def test_the_batch_is_that_of_all_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # some clusters set it for every job: alone there is nobody to wait for
    assert (processes.count(), processes.index(), processes.is_main()) == (1, 0, True)
    assert processes.share(6) == slice(0, 6) and processes.gathered("a") == ["a"] and processes.from_main("b") == "b"
    processes.wait()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    assert processes.share(6) == slice(3, 6)
    for batch, micro, expected in ((16, None, (8, 1)), (16, 4, (4, 2)), (8, 8, (4, 1))):
        assert micro_batches(TrainingSettings(batch_size=batch, micro_batch_size=micro)) == expected
    with pytest.raises(InputError, match="batch_size 9 cannot be divided among 2 processes"):
        micro_batches(TrainingSettings(batch_size=9))
    with pytest.raises(InputError, match="12 rows for each process, which is not a multiple of micro_batch_size 8"):
        micro_batches(TrainingSettings(batch_size=24, micro_batch_size=8))


@pytest.mark.parametrize(
    "path, count, precision, scale", [("ddp_2xt4", 2, "fp16", "t4"), ("ddp_8xh100", 8, "bf16", "full")]
)
def test_a_configuration_is_read_by_accelerate_and_fits_the_recipes(monkeypatch, path, count, precision, scale):
    path = ROOT / "configs" / "accelerate" / f"{path}.yaml"
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig) and config.distributed_type == DistributedType.MULTI_GPU
    assert (config.num_processes, config.mixed_precision) == (count, precision)
    known = {flag.dest for flag in launch_command_parser()._actions}
    assert not yaml.safe_load(path.read_text()).keys() - known - {"compute_environment", "distributed_type", "use_cpu"}
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": str(count)}.items():
        monkeypatch.setenv(name, value)
    for name in recipe_names():
        recipe = load_recipe(name, scale)
        for settings in (recipe.sft, recipe.reward_model):
            rows, accumulated = micro_batches(settings)
            assert rows * accumulated * count == settings.batch_size
        assert recipe.ppo.rollout_batch_size % count == recipe.ppo.minibatch_size % count == 0


def test_a_notebook_that_trains_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="there are: 01_02, 01_03, 02_02, 03_02, 04_02$"):
        series.train("04_01", load_recipe("instruct", "tiny"), str(tmp_path), True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before, seen", [("all", None), ("0,1", "0,1"), ("", "")])
def test_processes_of_a_notebook_see_the_gpus_that_it_was_not_given(monkeypatch, before, seen):
    monkeypatch.setenv(ALL_GPUS, before)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    environment = launch.all_gpus()
    assert environment.get("CUDA_VISIBLE_DEVICES") == seen and "ACCELERATE_USE_CPU" not in environment


def test_a_command_that_fails_is_told_by_its_own_line(capsys):
    script = "import sys; print('a result'); print('progress', file=sys.stderr); sys.exit('failed: update 3')"
    with pytest.raises(TrainingError, match="^update 3$"):
        launch.run_python("-c", script)
    assert capsys.readouterr().out == "progress\n"
    with pytest.raises(TrainingError, match="status 1: ZeroDivisionError: division by zero"):
        launch.run_python("-c", "1 / 0")
