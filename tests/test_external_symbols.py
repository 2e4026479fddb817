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
SOURCES = sorted([*ROOT.glob("rlhf_utils/**/*.py"), *ROOT.glob("0*/*.ipynb")])
# Whose keyword arguments come and go.
CALLED = {"SFTConfig", "RewardConfig", "TrainingArguments", "SFTTrainer", "RewardTrainer", "LoraConfig"}
CALLED |= {"BitsAndBytesConfig", "Accelerator"}
# Private names we rely on, and why there is no public one.
PRIVATE: dict[tuple[str, str], str] = {}


def parsed(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text(encoding="utf-8"))
    cells = nbformat.read(path, as_version=4).cells
    return ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))


def external(module: str | None) -> bool:
    top = (module or "").split(".")[0]
    return bool(top) and top != "rlhf_utils" and top not in sys.stdlib_module_names


def used(tree: ast.Module) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Module, name and keywords of everything a source takes from other libraries."""
    modules, names = {}, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and external(node.module) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = node.module, alias.name
                yield node.module, alias.name, ()
        elif isinstance(node, ast.Import):
            for alias in filter(lambda alias: external(alias.name), node.names):
                top = alias.name.split(".")[0]
                modules[alias.asname or top] = alias.name if alias.asname else top
                yield alias.name, "", ()
    for node in ast.walk(tree):
        # Of a chain only the part up to the first class: below it stand attributes of objects.
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr, ()
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLED & names.keys():
            yield *names[node.func.id], tuple(k.arg for k in node.keywords if k.arg)


SYMBOLS = sorted({(*found, str(path.relative_to(ROOT))) for path in SOURCES for found in used(parsed(path))})


def version(module: str) -> str:
    top = module.split(".")[0]
    try:
        name = importlib.metadata.packages_distributions()[top][0]
        return f"{name} {importlib.metadata.version(name)}"
    except (KeyError, importlib.metadata.PackageNotFoundError):
        return top


@pytest.mark.parametrize("library", sorted({module.split(".")[0] for module, *_ in SYMBOLS}))
def test_what_is_taken_from_a_library_is_there(library):
    if library not in sys.modules and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed here")
    missing = []
    for module, name, keywords, path in (symbol for symbol in SYMBOLS if symbol[0].split(".")[0] == library):
        try:
            found = importlib.import_module(module)
        except ImportError:
            missing.append(f"{version(module)} has no module {module}, used in {path}")
            continue
        if name and not hasattr(found, name) and importlib.util.find_spec(f"{module}.{name}") is None:
            missing.append(f"{version(module)} has no {module}.{name}, used in {path}")
        elif keywords:
            kind = getattr(found, name)
            parameters = inspect.signature(kind.__init__).parameters
            fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                gone = set(keywords) - {*parameters, *fields}
                missing += [f"{version(module)}: {name} takes no {keyword}, used in {path}" for keyword in gone]
    assert not missing, "\n".join(missing)


def test_keywords_are_among_what_is_looked_at():
    assert {name for _, name, keywords, _ in SYMBOLS if keywords} >= {"SFTConfig", "LoraConfig"}


def test_nothing_private_is_taken_without_a_reason():
    parts = {(m, n): f"{m}.{n}".split(".") for m, n, *_ in SYMBOLS}
    private = {at for at, names in parts.items() if any(p.startswith("_") and not p.endswith("__") for p in names)}
    assert private == PRIVATE.keys(), private
