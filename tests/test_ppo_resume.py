"""PPO resumes exactly: however a training was cut off, it ends with the weights and figures of one that was not."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import one_thread, save_tiny, tiny_trainer, without_timing  # noqa: F401

from rlhf_utils.platforms import files
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash, read_json, read_jsonl
from rlhf_utils.ppo import PPOTrainer, policies
from rlhf_utils.ppo import trainer as trainer_module

UPDATES = 6


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("policy"), eos_nats=3.0)


def trainer(policy: Path, folder: Path, on_update=None) -> PPOTrainer:
    """Everything that carries over from one update to the next is in use: Adam, adaptive KL, warm-up."""
    how = {"updates": UPDATES, "learning_rate": 5e-3, "kl_controller": "adaptive", "kl_target": 0.1, "kl_horizon": 40}
    return tiny_trainer(policy, folder, on_update=on_update, **how)


def result(folder: Path) -> dict:
    """What a training leaves, but for its clock."""
    last = folder / "checkpoints" / f"update-{UPDATES:06d}"
    return {
        "metrics": without_timing(read_jsonl(folder / "metrics.jsonl")),
        "samples": content_hash(folder / "samples.jsonl"),
        "state": read_json(last / "state.json"),
        **{path.name: content_hash(path) for path in (last / "policy").glob("*.safetensors")},
    }


@pytest.fixture(scope="module")
def straight(policy, tmp_path_factory):
    """The result of a training in one go."""
    folder = tmp_path_factory.mktemp("straight")
    history = trainer(policy, folder).train()
    assert len({line["kl_coefficient"] for line in history}) == UPDATES
    return result(folder)


def stop_at(update: int):
    def on_update(line):
        if line["update"] == update:
            raise KeyboardInterrupt

    return on_update


def interrupted(policy, folder, update=4):
    """A training stopped within update `update`; its newest checkpoint is the one after `update` // 2 * 2 updates."""
    with pytest.raises(KeyboardInterrupt):
        trainer(policy, folder, stop_at(update)).train()
    return folder


