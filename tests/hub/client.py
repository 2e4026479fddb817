"""Other processes that meet the loopback hub: what they read of it once (address, cache, offline) is theirs alone."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LOOK_UP = """
import json, sys, time
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import look_up, model_folder, snapshot, wanted
# Imported here, for the clock.
from huggingface_hub import HfApi, snapshot_download
for kind, *name in json.loads(sys.argv[1]):
    started, told, files, folder = time.monotonic(), None, [], None
    try:
        if kind == "look up":
            look_up(wanted(*name))
        elif kind == "look up data":
            look_up(wanted(name[0], 'dataset', *name[1:]))
        else:
            folder = model_folder(*name) if kind == "model" else snapshot(wanted(name[0], 'dataset', *name[1:]))
            files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    except InputError as error:
        told = str(error)
    took = time.monotonic() - started
    print(json.dumps({"told": told, "files": files, "folder": str(folder), "seconds": took}), flush=True)
assert "torch" not in sys.modules
"""


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """What a process needs to take `endpoint` for the hub and `home` for its caches."""
    given = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return {**{key: value for key, value in os.environ.items() if not key.startswith("HF_")}, **given, **more}


def start(code: str, endpoint: str, home: Path, *arguments: str, cwd: Path = ROOT, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=environment(endpoint, home, **more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def done(process: subprocess.Popen, timeout: float = 300) -> tuple[str, str]:
    """What a process printed on both channels; it has to end well."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out, err


def start_asking(wanted: Sequence[Sequence], endpoint: str, home: Path, **more: str) -> subprocess.Popen:
    return start(_LOOK_UP, endpoint, home, json.dumps(wanted), **more)


def ask(wanted: Sequence[Sequence], endpoint: str, home: Path, **more: str) -> tuple[list[dict], str]:
    """What came of each of `wanted` (`["model", NAME]`, `["data", NAME, REVISION, FOLDER]`, `["look up", NAME]`) in one
    process: the line that was told or None, the files, the seconds; and what the process said on stderr."""
    out, err = done(start_asking(wanted, endpoint, home, **more))
    return [json.loads(line) for line in out.splitlines()], err
