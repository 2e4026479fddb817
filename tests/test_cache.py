"""A home folder that cannot be written: the cache is named before anything is made, and other libraries are quiet."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import cache_entry, cache_folder, check_cache

# Everything that libraries keep in the home folder.
QUIET = """
import os, sys
from rlhf_utils.platforms.runtime import prepare_environment
prepare_environment()
import matplotlib.pyplot
from IPython.paths import get_ipython_dir
from huggingface_hub.constants import HF_HOME
print(get_ipython_dir(), matplotlib.get_configdir(), HF_HOME, sep="\\n")
"""


def without_home(home: Path | str, **variables: str) -> dict[str, str]:
    left_out = ("RLHF_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "MPLCONFIGDIR", "IPYTHONDIR")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"HOME": str(home), **variables}


@pytest.mark.parametrize("home", [os.devnull, "file/below"])
def test_a_home_that_cannot_be_written_is_told_at_once(tmp_path, home):
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_utils", "run", "--output-dir", "out"],
        cwd=tmp_path, env=without_home(tmp_path / home), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot write the cache" in done.stderr and "RLHF_CACHE" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_libraries_use_the_cache_where_the_home_cannot_be_written_and_else_are_left_alone(tmp_path):
    def places(home, **variables):
        environment = without_home(home, **variables)
        done = subprocess.run([sys.executable, "-c", QUIET], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and os.devnull not in done.stderr, done.stderr
        return done.stdout.splitlines()

    expected = [str(tmp_path / name) for name in ("ipython", "matplotlib", "huggingface")]
    assert places(os.devnull, RLHF_CACHE=str(tmp_path)) == expected
    assert all(place.startswith(f"{tmp_path}/.") for place in places(tmp_path))


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RLHF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "rlhf_utils"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "rlhf_utils"
    monkeypatch.setenv("RLHF_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    check_cache()
    monkeypatch.setenv("RLHF_CACHE", "~nobody-has-this-name/mine")
    with pytest.raises(InputError, match="no home folder .* RLHF_CACHE"):
        cache_folder()


def test_an_entry_is_held_by_one_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    order = []

    def other():
        with cache_entry("a/b") as folder:
            order.append(folder)

    with cache_entry("a/b"):
        waiting = threading.Thread(target=other)
        waiting.start()
        waiting.join(timeout=0.3)
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", tmp_path / "a" / "b"]
