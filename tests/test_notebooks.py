"""What every notebook of the series has to be, without running it."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from published import badges, code_hash, first_cell

from rlhf_utils.platforms.files import read_json
from rlhf_utils.series import SERIES
from rlhf_utils.settings.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")))
PATHS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("0[0-9]_*/*.ipynb"))
PARAMETERS = {"recipe": "instruct", "scale": "tiny", "output_dir": "outputs", "overrides": {}, "resume": True}


@pytest.fixture(params=PATHS)
def notebook(request) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / request.param, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_series_is_every_notebook_of_the_folders_in_order():
    assert [notebook.path for notebook in SERIES] == PATHS
    assert len({notebook.name for notebook in SERIES}) == len(PATHS)


def test_it_is_a_valid_notebook_of_the_kernel_every_platform_has(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_its_outputs_are_those_of_its_code(notebook):
    """All notebooks are stored with the outputs of one run, or one is stored without any."""
    cells = code(notebook)
    if "rlhf" not in notebook.metadata:
        assert not [cell.id for cell in cells if cell.outputs or cell.execution_count]
        return
    assert notebook.metadata.rlhf.code == code_hash(notebook), "its code has changed: `make notebooks`"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = nbformat.writes(notebook)
    assert len(text.encode()) < 400_000
    # Without pictures, whose characters may spell anything.
    data = [
        {**output, "data": {**output.get("data", {}), "image/png": ""}} for cell in cells for output in cell.outputs
    ]
    shown = json.dumps(data)
    for debris in ("Warning", "Traceback", "it/s", '"stderr"', "widget-view"):
        assert debris not in shown, debris


def test_all_outputs_are_of_one_run():
    """Those that recipe instruct has no use for are of another recipe's."""
    about = [nbformat.read(ROOT / path, as_version=4).metadata.get("rlhf", {}) for path in PATHS]
    found = {(one.get("run"), one.get("recipe_hash")) for one in about}
    assert len(found) == len({run for run, _ in found}), "some notebooks are of another run: `make notebooks`"
    of_form = {path: one.get("run") for path, one in zip(PATHS, about, strict=True)}
    assert {of_form[n.path] for n in SERIES if n.form != "continuation"} <= {"instruct-tiny", None}


@pytest.mark.parametrize("run", sorted(path.name for path in (ROOT / "docs/example_run").iterdir()))
def test_what_a_recipe_says_that_it_needs_is_what_the_published_run_took(run):
    record, needs = read_json(ROOT / f"docs/example_run/{run}/run.json"), load_recipe(*run.rsplit("-", 1)).needs
    usual = [notebook for notebook in SERIES if not notebook.optional]
    minutes = sum(record["notebooks"][n.name]["seconds"] for n in usual if n.name in record["notebooks"]) / 60
    stages = [record["stages"][stage] for n in usual for stage in n.makes if stage in record["stages"]]
    memory = max(stage["peak_host_bytes"] for stage in stages) / 1e9
    assert minutes / 1.25 < needs.minutes < minutes * 1.25 and memory / 1.25 < needs.memory_gb < memory * 1.25


@pytest.mark.parametrize("entry", SERIES, ids=lambda entry: entry.name)
def test_one_cell_of_parameters_with_the_agreed_names_and_defaults(entry):
    notebook = nbformat.read(ROOT / entry.path, as_version=4)
    cells = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    values = {}
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign)
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    # Opened by its badge, a notebook has something to make.
    assert values == PARAMETERS | ({"recipe": "imdb"} if entry.form == "continuation" else {})
    assert entry.form in (None, load_recipe(values["recipe"]).form)


def test_code_cells_parse_and_are_short(notebook):
    for cell in code(notebook):
        ast.parse(cell.source)
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert 0 < len(lines) <= 12, f"{cell.id} has {len(lines)} lines"


def test_an_imported_name_stands_for_one_thing(notebook):
    """Cells are rerun in any order: a later import or variable of that name would be used in place of the first."""
    places, cells = {}, [cell for cell in code(notebook) if "setup" not in cell.metadata.get("tags", ())]
    for node in [node for cell in cells for node in ast.walk(ast.parse(cell.source))]:
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                places.setdefault(name.asname or name.name, set()).add(f"{node.module}.{name.name}")
    assert {name: sorted(found) for name, found in places.items() if len(found) > 1} == {}
    stored = {
        node.id
        for cell in cells
        for statement in ast.parse(cell.source).body
        if not isinstance(statement, ast.FunctionDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    assert not stored & {*places}


def test_sections_are_numbered_in_order(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    numbers = [int(number) for number in re.findall(r"^## (\d+)\.", text, re.MULTILINE)]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert {int(number) for number in re.findall(r"sections? (\d+)", text, re.IGNORECASE)} <= {*numbers}


def test_badges_and_first_cell_hold_the_one_address_of_the_repository(notebook, request):
    path = request.node.callspec.params["notebook"]
    assert "parameters" in code(notebook)[1].metadata.get("tags", [])
    assert code(notebook)[0].source == first_cell() and badges(path) in notebook.cells[0].source.split("\n")
    assert notebook.cells[0].source.count("[![") == 2


def test_it_names_no_machine_and_no_secret(notebook):
    # Where every Kaggle notebook finds its datasets; the first cell looks there.
    text = nbformat.writes(notebook).replace("/kaggle/input", "")
    assert not re.search(r"(?<![\w.:/])/(work|root|home|opt|tmp|Users|mnt|content|kaggle)/", text)
    assert not re.search(r"hf_[A-Za-z0-9]{20}", text)


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
