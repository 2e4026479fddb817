"""Colab, Kaggle and a plain machine, simulated: their variables, modules, folders and GPUs."""

import ctypes
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from made import opened

from rlhf_utils.platforms import runtime
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.series import open_run

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = "COLAB_RELEASE_TAG KAGGLE_KERNEL_RUN_TYPE HF_TOKEN RLHF_HEADLESS LOCAL_RANK CUDA_VISIBLE_DEVICES".split()


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    for name in VARIABLES:
        # Set first, so that it is put back even where it was not there and the code under test sets it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in [name for name in sys.modules if name.startswith("google.colab") or name == "kaggle_secrets"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def attended(monkeypatch):
    """A kernel with somebody in front of it."""
    shell = types.SimpleNamespace(kernel=types.SimpleNamespace(_allow_stdin=True), user_ns={})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)


@pytest.fixture
def colab(monkeypatch, tmp_path) -> types.SimpleNamespace:
    """Colab's variables and modules; `calls` holds what was asked of them, `get` is what they do."""
    service = types.SimpleNamespace(calls=[], get=lambda: "from colab")
    package = types.ModuleType("google.colab")
    package.userdata = types.SimpleNamespace(get=lambda key: service.calls.append(("secret", key)) or service.get())
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260801")
    monkeypatch.setattr(runtime, "DRIVE", tmp_path / "drive")
    return service


@pytest.fixture
def kaggle(monkeypatch) -> types.SimpleNamespace:
    """Kaggle's variables and secrets. Its image is made from Colab's and has Colab's variable too."""
    service = types.SimpleNamespace(get=lambda: "from kaggle")
    secrets = types.ModuleType("kaggle_secrets")
    secrets.UserSecretsClient = lambda: types.SimpleNamespace(get_secret=lambda key: service.get())
    monkeypatch.setitem(sys.modules, "kaggle_secrets", secrets)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260501")
    return service


def failing(error: type[BaseException]):
    def fail(*_):
        raise error("no")

    return fail


def test_the_token_comes_from_the_environment_then_colab_then_kaggle(colab, attended, monkeypatch, request):
    assert runtime.platform_name() == "colab"
    assert runtime.hub_token() == "from colab" and colab.calls == [("secret", "HF_TOKEN")]
    # What each service raises for a secret that is not there has changed over the years.
    colab.get = failing(type("NotebookAccessError", (Exception,), {}))
    assert runtime.hub_token() is None
    kaggle = request.getfixturevalue("kaggle")
    assert runtime.platform_name() == "kaggle", "Kaggle's image sets Colab's variable as well"
    runtime.prepare_environment()
    assert os.environ["HF_TOKEN"] == "from kaggle" and len(colab.calls) == 2
    monkeypatch.setenv("HF_TOKEN", "from the environment")
    assert runtime.hub_token() == "from the environment"
    monkeypatch.delenv("HF_TOKEN")
    kaggle.get = failing(ConnectionError)
    assert runtime.hub_token() is None


def test_colab_is_asked_nothing_when_nobody_is_there(colab, attended, monkeypatch):
    assert runtime.is_attended()
    monkeypatch.setenv(runtime.HEADLESS, "1")
    assert not runtime.is_attended() and runtime.hub_token() is None
    assert not colab.calls


def test_opening_a_run_on_drive_asks_for_it_to_be_mounted(colab, attended, tmp_path, capsys):
    folder = tmp_path / "drive" / "MyDrive" / "rlhf"
    with pytest.raises(InputError, match=r"not mounted: run `from google.colab import drive; .*, or choose"):
        opened("instruct", "tiny", folder)
    assert not (tmp_path / "drive").exists(), "a folder in its place would keep it from being mounted"
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    for place, told in ((folder, False), (tmp_path / "elsewhere", True)):
        open_run("01_01", "instruct", "tiny", str(place), {}, True)
        assert ("Colab deletes this run with the session" in capsys.readouterr().out) == told


@pytest.mark.parametrize(
    "name, capability, precision",
    [
        ("Tesla P100-PCIE-16GB", (6, 0), None),
        ("Tesla T4", (7, 5), "fp16"),
        ("NVIDIA L4", (8, 9), "bf16"),
    ],
)
def test_a_gpu_that_this_pytorch_cannot_use_is_refused_in_one_sentence(monkeypatch, name, capability, precision):
    about = types.SimpleNamespace(name=name, major=capability[0], minor=capability[1], total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    if precision:
        assert runtime.detect_device().precision == precision
        return
    with pytest.raises(InputError) as raised:
        runtime.detect_device()
    assert str(raised.value).startswith(f"{name} has compute capability {capability[0]}.{capability[1]}, for which")
    assert raised.value._render_traceback_() == [f"error: {raised.value}"]


@pytest.mark.parametrize(
    "visible, rank, seen", [(None, None, "0"), ("1,0", None, "1"), ("", None, ""), ("0,1", "1", "0,1")]
)
def test_of_two_gpus_one_is_used(monkeypatch, visible, rank, seen):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    runtime.prepare_environment()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_the_gpu_is_chosen_before_torch_is_loaded():
    """Else two visible GPUs would mean DataParallel, which trl refuses."""
    code = "import sys, rlhf_utils.series; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300).returncode == 0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_on_a_cpu_freed_memory_is_used_again():
    """Every page that comes new from the system is a minor fault."""
    code = """
import resource, torch
from rlhf_utils.platforms.runtime import detect_device

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(4 << 20)  # 16 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new = faults()
detect_device()
faults()
print(faults() / new)
"""
    how = {"cwd": ROOT, "env": {**os.environ, "CUDA_VISIBLE_DEVICES": ""}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], **how)
    assert float(done.stdout) < 0.2, done


# The cache


def test_a_home_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    kept = {name: value for name, value in os.environ.items() if name not in ("RLHF_CACHE", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_utils", "run", "--output-dir", "out"],
        cwd=tmp_path, env={**kept, "HOME": str(tmp_path / "file")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot write" in done.stderr and "RLHF_CACHE" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RLHF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert runtime.cache_folder() == tmp_path / ".cache" / "rlhf_utils"
    monkeypatch.setenv("RLHF_CACHE", "~/mine")
    assert runtime.cache_folder() == tmp_path / "mine"
