"""Packages that get in the way just by being installed beside us. Standard library only: the first cell of a notebook
comes here before anything is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import re
import sys
from pathlib import Path


def settle() -> None:
    """Called when rlhf_utils is imported, so that it holds in every process of the series: kernels, commands, those
    that `accelerate launch` starts. Silent; nothing heavy is imported."""
    _hide_what_peft_refuses()
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_about_a_faster_kernel)


def version_of(name: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_met(line: str) -> bool:
    """Whether what a line of requirements.txt asks for is installed, or not asked for on this machine."""
    requirement = parse(line)
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    version = version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def parse(line: str):
    """A line of requirements.txt as packaging's Requirement."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        # Where nothing is installed yet there is pip, which carries a copy.
        from pip._vendor.packaging.requirements import Requirement

    return Requirement(line)


def _hide_what_peft_refuses() -> None:
    """Let Python say of a package that is too old for peft that it is not there.

    peft asks for it at every layer it adapts, whether or not the model has anything to do with it, and raises
    ImportError where it finds an old one: on Colab and Kaggle torchao 0.10.0, where peft wants 0.16.0. Hidden, not
    upgraded or uninstalled: this needs no network, writes nothing into an environment that is the platform's, asks for
    no restart, and also holds where no first cell has run. None in `sys.modules` is the import system's own word for
    it. What peft wants is read from its source, because importing it would import torch before a GPU is chosen.
    """
    found = importlib.util.find_spec("peft")
    asks = Path(found.origin).with_name("import_utils.py") if found and found.origin else None
    if asks is None or not asks.is_file():
        return
    for function in re.split(r"^def is_", asks.read_text(encoding="utf-8"), flags=re.MULTILINE):
        name = function.partition("_available(")[0]
        lowest = re.findall(r'(\w+)_MINIMUM_VERSION = packaging\.version\.parse\("([^"]+)"\)', function)
        if lowest and importlib.util.find_spec(name) and not all(is_met(f"{n.lower()}>={v}") for n, v in lowest):
            sys.modules[name] = None  # type: ignore[assignment]


def _is_not_about_a_faster_kernel(record: logging.LogRecord) -> bool:
    """On CPUs with AVX512-BF16 bitsandbytes looks for a kernel on the hub when it is imported, which peft does, and
    warns where it has none. What it falls back on is right; its other warnings are shown."""
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")
