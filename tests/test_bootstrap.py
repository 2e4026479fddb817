"""The first cell: finds the repository, installs what is missing, keeps neighbors out of the way, works offline."""

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import wheelhouse
from published import first_cell

from rlhf_utils.platforms import bootstrap
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash

ROOT = Path(__file__).resolve().parents[1]


def cut_off(read_only: Path) -> list[str]:
    """Put before a command: it runs without any network device and sees `read_only` mounted so; [] if not permitted."""
    mounting = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    prefix = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", mounting, str(read_only)]
    try:
        return [] if subprocess.run([*prefix, "true"], capture_output=True).returncode else prefix
    except FileNotFoundError:
        return []


def write_package(folder: Path, name: str, version: str) -> None:
    """A package that is installed in `folder` as far as Python and pip can see."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "INSTALLER").write_text("pip\n")
    (about / "RECORD").touch()


def run(code: str, *arguments: Path, cwd: Path = ROOT, isolated: bool = False, **environment: str):
    # -I keeps the interpreter from finding an installed or neighboring rlhf_utils by itself.
    command = [sys.executable, *(["-I"] if isolated else []), "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip


# What is installed


@pytest.fixture
def pip(monkeypatch) -> list[list[str]]:
    """The calls of pip, which is not run. The folder and the search path are put back afterwards."""
    calls: list[list[str]] = []
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda command, **_: calls.append(command) or done)
    monkeypatch.delenv("RLHF_WHEELHOUSE", raising=False)
    monkeypatch.chdir(ROOT)
    return calls


@pytest.fixture
def versions(monkeypatch) -> dict[str, str | None]:
    """Pretended versions of packages; None is not installed."""
    pretended, real = {}, importlib.metadata.version

    def version(name: str) -> str:
        found = pretended[name] if name in pretended else real(name)
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(bootstrap.importlib.metadata, "version", version)
    return pretended


def test_nothing_to_do_is_done_silently(pip, capsys):
    bootstrap.ready()
    assert not pip and capsys.readouterr() == ("", "")


def test_what_is_missing_is_installed_and_the_platforms_own_is_held(pip, versions, monkeypatch):
    versions |= {"trl": None, "datasets": "4.0.0", "torch": "2.11.0+cu128"}
    monkeypatch.setattr(bootstrap.importlib.metadata, "packages_distributions", dict)  # nothing is loaded
    bootstrap.ready()
    [command] = pip
    assert command[:4] == [sys.executable, "-m", "pip", "--quiet"] and "--no-index" not in command
    assert {part.split("<")[0] for part in command if ">=" in part} == {"trl", "datasets"}
    assert any(part.startswith("datasets") and part.endswith("<5.1") for part in command)
    assert "torch==2.11.0+cu128" in command
    assert {part.split("==")[0] for part in command if "==" in part} == set(bootstrap.NEVER_TOUCHED)


def test_what_must_not_be_touched_is_refused(pip, versions):
    versions |= {"torch": "2.1.0", "numpy": None}
    with pytest.raises(InputError, match="lacks torch<.*, numpy<.*; choose a newer image"):
        bootstrap.ready()
    assert not pip


@pytest.mark.parametrize("changes", [True, False])
def test_a_restart_is_asked_for_only_where_something_loaded_has_changed(pip, versions, monkeypatch, changes):
    """It need not be what was asked for: pip may have moved what that needs."""
    versions |= {"rouge-score": None, "nltk": "3.9"}
    monkeypatch.setitem(sys.modules, "nltk", sys)
    monkeypatch.setattr(bootstrap, "_install", lambda _: versions.update({"nltk": "3.10"} if changes else {}))
    if not changes:
        return bootstrap.ready()
    with pytest.raises(InputError, match="^nltk had been loaded before .* restart the kernel"):
        bootstrap.ready()


# Neighbors that get in the way

ADAPTED = """
import sys, rlhf_utils
print("torch" in sys.modules)
from peft import LoraConfig, get_peft_model, import_utils
from torch import nn
adapted = lambda: get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
print(type(adapted()).__name__)
import_utils.is_torchao_available.cache_clear()
del sys.modules["torchao"]
try:
    adapted()
except ImportError as error:
    print("incompatible" in str(error))
"""


def test_what_peft_would_refuse_is_out_of_the_way_before_torch_is_loaded(tmp_path):
    """An old torchao, as on Colab: peft raises at every layer that it adapts."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").touch()
    write_package(tmp_path, "torchao", "0.10.0")
    done = run(ADAPTED, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]))
    assert done.stdout.split() == ["False", "PeftModel", "True"], done.stderr


# The cell itself

WHERE = "\nimport rlhf_utils; print(pathlib.Path.cwd(), pathlib.Path(rlhf_utils.__file__).parent.parent)"


