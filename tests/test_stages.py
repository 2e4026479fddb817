"""The stages on hand-made parts: what the trainers are given, and what happens to data that do not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset
from made import make
from tiny import save_tiny, tiny_tokenizer
from tiny_sft import sft

from rlhf_utils.evaluation import compare as evaluation
from rlhf_utils.evaluation.judge import gold_judge
from rlhf_utils.evaluation.reward_report import reward_report
from rlhf_utils.models.loading import load_tokenizer
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, read_jsonl, write_text
from rlhf_utils.runs import training
from rlhf_utils.runs.base import make_base, make_data
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import TrainingSettings
from rlhf_utils.settings.template import TEMPLATE

ROWS = [
    {"prompt": f"Question {i}?", "chosen": f"A good answer, number {i}.", "rejected": f"Bad {i}"} for i in range(60)
]


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def policy(tmp_path) -> Path:
    return save_tiny(tmp_path / "policy")


def open_run(folder: Path, policy: Path | str, rows: list[dict], **overrides) -> Run:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The hand-made policy has 96 positions.
    limits = {"data.max_prompt_tokens": 40, "data.max_response_tokens": 40, "generation.max_new_tokens": 40}
    settings = {"dataset": str(data), "policy": str(policy), **limits, "ppo.max_new_tokens": 40, **overrides}
    return Run.open("instruct", "tiny", folder / "out", settings)


def test_demonstrations_are_learnt_from_the_answer_to_its_end(tokenizer):
    split = Dataset.from_list([{"prompt": "Hi?", "chosen": "Yes.", "rejected": None}])
    row = training.demonstration_tokens(split, tokenizer)[0]
    learnt = [token for token, mask in zip(row["input_ids"], row["completion_mask"], strict=True) if mask]
    read = [token for token, mask in zip(row["input_ids"], row["completion_mask"], strict=True) if not mask]
    assert tokenizer.decode(read) == TEMPLATE.format("Hi?")
    assert learnt[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learnt[:-1]) == " Yes."


def test_pairs_are_whole_texts_without_end_of_text(tokenizer):
    split = Dataset.from_list([{"prompt": "Hi?", "chosen": "Yes, I think.", "rejected": "No"}])
    row = training.preference_tokens(split, tokenizer)[0]
    assert tokenizer.decode(row["chosen_ids"]) == TEMPLATE.text("Hi?", "Yes, I think.")
    assert tokenizer.decode(row["rejected_ids"]) == TEMPLATE.text("Hi?", "No")
    assert tokenizer.eos_token_id not in row["chosen_ids"] + row["rejected_ids"]


@pytest.mark.parametrize(
    "rows, settings, steps",
    [
        (100, {"batch_size": 16}, 7),
        (96, {"batch_size": 16}, 6),
        (100, {"batch_size": 16, "epochs": 2}, 14),
        (100, {"batch_size": 16, "epochs": 0.5}, 4),
        (3, {"batch_size": 16}, 1),
    ],
)
def test_steps_of_a_budget(rows, settings, steps):
    assert training.total_steps(TrainingSettings(**settings), rows) == steps


def test_bookkeeping_follows_the_device_and_the_budget(tmp_path, policy):
    run = open_run(tmp_path, policy, ROWS)
    settings = TrainingSettings(batch_size=32, micro_batch_size=8, checkpoints=3)
    arguments = training.bookkeeping(run, "sft", settings, 320)
    assert arguments["save_steps"] == 4 and arguments["output_dir"] == str(run.work("sft"))
    assert arguments["seed"] == arguments["data_seed"] == run.recipe.seed
    assert {"bf16", "fp16", "use_cpu"} <= set(arguments) and training.micro_batches(settings) == (8, 4)


def test_training_resumes_from_the_newest_complete_checkpoint_only(tmp_path):
    for step, complete in ((9, True), (10, True), (100, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "COMPLETE").touch()
    asked, (trainer, _) = [], sft(tmp_path / "trainer")
    trainer.train = lambda resume_from_checkpoint: asked.append(resume_from_checkpoint)
    training.train_resumably(trainer, tmp_path, "sft")
    assert asked == [str(tmp_path / "checkpoint-10")]
    assert not (tmp_path / "checkpoint-100").exists()
    training.train_resumably(trainer, tmp_path / "nothing", "sft")
    assert asked[1] is None


def test_a_stage_is_made_by_its_notebook_and_skipped_afterwards(tmp_path, policy):
    run = make(open_run(tmp_path, policy, ROWS, **{"sft.batch_size": 8, "sft.evaluations": 1}), "base", "data", "sft")
    lines, results = read_jsonl(run.folder("sft") / "metrics.jsonl"), run.results("sft")
    assert {"step", "epoch", "loss", "learning_rate", "seconds"} <= lines[0].keys() and "grad_norm" not in lines[0]
    assert lines[-1] == {"summary": True, **results} and any("eval_loss" in line for line in lines)
    assert results["method"] == "full" and results["trainable_parameters"] == results["total_parameters"]
    assert 0 <= results["rougeL"] <= 1 and not run.work("sft").exists()
    written = (run.folder("sft") / "stage.json").stat().st_mtime_ns
    make(run, "sft")
    assert (run.folder("sft") / "stage.json").stat().st_mtime_ns == written


def test_a_local_model_and_local_rows(tmp_path, policy):
    run = open_run(tmp_path, policy, ROWS)
    assert make_base(run) == {"policy": str(policy)}
    data = make_data(run)
    assert load_tokenizer(run.folder("base")).eos_token_id is not None
    assert sum(len(split) for split in data.splits.values()) == 60
    assert run.results("data")["rows"] == {name: len(split) for name, split in data.splits.items()}
    written = (run.folder("data") / "data.json").stat().st_mtime_ns
    make_data(run)
    assert (run.folder("data") / "data.json").stat().st_mtime_ns == written, "a complete stage is not made again"
    assert gold_judge(run.recipe) is None


@pytest.mark.parametrize(
    "rows, overrides, words",
    [
        (
            ROWS,
            {"data.max_response_tokens": 3},
            "too few rows for .*60 rows read, 60 response over",
        ),
        (ROWS[:4], {}, "too few rows for"),
        (ROWS, {"data.shares.ppo": 0}, "no row is left for ppo, .*data.shares.ppo"),
        ([{"text": "good", "label": 1}] * 50, {}, "rows are labelled"),
        ([{**row, "rejected": row["chosen"]} for row in ROWS], {}, "too few rows .*60 chosen and rejected"),
    ],
)
def test_rows_that_do_not_do_leave_no_data(tmp_path, policy, rows, overrides, words):
    run = open_run(tmp_path, policy, rows, **overrides)
    make_base(run)
    with pytest.raises(InputError, match=words):
        make_data(run)
    assert read_json(run.root / "run.json")["stages"]["data"]["state"] == "failed"
    assert not run.folder("data").exists()


@pytest.mark.parametrize("policy_name", ["./nowhere", "/nowhere/at/all"])
def test_a_model_folder_that_is_none(tmp_path, policy_name):
    run = open_run(tmp_path, policy_name, ROWS)
    with pytest.raises(InputError, match="is not a model folder"):
        make_base(run)
    assert not run.folder("base").exists()


def test_a_model_too_short_for_the_texts_is_told_before_anything_is_trained(tmp_path, policy):
    run = open_run(tmp_path, policy, ROWS, **{"ppo.max_new_tokens": 70})
    with pytest.raises(InputError, match="need 111 positions but the context of .* is 96"):
        make_base(run)
    assert not run.folder("base").exists()


@pytest.mark.parametrize("text", ["a\rb", 'a "b", c', "a\nb\r\n", "", "1", "\u2028"])
def test_samples_survive_any_text(tmp_path, text):
    split = Dataset.from_list([{"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": text, "chosen": text}])
    rouge = {"rougeL": [0.5, 1.0]}
    result = evaluation.Answered(["x", text], [True, False], [0.25, -1.0], None, [1.0, 1.0], [0.0, 0.0], [1, 2], rouge)
    path = tmp_path / "samples.csv"
    write_text(path, evaluation.samples_csv(split, {"sft": result}))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert (rows[1]["prompt"], rows[1]["reference"], rows[1]["sft_response"]) == (text, text, text)
    assert [float(row["sft_reward"]) for row in rows] == [0.25, -1.0] and "sft_gold" not in rows[0]
    assert pd.read_csv(path)["sft_ended"].tolist() == [True, False]


def test_the_report_of_a_reward_model(tokenizer):
    import torch

    pairs = Dataset.from_list([{"chosen": "long answer", "rejected": "no"}] * 4)
    report = reward_report(torch.tensor([1.0, 2.0, 0.0, -1.0]), torch.zeros(4), pairs, pairs, tokenizer)
    assert report["accuracy"] == 0.625, "a tie counts half"
    assert report["untrained_accuracy"] == 0.5
    assert report["length_baseline_accuracy"] == 1.0
    low, high = report["accuracy_ci95"]
    assert 0 < low < 0.625 < high < 1 and report["pairs"] == 4 and len(report["margins"]) == 4
