"""Called by the first cell of every notebook: installs what is missing. Standard library only, for nothing else is
sure to be there."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
LOCAL_ONLY = "# --- local only ---"
# A notebook service ships these in builds that fit its drivers and its own packages; replacing them breaks the session.
NEVER_TOUCHED = ("torch", "transformers", "numpy", "pandas")


def ready() -> None:
    """Install the requirements that are missing or too old, and nothing else; silent when there is nothing to do."""
    unmet = [line for line in _requirements() if not _met(line)]
    if not unmet:
        return
    blocked = [line for line in unmet if _name(line) in NEVER_TOUCHED]
    if blocked:
        raise SystemExit(
            f"this environment's {', '.join(_name(line) for line in blocked)} is missing or out of range "
            f"({', '.join(blocked)}); choose a newer image, or install locally with `make run`"
        )
    loaded = [_name(line) for line in unmet if _module(line) in sys.modules]
    print(f"installing {', '.join(_name(line) for line in unmet)} ...", flush=True)
    held = [f"{name}=={importlib.metadata.version(name)}" for name in NEVER_TOUCHED]
    # datasets 5.1 and newer would move huggingface_hub under transformers' feet.
    wanted = [f"{line},<5.1" if _name(line) == "datasets" else line for line in unmet]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted, *held], check=True)
    importlib.invalidate_caches()
    if loaded:
        raise SystemExit(
            f"{', '.join(loaded)} had been loaded before and has changed: restart the kernel, then run all cells again"
        )


def repository_address() -> str:
    """Where this repository lives: `RLHF_REPO_URL`, else the address in pyproject.toml, where it is written once."""
    return os.environ.get("RLHF_REPO_URL") or written_address()


def written_address() -> str:
    """The address in pyproject.toml."""
    project = REQUIREMENTS.with_name("pyproject.toml")
    return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def _requirements() -> list[str]:
    text = REQUIREMENTS.read_text(encoding="utf-8").split(LOCAL_ONLY)[0]
    return [line for raw in text.splitlines() if (line := raw.split("#")[0].strip())]


def _name(line: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", line).group()


def _module(line: str) -> str:
    return {"pyyaml": "yaml", "huggingface-hub": "huggingface_hub", "rouge-score": "rouge_score"}.get(
        _name(line), _name(line)
    )


def _met(line: str) -> bool:
    try:
        version = importlib.metadata.version(_name(line))
    except importlib.metadata.PackageNotFoundError:
        return False
    return all(_compare(version, *bound) for bound in re.findall(r"(>=|<)\s*([\d.]+)", line))


def _compare(version: str, operator: str, bound: str) -> bool:
    numbers = [[int(part) for part in re.findall(r"\d+", text)[:4]] for text in (version.split("+")[0], bound)]
    width = max(map(len, numbers))
    have, limit = ([*number, *[0] * (width - len(number))] for number in numbers)
    return have >= limit if operator == ">=" else have < limit
