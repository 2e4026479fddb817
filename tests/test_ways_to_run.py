"""One notebook alone, in each way that people run notebooks; the series has tests of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "03_ppo_alignment" / "01_ppo_from_scratch.ipynb"
FIRST = ROOT / "01_supervised_finetuning" / "02_full_finetuning.ipynb"
pytestmark = pytest.mark.slow


def call(module: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def texts(path: Path) -> str:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def test_papermill_from_the_notebooks_own_folder_with_values_of_every_kind(tmp_path):
    """It opens its run with them, and then misses the data, which another notebook prepares."""
    (tmp_path / "values.yaml").write_text("overrides: {sft.learning_rate: 1e-5, seed: 3}\nresume: no\n")
    given = ["-p", "scale", "tiny", "-p", "output_dir", tmp_path / "runs", "-f", tmp_path / "values.yaml"]
    done = call("papermill", FIRST.name, tmp_path / "out.ipynb", *given, "--no-progress-bar", cwd=FIRST.parent)
    assert "no prepared data in" in done.stderr, done.stderr[-2000:]
    assert "recipe instruct, scale tiny, seed 3" in str(nbformat.read(tmp_path / "out.ipynb", as_version=4).cells)


def test_nbconvert_from_the_root(tmp_path):
    done = call("nbconvert", "--to", "notebook", "--execute", NOTEBOOK, "--output-dir", tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "log-probability before" in texts(tmp_path / NOTEBOOK.name)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (["-p", "epochs", "2"], "unknown parameter epochs; there are: "),
        (["-y", "{overrides: {ppo.learning_rate: fast}}"], "ppo.learning_rate is 'fast'"),
    ],
)
def test_what_papermill_leaves_after_a_refusal_can_be_read(tmp_path, parameters, words):
    given = ["-p", "output_dir", tmp_path / "runs", *parameters]
    done = call("papermill", FIRST, tmp_path / "out.ipynb", *given, "--no-progress-bar", cwd=ROOT)
    assert done.returncode != 0 and words in done.stderr
    left = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    nbformat.validate(left)
    assert words.split(" is ")[0] in str(left.cells)
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))