@pytest.mark.parametrize("update", [0, 3, 5])
def test_an_interrupted_training_ends_like_one_in_one_go(policy, straight, tmp_path, update):
    interrupted(policy, tmp_path, update)
    done = []
    trainer(policy, tmp_path, lambda line: done.append(line["update"])).train()
    # The update that was interrupted is done again, and none before the newest checkpoint.
    assert done == list(range(update // 2 * 2, UPDATES))
    assert result(tmp_path) == straight


def test_a_finished_training_is_not_done_again(policy, straight, tmp_path):
    first = trainer(policy, tmp_path).train()
    assert trainer(policy, tmp_path, stop_at(0)).train() == first and result(tmp_path) == straight


@pytest.mark.parametrize("name", ["state.json", "training/optimizer.bin", "training/trainable.safetensors"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(policy, straight, tmp_path, name):
    interrupted(policy, tmp_path)
    file = tmp_path / "checkpoints" / "update-000004" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match="update-000004 is damaged .*; trying the one before"):
        trainer(policy, tmp_path).train()
    assert result(tmp_path) == straight


def test_with_every_checkpoint_damaged_training_starts_over_from_the_policy_it_was_given(policy, straight, tmp_path):
    """Weights are read before the optimizer: what a damaged checkpoint left in the model must not stay there."""
    interrupted(policy, tmp_path)
    for file in tmp_path.glob("checkpoints/*/training/optimizer.bin"):
        file.write_bytes(b"cut off")
    with pytest.warns(UserWarning, match="is damaged"):
        trainer(policy, tmp_path).train()
    assert result(tmp_path) == straight


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(policy, straight, tmp_path):
    """It lies ahead of the newest good one: those saved from now on have to outlive it."""
    interrupted(policy, tmp_path)
    damaged = tmp_path / "checkpoints" / "update-000009"
    shutil.copytree(tmp_path / "checkpoints" / "update-000004", damaged)
    (damaged / "training" / "optimizer.bin").write_bytes(b"")
    finished = trainer(policy, tmp_path)
    with pytest.warns(UserWarning, match="update-000009 is damaged"):
        finished.train()
    kept = [path.name for path in finished.store.policies() if (path / "training").is_dir()]
    assert kept == ["update-000004", "update-000006", "update-000009"] and result(tmp_path) == straight


def test_lines_half_written_are_cut_off(policy, straight, tmp_path):
    interrupted(policy, tmp_path)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(tmp_path / name, "a") as file:
            file.write('{"update": 5, "prom')
    trainer(policy, tmp_path).train()
    assert result(tmp_path) == straight


def test_files_that_are_gone_are_an_input_error(policy, tmp_path):
    interrupted(policy, tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="has 0 lines.*stands at 4.*resume=False"):
        trainer(policy, tmp_path).train()


@pytest.mark.parametrize(
    "change, words", [({"learning_rate": 1e-4}, "learning_rate 0.001 -> 0.0001"), ({"prompts": ["another"]}, "prompts")]
)
def test_a_checkpoint_of_other_settings_is_refused_and_kept(policy, tmp_path, change, words):
    tiny_trainer(policy, tmp_path, updates=2).train()
    before = content_hash(tmp_path)
    with pytest.raises(InputError, match=f"update-000002 was made with other settings .*{words}.*resume=False"):
        tiny_trainer(policy, tmp_path, **{"updates": 2, **change}).train()
    assert content_hash(tmp_path) == before


def test_how_a_training_is_watched_may_change_when_it_goes_on(policy, tmp_path):
    tiny_trainer(policy, tmp_path, updates=2).train()
    history = tiny_trainer(policy, tmp_path, updates=2, save_every=1, sample_every=1, keep_checkpoints=5).train()
    assert len(history) == 2


# Killed: SIGKILL leaves a process no time to tidy up.

KILLED_BEFORE = {
    "the value head is written": (policies, "save_file", 2),
    "a checkpoint is marked complete": (policies, "write_json", 2),
    "a checkpoint takes its place": (files, "_remove_leftovers", 4),
    "old checkpoints are thinned": (policies.CheckpointStore, "thin", 2),
    "the KL coefficient is adapted": (trainer_module, "adapted_kl_coefficient", 4),
}


def train_in_child(policy: Path, folder: Path, death: str | None) -> None:
    torch.set_num_threads(1)
    if death:
        owner, name, calls_left = KILLED_BEFORE[death]
        function = getattr(owner, name)

        def fatal(*arguments):
            nonlocal calls_left
            calls_left -= 1
            if not calls_left:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        setattr(owner, name, fatal)
    trainer(policy, folder).train()


@pytest.fixture(scope="module")
def start():
    """Starts a training in a process of its own; a server that has imported torch once makes that quick."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlhf_utils.ppo"])

    def run(*arguments):
        process = context.Process(target=train_in_child, args=arguments)
        process.start()
        return process

    return run


@pytest.mark.parametrize("death", KILLED_BEFORE)
def test_a_training_killed_before(policy, straight, tmp_path, start, death):
    for how, status in ((death, -signal.SIGKILL), (None, 0)):
        process = start(policy, tmp_path, how)
        process.join(120)
        assert process.exitcode == status
    assert result(tmp_path) == straight


def test_a_training_killed_at_any_moment_again_and_again(policy, straight, tmp_path, start):
    source, killed = random.Random(0), 0

    def touched():
        metrics = tmp_path / "metrics.jsonl"
        return metrics.stat().st_mtime_ns if metrics.exists() else None

    for _ in range(4):
        before, process = touched(), start(policy, tmp_path, None)
        # Not before it has begun to train, or most deaths would be those of a process still importing.
        while touched() == before and process.is_alive():
            time.sleep(0.005)
        process.join(source.uniform(0.0, 0.08))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 1
    last = start(policy, tmp_path, None)
    last.join(120)
    assert last.exitcode == 0
    assert result(tmp_path) == straight


def test_a_training_goes_on_in_the_precision_that_it_began_in(policy, tmp_path, monkeypatch):
    """What a CPU computes faster may change between two sittings, and from one machine to the next."""
    half = lambda device, model, learning=False: replace(device, precision="bf16")  # noqa: E731
    how = {"updates": 4, "precision": "auto"}
    with monkeypatch.context() as patched:
        patched.setattr(trainer_module, "fastest", half)
        begun = tiny_trainer(policy, tmp_path / "out", on_update=stop_at(2), **how)
        assert begun.device.precision == begun.accelerator.mixed_precision == "bf16"
        with pytest.raises(KeyboardInterrupt):
            begun.train()
        straight = tiny_trainer(policy, tmp_path / "straight", **how).train()
    again = tiny_trainer(policy, tmp_path / "out", **how)
    assert again.device.precision == "fp32"
    history = again.train()
    assert again.device.precision == again.accelerator.mixed_precision == "bf16"
    assert without_timing(history) == without_timing(straight)
