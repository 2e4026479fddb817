"""What is imported from other libraries, also inside functions and notebooks, is there, and so are the keywords of the
configurations: a removal should read "trl has no RewardTrainer, used in ..." and not be a stack trace of a stage."""

from __future__ import annotations

import ast
import importlib
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


def parsed(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text(encoding="utf-8"))
    cells = nbformat.read(path, as_version=4).cells
    return ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))


def used(path: Path) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Module, name and keywords of everything that a source imports from other libraries, and the source."""
    names, place = {}, str(path.relative_to(ROOT))
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            if node.module.split(".")[0] not in {"rlhf_utils", *sys.stdlib_module_names}:
                names |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
                yield from ((node.module, alias.name, (), place) for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLED & names.keys():
            yield *names[node.func.id], tuple(k.arg for k in node.keywords if k.arg), place


SYMBOLS = sorted({found for path in SOURCES for found in used(path)})


@pytest.mark.parametrize("library", sorted({module.split(".")[0] for module, *_ in SYMBOLS}))
def test_what_is_taken_from_a_library_is_there(library):
    if library not in sys.modules and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed here")
    assert library != "trl" or any(name == "SFTConfig" and keywords for _, name, keywords, _ in SYMBOLS)
    missing = []
    for module, name, keywords, path in (symbol for symbol in SYMBOLS if symbol[0].split(".")[0] == library):
        found = importlib.import_module(module)
        if not hasattr(found, name) and importlib.util.find_spec(f"{module}.{name}") is None:
            missing.append(f"{module} has no {name}, used in {path}")
        elif keywords:
            gone = set(keywords) - inspect.signature(getattr(found, name)).parameters.keys()
            missing += [f"{module}.{name} takes no {keyword}, used in {path}" for keyword in gone]
    assert not missing, "\n".join(missing)
