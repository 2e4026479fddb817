"""The shipped accelerate configurations: read by accelerate itself, and their processes divide the recipes' batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, patch_environment

from rlhf_utils.runs import launch
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import load_recipe, recipe_names

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "accelerate"
KINDS = {"ddp_2xt4": (2, "fp16", "t4"), "ddp_8xh100": (8, "bf16", "full")}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_is_read_by_accelerate_and_fits_the_recipes(path, tmp_path):
    count, precision, scale = KINDS[path.stem]
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig) and config.distributed_type == DistributedType.MULTI_GPU
    assert (config.num_processes, config.mixed_precision) == (count, precision)
    known = {flag.dest for flag in launch_command_parser()._actions} | {
        "compute_environment",
        "distributed_type",
        "use_cpu",
    }
    assert not yaml.safe_load(path.read_text()).keys() - known
    with patch_environment(LOCAL_RANK="0", RANK="0", WORLD_SIZE=str(count)):
        for name in recipe_names():
            run = Run(load_recipe(name, scale), tmp_path)
            launch.check_launcher(run, ["sft", "reward_model", "ppo"])
