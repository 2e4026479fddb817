"""The packaging files agree with each other, with the code, and with what Colab ships."""

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rlhf_utils"
# Imported only where they are: the platforms' own, Jupyter's forms.
PLATFORM_MODULES = {"google", "kaggle_secrets", "pip"}
# What torch's own CUDA build brings.
CUDA = ("nvidia", "cuda", "triton")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def exact_versions(path: Path) -> dict[str, Version]:
    """Name -> version of the `name==version` lines; other lines (git URLs, options) are left out."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


HOSTED, MARK, LOCAL = (ROOT / "requirements.txt").read_text().partition("\n# --- local only ---\n")
NEEDED = requirements((HOSTED + LOCAL).splitlines())
LOCKED = exact_versions(ROOT / "constraints.txt")
DEV = requirements(EXTRAS["dev"])


def test_the_lock_is_plain_and_complete():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    odd = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[^\s+@/]+", line)]
    assert not odd and len(lines) == len(LOCKED), f"not a plain pin, or pinned twice: {odd}"
    assert not [name for name in LOCKED if name.startswith(CUDA)]
    wanted = {**NEEDED, **DEV, **requirements([*PYPROJECT["build-system"]["requires"], *EXTRAS["docs"]])}
    assert not wanted.keys() - LOCKED.keys(), "constraints.txt lacks some"
    wrong = [f"{r}, not {LOCKED[name]}" for name, r in wanted.items() if LOCKED[name] not in r.specifier]
    assert not wrong, f"constraints.txt is outside the range: {wrong}"


def test_every_import_of_the_package_is_required():
    distributions, undeclared = packages_distributions(), {}
    declared = NEEDED.keys() | {name for lines in EXTRAS.values() for name in requirements(lines)}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in {name.partition(".")[0] for name in names} - {PACKAGE.name, *sys.stdlib_module_names}:
                found = {canonicalize_name(name) for name in distributions.get(module, [module])}
                if module not in PLATFORM_MODULES and not found & declared:
                    undeclared[module] = path.name
    assert not undeclared, f"imported but not in requirements.txt: {undeclared}"


def test_everything_in_the_package_is_shipped():
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()]
    files = [path for path in paths if not any(part.startswith((".", "__pycache__")) for part in path.parts)]
    globs = PYPROJECT["tool"]["setuptools"]["package-data"][PACKAGE.name]
    for file in files:
        if file.suffix == ".py":
            assert (PACKAGE / file).with_name("__init__.py").is_file(), f"{file}: no __init__.py beside it"
        else:
            assert any(fnmatch(file.as_posix(), glob) for glob in globs), f"{file}: not in package-data"


def test_no_weights_are_in_the_repository():
    kinds = [f"*.{kind}" for kind in ("safetensors", "bin", "pt", "pth", "pkl")]
    listed = subprocess.run(["git", "ls-files", "--", *kinds], cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout == ""
