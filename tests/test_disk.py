"""A disk that is full costs nothing that was there before."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made import make
from test_stages import ROWS, open_run
from tiny import one_thread, save_tiny, tiny_model, tiny_trainer, without_timing  # noqa: F401

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash, read_jsonl
from rlhf_utils.runs.run import Run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many bytes; called once more, the same one with another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: int) -> Path:
        again = ["-o", f"remount,size={size}"] if os.path.ismount(folder) else ["-o", f"size={size}"]
        done = subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small disk needs rights that this user has not")
        return folder

    yield sized
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_ppo_keeps_its_checkpoint_on_a_full_disk_and_goes_on_where_there_is_room(tmp_path, small_disk):
    policy, settings = save_tiny(tmp_path / "policy", eos_nats=3.0), {"updates": 4, "save_every": 1}
    tiny_trainer(policy, tmp_path / "whole", **settings).train()
    one = bytes_in(tmp_path / "whole" / "checkpoints" / "update-000004")
    work = small_disk(int(2.6 * one)) / "ppo"
    with pytest.raises(InputError, match="cannot write .*: the disk is full; free some space"):
        tiny_trainer(policy, work, **settings).train()
    kept = sorted(path.name for path in (work / "checkpoints").iterdir())
    assert kept and kept == [f"update-{n:06d}" for n in range(1, len(kept) + 1)], "nothing half-written is left"
    assert (work / "checkpoints" / kept[-1] / "training").is_dir()

    small_disk(20 * one)
    history = tiny_trainer(policy, work, **settings).train(resume=True)
    assert without_timing(history) == without_timing(read_jsonl(tmp_path / "whole" / "metrics.jsonl"))
    last = "checkpoints/update-000004/policy"
    assert content_hash(work / last) == content_hash(tmp_path / "whole" / last)


@pytest.mark.slow
def test_a_training_of_trl_keeps_its_checkpoint_on_a_full_disk(tmp_path, small_disk):
    policy = save_tiny(tmp_path / "policy")
    settings = {"sft.batch_size": 2, "sft.checkpoints": 4, "sft.evaluations": 1}

    def run_in(folder: Path) -> Run:
        return make(open_run(folder, policy, ROWS, **settings), "base", "data")

    whole = run_in(tmp_path)
    make(whole, "sft")
    folder = small_disk(20_000_000)
    run = run_in(folder)
    # Room for the first checkpoint, and not for the second.
    small_disk(bytes_in(folder) + int(1.7 * 3 * 4 * tiny_model().num_parameters()))
    with pytest.raises(InputError, match="cannot write .*: the disk is full; free some space"):
        make(run, "sft")
    [work] = (run.checkpoints / ".work").iterdir()
    [checkpoint] = work.glob("checkpoint-*")
    assert (checkpoint / "COMPLETE").is_file() and (checkpoint / "optimizer.pt").is_file()
    assert run.record()["stages"]["sft"]["state"] == "failed" and not run.folder("sft").exists()

    small_disk(20_000_000)
    make(run_in(folder), "sft")
    for name in ("model.safetensors", "tokenizer.json"):
        assert content_hash(run.folder("sft") / name) == content_hash(whole.folder("sft") / name)
    assert not list((run.checkpoints / ".work").iterdir())
