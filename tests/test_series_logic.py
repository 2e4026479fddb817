"""The series without its notebooks: which of them run, what is skipped, how failures are told."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import papermill
import pytest
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from rlhf_utils import series
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.runs import launch
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stages import STAGES
from rlhf_utils.runs.stopping import Stopped
from rlhf_utils.series import SERIES, run_series

ROOT = Path(__file__).resolve().parents[1]
# The notebooks of recipe instruct.
SHOWN = [notebook for notebook in SERIES if notebook.form != "continuation"]


class FakePapermill:
    """Stands in for `papermill.execute_notebook`: notes what is asked for, makes the stages, fails on request."""

    def __init__(self):
        self.calls: list[SimpleNamespace] = []
        self.failures: dict[str, BaseException] = {}

    def __call__(self, source: str, target: str, parameters: dict, **_) -> None:
        name = str(Path(source).relative_to(ROOT))
        self.calls.append(SimpleNamespace(path=name, parameters=parameters))
        Path(target).write_text("{}")
        if name in self.failures:
            raise self.failures[name]
        keys = ("recipe", "scale", "output_dir", "overrides", "resume")
        run = Run.open(*(parameters[key] for key in keys))
        for stage in next(notebook.makes for notebook in SERIES if notebook.path == name):
            if not run.has(stage):
                with run.training(stage):
                    run.publish(stage)
                    for file in STAGES[stage].leaves:
                        (run.root / file).touch()

    @property
    def paths(self) -> list[str]:
        return [call.path for call in self.calls]


@pytest.fixture
def fake(monkeypatch) -> FakePapermill:
    fake = FakePapermill()
    monkeypatch.setattr(papermill, "execute_notebook", fake)
    return fake


def start(folder: Path, overrides: dict | None = None, only: list[str] | None = None, fresh: bool = False) -> Run:
    return run_series("instruct", "tiny", str(folder), overrides or {}, only, fresh)


def cell_failure(name: str, text: str) -> PapermillExecutionError:
    return PapermillExecutionError(
        cell_index=7, exec_count=4, source="x", ename=name, evalue=text, traceback=["line 1", "line 2"]
    )


def test_notebooks_run_in_order_and_then_are_skipped(tmp_path, fake, capsys):
    start(tmp_path)
    assert fake.paths == [notebook.path for notebook in SHOWN]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(SHOWN), "one line for each notebook where stderr is no terminal"
    assert all(line.startswith(f"[{i}/{len(SHOWN)}] ") and ": done in " in line for i, line in enumerate(lines, 1))
    start(tmp_path)
    assert len(fake.calls) == len(SHOWN)
    captured = capsys.readouterr()
    assert captured.err.count("complete, skipped") == len(SHOWN) and not captured.out
    start(tmp_path, fresh=True)
    assert [call.parameters["resume"] for call in fake.calls] == [True] * len(SHOWN) + [False] * len(SHOWN)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_kernel_starts_stops_the_series(tmp_path, fake, monkeypatch, number):
    class KernelDied(dict):
        """Raises what jupyter_client does, after the signal that killed the kernel."""

        def __getitem__(self, name):
            os.kill(os.getpid(), number)
            time.sleep(0.5)
            raise RuntimeError("Kernel died before replying to kernel_info")

    fake.failures = KernelDied({SERIES[1].path: None})
    monkeypatch.setattr(launch, "_signal_kernels", lambda number: None)
    with pytest.raises(Stopped) as stopped:
        start(tmp_path)
    assert stopped.value.number == number
    run = Run.load(tmp_path / "instruct-tiny")
    assert run.record()["notebooks"][SERIES[1].name] == {"state": "interrupted"}
    fake.failures = {}
    assert start(tmp_path).record()["notebooks"][SERIES[1].name]["state"] == "complete"


def test_a_notebook_that_was_deleted_or_changed_runs_again(tmp_path, fake, monkeypatch):
    run = start(tmp_path)
    (run.notebooks / "02_01_preference_data.ipynb").unlink()
    fake.calls.clear()
    start(tmp_path)
    assert fake.paths == ["02_reward_modeling/01_preference_data.ipynb"]
    fake.calls.clear()
    key = series._key
    monkeypatch.setattr(series, "_key", lambda run, notebook: key(run, notebook) + "x" * (notebook == SHOWN[5]))
    start(tmp_path)
    assert fake.paths == [SHOWN[5].path]


def test_a_failure_names_notebook_cell_and_error_and_the_next_call_goes_on(tmp_path, fake):
    path = "03_ppo_alignment/02_ppo_training.ipynb"
    fake.failures[path] = cell_failure("TrainingError", "update 3: the loss is nan")
    with pytest.raises(TrainingError) as error:
        start(tmp_path)
    text = str(error.value)
    assert all(part in text for part in (path, "In [4]", "update 3: the loss is nan", "goes on from there"))
    run = Run.open("instruct", "tiny", tmp_path)
    assert run.record()["notebooks"]["03_02_ppo_training"]["state"] == "failed"
    assert (run.notebooks / "03_02_ppo_training.failed.ipynb").is_file()
    fake.failures.clear()
    fake.calls.clear()
    start(tmp_path)
    assert fake.paths == [n.path for n in SHOWN if n.path == path or n.name.startswith("04")]
    assert sorted(p.name for p in run.notebooks.iterdir()) == [f"{notebook.name}.ipynb" for notebook in SHOWN]
    assert run.record()["notebooks"]["03_02_ppo_training"]["state"] == "complete"


def test_a_dead_kernel_is_a_failure_with_a_reason(tmp_path, fake):
    fake.failures[SERIES[1].path] = DeadKernelError("Kernel died")
    with pytest.raises(TrainingError, match="the kernel died, most likely for want of memory"):
        start(tmp_path)


def test_bad_input_found_by_the_first_notebook_leaves_no_run(tmp_path, fake):
    fake.failures[SERIES[0].path] = cell_failure("InputError", "no network")
    with pytest.raises(InputError, match="^no network$"):
        start(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_path_relative_to_where_the_command_was_typed(tmp_path, fake, monkeypatch):
    rows = [f'{{"prompt": "p {i}", "chosen": "a", "rejected": "b"}}\n' for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    monkeypatch.chdir(tmp_path)
    start(Path("out"), {"dataset": "rows.jsonl"}, only=["01_01"])
    parameters = fake.calls[0].parameters
    assert parameters["overrides"]["dataset"] == str(tmp_path / "rows.jsonl")
    assert parameters["output_dir"] == str(tmp_path / "out")
