"""One notebook alone, as people run it with papermill; the series has tests of its own."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from reduced import REDUCED

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "01_supervised_finetuning" / "02_full_finetuning.ipynb"
pytestmark = pytest.mark.slow


def papermill(out: Path, *given: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", os.path.relpath(NOTEBOOK, cwd), str(out), *map(str, given)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--no-progress-bar"], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_opened_alone_from_its_own_folder_it_makes_what_is_missing(tmp_path):
    overrides = {**dict(setting.split("=") for setting in REDUCED), "seed": 3, "sft.learning_rate": "1e-5"}
    # As a person types them: numbers that YAML reads as text, and `no`.
    text = yaml.safe_dump({"overrides": overrides}).replace("'", "") + "resume: no\n"
    (tmp_path / "values.yaml").write_text(text)
    given = ["-p", "output_dir", tmp_path / "runs", "-f", tmp_path / "values.yaml"]
    done = papermill(tmp_path / "out.ipynb", *given, cwd=NOTEBOOK.parent)
    left = str(nbformat.read(tmp_path / "out.ipynb", as_version=4).cells)
    assert done.returncode == 0 and "recipe instruct, scale tiny, seed 3" in left, done.stderr[-2000:]
    assert "not there yet: base, data; running notebook 01_01 first" in left


def test_what_papermill_leaves_after_a_refusal_can_be_read(tmp_path):
    done = papermill(tmp_path / "out.ipynb", "-p", "output_dir", tmp_path / "runs", "-p", "epochs", "2", cwd=ROOT)
    assert done.returncode != 0 and "unknown parameter epochs; there are: " in done.stderr
    left = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    nbformat.validate(left)
    assert "unknown parameter epochs" in str(left.cells)
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))
