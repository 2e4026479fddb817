"""The first cell of every notebook: finds its feet and installs what is missing. Standard library only."""

import contextlib
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from rlhf_utils.platforms.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "gpt2-rlhf"  # what the first cell calls its copy of this repository
LOCAL_ONLY = "# --- local only ---"
# A notebook service ships these in builds that fit its drivers and its other packages.
NEVER_TOUCHED = ("torch", "transformers", "numpy", "pandas")
# Kaggle's attached datasets, read-only; the marker file makes a folder of wheels a wheelhouse and names its Python.
ATTACHED = Path("/kaggle/input")
MARKER = "rlhf-wheelhouse.json"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def ready() -> None:
    """Work in the repository's root, and install the requirements that are missing or too old, and nothing else.

    Silent when there is nothing to do. Wheels come from the wheelhouse that `RLHF_WHEELHOUSE` names or that is attached
    on Kaggle, else from the package index. Raises InputError where installing is impossible or needs a restart.
    """
    os.chdir(_own_copy() if ATTACHED in ROOT.parents else ROOT)
    unmet = requirements()
    for needed in requirements():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if needed.specifier.contains(importlib.metadata.version(needed.name), prereleases=True):
                unmet.remove(needed)
    if not unmet:
        return
    if blocked := [str(needed) for needed in unmet if needed.name in NEVER_TOUCHED]:
        told = f"this environment lacks {', '.join(blocked)}"
        raise InputError(f"{told}; choose a newer image, or install locally with `make run`")
    owners = importlib.metadata.packages_distributions()
    loaded = {name for module in {full.partition(".")[0] for full in sys.modules} for name in owners.get(module, ())}
    before = {name: importlib.metadata.version(name) for name in sorted(loaded)}
    print(f"installing {', '.join(needed.name for needed in unmet)} ...", flush=True)
    _install(unmet)
    importlib.invalidate_caches()
    if changed := [name for name, version in before.items() if importlib.metadata.version(name) != version]:
        raise InputError(
            f"{', '.join(changed)} had been loaded before and has changed: restart the kernel "
            "(Colab: Runtime > Restart session; Kaggle: Run > Restart session), then run all cells again"
        )


def settle() -> None:
    """Keep neighboring packages out of the way: peft raises ImportError at every layer it adapts where it finds an old
    torchao (Colab and Kaggle ship 0.10) or gptqmodel, whether or not the model uses it, and nothing here does. `None`
    in `sys.modules` makes Python say that it is not there. Called on importing rlhf_utils, in every process."""
    for name in ("torchao", "gptqmodel"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    # On CPUs with AVX512-BF16 it warns that it finds no faster kernel on the hub; what it falls back on is right.
    advice = "Failed to load CPU gemm_4bit_forward"
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: advice not in str(record.msg))


def requirements() -> list:
    """What Colab and Kaggle need, of each line of requirements.txt, as packaging's Requirement."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # pip carries a copy
        from pip._vendor.packaging.requirements import Requirement

    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").split(LOCAL_ONLY)[0]
    return [Requirement(line) for raw in text.splitlines() if (line := raw.split("#")[0].strip())]


def as_installed(needed) -> str:
    """The requirement as it is given to pip on a notebook service: datasets 5.1 would move huggingface_hub as well."""
    return f"{needed},<5.1" if needed.name == "datasets" else str(needed)


def pip(*arguments: str, advice: str) -> None:
    """Run pip silently; raises InputError with its last complaint and `advice` where it fails."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [done.stderr]
        raise InputError(f"pip {arguments[0]} failed ({complaints[-1].removeprefix('ERROR: ')}); {advice}")


def written_address() -> str:
    """This repository's address, which is written in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def _own_copy() -> Path:
    """The repository where it can be written to, for attached datasets are read-only; imports go on from there."""
    copy = Path.cwd() / FOLDER
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=copy.parent))
        for path in sorted(ROOT.rglob("*")):
            place = unfinished / path.relative_to(ROOT)
            # Contents only: the modes of an attached dataset would make the copy read-only as well.
            place.mkdir() if path.is_dir() else shutil.copyfile(path, place)
        unfinished.chmod(0o755)
        os.replace(unfinished, copy)
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry != str(ROOT))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "rlhf_utils"]:
        del sys.modules[name]
    return copy


def _install(unmet: list) -> None:
    """With pip, from the wheelhouse where there is one; what a notebook service ships stays as it is."""
    attached = (marker.parent for marker in ATTACHED.rglob(MARKER))
    wheels, source = os.environ.get("RLHF_WHEELHOUSE") or next(attached, None), []
    advice = "without internet, attach a wheelhouse (docs/offline_and_kaggle.md)"
    if wheels:
        source = ["--no-index", "--find-links", os.path.expanduser(wheels)]
        again = f"`python tools/wheelhouse.py FOLDER --python {PYTHON}`"
        advice = f"{wheels} lacks what is needed here: make it again with {again}"
    held = [f"{name}=={importlib.metadata.version(name)}" for name in NEVER_TOUCHED]
    pip("install", *source, *map(as_installed, unmet), *held, advice=advice)
