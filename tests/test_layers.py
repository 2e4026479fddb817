"""Imports run one way: a module takes from its own folder and from those below it, and nothing goes in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "rlhf_utils"
# What stands side by side may use one another's results, but not in a circle.
LAYERS = (
    ("platforms",),
    ("settings",),
    ("toyworld", "data", "models", "rewards"),
    ("runs", "ppo", "evaluation"),
    ("report",),
    ("series", "__main__"),
)


def imports(path: Path) -> set[str]:
    """The folders of the package, and its modules at the top, that the module at `path` takes something from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf_utils"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names} - {"__version__"}
    return found


def test_imports_run_one_way():
    taken: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if place != "__init__":
            taken.setdefault(place, set()).update(imports(path) - {place})
    height = {name: level for level, names in enumerate(LAYERS) for name in names}
    assert taken.keys() == height.keys()
    upward = {name: {other for other in others if height[other] > height[name]} for name, others in taken.items()}
    assert not any(upward.values()), upward
    list(TopologicalSorter(taken).static_order())  # raises CycleError
