"""Installing without internet: the wheelhouse, and an attached repository, in a folder laid out as on Kaggle."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from pretended import cut_off, make_interpreter
from published import first_cell

from rlhf_utils.platforms import bootstrap, wheelhouse
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash

ROOT = Path(__file__).resolve().parents[1]
# For where the network cannot be cut.
NO_NETWORK = {"PIP_INDEX_URL": "file:///nowhere", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture
def kaggle(tmp_path) -> Path:
    """A machine with Kaggle's folders, an interpreter that has torch and its like but not `made-up`, and an attached
    dataset with this repository and a wheelhouse in it. Nothing here is the real Kaggle's path."""
    attached = tmp_path / "input" / "datasets" / "somebody" / "offline"
    attached.mkdir(parents=True)
    wheelhouse.copy_repository(attached / "gpt2-rlhf")
    # What an earlier session left, when its saved output is attached: the next one goes on from it.
    (attached / "gpt2-rlhf" / "outputs" / "instruct-tiny").mkdir(parents=True)
    (attached / "gpt2-rlhf" / "outputs" / "instruct-tiny" / "run.json").write_text("{}")
    (attached / "gpt2-rlhf" / "requirements.txt").write_text("made-up>=1,<2\n# --- local only ---\njupyter>=1\n")
    code = attached / "gpt2-rlhf" / "rlhf_utils" / "bootstrap.py"
    code.write_text(code.read_text().replace('"/kaggle/input"', repr(str(tmp_path / "input"))))
    make_wheelhouse(attached, bootstrap.this_python())

    (tmp_path / "working").mkdir()
    make_interpreter(tmp_path / "image", {name: "2.10.0+cu128" for name in bootstrap.NEVER_TOUCHED})
    return tmp_path


def make_wheelhouse(folder: Path, python: str) -> None:
    about = "made_up-1.5.dist-info"
    with zipfile.ZipFile(folder / "made_up-1.5-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made_up.py", "answer = 42\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.5\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    (folder / bootstrap.MARKER).write_text(json.dumps({"python": python}))


def run_first_cell(kaggle: Path, then: str = "", cwd: str = "working") -> subprocess.CompletedProcess:
    code = first_cell().replace('"/kaggle/input"', repr(str(kaggle / "input"))) + "\n" + then
    return subprocess.run(
        [*cut_off(kaggle / "input"), kaggle / "image" / "bin" / "python", "-I", "-B", "-c", code],
        cwd=kaggle / cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(kaggle), "RLHF_REPO_URL": "file:///nowhere", **NO_NETWORK},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_first_cell_works_on_kaggle_with_the_internet_off(kaggle):
    before = content_hash(kaggle / "input")
    then = "import made_up, rlhf_utils; print(made_up.answer, os.getcwd(), rlhf_utils.__file__)"
    done = run_first_cell(kaggle, then)
    copy = kaggle / "working" / "gpt2-rlhf"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "installing made-up ...",
        f"42 {copy} {copy / 'rlhf_utils' / '__init__.py'}",
    ]
    assert content_hash(kaggle / "input") == before, "what is attached is read-only"
    assert [path.name for path in (kaggle / "working").iterdir()] == ["gpt2-rlhf"]
    (copy / "outputs" / "instruct-tiny" / "run.json").write_text("writable")
    again = run_first_cell(kaggle, then)
    assert (again.stdout.splitlines(), again.stderr) == (done.stdout.splitlines()[1:], "")
    inside = run_first_cell(kaggle, then, "working/gpt2-rlhf/04_evaluation")
    assert (inside.stdout, inside.stderr) == (again.stdout, "")


