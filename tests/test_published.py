"""Storing a run's outputs in the notebooks: whole, of the same code, small, and with nothing of the machine in them."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import nbformat
import published
import pytest
from PIL import Image

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.series import ROOT, SERIES
from rlhf_utils.settings.recipes import load_recipe

PARAMETERS = nbformat.v4.new_code_cell("recipe = 'instruct'", metadata={"tags": ["injected-parameters"]})
KEPT = {"run.json", "evaluation/summary.json", "checkpoints/ppo/metrics.jsonl"}


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def executed(source: Path) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it: a cell of parameters more, counts, and two outputs."""
    notebook, picture = nbformat.read(source, as_version=4), io.BytesIO()
    first, second, *rest = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in rest:
        cell.execution_count, cell.outputs = 7, []
    Image.effect_noise((300, 200), 60).convert("RGB").save(picture, "PNG")
    data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "<Image>"}
    first.outputs = [nbformat.v4.new_output("stream", text="a line\n")]
    second.outputs = [nbformat.v4.new_output("execute_result", data, execution_count=99)]
    notebook.cells.insert(notebook.cells.index(second) + 1, PARAMETERS)
    return notebook


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """An executed run beside a copy of the repository's notebooks."""
    root, run = tmp_path / "root", tmp_path / "outputs" / "instruct-tiny"
    (run / "notebooks").mkdir(parents=True)
    for name in {*KEPT, "checkpoints/ppo/model.bin"}:
        write_json(run / name, {"seed": 3, "recipe_hash": "abc"})
    for entry in SERIES:
        (root / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / entry.path, root / entry.path)
        nbformat.write(executed(root / entry.path), run / "notebooks" / f"{entry.name}.ipynb")
    monkeypatch.setattr(published, "ROOT", root)
    return run


def test_what_a_recipe_says_that_it_needs_is_what_the_published_run_took():
    record, needs = read_json(ROOT / "docs/example_run/instruct-tiny/run.json"), load_recipe("instruct", "tiny").needs
    minutes = sum(about["seconds"] for about in record["notebooks"].values()) / 60
    memory = max(about["peak_host_bytes"] for about in record["stages"].values()) / 1e9
    assert minutes / 1.25 < needs.minutes < minutes * 1.25 and memory / 1.25 < needs.memory_gb < memory * 1.25


def test_outputs_and_small_files_are_taken_over_and_nothing_else(run):
    example = published.ROOT / "docs" / "example_run" / run.name
    write_json(example / "plots" / "of_before.json", {})
    assert len(published.publish(run)) == len(SERIES) + 3
    assert {path.relative_to(example).as_posix() for path in example.rglob("*") if path.is_file()} == KEPT
    for entry in SERIES:
        cells, about = code_cells(published.ROOT / entry.path), nbformat.read(published.ROOT / entry.path, 4).metadata
        assert [cell.source for cell in cells] == [cell.source for cell in code_cells(ROOT / entry.path)]
        assert cells[0].outputs[0].text == "a line\n" and cells[1].outputs[0].execution_count == 2
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert (about.rlhf.run, about.rlhf.seed) == ("instruct-tiny", 3)
        picture = Image.open(io.BytesIO(base64.b64decode(cells[1].outputs[0].data["image/png"])))
        assert picture.mode == "P" and picture.size == (300, 200)


def spoil_last(run: Path, edit) -> None:
    path = run / "notebooks" / f"{SERIES[-1].name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    edit([cell for cell in notebook.cells if cell.cell_type == "code"])
    nbformat.write(notebook, path)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda run: spoil_last(run, lambda c: c[-1].update(source="1 + 1")), "has changed since .* was executed"),
        (lambda run: write_json(run / "evaluation" / "a.json", f"{Path.home()}/x"), "a.json would hold a path"),
        (lambda run: (run / "notebooks" / f"{SERIES[2].name}.ipynb").unlink(), "is missing; run the whole series"),
    ],
)
def test_what_is_not_fit_to_be_stored_changes_nothing(run, spoil, words):
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in published.ROOT.rglob("*") if path.is_file()}

    before = content()
    spoil(run)
    with pytest.raises(InputError, match=words):
        published.publish(run)
    assert content() == before
