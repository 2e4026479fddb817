"""Everything taken from other libraries is still there: when one of them removes something, this names it.

trl removed PPO in a minor release. A removal should read "trl 1.17 has no RewardTrainer, used in ..." and not be a
stack trace from the depth of a stage.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("rlhf_utils/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("0*/*.ipynb")])
# Whose keyword arguments come and go.
CALLED = {"SFTConfig", "RewardConfig", "TrainingArguments", "SFTTrainer", "RewardTrainer", "LoraConfig"}
CALLED |= {"BitsAndBytesConfig", "Accelerator"}
# Private names we rely on, and why there is no public one.
PRIVATE: dict[tuple[str, str], str] = {
    ("pip._vendor.packaging.requirements", "Requirement"): "nothing is installed before the first cell, but pip is",
}


def parsed(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text(encoding="utf-8"))
    cells = nbformat.read(path, as_version=4).cells
    return ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))


def external(module: str | None) -> bool:
    top = (module or "").split(".")[0]
    return bool(top) and top != "rlhf_utils" and top not in sys.stdlib_module_names


def used(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and dotted name of everything a source takes from other libraries."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and external(node.module) and not node.level:
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if external(alias.name):
                    modules[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
                    yield alias.name, ""
    for node in ast.walk(tree):
        names, inner = [], node
        while isinstance(inner, ast.Attribute):
            names.insert(0, inner.attr)
            inner = inner.value
        if names and isinstance(inner, ast.Name) and inner.id in modules:
            # Of a chain only the part up to the first class: below it stand attributes of objects.
            yield modules[inner.id], names[0]


SYMBOLS = sorted(
    {(module, name, str(path.relative_to(ROOT))) for path in SOURCES for module, name in used(parsed(path))}
)


def hidden(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def version(module: str) -> str:
    top = module.split(".")[0]
    try:
        distribution = importlib.metadata.packages_distributions()[top][0]
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except (KeyError, importlib.metadata.PackageNotFoundError):
        return top


@pytest.mark.parametrize("library", sorted({module.split(".")[0] for module, _, _ in SYMBOLS}))
def test_what_is_taken_from_a_library_is_there(library):
    try:
        missing_library = importlib.util.find_spec(library) is None
    except ModuleNotFoundError:
        missing_library = True
    if missing_library:
        pytest.skip(f"{library} is not installed here")
    missing = []
    for module, name, path in SYMBOLS:
        if module.split(".")[0] != library or path.startswith("benchmarks/"):
            continue
        try:
            found = importlib.import_module(module)
        except ImportError:
            missing.append(f"{version(module)} has no module {module}, used in {path}")
            continue
        if name and not hasattr(found, name) and importlib.util.find_spec(f"{module}.{name}") is None:
            missing.append(f"{version(module)} has no {module}.{name}, used in {path}")
    assert not missing, "\n".join(missing)


def test_nothing_private_is_taken_without_a_reason():
    private = {(m, n) for m, n, _ in SYMBOLS if any(map(hidden, f"{m}.{n}".split(".")))}
    assert private <= PRIVATE.keys(), private
    assert PRIVATE.keys() <= private, "no longer used"


def keywords() -> list[tuple[str, str, str, str]]:
    """Library, class, keyword and file of the calls whose keywords are worth checking."""
    found = []
    for path in SOURCES:
        if path.is_relative_to(ROOT / "benchmarks"):
            continue
        tree = parsed(path)
        origin = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and external(node.module)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in CALLED & origin.keys()
            ):
                module, name = origin[node.func.id]
                found += [(module, name, k.arg, str(path.relative_to(ROOT))) for k in node.keywords if k.arg]
    return sorted(set(found))


def test_keyword_arguments_are_still_taken():
    found, missing = keywords(), []
    assert {name for _, name, _, _ in found} >= {"SFTConfig", "LoraConfig"}
    for module, name, keyword, path in found:
        kind = getattr(importlib.import_module(module), name)
        parameters = inspect.signature(kind.__init__).parameters
        taken = (
            {*parameters, *(field.name for field in dataclasses.fields(kind))}
            if dataclasses.is_dataclass(kind)
            else {*parameters}
        )
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if keyword not in taken and not open_ended:
            missing.append(f"{version(module)}: {name} takes no {keyword}, used in {path}")
    assert not missing, "\n".join(missing)
