"""Without a gold judge: a second reward model, trained on pairs of its own, judges what the first one is paid for."""

from __future__ import annotations

import json

import pytest
from rlhf_utils.stages.base import make_base, make_data
from rlhf_utils.stages.reward_model import train_judge_model, train_reward_model
from rlhf_utils.stages.sft import train_full, train_qlora
from tiny import one_thread, save_tiny  # noqa: F401

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation.compare import evaluate_models
from rlhf_utils.evaluation.judge import about_judge, judge_of
from rlhf_utils.platforms.files import read_json
from rlhf_utils.runs.run import Run
from rlhf_utils.stages.overoptimise import overoptimise
from rlhf_utils.stages.ppo import train_ppo


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Better answers have a z in them; every stage at its smallest."""
    folder = tmp_path_factory.mktemp("second")
    rows = [{"prompt": f"Question {i}?", "chosen": f"zz {i} zzz", "rejected": f"qq {i} qqq"} for i in range(300)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "dataset": str(folder / "rows.jsonl"), "policy": str(save_tiny(folder / "policy", eos_nats=3.0)),
        "data.max_prompt_tokens": 40, "data.max_response_tokens": 24, "generation.max_new_tokens": 10,
        "data.shares": {"sft": 0.2, "reward": 0.3, "ppo": 0.1, "development": 0.1, "evaluation": 0.15, "judge": 0.15},
        "reward_model.epochs": 4, "reward_model.learning_rate": 1e-2, "ppo.updates": 2, "ppo.save_every": 1,
        "ppo.rollout_batch_size": 16, "ppo.minibatch_size": 8, "ppo.max_new_tokens": 10, "ppo.kl_budget": None,
        "evaluation.prompts": 20, "evaluation.frontier_prompts": 10, "evaluation.bootstrap_samples": 200,
        "evaluation.overoptimise": {"pairs": 20, "updates": 2},
    }  # fmt: skip
    run = Run.open("instruct", "tiny", folder / "out", settings)
    make_base(run), make_data(run), train_full(run), train_qlora(run), train_reward_model(run)
    return run


def test_it_learns_from_pairs_that_no_other_stage_has_seen(run):
    splits = PreparedData.load(run.folder("data")).splits
    seen = {name: set(split["prompt"]) for name, split in splits.items()}
    assert seen["judge"] and not any(seen["judge"] & prompts for name, prompts in seen.items() if name != "judge")
    result = train_judge_model(run)
    assert result["trained_on"] == len(splits["judge"]) and result["accuracy"] > 0.8
    low, high = result["agreement_ci95"]
    assert low <= result["agreement"] <= high and result["agreement"] > 0.7
    first, second = ((run.folder(name) / "model.safetensors").read_bytes() for name in ("reward_model", "judge_model"))
    assert first != second


def test_it_judges_ppo_and_the_comparison(run):
    train_judge_model(run)
    train_ppo(run)
    lines = [json.loads(line) for line in (run.folder("ppo") / "metrics.jsonl").read_text().splitlines()]
    assert all(line["gold"] is not None and line["gold"] != line["reward"] for line in lines)
    assert "best gold" in run.results("ppo")["rule"]
    summary = evaluate_models(run)
    assert summary["judge"] == about_judge(run) and summary["judge"]["kind"] == "second reward model"
    assert summary["models"]["ppo"]["gold"] is not None and summary["win_rate"]["ppo_vs_sft"]["judged_by"] == "gold"
    assert summary["agreement"]["prompts"] <= 20 and summary["hacking"]["level"] in ("none", "suspected", "hacking")
    scores = judge_of(run)(["Question 1?"] * 2, ["zz 1 zzz", "qq 1 qqq"])
    assert scores[0] > scores[1]


def test_the_demonstration_of_cheating_uses_it_too(run):
    train_judge_model(run)
    result = overoptimise(run)
    found = read_json(run.evaluation / "overoptimise.json")
    assert result["pairs"] == 20 and len(found["curve"]) == 2 and found["examples"]
    assert all(line["gold"] is not None for line in found["curve"])
    assert overoptimise(run) == result
