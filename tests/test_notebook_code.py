"""The notebooks' code without running it: every name is defined before it is used, and everything they take from the
package is there. Nothing here imports torch."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("0[0-9]_*/*.ipynb"))
# IPython puts it there.
GIVEN = {*dir(builtins), "display"}
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")))


def cells(path: str) -> list[str]:
    notebook = nbformat.read(ROOT / path, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


# Names


def undefined(sources: list[str]) -> list[str]:
    """Names that are used before any cell has defined them; a function's body may use what its own cell defines
    later."""
    known, missing = set(GIVEN), []
    for source in sources:
        later: set[str] = set()
        for statement in ast.parse(source).body:
            code = ast.unparse(statement)
            table = symtable.symtable(code, "cell", "exec")
            made = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
            now = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
            inside = {
                symbol.get_name()
                for scope in _scopes(table)
                for symbol in scope.get_symbols()
                if symbol.is_global() and symbol.is_referenced()
            }
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                later |= inside
            else:
                now |= inside
            missing += sorted(now - known - made)
            known |= made
        missing += sorted(later - known)
    return missing


def _scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from _scopes(child)


@pytest.mark.parametrize("path", PATHS)
def test_names_are_defined_before_they_are_used(path):
    assert undefined(cells(path)) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["a = 1", "print(a)"], []),
        (["print(a)", "a = 1"], ["a"]),
        (["x = [i for i in range(3) if i < n]"], ["n"]),
        (["def f():\n    return a\na = 2", "f()"], []),
        (["def f():\n    return a", "a = 2"], ["a"]),
        (["import os.path as p, re", "p.join(re.escape('a'))"], []),
        (["for i in y: pass"], ["y"]),
    ],
)
def test_the_search_for_undefined_names_finds_them(sources, expected):
    assert undefined(sources) == expected


# What is taken from the package


class Package:
    """What the modules of the package define, read from their source."""

    def __init__(self):
        self.trees: dict[str, ast.Module] = {}

    def file(self, module: str) -> Path | None:
        base = ROOT.joinpath(*module.split("."))
        return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)

    def tree(self, module: str) -> ast.Module:
        if module not in self.trees:
            self.trees[module] = ast.parse(self.file(module).read_text(encoding="utf-8"))
        return self.trees[module]

    def has(self, module: str, name: str) -> bool:
        return self.file(f"{module}.{name}") is not None or name in self.names(module)

    def names(self, module: str) -> set[str]:
        """What a module binds at its top level."""
        table = symtable.symtable(ast.unparse(self.tree(module)), module, "exec")
        return {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}

    def function(self, module: str, name: str) -> ast.FunctionDef | None:
        """The function, followed through re-exports; None for anything else."""
        for node in self.tree(module).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rlhf_utils"):
                for alias in node.names:
                    if (alias.asname or alias.name) == name and self.file(node.module):
                        return self.function(node.module, alias.name)
        return None


PACKAGE = Package()


def taken(sources: list[str]) -> Iterator[tuple[str, str, list[str] | None]]:
    """Module, name, and the keywords it is called with (None where it is not called), of what the cells use."""
    modules: dict[str, str] = {}
    functions: dict[str, tuple[str, str]] = {}
    for source in sources:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf_utils"):
                for alias in node.names:
                    yield node.module, alias.name, None
                    if PACKAGE.file(f"{node.module}.{alias.name}"):
                        modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    else:
                        functions[alias.asname or alias.name] = (node.module, alias.name)
        called = {
            id(node.func): [k.arg for k in node.keywords] for node in ast.walk(tree) if isinstance(node, ast.Call)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                yield modules[node.value.id], node.attr, called.get(id(node))
            elif isinstance(node, ast.Name) and node.id in functions and id(node) in called:
                yield *functions[node.id], called[id(node)]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_taken_from_the_package_is_there(path):
    found = list(taken(cells(path)))
    assert found
    for module, name, keywords in found:
        assert PACKAGE.file(module), f"there is no {module}"
        assert PACKAGE.has(module, name), f"{module} has no {name}"
        function = PACKAGE.function(module, name) if keywords else None
        if function is not None and function.args.kwarg is None:
            accepted = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}
            assert set(keywords) <= accepted, f"{module}.{name} takes no {set(keywords) - accepted}"


def test_what_is_not_there_is_found():
    found = list(
        taken(["from rlhf_utils.report import notebook", "notebook.nothing(1)", "notebook.table([], colour=1)"])
    )
    assert ("rlhf_utils.report.notebook", "nothing", []) in found and not PACKAGE.has(
        "rlhf_utils.report.notebook", "nothing"
    )
    assert ("rlhf_utils.report.notebook", "table", ["colour"]) in found


# Links


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *PATHS])
def test_links_lead_somewhere(page):
    path = ROOT / page
    if page.endswith(".ipynb"):
        sources = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
        text = "\n\n".join(sources)
    else:
        text = path.read_text(encoding="utf-8")
    for link in links(text):
        if link.startswith(("http://", "https://")):
            assert re.fullmatch(r"https?://[\w.-]+\.[a-z]+(/\S*)?", link), link
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists() and found.is_relative_to(ROOT), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{page}: {link}"


def test_all_this_needs_no_torch():
    code = "import sys; import test_notebooks, test_notebook_code; sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}, check=False
    )
    assert done.returncode == 0
