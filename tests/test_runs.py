"""A run on disk: stage order, what makes a checkpoint out of date, and what run.json says happened."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from made import opened

from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.runs import run as runs
from rlhf_utils.runs import stages
from rlhf_utils.runs.run import LIBRARIES, Run
from rlhf_utils.runs.stages import SERIES, STAGES
from rlhf_utils.runs.stopping import run_lock
from rlhf_utils.settings.template import TEMPLATE

# The stages of recipe instruct at scale tiny.
USUAL = ("base", "data", "sft", "sft_qlora", "reward_model", "ppo", "evaluation")


def open_run(folder: Path, resume: bool = True, **overrides) -> Run:
    return opened("instruct", "tiny", folder, {key.replace("__", "."): v for key, v in overrides.items()}, resume)


def make(run: Run, *names: str) -> Run:
    """Run stages that leave nothing but their results."""
    for name in names:
        with run.training(name):
            run.publish(name, of=name)
            for file in STAGES[name].leaves:
                (run.root / file).touch()
    return run


def refusal(run: Run, *stages: str) -> str:
    with pytest.raises(InputError) as error:
        run.require(*stages)
    assert "\n" not in str(error.value)
    return str(error.value)


def stages_of(run: Run) -> dict:
    return read_json(run.root / "run.json")["stages"]


@pytest.mark.parametrize("name, missing", [("data", "base"), ("reward_model", "sft"), ("ppo", "sft")])
def test_a_stage_before_the_one_it_needs(tmp_path, name, missing):
    run = open_run(tmp_path)
    with pytest.raises(InputError, match=f"checkpoints/{missing} is missing.* make {missing} first"):
        with run.training(name):
            pytest.fail("the stage began")
    assert not (run.root / "run.json").exists() and not list(run.checkpoints.iterdir())


def test_a_complete_stage_is_skipped_also_by_the_next_process_and_without_resume_made_again_once(tmp_path):
    run = make(open_run(tmp_path), "base", "data")
    assert run.has("base") and open_run(tmp_path).has("data") and not run.has("sft")
    assert run.results("data") == {"of": "data"}
    again = open_run(tmp_path, resume=False)
    assert again.is_complete("base") and not again.has("base")
    assert make(again, "base").has("base")
    # Unfinished work is thrown away then.
    for resume, left in ((True, False), (True, True), (False, False)):
        run = open_run(tmp_path, resume)
        with pytest.raises(ValueError), run.training("sft"):
            assert (run.work("sft") / "checkpoint").exists() == left
            (run.work("sft") / "checkpoint").touch()
            raise ValueError("stopped")
    make(run, "sft")
    assert not run.work("sft").exists()


def test_a_failed_stage_is_recorded_and_publishes_nothing(tmp_path):
    run = open_run(tmp_path)

    def half(folder: Path) -> None:
        (folder / "half").touch()
        assert stages_of(run)["base"]["state"] == "running"
        raise TrainingError("update 3: the loss is nan")

    with pytest.raises(TrainingError), run.training("base"):
        run.publish("base", fill=half)
    about = stages_of(run)["base"]
    assert about["state"] == "failed" and about["error"] == "TrainingError: update 3: the loss is nan"
    assert run.work("base").is_dir() and [p.name for p in run.checkpoints.iterdir()] == [".work"]
    assert "missing or unfinished; make base first" in refusal(run, "base")
    with pytest.raises(InputError, match="disk is full"), run.training("base"):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "changed, out_of_date",
    [
        ({"ppo__updates": 5}, {"ppo", "evaluation"}),
        ({"qlora__rank": 4}, {"sft_qlora", "evaluation"}),
        ({"evaluation__reward_pairs": 9}, {"reward_model", "ppo", "evaluation"}),
        ({"evaluation__frontier_prompts": 9}, {"ppo", "evaluation"}),
        ({"seed": 1}, set(USUAL)),
        ({"data__label_noise": 0.15}, set(USUAL)),
    ],
)
def test_a_change_puts_exactly_what_depends_on_it_out_of_date_and_is_named(tmp_path, changed, out_of_date):
    before = make(open_run(tmp_path), *USUAL)
    run = open_run(tmp_path, **changed)
    assert {name for name in USUAL if not run.is_complete(name)} == out_of_date
    [(key, value)] = changed.items()
    assert re.search(rf"\({key.replace('__', '.')} \S+ -> {value}", refusal(run, "evaluation"))
    (before.root / STAGES["evaluation"].leaves[0]).unlink()
    assert before.has("ppo") and not before.has("evaluation"), "its files are part of it"


def test_a_checkpoint_of_another_recipe_or_template(tmp_path):
    run = make(open_run(tmp_path), "base", "data")
    stamp = run.folder("data") / "stage.json"
    write_json(stamp, {**read_json(stamp), "template_hash": "0123456789abcdef"})
    assert "template 0123456789abcdef" in refusal(run, "data") and TEMPLATE.hash in refusal(run, "data")
    other = opened("eli5", "tiny", tmp_path)
    shutil.copytree(run.folder("base"), other.folder("base"))
    assert "other settings (name 'instruct' -> 'eli5'" in refusal(other, "base")


def test_the_content_of_local_data_and_models_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data, model = tmp_path / "rows.jsonl", tmp_path / "model"
    data.write_text("{}\n")
    model.mkdir()
    (model / "weights").write_text("1")

    def fingerprint() -> str:
        return open_run(tmp_path, dataset="~/rows.jsonl", policy=str(model)).fingerprint("sft")

    first = fingerprint()
    assert fingerprint() == first
    data.write_text("{} \n")
    second = fingerprint()
    (model / "weights").write_text("2")
    assert len({first, second, fingerprint()}) == 3


def test_run_json_says_with_what_it_was_made_also_after_an_attempt_with_other_settings(tmp_path):
    run = make(open_run(tmp_path, seed=4), "base", "data", "sft")
    record = read_json(run.root / "run.json")
    assert (record["recipe"], record["scale"], record["seed"]) == ("instruct", "tiny", 4)
    assert record["recipe_hash"] == run.recipe.hash and record["template_hash"] == TEMPLATE.hash
    about = record["stages"]["sft"]
    assert about["state"] == "complete" and about["results"] == {"of": "sft"} and about["seconds"] >= 0
    assert set(about["versions"]) <= {"python", "rlhf_utils", *LIBRARIES} and about["versions"]["torch"]
    assert set(about["device"]) == {"name", "precision"} and "git_commit" in about
    assert about["fingerprint"] == read_json(run.folder("sft") / "stage.json")["fingerprint"]
    with pytest.raises(TrainingError), open_run(tmp_path, seed=4, sft__learning_rate=9.0).training("sft"):
        raise TrainingError("the loss is nan")
    assert stages_of(run)["sft"]["state"] == "failed" and open_run(tmp_path, seed=4).has("sft")
    assert stages_of(run)["sft"].items() <= about.items()


def test_a_process_that_died_right_after_publishing(tmp_path, monkeypatch):
    """Its record says that the stage runs, and its work is still there; neither is touched while another one trains."""
    run = open_run(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        make(run, "base")
    assert run.work("base").is_dir() and stages_of(run)["base"]["state"] == "interrupted"
    again = open_run(tmp_path)
    with monkeypatch.context() as patch:

        def taken(root):
            raise InputError(f"{root} is in use")

        patch.setattr(runs, "run_lock", taken)
        assert again.has("base") and run.work("base").is_dir()
    assert again.has("base") and again.results("base") == {"of": "base"}
    assert stages_of(run)["base"]["state"] == "complete" and not run.work("base").exists()
    with run_lock(run.root):
        assert again.has("base")


def test_a_run_is_loaded_with_its_own_settings_wherever_its_data_went(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("{}")
    made = make(open_run(tmp_path, dataset=str(data), ppo__updates=7), "base", "data", "sft", "reward_model")
    data.unlink()
    moved = made.root.rename(tmp_path / "elsewhere")
    run = Run.load(moved)
    assert run.recipe.ppo.updates == 7 and run.folder("ppo") == moved / "checkpoints" / "ppo"
    run.require("reward_model")
    assert "make ppo first" in refusal(run, "ppo")


@pytest.mark.parametrize("text", [None, b"{", b"{}", b'{"settings": {"name": "x"}, "stages": {}}'])
def test_a_folder_that_is_no_run(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(InputError) as error:
        Run.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_training_is_published_with_what_was_found_while_it_ran(tmp_path):
    """Also by another process than the one that trained: a kernel may be restarted between two cells."""
    run = make(open_run(tmp_path), "base", "data")
    with run.training("sft") as figures:
        (run.work("sft") / "checkpoint").touch()
        (run.work("sft") / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        figures["seconds"] = 3.0
    assert stages_of(run)["sft"]["state"] == "running" and not run.has("sft")
    again = open_run(tmp_path)
    again.publish("sft", fill=lambda folder: (folder / "made").touch(), method="full")
    assert again.has("sft") and again.results("sft") == {"seconds": 3.0, "method": "full"}
    assert (run.folder("sft") / "made").is_file() and not run.work("sft").exists()
    lines = [json.loads(line) for line in (run.folder("sft") / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 2.0}, {"summary": True, "seconds": 3.0, "method": "full"}]
    about = stages_of(run)["sft"]
    assert about["state"] == "complete" and about["peak_host_bytes"] > 1e7 and about["versions"]["torch"]


def test_progress_says_how_long_the_steps_to_come_take(tmp_path, monkeypatch):
    run, clock = open_run(tmp_path), iter([100.0, 110.0, 130.0, 400.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    # It begins at step 4: a training that resumes. Another one has a clock of its own.
    steps = [("sft: loss 2.0", 4), ("sft: loss 1.9", 5), ("sft: loss 1.8", 7), ("PPO: reward 1.0", 3)]
    told = []
    for text, step in steps:
        run.progress(text, step, 20)
        told.append(run.progress_file.read_text())
    assert told[:2] == ["sft: loss 2.0 (4/20)", "sft: loss 1.9 (5/20, 2 min left)"]
    assert told[2:] == ["sft: loss 1.8 (7/20, 2 min left)", "PPO: reward 1.0 (3/20)"]
    run.progress("sampling")
    assert run.progress_file.read_text() == "sampling"


def test_edited_code_puts_out_of_date_what_it_makes_and_looking_at_it_does_not(tmp_path, monkeypatch):
    for path in {notebook.path for notebook in SERIES}:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy2(stages.ROOT / path, tmp_path / path)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    make(open_run(tmp_path), *USUAL)
    path = tmp_path / "01_supervised_finetuning/02_full_finetuning.ipynb"
    text = path.read_text()
    path.write_text(text.replace("it rises again", "it climbs again"))
    assert "climbs" in path.read_text() and open_run(tmp_path).has("sft")
    path.write_text(text.replace('lr_scheduler_type=\\"cosine\\"', 'lr_scheduler_type=\\"linear\\"'))
    run = open_run(tmp_path)
    assert {name for name in USUAL if not run.is_complete(name)} == {"sft", "reward_model", "ppo", "evaluation"}
    assert "with other settings, code cells or data" in refusal(run, "sft")
