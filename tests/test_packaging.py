"""The packaging files agree with each other, with the code, and with what Colab ships."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rlhf_utils"
COLAB = ROOT.parent / "shared" / "platforms" / "colab-gpu-pip-freeze.txt"
PACKAGING_FILES = [
    "requirements.txt",
    "constraints.txt",
    "pyproject.toml",
    "Makefile",
    ".ci/run",
    ".gitignore",
    ".github/workflows/ci.yml",
    ".github/workflows/versions.yml",
    ".github/workflows/platforms.yml",
]
# Colab and Kaggle install what stands above this line of requirements.txt.
LOCAL_MARK = "# --- local only ---"
# Imported only where they are: the platforms' own, Jupyter's forms, the extra `embeddings`; pip instead of packaging.
PLATFORM_MODULES = {"google", "kaggle_secrets", "ipywidgets", "sentence_transformers", "pip", "gradio", "openai"}

# What torch's own CUDA build brings.
CUDA = ("nvidia", "cuda", "triton")
# Which of the Makefile's environments this is: .venv, .venv-lowest, .venv-newest, or none of them.
ENVIRONMENT = Path(sys.prefix).name


def requirement_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def requirements(text: str) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in requirement_lines(text)]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def exact_versions(text: str) -> dict[str, Version]:
    """Name -> version of the `name==version` lines; other lines (git URLs, options) are left out."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def needed() -> dict[str, Requirement]:
    return requirements((ROOT / "requirements.txt").read_text())


@pytest.fixture(scope="module")
def locked() -> dict[str, Version]:
    return exact_versions((ROOT / "constraints.txt").read_text())


def third_party_imports() -> dict[str, str]:
    """Top-level module -> one file of the package that imports it; imports inside functions count."""
    own = {PACKAGE.name, *sys.stdlib_module_names}
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], str(path.relative_to(ROOT)))
    return {name: path for name, path in found.items() if name not in own}


def test_every_requirement_is_a_range_with_both_ends(needed):
    for requirement in needed.values():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, f"{requirement} wants a lower and an upper bound"


def test_the_lock_is_plain_and_complete(needed, locked, pyproject):
    lines = requirement_lines((ROOT / "constraints.txt").read_text())
    odd = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[^\s+@/]+", line)]
    assert not odd, f"not a plain pin: {odd}"
    assert len(lines) == len(locked), "a package is pinned twice"
    build, dev = pyproject["build-system"]["requires"], pyproject["project"]["optional-dependencies"]["dev"]
    wanted = {**needed, **requirements("\n".join([*build, *dev]))}
    assert not wanted.keys() - locked.keys(), "constraints.txt lacks some"
    wrong = [f"{r}, not {locked[name]}" for name, r in wanted.items() if locked[name] not in r.specifier]
    assert not wrong, f"constraints.txt is outside the range: {wrong}"


def installed_for(name: str, extras: frozenset[str]) -> dict[str, Version]:
    """What an installed package takes here, itself included: name -> version. What else lies there is left out."""
    versions, open_ends = {}, [(canonicalize_name(name), extras)]
    seen = set(open_ends)
    while open_ends:
        name, extras = open_ends.pop()
        versions[name] = Version(distribution(name).version)
        for requirement in map(Requirement, distribution(name).requires or []):
            wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
            applies = not requirement.marker or any(requirement.marker.evaluate({"extra": e}) for e in {"", *extras})
            if applies and wanted not in seen:
                seen.add(wanted)
                open_ends.append(wanted)
    return versions


def test_a_local_install_takes_what_is_locked_and_nothing_else(locked):
    if ENVIRONMENT != ".venv" or not (Path(sys.prefix) / ".installed").is_file():
        pytest.skip("not the environment that `make` installs with constraints.txt")
    taken = installed_for(PACKAGE.name, frozenset({"dev"}))
    assert taken.keys() > {"torch", "pytest", "jupyterlab"}
    del taken[canonicalize_name(PACKAGE.name)]
    unlocked = [n for n in taken if n not in locked and not n.startswith(CUDA)]
    assert not unlocked, f"constraints.txt does not say which version: {unlocked}"
    moved = {n: str(v) for n, v in taken.items() if n in locked and v.public != locked[n].public}
    assert not moved, f"not the version of constraints.txt: {moved}"


def test_the_lower_ends_can_be_installed_together(needed, pyproject):
    if ENVIRONMENT != ".venv-lowest":
        pytest.skip("not the environment of `make test-lowest`")
    ranges = {**needed, **requirements("\n".join(pyproject["project"]["optional-dependencies"]["dev"]))}
    # Which torch can be had depends on the machine; the command says which it took.
    del ranges["torch"]
    ends = {name: Version(s.version) for name, r in ranges.items() for s in r.specifier if s.operator == ">="}
    above = {name: version for name in ends if Version(version := distribution(name).version) != ends[name]}
    assert not above, f"what other packages need is above the lower end in requirements.txt: {above}"


def test_torch_is_pinned_and_no_cuda_library_is(locked):
    assert str(locked["torch"]) == "2.13.0"
    assert not [name for name in locked if name.startswith(CUDA)]


def test_every_import_of_the_package_is_required(needed):
    distributions = packages_distributions()
    undeclared = {}
    for module, path in third_party_imports().items():
        names = {canonicalize_name(name) for name in distributions.get(module, [module])}
        if module not in PLATFORM_MODULES and not names & set(needed):
            undeclared[module] = path
    assert not undeclared, f"imported but not in requirements.txt: {undeclared}"


def test_jupyter_alone_is_local_only():
    hosted, mark, local = (ROOT / "requirements.txt").read_text().partition(f"\n{LOCAL_MARK}\n")
    assert mark, f"requirements.txt has no line {LOCAL_MARK!r}"
    assert set(requirements(local)) == {"jupyter"}
    assert "jupyter" not in requirements(hosted)


@pytest.mark.parametrize("name", ["torch", "transformers", "numpy", "pandas"])
def test_colab_keeps_its_own(name, needed):
    if not COLAB.is_file():
        pytest.skip("no list of Colab's packages beside the checkout")
    shipped = exact_versions(COLAB.read_text())[name]
    assert shipped in needed[name].specifier, f"Colab ships {name} {shipped}; installing would move it"


@pytest.mark.parametrize("name", PACKAGING_FILES)
def test_packaging_names_no_index_and_no_machine(name, pyproject):
    text = (ROOT / name).read_text()
    repository = pyproject["project"]["urls"]["Repository"]
    assert set(re.findall(r"\w+://[^\s\"']+", text)) <= {repository}, "a URL other than the repository's"
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text)
    assert not re.search(r"(?<![\w.])/(work|root|home|opt|tmp|Users|mnt)/", text), "a path of one machine"


def test_everything_in_the_package_is_shipped(pyproject):
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()]
    files = [path for path in paths if not any(part.startswith((".", "__pycache__")) for part in path.parts)]
    globs = pyproject["tool"]["setuptools"]["package-data"][PACKAGE.name]
    assert Path("__init__.py") in files
    for file in files:
        if file.suffix == ".py":
            assert (PACKAGE / file).with_name("__init__.py").is_file(), f"{file}: no __init__.py beside it"
        else:
            assert any(fnmatch(file.as_posix(), glob) for glob in globs), f"{file}: not in package-data"
