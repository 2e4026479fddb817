"""Models that stand in for training: folders, adapters and hub names, and the comparison run on nothing else."""

import json
from pathlib import Path

import pytest
from architectures import save_encoder
from made import make, opened
from tiny import CPU, adapted, one_thread, save_tiny  # noqa: F401

from rlhf_utils.models.loading import load_policy
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.runtime import HEADLESS
from rlhf_utils.series import SERIES, _check_input, _makes, fetch_ready, open_run

ROWS = [
    {"prompt": f"Question {i}?", "chosen": f"A good answer, number {i}.", "rejected": f"Bad {i}"} for i in range(80)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), eos_nats=3.0)


@pytest.fixture(scope="module")
def ready(base, tmp_path_factory) -> dict:
    """Settings of a run in which every model is ready."""
    folder = tmp_path_factory.mktemp("ready")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    # With a tokenizer of its own.
    save_encoder(folder / "reward", "bert")
    adapted(load_policy(base, CPU)).save_pretrained(folder / "ppo")
    return {
        "dataset": str(folder / "rows.jsonl"), "models.sft": str(base), "models.reward_model": str(folder / "reward"),
        "models.ppo": str(folder / "ppo"), "data.max_prompt_tokens": 40,
        "data.max_response_tokens": 40, "generation.max_new_tokens": 12, "ppo.max_new_tokens": 12,
        "evaluation.bootstrap_samples": 200, "data.shares.evaluation": 0.3,
    }  # fmt: skip


def test_finished_models_are_compared_without_any_training(ready, tmp_path):
    run = opened("instruct", "tiny", tmp_path, ready)
    assert run.stages == ("sft", "data", "reward_model", "ppo", "evaluation")
    assert run.fetched == ("sft", "data", "reward_model", "ppo")
    comparison, playground = (n for n in SERIES if n.name.startswith(("04_01", "04_04")))
    _check_input(run, [comparison, playground])
    _check_input(run, [comparison])
    assert _makes(run, comparison) == list(run.stages)
    assert fetch_ready(run)["ppo"]["method"] == "ready"
    summary = read_json(make(run, "evaluation").evaluation / "summary.json")
    assert list(summary["models"]) == ["sft", "ppo"] and set(summary["paired"]) == {"ppo_vs_sft"}
    assert abs(summary["models"]["sft"]["kl_to_sft"]) < 1e-4 and summary["models"]["ppo"]["kl_to_sft"] > 0.1
    assert summary["reward_model"]["untrained_accuracy"] is None
    frontier = read_json(run.evaluation / "frontier.json")
    assert [point["update"] for point in frontier["points"]] == [0, 1] and frontier["chosen_update"] is None
    assert [point["n"] for point in frontier["best_of_n"]] == [1, 2, 4, 8, 16]
    before = (run.folder("ppo") / "stage.json").stat().st_mtime_ns
    fetch_ready(opened("instruct", "tiny", tmp_path, ready))
    assert (run.folder("ppo") / "stage.json").stat().st_mtime_ns == before, "fetched twice"


def test_a_notebook_with_nothing_to_make_says_so(base, tmp_path, monkeypatch):
    monkeypatch.setenv(HEADLESS, "1")
    with pytest.raises(InputError, match="notebook 03_02 has nothing to make .*; there are: 01_01, "):
        open_run("03_02", "instruct", "tiny", str(tmp_path), {"models.ppo": str(base)}, True)


def test_a_ready_model_without_its_base_can_only_be_compared(ready, tmp_path):
    run = opened("instruct", "tiny", tmp_path, ready)
    with pytest.raises(InputError, match="no base model it came from.*--only 04.*--set policy="):
        _check_input(run, list(SERIES))