def test_the_first_cell_finds_the_repository_from_the_folder_of_a_notebook():
    done = run(first_cell() + WHERE, cwd=ROOT / "03_ppo_alignment", isolated=True)
    assert done.stdout.split() == [str(ROOT), str(ROOT)], done.stderr


def test_the_first_cell_clones_the_repository_where_there_is_none_or_says_that_it_cannot(tmp_path):
    origin, elsewhere = tmp_path / "origin", tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(first_cell(), cwd=elsewhere, isolated=True, RLHF_REPO_URL=origin.as_uri())
    assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
    assert "cannot be cloned" in done.stderr
    platforms = origin / "rlhf_utils" / "platforms"
    platforms.mkdir(parents=True)
    for package in (platforms.parent, platforms):
        (package / "__init__.py").touch()
    (platforms / "bootstrap.py").write_text(
        "import os, pathlib\ndef ready(): print('ready', os.chdir(pathlib.Path(__file__).parents[2]))\n"
    )
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=origin, check=True)
    clone = str(elsewhere / "gpt2-rlhf")
    for _ in range(2):
        done = run(first_cell() + WHERE, cwd=elsewhere, isolated=True, RLHF_REPO_URL=origin.as_uri())
        assert done.stdout.split() == ["ready", "None", clone, clone], done.stderr


# Without internet, in a folder laid out as on Kaggle


@pytest.fixture
def kaggle(tmp_path) -> Path:
    """A machine with Kaggle's folders, an interpreter that has torch and its like but not `made-up`, and an attached
    dataset with this repository and a wheelhouse in it. Nothing here is the real Kaggle's path."""
    attached = tmp_path / "input" / "datasets" / "somebody" / "offline"
    attached.mkdir(parents=True)
    copied = attached / "gpt2-rlhf"
    wheelhouse.copy_repository(copied)
    # What an earlier session left, when its saved output is attached: the next one resumes from it.
    (copied / "outputs" / "instruct-tiny").mkdir(parents=True)
    (copied / "outputs" / "instruct-tiny" / "run.json").write_text("{}")
    (copied / "requirements.txt").write_text("made-up>=1,<2\n# --- local only ---\njupyter>=1\n")
    code = copied / "rlhf_utils" / "platforms" / "bootstrap.py"
    code.write_text(code.read_text().replace('"/kaggle/input"', repr(str(tmp_path / "input"))))
    about = "made_up-1.5.dist-info"
    with zipfile.ZipFile(attached / "made_up-1.5-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made_up.py", "answer = 42\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.5\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    (attached / bootstrap.MARKER).write_text(json.dumps({"python": bootstrap.PYTHON}))
    (tmp_path / "working").mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "image"], check=True, timeout=60)
    [site] = (tmp_path / "image" / "lib").glob("*/site-packages")
    for name in ("pip", "packaging"):
        ours = Path(str(distribution(name).locate_file("")))
        for path in (ours / name, *ours.glob(f"{name}-*.dist-info")):
            (site / path.name).symlink_to(path)
    for name in bootstrap.NEVER_TOUCHED:
        write_package(site, name, "2.10.0+cu128")
    return tmp_path


def run_on_kaggle(kaggle: Path, then: str = "", cwd: str = "working") -> subprocess.CompletedProcess:
    code = first_cell().replace('"/kaggle/input"', repr(str(kaggle / "input"))) + "\n" + then
    no_network = {"PIP_INDEX_URL": "file:///nowhere", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        [*cut_off(kaggle / "input"), kaggle / "image" / "bin" / "python", "-I", "-B", "-c", code], cwd=kaggle / cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(kaggle), "RLHF_REPO_URL": "file:///nowhere", **no_network},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_first_cell_works_on_kaggle_with_the_internet_off(kaggle):
    before = content_hash(kaggle / "input")
    then = "import made_up, rlhf_utils; print(made_up.answer, os.getcwd(), rlhf_utils.__file__)"
    done = run_on_kaggle(kaggle, then)
    copy = kaggle / "working" / "gpt2-rlhf"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["installing made-up ...", f"42 {copy} {copy / 'rlhf_utils' / '__init__.py'}"]
    assert content_hash(kaggle / "input") == before, "what is attached is read-only"
    assert [path.name for path in (kaggle / "working").iterdir()] == ["gpt2-rlhf"]
    (copy / "outputs" / "instruct-tiny" / "run.json").write_text("writable")
    again = run_on_kaggle(kaggle, then, "working/gpt2-rlhf/04_evaluation")
    assert (again.stdout.splitlines(), again.stderr) == (done.stdout.splitlines()[1:], "")


def test_what_is_wrong_with_a_wheelhouse_is_said_in_one_line(kaggle):
    [marker] = (kaggle / "input").rglob(bootstrap.MARKER)
    next(marker.parent.glob("*.whl")).unlink()
    said = run_on_kaggle(kaggle).stderr.splitlines()[-1]
    assert "InputError: pip install failed (No matching distribution found for made-up" in said
    assert "lacks what is needed here: make it again" in said
