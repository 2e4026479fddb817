"""The first cell: finds the repository, installs what is missing, never touches what the platform ships."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from published import first_cell

from rlhf_utils.platforms import bootstrap
from rlhf_utils.platforms.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def pip(monkeypatch) -> list[list[str]]:
    """The calls of pip, which is not run. The folder and the search path are put back afterwards."""
    calls: list[list[str]] = []

    def run(command: list[str], **_) -> subprocess.CompletedProcess:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    monkeypatch.delenv("RLHF_WHEELHOUSE", raising=False)
    monkeypatch.chdir(ROOT)
    return calls


@pytest.fixture
def versions(monkeypatch) -> dict[str, str | None]:
    """Pretended versions of packages; None is not installed."""
    pretended: dict[str, str | None] = {}
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name not in pretended:
            return real(name)
        if pretended[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return pretended[name]

    monkeypatch.setattr(bootstrap.importlib.metadata, "version", version)
    return pretended


def test_nothing_to_do_is_done_in_silence(pip, capsys):
    bootstrap.ready()
    assert not pip and capsys.readouterr() == ("", "")


def test_what_is_missing_is_installed_and_the_platforms_own_is_held(pip, versions):
    versions |= {"trl": None, "datasets": "4.0.0", "torch": "2.11.0+cu128"}
    with pytest.MonkeyPatch.context() as patch:
        for module in ("trl", "datasets"):
            patch.delitem(sys.modules, module, raising=False)
        bootstrap.ready()
    [command] = pip
    assert command[:4] == [sys.executable, "-m", "pip", "--quiet"] and "install" in command
    assert "--no-index" not in command
    assert {part.split(">")[0] for part in command if ">=" in part} == {"trl", "datasets"}
    assert any(part.startswith("datasets") and part.endswith("<5.1") for part in command)
    assert "torch==2.11.0+cu128" in command
    assert {part.split("==")[0] for part in command if "==" in part} == set(bootstrap.NEVER_TOUCHED)


@pytest.mark.parametrize("name, version", [("torch", "2.1.0"), ("transformers", "4.57.1"), ("numpy", None)])
def test_what_must_not_be_touched_is_refused(pip, versions, name, version):
    versions[name] = version
    with pytest.raises(InputError, match=f"{name} is missing or out of range"):
        bootstrap.ready()
    assert not pip


@pytest.mark.parametrize("loaded, changes, asked", [(True, True, True), (True, False, False), (False, True, False)])
def test_a_restart_is_asked_for_only_where_something_loaded_has_changed(
    pip, versions, monkeypatch, loaded, changes, asked
):
    """It need not be what was asked for: pip may have moved what that needs."""
    versions |= {"rouge-score": None, "nltk": "3.9"}
    for name in [name for name in sys.modules if name.partition(".")[0] == "nltk"]:
        monkeypatch.delitem(sys.modules, name)
    if loaded:
        monkeypatch.setitem(sys.modules, "nltk", sys)
    run = bootstrap.subprocess.run

    def installing(command, **settings):
        versions.update({"nltk": "3.10"} if changes else {})
        return run(command, **settings)

    monkeypatch.setattr(bootstrap.subprocess, "run", installing)
    if asked:
        with pytest.raises(InputError, match="^nltk had been loaded before .* restart the kernel"):
            bootstrap.ready()
    else:
        bootstrap.ready()
    assert len(pip) == 1


def test_what_pip_complains_of_is_one_line(pip, versions, monkeypatch):
    versions["trl"] = None
    complaint = "WARNING: retrying\nERROR: No matching distribution found for trl\n"
    done = subprocess.CompletedProcess([], 1, "", complaint)
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda command, **_: done)
    with pytest.raises(InputError) as raised:
        bootstrap.ready()
    assert str(raised.value) == (
        "pip install failed (No matching distribution found for trl); "
        "without internet, attach a wheelhouse (README, section Offline)"
    )


def test_the_metapackage_of_jupyter_is_not_among_what_is_installed():
    names = {bootstrap.name_of(line) for line in bootstrap.requirements()}
    assert "trl" in names and "jupyter" not in names


def run_first_cell(cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    check = "\nimport rlhf_utils; print(pathlib.Path.cwd(), pathlib.Path(rlhf_utils.__file__).parent.parent)"
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    # -I keeps the interpreter from finding an installed or neighbouring rlhf_utils by itself.
    return subprocess.run(
        [sys.executable, "-I", "-c", first_cell() + check],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("folder", [".", "03_ppo_alignment", "tests"])
def test_the_first_cell_finds_the_repository_from_the_folder_of_a_notebook(folder):
    done = run_first_cell(ROOT / folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT), str(ROOT)]


def test_while_nothing_is_published_the_first_cell_says_so_in_one_sentence(tmp_path):
    done = run_first_cell(tmp_path, RLHF_REPO_URL=(tmp_path / "nowhere").as_uri())
    assert done.returncode == 1 and not done.stdout
    assert len(done.stderr.strip().split("\n")) == 1 and "nothing is published there yet" in done.stderr


def test_the_first_cell_fetches_the_repository_where_there_is_none(tmp_path):
    origin, elsewhere = tmp_path / "origin", tmp_path / "elsewhere"
    (origin / "rlhf_utils").mkdir(parents=True)
    elsewhere.mkdir()
    (origin / "rlhf_utils" / "__init__.py").touch()
    (origin / "rlhf_utils" / "bootstrap.py").write_text(
        "import os, pathlib\ndef ready(): print('ready', os.chdir(pathlib.Path(__file__).parents[1]))\n"
    )
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=origin, check=True)
    for _ in range(2):
        done = run_first_cell(elsewhere, RLHF_REPO_URL=origin.as_uri())
        assert done.returncode == 0, done.stderr
        clone = str(elsewhere / "gpt2-rlhf")
        assert done.stdout.split() == ["ready", "None", clone, clone]
