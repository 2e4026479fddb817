"""One row, one prompt, one pair, one update: every figure is there or null, and every text can be written."""

import json
from pathlib import Path

import pytest
from made import make, opened
from tiny import one_thread, save_tiny  # noqa: F401

from rlhf_utils.platforms.files import read_json
from rlhf_utils.report.findings import text_summary
from rlhf_utils.report.page import compare, write_report
from rlhf_utils.runs.run import Run

ONE = {f"data.split_rows.{name}": 1 for name in ("sft", "reward", "ppo", "development", "evaluation")}
ONE |= {f"evaluation.{name}": 1 for name in ("prompts", "reward_pairs", "frontier_prompts")}
ONE |= {f"ppo.{name}": 1 for name in ("updates", "rollout_batch_size", "minibatch_size", "epochs", "save_every")}
SHORT = {"data.max_prompt_tokens": 40, "data.max_response_tokens": 24, "generation.max_new_tokens": 10}
SHORT |= {"ppo.max_new_tokens": 10, "evaluation.bootstrap_samples": 100}


def open_run(folder: Path, policy: Path, **settings) -> Run:
    rows = [{"prompt": f"Question {i}?", "chosen": f"zz {i} zzz", "rejected": f"qq {i} qqq"} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"dataset": str(folder / "rows.jsonl"), "policy": str(policy)}
    return opened("instruct", "tiny", folder / "out", sources | SHORT | ONE | settings)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("policy"), eos_nats=3.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, policy) -> Run:
    run = open_run(tmp_path_factory.mktemp("one"), policy)
    return make(run, "base", "data", "sft", "sft_qlora", "reward_model", "ppo", "evaluation")


def test_every_figure_of_one_prompt_is_there_and_no_interval_is(run, tmp_path, monkeypatch):
    summary, frontier = (read_json(run.evaluation / f"{name}.json") for name in ("summary", "frontier"))
    assert summary["prompts"] == 1 and summary["models"]["ppo"]["reward"] is not None
    assert summary["models"]["ppo"]["reward_ci95"] is None and summary["hacking"]["level"] == "none"
    assert summary["paired"]["ppo_vs_sft"]["reward"]["ci95"] is None
    assert not any(point["reward_error"] for point in frontier["points"])
    assert "No difference between PPO and SFT is shown" in text_summary(summary)
    monkeypatch.setattr("rlhf_utils.report.notebook.DPI", 60)
    assert write_report(run.root).stat().st_size > 10_000
    assert compare([run.root], tmp_path)[0]["seeds"] == "1"
    # Which KL is meant, and at which temperature.
    assert summary["kl_to_sft_temperature"] == frontier["kl_to_sft_temperature"] == run.recipe.generation.temperature
    assert summary["kl_budget"] == {"nats": run.recipe.ppo.kl_budget, "stopped": None}
    [chosen] = [point for point in frontier["points"] if point["update"] == frontier["chosen_update"]]
    assert chosen["kl"] == run.results("ppo")["published_kl"] and chosen["kl_to_sft"] != chosen["kl"]


def test_a_budget_that_nothing_keeps_leaves_the_sft_model_and_is_not_paid_for_twice(run, policy):
    """The last of those that use `run`: PPO is trained anew in its folder."""
    tight = {"ppo.kl_budget": 1e-6, "ppo.updates": 3, "ppo.save_every": 100, "ppo.learning_rate": 1e-2}
    tight |= {"ppo.rollout_batch_size": 8, "ppo.minibatch_size": 4}
    result = make(open_run(run.root.parents[1], policy, **tight), "ppo").results("ppo")
    assert (result["updates"], result["published"]) == (1, "update-000000") and abs(result["published_kl"]) < 1e-3
    assert "the SFT model itself is used; lower ppo.learning_rate" in result["stopped"]
    weights = [(run.folder(name) / "model.safetensors").read_bytes() for name in ("sft", "ppo")]
    assert weights[0] == weights[1]
    again = open_run(run.root.parents[1], policy, **tight)
    assert again.has("ppo") and again.results("ppo") == result
    summary = read_json(make(again, "evaluation").evaluation / "summary.json")
    assert "PPO and its KL budget: at update 1 the policy was" in text_summary(summary)
