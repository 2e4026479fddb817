"""The stages on hand-made parts: what the trainers are given, and what happens to data that do not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from datasets import Dataset
from tiny import save_tiny, tiny_tokenizer
from tiny_sft import sft

from rlhf_utils.evaluation import compare as evaluation
from rlhf_utils.evaluation.judge import gold_judge
from rlhf_utils.models.generation import Answer
from rlhf_utils.models.loading import load_tokenizer
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, read_jsonl, write_text
from rlhf_utils.runs import training
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import TrainingSettings
from rlhf_utils.settings.template import TEMPLATE
from rlhf_utils.stages.base import make_base, make_data
from rlhf_utils.stages.reward_model import reward_report

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


def test_trainers_never_truncate_and_follow_the_device(tmp_path, policy):
    run = open_run(tmp_path, policy, ROWS)
    settings = TrainingSettings(batch_size=32, micro_batch_size=8, warmup_ratio=0.5, checkpoints=3)
    arguments = training.common_arguments(run, settings, 320, tmp_path)
    assert arguments["max_length"] is None and arguments["report_to"] == "none"
    assert (arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]) == (8, 4)
    assert (arguments["warmup_steps"], arguments["save_steps"]) == (5, 4)
    assert {name for name in ("bf16", "fp16", "use_cpu") if name in arguments} == {"bf16", "fp16", "use_cpu"}


def test_training_resumes_from_the_newest_complete_checkpoint_only(tmp_path):
    for step, complete in ((9, True), (10, True), (100, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "COMPLETE").touch()
    asked, (trainer, _) = [], sft(tmp_path / "trainer")
    trainer.train = lambda resume_from_checkpoint: asked.append(resume_from_checkpoint)
    training.train_resumably(trainer, tmp_path)
    assert asked == [str(tmp_path / "checkpoint-10")]
    assert not (tmp_path / "checkpoint-100").exists()
    training.train_resumably(trainer, tmp_path / "nothing")
    assert asked[1] is None


def test_the_record_of_a_training(tmp_path):
    log = [
        {"step": 1, "epoch": 0.5, "loss": "1.25", "grad_norm": 3, "seconds": 1.0},
        {"step": 1, "epoch": 0.5, "eval_loss": 1.5, "eval_runtime": 3},
        {"train_runtime": 5},
    ]
    training.write_history(SimpleNamespace(state=SimpleNamespace(log_history=log)), tmp_path, {"method": "full"})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 1, "epoch": 0.5, "loss": 1.25, "seconds": 1.0},
        {"step": 1, "epoch": 0.5, "eval_loss": 1.5},
        {"summary": True, "method": "full"},
    ]


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
            "no train row is left after the filters .*60 rows read, 60 response over",
        ),
        (ROWS[:4], {}, "too few rows for"),
        (ROWS, {"data.shares.ppo": 0}, "no row is left for ppo, .*data.shares.ppo"),
        ([{"text": "good", "label": 1}] * 50, {}, "rows are labelled"),
        ([{**row, "rejected": row["chosen"]} for row in ROWS], {}, "no row is left .*60 chosen and rejected"),
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
    answers = [Answer("x", [1], True), Answer(text, [1, 2], False)]
    rouge = {"rougeL": [0.5, 1.0]}
    result = evaluation.Answered(answers, [0.25, -1.0], None, rouge, None, [0.0, 0.0], [1.0, 1.0])
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
