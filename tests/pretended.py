"""An interpreter with pip that is told it has packages, without any of their content."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path


def make_interpreter(folder: Path, packages: dict[str, str], python: str = sys.executable) -> Path:
    """A virtual environment in `folder` where `packages` (name -> version) are installed as far as pip can see; returns
    its interpreter."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
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
