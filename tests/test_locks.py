"""Two processes never write into one run: the second one is told who the first is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.runs import locks
from rlhf_utils.runs.locks import SERIES, series_lock, stage_lock

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import sys, time, pathlib
from rlhf_utils.runs import locks
with getattr(locks, sys.argv[1])(pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Starts a process that holds a lock of `tmp_path`; it is killed at the end."""
    monkeypatch.delenv(SERIES, raising=False)
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.1)
    started = []

    def start(lock: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, lock, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("first", ["series_lock", "stage_lock"])
@pytest.mark.parametrize("second", [series_lock, stage_lock])
def test_the_second_one_is_told_who_the_first_is(other, tmp_path, first, second):
    process = other(first)
    with pytest.raises(InputError) as told, second(tmp_path):
        pytest.fail("both hold it")
    assert f"in use by process {process.pid} on " in str(told.value) and "\n" not in str(told.value)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with second(tmp_path):
        pass  # a dead process holds nothing


def test_a_kernel_of_the_series_may_write_and_two_may_not(other, tmp_path):
    with series_lock(tmp_path):
        assert os.environ[SERIES] == str(tmp_path.resolve())
        kernel = other("stage_lock")
        with pytest.raises(InputError, match=f"in use by process {kernel.pid}"), stage_lock(tmp_path):
            pytest.fail("both hold it")
        kernel.kill()
        kernel.wait()
        with stage_lock(tmp_path), stage_lock(tmp_path):
            pass  # publishing within a training
    assert SERIES not in os.environ
    assert not list(tmp_path.glob(".series*.json")), "the name of who held it is gone"


def test_a_series_waits_a_moment_for_the_kernel_of_one_that_was_killed(other, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 20.0)
    process = other("stage_lock")
    process.kill()
    started = time.monotonic()
    with series_lock(tmp_path):
        assert time.monotonic() - started < 10


def test_where_there_are_no_locks_it_warns_and_goes_on(tmp_path, monkeypatch):
    def acquire(self, timeout):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(locks.FileLock, "acquire", acquire)
    monkeypatch.setenv(SERIES, str(tmp_path.resolve()))
    with pytest.warns(UserWarning, match="cannot be locked"), stage_lock(tmp_path):
        pass


def test_a_second_run_is_refused_in_one_line(other, tmp_path):
    from rlhf_utils.__main__ import main

    (tmp_path / "instruct-tiny").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "series_lock", str(tmp_path / "instruct-tiny")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "held\n"
    try:
        assert main(["run", "--output-dir", str(tmp_path)]) == 2
    finally:
        process.kill()
        process.wait()
