"""With what a stage was made: versions, device, processes and commit."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.runtime import detect_device

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "rlhf_utils")


def provenance() -> dict[str, Any]:
    """Versions, device, number of processes and git commit, as recorded for each stage."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    device = detect_device()
    return {
        "versions": versions,
        "device": {"name": device.name, "precision": device.precision},
        "processes": processes.count(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
