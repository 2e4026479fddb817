"""A run on disk: stage order, what makes a checkpoint out of date, and what run.json says happened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.runs import stages
from rlhf_utils.runs.run import LIBRARIES, Run
from rlhf_utils.runs.stages import STAGES
from rlhf_utils.series import SERIES
from rlhf_utils.settings.template import TEMPLATE

# The stages of recipe instruct at scale tiny.
USUAL = ("base", "data", "sft", "sft_qlora", "reward_model", "ppo", "evaluation")


def open_run(folder: Path, resume: bool = True, **overrides) -> Run:
    return Run.open("instruct", "tiny", folder, {key.replace("__", "."): v for key, v in overrides.items()}, resume)


def make(run: Run, *names: str) -> Run:
    """Run stages that leave one small file each."""
    for name in names:
        with run.stage(name) as stage:
            stage.results = {"of": name}
            with stage.publish() as folder:
                (folder / "made").write_text(name)
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


def test_stages_need_only_earlier_ones_and_each_is_made_by_one_notebook_of_a_recipe():
    seen: list[str] = []
    for name, kind in STAGES.items():
        assert set(kind.needs) <= set(seen)
        forms = [notebook.form for notebook in SERIES if name in notebook.makes]
        assert len(forms) == len(set(forms)) and forms
        seen.append(name)


@pytest.mark.parametrize("name, missing", [("data", "base"), ("sft", "base"), ("reward_model", "sft"), ("ppo", "sft")])
def test_a_stage_before_the_one_it_needs(tmp_path, name, missing):
    run = open_run(tmp_path)
    with pytest.raises(InputError) as error, run.stage(name):
        pytest.fail("the stage began")
    text = str(error.value)
    assert f"checkpoints/{missing} is missing" in text and f"make {missing} first" in text and "\n" not in text
    assert not (run.root / "run.json").exists() and not list(run.checkpoints.iterdir())


def test_a_complete_stage_is_skipped_also_by_the_next_process(tmp_path):
    run = make(open_run(tmp_path), "base", "data")
    assert run.has("base") and open_run(tmp_path).has("data")
    assert run.results("data") == {"of": "data"}
    assert not run.has("sft")


def test_without_resume_everything_is_made_again_but_once(tmp_path):
    make(open_run(tmp_path), "base")
    again = open_run(tmp_path, resume=False)
    assert again.is_complete("base") and not again.has("base")
    make(again, "base")
    assert again.has("base")


def test_without_resume_unfinished_work_is_thrown_away(tmp_path):
    for resume, left in ((True, False), (True, True), (False, False)):
        with pytest.raises(ValueError), open_run(tmp_path, resume).stage("base") as stage:
            assert (stage.work / "checkpoint").exists() == left
            (stage.work / "checkpoint").touch()
            raise ValueError("stopped")
    with open_run(tmp_path).stage("base") as stage, stage.publish():
        assert (stage.work / "checkpoint").exists()
    assert not stage.work.exists()


def test_a_failed_stage_is_recorded_and_publishes_nothing(tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(TrainingError), run.stage("base") as stage, stage.publish() as folder:
        (folder / "half").touch()
        assert stages_of(run)["base"]["state"] == "running"
        raise TrainingError("update 3: the loss is nan")
    about = stages_of(run)["base"]
    assert about["state"] == "failed" and about["error"] == "TrainingError: update 3: the loss is nan"
    assert stage.work.is_dir()
    assert [p.name for p in run.checkpoints.iterdir()] == [".work"]
    assert "missing or unfinished" in refusal(run, "base")
    with pytest.raises(InputError, match="make base first"):
        run.results("base")


def test_a_full_disk_inside_a_stage_is_one_line(tmp_path):
    with pytest.raises(InputError, match="disk is full"), open_run(tmp_path).stage("base"):
        raise OSError(28, "No space left on device")


def test_changed_settings_are_named(tmp_path):
    make(open_run(tmp_path), "base", "data", "sft")
    text = refusal(open_run(tmp_path, sft__epochs=2), "sft")
    assert "(sft.epochs 1.0 -> 2.0)" in text and "make sft first" in text
    before = open_run(tmp_path).recipe.base.steps
    assert f"base.steps {before} -> 9" in refusal(open_run(tmp_path, base__steps=9), "sft")
    open_run(tmp_path, ppo__updates=5).require("base", "data", "sft")


@pytest.mark.parametrize(
    "changed, out_of_date",
    [
        ({"ppo__updates": 5}, {"ppo", "evaluation"}),
        ({"qlora__rank": 4}, {"sft_qlora", "evaluation"}),
        ({"reward_model__epochs": 2}, {"reward_model", "ppo", "evaluation"}),
        ({"evaluation__reward_pairs": 9}, {"reward_model", "ppo", "evaluation"}),
        ({"evaluation__prompts": 9}, {"evaluation"}),
        ({"evaluation__frontier_prompts": 9}, {"ppo", "evaluation"}),
        ({"sft__epochs": 2}, {"sft", "sft_qlora", "reward_model", "ppo", "evaluation"}),
        ({"seed": 1}, set(USUAL)),
        ({"data__label_noise": 0.1}, set(USUAL)),
    ],
)
def test_a_change_puts_exactly_what_depends_on_it_out_of_date(tmp_path, changed, out_of_date):
    make(open_run(tmp_path), *USUAL)
    run = open_run(tmp_path, **changed)
    assert {name for name in USUAL if not run.is_complete(name)} == out_of_date


@pytest.mark.parametrize("lost", STAGES["evaluation"].leaves)
def test_an_evaluation_whose_files_were_deleted_is_not_complete(tmp_path, lost):
    run = make(open_run(tmp_path), *USUAL)
    assert run.has("evaluation")
    (run.root / lost).unlink()
    assert not run.has("evaluation") and run.has("ppo")


@pytest.mark.parametrize("field, value", [("recipe", "imdb"), ("scale", "t4")])
def test_a_checkpoint_of_another_recipe_or_scale(tmp_path, field, value):
    run = make(open_run(tmp_path), "base")
    stamp = run.folder("base") / "stage.json"
    write_json(stamp, {**read_json(stamp), field: value, "fingerprint": "other"})
    text = refusal(run, "base")
    assert f"{field} {value}" in text and "instruct at tiny" in text


def test_a_checkpoint_of_another_template(tmp_path):
    run = make(open_run(tmp_path), "base", "data")
    stamp = run.folder("data") / "stage.json"
    write_json(stamp, {**read_json(stamp), "template_hash": "0123456789abcdef"})
    assert "template 0123456789abcdef" in refusal(run, "data") and TEMPLATE.hash in refusal(run, "data")


def test_the_content_of_local_data_and_models_counts(tmp_path):
    data, model = tmp_path / "rows.jsonl", tmp_path / "model"
    data.write_text("{}\n")
    model.mkdir()
    (model / "weights").write_text("1")

    def fingerprint() -> str:
        return Run.open("instruct", "tiny", tmp_path, {"dataset": str(data), "policy": str(model)}).fingerprint("sft")

    first = fingerprint()
    assert fingerprint() == first
    data.write_text("{} \n")
    second = fingerprint()
    (model / "weights").write_text("2")
    assert len({first, second, fingerprint()}) == 3


def test_a_path_from_the_home_folder_counts_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = set()
    for content in ("a", "b"):
        (tmp_path / "rows.jsonl").write_text(content)
        found.add(Run.open("instruct", "tiny", tmp_path, {"dataset": "~/rows.jsonl"}).fingerprint("base"))
    assert len(found) == 2


def test_run_json_says_with_what_it_was_made(tmp_path):
    run = make(open_run(tmp_path, seed=4), "base")
    record = read_json(run.root / "run.json")
    assert (record["recipe"], record["scale"], record["seed"]) == ("instruct", "tiny", 4)
    assert record["recipe_hash"] == run.recipe.hash and record["template_hash"] == TEMPLATE.hash
    about = record["stages"]["base"]
    assert about["state"] == "complete" and about["results"] == {"of": "base"} and about["seconds"] >= 0
    assert set(about["versions"]) <= {"python", *LIBRARIES} and about["versions"]["torch"]
    assert set(about["device"]) == {"name", "precision"} and "git_commit" in about
    assert about["fingerprint"] == read_json(run.folder("base") / "stage.json")["fingerprint"]


def test_going_back_after_a_failed_attempt_with_other_settings(tmp_path):
    make(open_run(tmp_path), "base", "data", "sft")
    with pytest.raises(TrainingError), open_run(tmp_path, sft__learning_rate=9.0).stage("sft"):
        raise TrainingError("the loss is nan")
    run = open_run(tmp_path)
    assert run.has("sft") and run.results("sft") == {"of": "sft"}
    about = stages_of(run)["sft"]
    assert about["state"] == "complete" and about["fingerprint"] == run.fingerprint("sft") and about["versions"]


def test_a_process_that_died_right_after_publishing(tmp_path):
    run = make(open_run(tmp_path), "base")
    record = read_json(run.root / "run.json")
    about = record["stages"]["base"]
    del about["results"]
    write_json(run.root / "run.json", {**record, "stages": {"base": {**about, "state": "running"}}})
    assert run.has("base") and run.results("base") == {"of": "base"}
    assert stages_of(run)["base"]["state"] == "complete"


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


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"settings": {"name": "x"}, "stages": {}}'])
def test_a_folder_that_is_no_run(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError) as error:
        Run.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "\N{SNOWMAN}" * 100])
def test_an_output_folder_that_cannot_be_made(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write") as error:
        open_run(tmp_path / place)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_bad_settings_make_no_folder(tmp_path):
    with pytest.raises(InputError):
        open_run(tmp_path / "out", ppo__updats=1)
    assert not (tmp_path / "out").exists()


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
    assert about["state"] == "complete" and about["phase_seconds"] is not None and about["versions"]["torch"]


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


def test_progress_can_be_read_at_any_time(tmp_path):
    run = open_run(tmp_path)
    run.progress("training", 3, 9)
    assert json.loads((run.root / ".progress.json").read_text()) == {"text": "training", "step": 3, "total": 9}
