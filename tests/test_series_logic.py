"""The series without its notebooks: which of them run, what is skipped, how failures are told."""

import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import papermill
import pytest
from made import opened
from made_up_run import PUBLISHED
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tiny import save_tiny

from rlhf_utils import series
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.runs import launch
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stages import STAGES
from rlhf_utils.runs.stopping import Stopped
from rlhf_utils.series import SERIES, run_seeds, run_series
from rlhf_utils.settings.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
# The notebooks of recipe instruct.
SHOWN = [notebook for notebook in SERIES if notebook.form != "continuation" and not notebook.optional]
SIMPLER = "04_evaluation/03_ppo_or_something_simpler.ipynb"


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
        run = opened(*(parameters[key] for key in keys))
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


def test_what_is_optional_runs_where_it_is_asked_for(tmp_path, fake):
    start(tmp_path / "plain")
    assert SIMPLER not in fake.paths
    start(tmp_path / "plain", only=["04_03"])
    assert fake.paths[-1] == SIMPLER
    fake.calls.clear()
    run = start(tmp_path / "asked", {"alternatives": ["dpo", "rloo"]})
    assert fake.paths == [*(n.path for n in SHOWN[:-1]), SIMPLER, SHOWN[-1].path]
    assert {"dpo", "rloo", "alternatives"} < {*run.stages} and not {"grpo", "best_of_n"} & {*run.stages}
    with pytest.raises(InputError, match=r"alternatives\.0 is 'ppo': Input should be 'dpo'"):
        start(tmp_path / "wrong", {"alternatives": ["ppo"]})


def cell_failure(name: str, text: str) -> PapermillExecutionError:
    return PapermillExecutionError(
        cell_index=7, exec_count=4, source="x", ename=name, evalue=text, traceback=["line 1", "line 2"]
    )


def test_notebooks_run_in_order_and_then_are_skipped(tmp_path, fake, capsys):
    start(tmp_path)
    assert fake.paths == [notebook.path for notebook in SHOWN]
    first, *lines = capsys.readouterr().err.splitlines()
    minutes = load_recipe("instruct").needs.minutes
    assert first == f"{tmp_path / 'instruct-tiny'}: about {minutes:.0f} min left on two CPU cores"
    assert len(lines) == len(SHOWN), "one line for each notebook where stderr is no terminal"
    assert all(line.startswith(f"[{i}/{len(SHOWN)}] ") and ": done in " in line for i, line in enumerate(lines, 1))
    assert [line.endswith(" min left") for line in lines] == [True] * (len(SHOWN) - 1) + [False]
    start(tmp_path)
    assert len(fake.calls) == len(SHOWN)
    captured = capsys.readouterr()
    assert captured.err.count("complete, skipped") == len(SHOWN) and not captured.out
    start(tmp_path, fresh=True)
    assert [call.parameters["resume"] for call in fake.calls] == [True] * len(SHOWN) + [False] * len(SHOWN)


def test_a_real_policy_at_the_scale_of_the_embedded_one_is_told_of(tmp_path, fake, capsys):
    lengths = ("data.max_prompt_tokens", "data.max_response_tokens", "generation.max_new_tokens", "ppo.max_new_tokens")
    start(tmp_path, {"policy": str(save_tiny(tmp_path / "policy")), **dict.fromkeys(lengths, 16)})
    told = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("scale tiny has the learning rates")
    ]
    assert len(told) == 1
    start(tmp_path / "embedded")
    assert "learning rates" not in capsys.readouterr().err


def test_a_notebook_that_is_shown_again_keeps_the_time_that_its_stages_took(tmp_path, fake):
    run, names = start(tmp_path), ("01_02_full_finetuning", "03_01_ppo_from_scratch")
    for name in names:
        run.note("notebooks", name, {"state": "complete", "key": "of other cells", "seconds": 345.0})
    start(tmp_path)
    took = [run.record()["notebooks"][name]["seconds"] for name in names]
    assert len(fake.calls) == len(SHOWN) + 2 and took[0] == 345.0 > took[1], "the second one makes nothing"
    start(tmp_path, fresh=True)
    assert run.record()["notebooks"][names[0]]["seconds"] < 345.0


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
    run = opened("instruct", "tiny", tmp_path)
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


def test_seeds_run_one_after_another_resume_and_are_merged_into_the_first(tmp_path, fake, monkeypatch, capsys):
    def execute(source: str, target: str, parameters: dict, **how) -> None:
        fake(source, target, parameters, **how)
        if "compare_models" in source:
            evaluation = Path(parameters["output_dir"]) / "instruct-tiny" / "evaluation"
            one = shutil.ignore_patterns("seeds.json")  # a run of one seed has none
            shutil.copytree(PUBLISHED / "evaluation", evaluation, ignore=one, dirs_exist_ok=True)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    choice, whole = ("instruct", "tiny", str(tmp_path), {"seed": "3"}, 3), [notebook.path for notebook in SHOWN]
    needed = [n.path for n in SHOWN if n.name[:5] in ("01_01", "01_02", "01_03", "02_02", "03_02", "04_01")]
    fake.failures[whole[9]] = cell_failure("TrainingError", "the loss is nan")  # the playground of the first seed
    with pytest.raises(TrainingError):
        run_seeds(*choice, fresh=False)
    fake.failures = {needed[4]: cell_failure("TrainingError", "the loss is nan")}  # PPO of the second
    with pytest.raises(TrainingError, match="seed-4"):
        run_seeds(*choice, fresh=False)
    fake.failures = {}
    assert run_seeds(*choice, fresh=False).root == tmp_path / "instruct-tiny"
    again = [whole[9], *needed[:5], *needed[4:], *needed, needed[-1]]
    assert fake.paths == [*whole, *again], "each seed is resumed, and the comparison runs once more to show all of them"
    runs = [Run.load(tmp_path / folder / "instruct-tiny") for folder in (".", "seed-4", "seed-5")]
    assert [run.record()["seed"] for run in runs] == read_json(runs[0].evaluation / "seeds.json")["seeds"] == [3, 4, 5]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("seed ")]
    assert told[0].startswith("seed 1 of 3 (seed=3): ") and told[-1].startswith("seed 3 of 3 (seed=5): ")
    took = read_json(ROOT / "docs/example_run/instruct-tiny/run.json")["notebooks"]
    names = {path: path.partition("/")[0][:2] + "_" + Path(path).stem for path in whole}
    share = sum(took[names[path]]["seconds"] for path in needed) / sum(took[names[path]]["seconds"] for path in whole)
    minutes = load_recipe("instruct").needs.minutes * (1 + 2 * share)
    assert told[0].endswith(f", {minutes:.0f} min left for all")
    run_seeds(*choice, fresh=False)
    start(tmp_path, {"seed": "3"})
    assert len(fake.paths) == len(whole) + len(again), "nothing runs twice"


def test_a_path_relative_to_where_the_command_was_typed(tmp_path, fake, monkeypatch):
    rows = [f'{{"prompt": "p {i}", "chosen": "a", "rejected": "b"}}\n' for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    monkeypatch.chdir(tmp_path)
    start(Path("out"), {"dataset": "rows.jsonl"}, only=["01_01"])
    parameters = fake.calls[0].parameters
    assert parameters["overrides"]["dataset"] == str(tmp_path / "rows.jsonl")
    assert parameters["output_dir"] == str(tmp_path / "out")
