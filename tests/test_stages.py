"""The stages on hand-made parts: what the trainers are given, and what happens to data that do not fit."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from made import cells, make, opened
from tiny import one_thread, save_tiny, tiny_tokenizer  # noqa: F401
from tiny_sft import sft

from rlhf_utils.__main__ import main
from rlhf_utils.evaluation.evaluator import Answered
from rlhf_utils.evaluation.judge import gold_judge
from rlhf_utils.models.loading import load_tokenizer
from rlhf_utils.platforms.files import read_jsonl, write_text
from rlhf_utils.runs import training
from rlhf_utils.runs.ready import make_data
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import TrainingSettings

ROWS = [
    {"prompt": f"Question {i}?", "chosen": f"A good answer, number {i}.", "rejected": f"Bad {i}"} for i in range(60)
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("policy"))


def open_run(folder: Path, policy: Path | str, rows: list[dict], **overrides) -> Run:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The hand-made policy has 96 positions.
    limits = {"data.max_prompt_tokens": 40, "data.max_response_tokens": 40, "generation.max_new_tokens": 40}
    settings = {"dataset": str(data), "policy": str(policy), **limits, "ppo.max_new_tokens": 40, **overrides}
    return opened("instruct", "tiny", folder / "out", settings)


@pytest.mark.parametrize("rows, epochs, steps", [(100, 1, 7), (96, 1, 6), (100, 2, 14), (100, 0.5, 4), (3, 1, 1)])
def test_steps_of_a_budget(rows, epochs, steps):
    assert training.total_steps(TrainingSettings(batch_size=16, epochs=epochs), rows) == steps


@pytest.mark.parametrize("step", [2, 5], ids=["before a checkpoint", "after one"])
def test_a_cell_that_runs_again_after_an_interrupt_trains_as_if_there_was_none(tmp_path, step):
    straight, expected = sft(tmp_path / "straight")
    training.train_resumably(straight, tmp_path / "straight")
    trainer, model = sft(tmp_path / "work")
    calls = []

    def interrupt(*_):
        calls.append(None)
        if len(calls) == step:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.train_resumably(trainer, tmp_path / "work")
    # Partial, and newer than any other.
    (tmp_path / "work" / "checkpoint-100").mkdir()
    training.train_resumably(trainer, tmp_path / "work")
    assert len(calls) == step + (5 if step == 2 else 1), "it goes on from the newest whole checkpoint, if there is one"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (trainer, straight)]
    assert losses[0] == losses[1] and len(losses[0]) == 5
    assert [type(callback) for callback in trainer.callback_handler.callbacks].count(training.RunCallback) == 1


def test_a_stage_is_made_by_its_notebook_and_skipped_afterwards(tmp_path, policy, capsys):
    run = make(open_run(tmp_path, policy, ROWS, **{"sft.batch_size": 8, "sft.evaluations": 1}), "base", "data", "sft")
    lines, results = read_jsonl(run.folder("sft") / "metrics.jsonl"), run.results("sft")
    assert {"step", "epoch", "loss", "learning_rate", "seconds"} <= lines[0].keys() and "grad_norm" not in lines[0]
    assert lines[-1] == {"summary": True, **results} and any("eval_loss" in line for line in lines)
    assert results["method"] == "full" and results["trainable_parameters"] == results["total_parameters"]
    assert 0 <= results["rougeL"] <= 1 and not run.work("sft").exists()
    written = (run.folder("sft") / "stage.json").stat().st_mtime_ns
    capsys.readouterr()
    command = ["train", "01_02", "--settings", str(run.root / "run.json"), "--output-dir", str(tmp_path / "out")]
    assert main(command) == 0 and json.loads(capsys.readouterr().out) == {"sft": results}
    assert (run.folder("sft") / "stage.json").stat().st_mtime_ns == written


def test_a_local_model_and_local_rows(tmp_path, policy):
    run = make(open_run(tmp_path, policy, ROWS), "base")
    assert run.results("base")["source"] == str(policy) and load_tokenizer(run.folder("base")).eos_token_id is not None
    data = make_data(run)
    assert sum(len(split) for split in data.splits.values()) == 60 and gold_judge(run.recipe) is None
    assert run.results("data")["rows"] == {name: len(split) for name, split in data.splits.items()}


@pytest.mark.parametrize("text", ["a\rb", 'a "b", c', "a\nb\r\n", "", "1", "\u2028"])
def test_samples_survive_any_text(tmp_path, text):
    split = Dataset.from_list([{"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": text, "chosen": text}])
    rouge = {"rougeL": [0.5, 1.0]}
    result = Answered(["x", text], [True, False], [0.25, -1.0], None, [1.0, 1.0], [0.0, 0.0], [1, 2], rouge)
    path = tmp_path / "samples.csv"
    given = {"run": SimpleNamespace(evaluation=tmp_path), "write_text": write_text}
    cells("04_01", "def scores(", split=split, answered={"sft": result}, **given)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert (rows[1]["prompt"], rows[1]["reference"], rows[1]["sft_response"]) == (text, text, text)
    assert [float(row["sft_reward"]) for row in rows] == [0.25, -1.0] and "sft_gold" not in rows[0]
    assert pd.read_csv(path)["sft_ended"].tolist() == [True, False]
