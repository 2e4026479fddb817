"""What tests/test_processes.py runs alone, and in two processes as `torchrun processes_worker.py FOLDER`."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_trainer

from rlhf_utils.platforms import processes
from rlhf_utils.ppo import PPOTrainer
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.training import RunCallback
from rlhf_utils.series import train
from rlhf_utils.settings.recipes import Recipe

UPDATES = 4


def ppo_trainer(folder: Path, name: str, **settings) -> PPOTrainer:
    """Answers of different lengths, several microbatches for each step, and all that carries over between updates."""
    settings |= {"updates": UPDATES, "microbatch_size": 1, "kl_controller": "adaptive"}
    settings |= {"kl_target": 0.1, "kl_horizon": 40, "judge": lambda prompts, responses: [*map(len, responses)]}
    return tiny_trainer(folder / "policy", folder / name, **settings)


def ppo(folder: Path, name: str) -> None:
    """PPO in one go."""
    ppo_trainer(folder, name).train()


def ppo_of_other_kinds(folder: Path, name: str) -> None:
    """PPO of an adapter, and with a critic of its own, which starts from the reward model that two processes made."""
    ppo_trainer(folder, f"{name}-lora", method="lora").train()
    critic = folder / "two" / "instruct-tiny" / "checkpoints" / "reward_model"
    ppo_trainer(folder, f"{name}-critic", critic="separate", critic_model=critic).train()


def ppo_stopped(folder: Path, name: str) -> None:
    """PPO that every process leaves within its fourth update, the newest checkpoint being that after the second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPOTrainer, "record", stops_at(UPDATES, PPOTrainer.record))
        with pytest.raises(KeyboardInterrupt):
            ppo_trainer(folder, name).train()


def stages(folder: Path, name: str) -> None:
    """Supervised fine-tuning and the reward model, each as its notebook."""
    for notebook in ("01_02", "02_02"):
        train(notebook, Recipe.from_settings(folder / "settings.json"), str(folder / name), True)


def sft_stopped(folder: Path, name: str) -> None:
    """Supervised fine-tuning that every process leaves once at its seventh step, in the second of its epochs."""
    recipe = Recipe.from_settings(folder / "settings.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunCallback, "on_step_end", stops_at(7, lambda *_, **__: None), raising=False)
        with pytest.raises(KeyboardInterrupt):
            train("01_02", recipe, str(folder / name), True)
    processes.wait()
    assert Run(recipe, folder / name).record()["stages"]["sft"]["state"] == "interrupted"
    train("01_02", recipe, str(folder / name), True)


def stops_at(call: int, function):
    calls = 0

    def stopping(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return stopping


def two(folder: Path) -> None:
    """Everything that is compared with the same in one process."""
    ppo(folder, "ppo-two")
    ppo_stopped(folder, "ppo-stopped")
    processes.wait()
    stages(folder, "two")
    ppo_of_other_kinds(folder, "ppo-two")
    sft_stopped(folder, "stopped")
    ppo(folder, "ppo-stopped")


if __name__ == "__main__":
    torch.set_num_threads(1)
    two(Path(sys.argv[1]))