def test_what_is_wrong_with_a_wheelhouse_is_said_in_one_line(kaggle):
    [marker] = (kaggle / "input").rglob(bootstrap.MARKER)
    marker.write_text(json.dumps({"python": "3.9"}))
    done = run_first_cell(kaggle)
    assert f"is for Python 3.9, and this is {bootstrap.this_python()}: make one with" in done.stderr.splitlines()[-1]
    marker.write_text(json.dumps({"python": bootstrap.this_python()}))
    next(marker.parent.glob("*.whl")).unlink()
    done = run_first_cell(kaggle)
    assert "InputError: pip install failed (No matching distribution found for made-up" in done.stderr.splitlines()[-1]
    assert "lacks what is needed here: make it anew" in done.stderr.splitlines()[-1]
    marker.unlink()
    done = run_first_cell(kaggle)
    assert "without internet, attach a wheelhouse" in done.stderr.splitlines()[-1]


def test_a_wheelhouse_can_be_named_on_any_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_WHEELHOUSE", str(tmp_path))
    with pytest.raises(InputError, match="which holds no rlhf-wheelhouse.json"):
        bootstrap._wheelhouse()
    make_wheelhouse(tmp_path, bootstrap.this_python())
    assert bootstrap._wheelhouse() == tmp_path


@pytest.mark.parametrize("below", ["name", "datasets/owner/name", "datasets/owner/name/folder/folder"])
def test_it_is_found_wherever_kaggle_puts_it(tmp_path, monkeypatch, below):
    monkeypatch.delenv("RLHF_WHEELHOUSE", raising=False)
    monkeypatch.setattr(bootstrap, "ATTACHED", tmp_path)
    assert bootstrap._wheelhouse() is None
    (tmp_path / below).mkdir(parents=True)
    make_wheelhouse(tmp_path / below, bootstrap.this_python())
    assert bootstrap._wheelhouse() == tmp_path / below


@pytest.fixture
def downloads(monkeypatch) -> list[list[str]]:
    """The calls of pip, which downloads wheels of nothing."""
    calls: list[list[str]] = []

    def pip(command: str, *arguments: str, advice: str) -> None:
        calls.append([command, *arguments])
        if command == "download":
            folder = Path(arguments[arguments.index("--dest") + 1])
            for name in ("trl-1.16.0", "torch-2.8+placeholder", "transformers-5.0.0"):
                (folder / f"{name}-py3-none-any.whl").touch()

    monkeypatch.setattr(wheelhouse, "pip", pip)
    return calls


def test_a_wheelhouse_holds_wheels_for_another_python_and_the_repository(downloads, tmp_path):
    folder = tmp_path / "new" / "wheels"
    assert wheelhouse.make(folder, "3.12") == 1
    assert [path.name for path in folder.glob("*.whl")] == ["trl-1.16.0-py3-none-any.whl"]
    assert json.loads((folder / bootstrap.MARKER).read_text())["python"] == "3.12"
    copied = {path.name for path in (folder / "gpt2-rlhf").iterdir()}
    assert {"rlhf_utils", "01_supervised_finetuning", "requirements.txt", "pyproject.toml"} <= copied
    assert not copied & {"outputs", "tests", ".git", ".venv"}
    assert not list((folder / "gpt2-rlhf").rglob("__pycache__"))
    built, downloaded = downloads
    assert built[-1].startswith("rouge-score") and "--only-binary=:all:" in downloaded
    assert downloaded[downloaded.index("--python-version") + 1] == "3.12"
    assert any(part.startswith("datasets") and part.endswith("<5.1") for part in downloaded)
    assert not [part for part in downloaded if part.startswith("jupyter")]


def test_making_it_again_replaces_it_and_nothing_else_is_replaced(downloads, tmp_path):
    folder = tmp_path / "wheels"
    wheelhouse.make(folder, "3.12")
    (folder / "old-1-py3-none-any.whl").touch()
    assert wheelhouse.make(folder, "3.13") == 1 and not (folder / "old-1-py3-none-any.whl").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").touch()
    with pytest.raises(InputError, match="is there and is no wheelhouse"):
        wheelhouse.make(other, "3.12")
    with pytest.raises(InputError, match="is not a version such as 3.12"):
        wheelhouse.make(tmp_path / "x", "3.12.1")
    assert (other / "chapter1.tex").exists()
