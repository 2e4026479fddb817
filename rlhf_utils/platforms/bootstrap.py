"""Called by the first cell of every notebook: goes to the repository and installs what is missing. Standard library
only, for nothing else is sure to be there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.neighbors import is_met, parse, settle, version_of

ROOT = Path(__file__).resolve().parents[2]
LOCAL_ONLY = "# --- local only ---"
# A notebook service ships these in builds that fit its drivers and its own packages; replacing them breaks the session.
NEVER_TOUCHED = ("torch", "transformers", "numpy", "pandas")
# Kaggle's attached datasets; read-only. A wheelhouse is known by this file, which says for which Python it was made.
ATTACHED = Path("/kaggle/input")
MARKER = "rlhf-wheelhouse.json"
# What the first cell calls a copy of this repository.
FOLDER = "gpt2-rlhf"


def ready() -> None:
    """Work in the repository's root, and install the requirements that are missing or too old, and nothing else.

    Silent when there is nothing to do. Wheels come from the wheelhouse that `RLHF_WHEELHOUSE` names or that is
    attached on Kaggle, else from the package index. Raises InputError where installing is impossible, or where a
    package that had been loaded has changed.
    """
    os.chdir(_own_copy() if ATTACHED in ROOT.parents else ROOT)
    unmet = [line for line in requirements() if not is_met(line)]
    if not unmet:
        return
    blocked = [line for line in unmet if name_of(line) in NEVER_TOUCHED]
    if blocked:
        raise InputError(
            f"this environment's {', '.join(name_of(line) for line in blocked)} is missing or out of range "
            f"({', '.join(blocked)}); choose a newer image, or install locally with `make run`"
        )
    before = _loaded_versions()
    print(f"installing {', '.join(name_of(line) for line in unmet)} ...", flush=True)
    _install(unmet)
    importlib.invalidate_caches()
    # What has come may refuse what was there.
    settle()
    changed = [name for name, version in before.items() if version_of(name) != version]
    if changed:
        raise InputError(
            f"{', '.join(changed)} had been loaded before and has changed: restart the kernel "
            "(Colab: Runtime > Restart session; Kaggle: Run > Restart session), then run all cells again"
        )


def requirements() -> list[str]:
    """What Colab and Kaggle need, one line of requirements.txt each."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").split(LOCAL_ONLY)[0]
    return [line for raw in text.splitlines() if (line := raw.split("#")[0].strip())]


def as_installed(line: str) -> str:
    """The line as it is given to pip on a notebook service."""
    # datasets 5.1 and newer would move huggingface_hub under transformers' feet.
    return f"{line},<5.1" if name_of(line) == "datasets" else line


def name_of(line: str) -> str:
    """The package that a line of requirements.txt is about."""
    return parse(line).name


def pip(*arguments: str, advice: str) -> None:
    """Run pip; raises InputError with its last complaint and `advice` where it fails.

    On success it is not heard: on Colab it names in red whatever else on the machine would like other versions.
    """
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [done.stderr]
        raise InputError(f"pip {arguments[0]} failed ({complaints[-1].removeprefix('ERROR: ')}); {advice}")


def this_python() -> str:
    """The version of the interpreter as wheels are made for it: `3.12`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def repository_address() -> str:
    """Where this repository lives: `RLHF_REPO_URL`, else the address in pyproject.toml, where it is written once."""
    return os.environ.get("RLHF_REPO_URL") or written_address()


def written_address() -> str:
    """The address in pyproject.toml."""
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


def _install(unmet: list[str]) -> None:
    held = [f"{name}=={importlib.metadata.version(name)}" for name in NEVER_TOUCHED]
    packages, wheels = [*map(as_installed, unmet), *held], _wheelhouse()
    if wheels is None:
        pip("install", *packages, advice="without internet, attach a wheelhouse (README, section Offline)")
    else:
        again = f"{wheels} lacks what is needed here: make it anew with `python -m rlhf_utils.platforms.wheelhouse`"
        pip("install", "--no-index", "--find-links", str(wheels), *packages, advice=again)


def _wheelhouse() -> Path | None:
    """The folder of wheels to install from; None where there is none, and the package index is asked."""
    if named := os.environ.get("RLHF_WHEELHOUSE"):
        marker = Path(named).expanduser() / MARKER
        if not marker.is_file():
            raise InputError(f"RLHF_WHEELHOUSE names {named}, which holds no {MARKER} and so is no wheelhouse")
    else:
        # Kaggle puts a dataset in one of several places: NAME, datasets/OWNER/NAME, and what an archive held below it.
        depths = (ATTACHED.glob("*/" * depth + MARKER) for depth in range(1, 7))
        marker = next((found for depth in depths for found in depth), None)
        if marker is None:
            return None
    made_for, here = json.loads(marker.read_text(encoding="utf-8"))["python"], this_python()
    if made_for != here:
        raise InputError(
            f"the wheelhouse in {marker.parent} is for Python {made_for}, and this is {here}: make one with "
            f"`python -m rlhf_utils.platforms.wheelhouse FOLDER --python {here}`"
        )
    return marker.parent


def _loaded_versions() -> dict[str, str]:
    """The packages whose modules this process has loaded, with their versions."""
    owners = importlib.metadata.packages_distributions()
    names = {name for module in {full.partition(".")[0] for full in sys.modules} for name in owners.get(module, ())}
    return {name: version for name in sorted(names) if (version := version_of(name))}
