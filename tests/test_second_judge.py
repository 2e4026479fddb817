"""Without a gold judge: a second reward model, trained on pairs of its own, judges what the first one is paid for."""

import json
import math

import pytest
from made import cells, make, opened
from tiny import one_thread, save_tiny  # noqa: F401
from transformers import set_seed

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation.hacking import NO_JUDGE
from rlhf_utils.evaluation.judge import about_judge, is_informed, judge_of
from rlhf_utils.models.loading import load_classifier, load_reward_model
from rlhf_utils.platforms.files import read_json, read_jsonl
from rlhf_utils.runs.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Better responses have a z in them; every stage at its smallest."""
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
    }  # fmt: skip
    run = opened("instruct", "tiny", folder / "out", settings)
    return make(run, "base", "data", "sft", "sft_qlora", "reward_model", "judge_model")


def test_it_learns_from_pairs_that_no_other_stage_has_seen(run):
    splits, result = PreparedData.load(run.folder("data")).splits, run.results("judge_model")
    seen = {name: set(split["prompt"]) for name, split in splits.items()}
    assert seen["judge"] and not any(seen["judge"] & prompts for name, prompts in seen.items() if name != "judge")
    assert result["trained_on"] == len(splits["judge"]) and result["accuracy"] > 0.8
    first = run.results("reward_model")
    assert first["accuracy_ci95"][0] > max(first["untrained_accuracy"], first["length_baseline_accuracy"])
    # Before the first step every pair is a tie, which counts half.
    log = read_jsonl(run.folder("reward_model") / "metrics.jsonl")
    assert log[0]["loss"] == pytest.approx(math.log(2)) and log[0]["accuracy"] == 0.5
    low, high = result["agreement_ci95"]
    assert low <= result["agreement"] <= high and result["agreement"] > 0.7
    first, second = ((run.folder(name) / "model.safetensors").read_bytes() for name in ("reward_model", "judge_model"))
    assert first != second


@pytest.mark.parametrize(
    "notebook, mark, head",
    [
        ("02_02", "def zero_head", "zero_head"),
        ("04_02", "def zero_head", "zero_head"),
        ("02_03", "def first_head", "first_head"),
    ],
)
def test_a_head_that_is_trained_begins_without_an_opinion(run, notebook, mark, head):
    """Margins of a random head have nothing to do with what is learned, and few pairs leave much of them."""
    names = dict(run=run, settings=run.recipe.reward_model, learning=run.recipe.reward_model, seed=0, device=None)
    names |= dict(load_reward_model=load_reward_model, load_classifier=load_classifier, set_seed=set_seed)
    assert not getattr(cells(notebook, mark, **names), head)().score.weight.any()


def test_it_judges_ppo_and_the_comparison(run):
    make(run, "ppo")
    lines = [line for line in read_jsonl(run.folder("ppo") / "metrics.jsonl") if "gold" in line]
    assert len(lines) == 2 and all(line["gold"] is not None and line["gold"] != line["reward"] for line in lines)
    result, frontier = run.results("ppo"), read_json(run.folder("ppo") / "frontier.json")
    assert "best reward" in result["rule"] and result["published"] == f"update-{frontier['chosen_update']:06d}"
    assert [point["update"] for point in frontier["points"]] == [0, 1, 2] and result["updates"] == 2
    kept = sorted(path.name for path in (run.folder("ppo") / "frontier").iterdir())
    assert kept == ["update-000001", "update-000002"] and (run.folder("ppo") / "samples.jsonl").is_file()
    summary = read_json(make(run, "evaluation").evaluation / "summary.json")
    assert summary["judge"] == about_judge(run) and summary["judge"]["kind"] == "second reward model"
    assert summary["models"]["ppo"]["gold"] is not None and summary["win_rate"]["ppo_vs_sft"]["judged_by"] == "gold"
    assert summary["hacking"]["level"] in ("none", "suspected", "hacking")
    # The verdict listens to it only where it is shown to beat chance.
    assert is_informed(about_judge(run)) is (run.results("judge_model")["accuracy_ci95"][0] > 0.5)
    assert (NO_JUDGE in summary["hacking"]["not_checked"]) is not is_informed(about_judge(run))
    scores = judge_of(run)(["Question 1?"] * 2, ["zz 1 zzz", "qq 1 qqq"])
    assert scores[0] > scores[1]
