"""Storing a run's outputs in the notebooks: whole, of the same code, small, and with nothing of the machine in them."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import nbformat
import published
import pytest
from PIL import Image

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.series import ROOT, SERIES
from rlhf_utils.settings.recipes import load_recipe


def executed(source: Path, text: str) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it: a cell of parameters more, counts, and an output in its first cell."""
    notebook = nbformat.read(source, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for i, cell in enumerate(cells):
        cell.execution_count, cell.outputs = i + 7, []
    cells[0].outputs = [nbformat.v4.new_output("stream", text=text)]
    picture = io.BytesIO()
    Image.effect_noise((300, 200), 60).convert("RGB").save(picture, "PNG")
    data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "<Image>"}
    cells[1].outputs = [nbformat.v4.new_output("execute_result", data, execution_count=99)]
    extra = nbformat.v4.new_code_cell("recipe = 'instruct'", metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(notebook.cells.index(cells[1]) + 1, extra)
    return notebook


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """An executed run beside a copy of the repository's notebooks."""
    root, run = tmp_path / "root", tmp_path / "outputs" / "instruct-tiny"
    (run / "notebooks").mkdir(parents=True)
    for name in ("run.json", "evaluation/summary.json", "checkpoints/ppo/metrics.jsonl", "checkpoints/ppo/model.bin"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps({"seed": 3, "recipe_hash": "abc"}))
    for entry in SERIES:
        (root / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / entry.path, root / entry.path)
        nbformat.write(executed(root / entry.path, "a line\n"), run / "notebooks" / f"{entry.name}.ipynb")
    monkeypatch.setattr(published, "ROOT", root)
    return run


def test_what_a_recipe_says_that_it_needs_is_what_the_published_run_took():
    record, needs = read_json(ROOT / "docs/example_run/instruct-tiny/run.json"), load_recipe("instruct", "tiny").needs
    minutes = sum(about["seconds"] for about in record["notebooks"].values()) / 60
    memory = max(about["peak_host_bytes"] for about in record["stages"].values()) / 1e9
    assert minutes / 1.25 < needs.minutes < minutes * 1.25 and memory / 1.25 < needs.memory_gb < memory * 1.25


def test_outputs_and_small_files_are_taken_over_and_nothing_else(run):
    before = {entry.path: (published.ROOT / entry.path).read_text() for entry in SERIES}
    stale = published.ROOT / "docs" / "example_run" / run.name / "plots" / "of_before.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert len(published.publish(run)) == len(SERIES) + 3
    kept = {str(path.relative_to(stale.parents[1])) for path in stale.parents[1].rglob("*") if path.is_file()}
    assert kept == {"run.json", "evaluation/summary.json", "checkpoints/ppo/metrics.jsonl"}
    for entry in SERIES:
        notebook = nbformat.read(published.ROOT / entry.path, as_version=4)
        old = nbformat.reads(before[entry.path], as_version=4)
        assert [cell.source for cell in notebook.cells] == [cell.source for cell in old.cells]
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert cells[0].outputs[0].text == "a line\n" and cells[1].outputs[0].execution_count == 2
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        about = notebook.metadata.rlhf
        assert (about.run, about.seed, about.code) == ("instruct-tiny", 3, published.code_hash(notebook))
        picture = Image.open(io.BytesIO(base64.b64decode(cells[1].outputs[0].data["image/png"])))
        assert picture.mode == "P" and picture.size == (300, 200)


def change(run: Path, edit) -> None:
    path = run / "notebooks" / f"{SERIES[-1].name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    edit([cell for cell in notebook.cells if cell.cell_type == "code"])
    nbformat.write(notebook, path)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda run: change(run, lambda c: c[-1].update(source="1 + 1")), "has changed since .* was executed"),
        (lambda run: change(run, lambda c: c[0].outputs[0].update(text="x" * 500_000)), "over 400,000; show less"),
        (lambda run: change(run, lambda c: c[0].outputs[0].update(text=f"{Path.home()}/x")), "a path of this machine"),
        (lambda run: (run / "evaluation" / "a.json").write_text(f"{Path.home()}/x"), "a.json would hold a path"),
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


def test_stamping_twice_changes_nothing_the_second_time(run):
    readme = published.ROOT / "README.md"
    readme.write_text("# Title\n\n[![Open in Colab](of another address)](x)\n\ntext\n")
    published.stamp()
    assert readme.read_text() == f"# Title\n\n{published.badges(SERIES[0].path)}\n\ntext\n"
    assert published.stamp() == []
