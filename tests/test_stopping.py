"""A training that is asked to stop saves at its next safe point, and two processes never write into one run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_ppo_resume import UPDATES, policy, result, straight, trainer  # noqa: F401
from tiny import one_thread  # noqa: F401

from rlhf_utils.__main__ import main
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import HEADLESS
from rlhf_utils.runs import stopping
from rlhf_utils.runs.launch import _signal_kernels, attended
from rlhf_utils.runs.stopping import HELD, Stopped, handled, run_lock, safe_points, stop_asked

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import sys, time, pathlib
from rlhf_utils.platforms.runtime import HEADLESS
from rlhf_utils.runs import stopping
with stopping.run_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "update"), [(signal.SIGINT, 0), (signal.SIGTERM, 2)])
def test_ppo_stops_after_the_update_and_goes_on_to_the_same_end(policy, straight, tmp_path, number, update):  # noqa: F811
    def ask(line):
        if line["update"] == update:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped) as stopped:
        trainer(policy, tmp_path, ask).train()
    assert stopped.value.number == number and not stop_asked()
    done = []
    finished = trainer(policy, tmp_path, lambda line: done.append(line["update"]))
    finished.train()
    assert done == list(range(update + 1, UPDATES)), "no update is done twice"
    assert result(tmp_path) == straight
    assert [folder.name for folder in finished.store.policies()] == [f"update-{n:06d}" for n in (2, 4, 6)]


def test_a_second_request_is_obeyed_at_once(monkeypatch):
    before, reached = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)), []
    with pytest.raises(Stopped), safe_points():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(stop_asked())
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the second")
    assert reached == [True] and not stop_asked()
    # A series only repeats itself; it ends the kernel where it means at once.
    monkeypatch.setenv(HEADLESS, "1")
    with pytest.raises(Stopped), safe_points():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("repeated")
    assert reached[-1] == "repeated"
    with pytest.raises(Stopped), handled(Stopped.at_once):
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("signals", [1, 2])
def test_what_is_attended_is_asked_first_and_ended_then(signals):
    heard, may_end = [], threading.Event()

    def send(number):
        heard.append(number)
        if number == signal.SIGKILL:
            may_end.set()

    def work():
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(0.5)
        if signals == 1:
            may_end.set()
        may_end.wait(10)
        raise ValueError("comes of the signal")

    with pytest.raises(Stopped) as stopped:
        attended(work, send, lambda: None)
    assert stopped.value.number == signal.SIGTERM
    assert heard[0] == signal.SIGINT and (signal.SIGKILL in heard) == (signals == 2)


def test_a_kernel_that_has_lost_its_request_is_ended():
    """It hears the signals and idles; a second request to stop would have to come otherwise."""
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    kernel = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    kernel.stdout.readline()

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        kernel.wait()

    with pytest.raises(Stopped):
        attended(work, _signal_kernels, lambda: None)
    assert kernel.returncode == -signal.SIGKILL


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Starts a process that holds a lock; it is killed at the end."""
    monkeypatch.delenv(HELD, raising=False)
    monkeypatch.setattr(stopping, "LAST_BREATH_SECONDS", 1.0)
    started = []

    def start(root: Path = tmp_path) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(root)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_second_one_is_told_who_the_first_is(other, tmp_path):
    process = other()
    with pytest.raises(InputError) as told, run_lock(tmp_path):
        pytest.fail("both hold it")
    assert f"in use by process {process.pid} on " in str(told.value) and "\n" not in str(told.value)
    process.kill()
    process.wait()
    # A dead process holds nothing; the next one waits a moment for the kernel that it may have left.
    started = time.monotonic()
    with run_lock(tmp_path):
        assert 1 <= time.monotonic() - started < 10
    assert not list(tmp_path.glob(".lock.txt")), "the name of who held it is gone"
    started = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - started < 1


def test_a_kernel_of_the_series_may_write(other, tmp_path):
    with run_lock(tmp_path):
        assert os.environ[HELD] == str(tmp_path.resolve())
        other()
        with run_lock(tmp_path):
            pass  # publishing within a training
    assert HELD not in os.environ


def test_where_there_are_no_locks_it_warns_and_goes_on(tmp_path, monkeypatch):
    def acquire(self, timeout):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(stopping.FileLock, "acquire", acquire)
    with pytest.warns(UserWarning, match="cannot be locked"), run_lock(tmp_path):
        pass


def test_a_second_run_is_refused_in_one_line(other, tmp_path, capsys):
    (tmp_path / "instruct-tiny").mkdir()
    other(tmp_path / "instruct-tiny")
    assert main(["run", "--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("in use by process") == 1
