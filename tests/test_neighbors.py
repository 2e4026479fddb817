"""Packages beside ours: versions that peft refuses, what bitsandbytes says on some CPUs, and how versions compare."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_tiny
from torch import nn

from rlhf_utils.platforms import neighbors
from rlhf_utils.series import ROOT


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package of this name and version, with one empty module, where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, version: str | None) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        if version is not None:
            about = tmp_path / f"{name}-{version}.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        # So that what `settle` puts there is taken out again.
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()

    return put


def adapted() -> nn.Module:
    from peft import LoraConfig, get_peft_model, import_utils

    # peft remembers what it found.
    for name in ("torchao", "gptqmodel", "optimum"):
        getattr(import_utils, f"is_{name}_available").cache_clear()
    return get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))


@pytest.mark.parametrize(
    "packages",
    [
        {"torchao": "0.10.0"},
        {"torchao": "0.16.0.dev20260101+cu128"},
        {"gptqmodel": "2.2.0", "optimum": "1.27.0"},
        {"gptqmodel": "99.0", "optimum": "1.20.0"},
        {"gptqmodel": "99.0"},
    ],
    ids=str,
)
def test_what_peft_refuses_is_out_of_the_way(install, packages):
    for name, version in packages.items():
        install(name, version)
    with pytest.raises(ImportError, match="incompatible version|requires optimum"):
        adapted()
    neighbors.settle()
    assert adapted()


@pytest.mark.parametrize("version", ["0.16.0", "1!0.1", "99.0rc1"])
def test_what_peft_accepts_stays(install, version):
    install("torchao", version)
    neighbors.settle()
    assert importlib.util.find_spec("torchao")


def test_it_is_out_of_the_way_in_every_process_before_torch_is_loaded(install, tmp_path):
    install("torchao", "0.10.0")
    code = "import sys, rlhf_utils; print(sys.modules.get('torchao', 'there'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("None False\n", "")


# bitsandbytes asks its own library whether the CPU has AVX512-BF16; only this answer is changed.
AVX512_BF16 = """
import ctypes
real = ctypes.CDLL.__getattr__
def answer(library, name):
    return (lambda: True) if name == "has_avx512bf16_cpu" else real(library, name)
ctypes.CDLL.__getattr__ = answer
"""
FOUR_BIT = """
import logging, sys, torch
from tiny import token_rows
from rlhf_utils.models.loading import load_policy_4bit
from rlhf_utils.platforms.runtime import Device, quiet_libraries
import bitsandbytes, peft
quiet_libraries()
print(bitsandbytes.functional.has_avx512bf16())
rows = torch.tensor(token_rows((24, 24, 24), seed=4))
model = load_policy_4bit(sys.argv[1], Device("cpu", "", "fp32", 0))
before = model.eval()(rows).logits
model.enable_input_require_grads()
model.train()(rows, labels=rows).loss.backward()
print(bool((model.eval()(rows).logits == before).all()))
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("something else")
"""


@pytest.mark.slow
def test_a_cpu_with_avx512_bf16_is_like_any_other(tmp_path):
    """The real import and the real 4-bit model, evaluated, trained and evaluated again."""
    pytest.importorskip("bitsandbytes")
    save_tiny(tmp_path / "model")
    (tmp_path / "sitecustomize.py").write_text(AVX512_BF16)
    done = subprocess.run(
        [sys.executable, "-c", FOUR_BIT, str(tmp_path / "model")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), str(Path(__file__).parent)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert done.stderr == "something else\n"


@pytest.mark.parametrize(
    "version, line, met",
    [
        ("2.8.0", "x>=2.8,<3", True),
        ("2.13.0+cu126", "x>=2.8,<3", True),
        ("2.7.9", "x>=2.8,<3", False),
        ("3.0", "x>=2.8,<3", False),
        ("3.0.0rc1", "x>=2.8,<3", False),
        ("2.8.0a0+nv25.6", "x>=2.8", False),
        ("2.9.0.dev20260101", "x >= 2.8, < 3", True),
        ("1.0.0", "x>=1,<2", True),
        ("0.10", "x>=0.9", True),
        ("2025.3.2", "x>=4", True),
        ("1!0.5", "x>=4", True),
        ("2.0.post1", "x>2", False),
        ("1.5", "x!=1.5,>=1", False),
        ("1.5.0", "x==1.5", True),
        ("1.6", "x==1.5.*", False),
        ("1.9", "x~=1.5", True),
        ("2.0", "x~=1.5", False),
        ("1.0", "x[extra]>=2; python_version < '3'", True),
        (None, "x>=1", False),
        (None, "x", False),
    ],
)
def test_version_ranges(install, version, line, met):
    if version is not None:
        install("x", version)
    assert neighbors.is_met(line) is met


def test_without_packaging_pip_s_own_copy_compares(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "packaging"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "packaging", None)
    assert neighbors.is_met("pip>=1,!=1.5") and not neighbors.is_met("pip~=1.5")
    assert type(neighbors.parse("x")).__module__.startswith("pip.")
