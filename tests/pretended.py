"""Machines that are not this one: an interpreter that is told it has packages, a command without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path


def make_interpreter(folder: Path, packages: dict[str, str]) -> Path:
    """A virtual environment in `folder` where `packages` (name -> version) are installed as far as pip can see; returns
    its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    [site] = (folder / "lib").glob("*/site-packages")
    ours = Path(str(distribution("pip").locate_file("")))
    for path in (ours / "pip", *ours.glob("pip-*.dist-info")):
        (site / path.name).symlink_to(path)
    for name, version in packages.items():
        about = site / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (about / "INSTALLER").write_text("pip\n")
        (about / "RECORD").write_text("")
    return folder / "bin" / "python"


def cut_off(read_only: Path) -> list[str]:
    """What to put before a command so that it runs in a network namespace without any device, and sees `read_only`
    mounted read-only; nothing where that is not permitted."""
    mounting = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    prefix = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", mounting, str(read_only)]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        return []
    return prefix
