"""The shipped accelerate configurations: read by accelerate itself, and supported for what they are offered for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.runs import launch
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import load_recipe

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "accelerate"
KINDS = {
    "ddp_2xt4": (DistributedType.MULTI_GPU, 2, "fp16"),
    "ddp_8xh100": (DistributedType.MULTI_GPU, 8, "bf16"),
    "zero2_8xh100": (DistributedType.DEEPSPEED, 8, "bf16"),
    "fsdp_8xh100": (DistributedType.FSDP, 8, "bf16"),
}
# What a configuration is for, and what says at start that it is not.
STAGES = {
    "ddp_2xt4": ({"sft", "sft_qlora", "reward_model", "ppo"}, set()),
    "ddp_8xh100": ({"sft", "sft_qlora", "reward_model", "ppo"}, set()),
    "zero2_8xh100": ({"sft", "reward_model"}, {"sft_qlora", "ppo"}),
    "fsdp_8xh100": ({"sft"}, {"sft_qlora", "reward_model", "ppo"}),
}


def told_to_processes(name: str) -> dict[str, str]:
    """The environment that `accelerate launch --config_file` gives each process, as far as one can see without GPUs."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), "-m", "rlhf_utils", "train", "01_02"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    if arguments.use_deepspeed:
        return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(arguments.zero_stage)}
    return prepare_multi_gpu_env(arguments)


def test_every_file_is_known_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS) == set(STAGES)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it_and_knows_every_key(name):
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == KINDS[name]
    known = {flag.dest for flag in launch_command_parser()._actions}
    written = yaml.safe_load(path.read_text())
    assert not written.get("fsdp_config", {}).keys() - known
    assert not written.get("deepspeed_config", {}).keys() - known


def test_accelerate_takes_the_fsdp_settings():
    # Copying the weights of the first process to the others needs a GPU as soon as the settings are read.
    with patch_environment(**{**told_to_processes("fsdp_8xh100"), "FSDP_SYNC_MODULE_STATES": "false"}):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 1 and plugin.state_dict_type.name == "FULL_STATE_DICT" and plugin.use_orig_params


@pytest.mark.parametrize("name", KINDS)
def test_stages_that_it_is_not_for_say_so(name, tmp_path):
    run = Run(load_recipe("instruct", "full"), tmp_path)
    supported, refused = STAGES[name]
    told = {key: value for key, value in told_to_processes(name).items() if key.startswith(("ACCELERATE_", "FSDP_"))}
    processes = str(KINDS[name][1])
    with patch_environment(**told, LOCAL_RANK="0", RANK="0", WORLD_SIZE=processes):
        for stage in supported:
            launch.check_launcher(run, [stage])
        for stage in refused:
            with pytest.raises(InputError, match=f"{stage} "):
                launch.check_launcher(run, [stage])


def test_the_batches_of_the_recipes_divide_among_the_processes(tmp_path):
    for scale, count in (("t4", "2"), ("full", "8")):
        with patch_environment(LOCAL_RANK="0", RANK="0", WORLD_SIZE=count):
            for name in ("instruct", "helpful_harmless", "imdb", "eli5"):
                run = Run(load_recipe(name, scale), tmp_path)
                for stage in ("sft", "reward_model", "ppo"):
                    launch.check_launcher(run, [stage])
