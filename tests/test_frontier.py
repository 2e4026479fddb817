"""Which checkpoint is used, and what best-of-n sampling would have bought."""

import math
from itertools import combinations
from random import Random
from types import SimpleNamespace

import pytest
from datasets import Dataset
from made import cells

from rlhf_utils.evaluation import frontier
from rlhf_utils.evaluation.frontier import completions_by_update, expected_best
from rlhf_utils.evaluation.statistics import standard_error

CHOOSE = cells("03_02", "def choose(", points=[], config=SimpleNamespace(kl_budget=None)).choose


def point(update: int, kl: float, reward: float, gold: float | None = None) -> dict:
    return {"update": update, "kl": kl, "reward": reward, "reward_error": 0.1, "gold": gold, "gold_error": gold and 0.1}


START = (0, 0.0, 5.0)


@pytest.mark.parametrize(
    "points, budget, chosen",
    [
        ([START, (8, 1.0, 6.0), (16, 2.0, 7.0), (24, 3.0, 7.05)], None, 16),
        ([START, (8, 1.0, 6.0), (16, 2.0, 7.0), (24, 3.0, 7.2)], None, 24),
        ([START, (8, 1.0, 6.0), (16, 2.0, 7.0), (24, 3.0, 7.2)], 2.5, 16),
        ([START, (8, 1.0, 4.0), (16, 2.0, 3.0)], None, 8),
        ([START, (8, 3.0, 7.0), (16, 2.0, 7.0)], None, 8),
    ],
)
@pytest.mark.parametrize("gold", [None, 1.0, -1.0])
def test_of_what_cannot_be_told_apart_the_earliest_is_used_and_the_judge_is_not_asked(points, budget, chosen, gold):
    update, rule = CHOOSE([point(*each, gold and gold * each[0]) for each in points], budget)
    assert update == chosen and "best reward on development prompts" in rule


def test_with_no_policy_within_the_budget_or_no_known_error():
    update, rule = CHOOSE([point(*START), point(8, 2.0, 6.0)], 1.0)
    assert update == 0 and rule.endswith("within the KL budget, so it is the model PPO started from")
    # Of one prompt nobody knows an error, and the best is used.
    points = [{**point(*each), "reward_error": None} for each in (START, (8, 1.0, 6.0), (16, 2.0, 7.0))]
    assert CHOOSE(points, None)[0] == 16


def test_the_error_that_chooses_is_over_clusters_of_prompts(monkeypatch):
    prompts = [f"{start} the lamp, please" for start in ("Fix", "Sell", "Paint", "Move") for _ in range(5)]
    rewards = [float(place // 5) for place in range(20)]  # alike within a cluster: 4 prompts rather than 20
    found = SimpleNamespace(kl=[0.5] * 20, reward=rewards, gold=None, texts=[""] * 20)
    monkeypatch.setattr(frontier, "_prompts", lambda run: Dataset.from_dict({"prompt": prompts}))
    monkeypatch.setattr(frontier, "load_policy", lambda folder, device: None)
    once, recipe = lambda stage, name, make: make(), SimpleNamespace(seed=0)
    run = SimpleNamespace(progress=lambda *_: None, once=once, recipe=recipe)
    evaluator = SimpleNamespace(device=None, measure=lambda policy, split: found)
    (one,) = frontier.measure_policies(run, "ppo", evaluator, {8: (None, 1.0)})
    assert one["reward_error"] == pytest.approx(standard_error(rewards, prompts))
    assert one["reward_error"] > 2 * standard_error(rewards)
    low, high = one["reward_ci95"]
    assert high - low > 1.5 * 2 * 1.96 * standard_error(rewards)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_best_of_n_is_the_mean_over_all_subsets(n):
    source = Random(n)
    order, values = ([source.gauss(0, 1) for _ in range(6)] for _ in range(2))
    best = [values[max(chosen, key=order.__getitem__)] for chosen in combinations(range(6), n)]
    assert expected_best(order, values, n) == pytest.approx(sum(best) / len(best))
    assert expected_best(order, order, 6) == max(order)
    assert math.isclose(expected_best(order, values, 1), sum(values) / 6)


def test_completions_are_read_update_by_update_of_each_prompt():
    said = {update: [{"prompt": p, "response": f"{p} at {update}"} for p in "ab"] for update in (6, 0, 12)}
    points = [{"update": update, "completions": rows} for update, rows in said.items()]
    found = completions_by_update({"chosen_update": 6, "points": points})
    assert [row["response"] for row in found] == [f"{p} at {update}" for p in "ab" for update in (0, 6, 12)]
    assert [row["update"] for row in found] == [0, 6, 12] * 2
    assert completions_by_update({"chosen_update": None, "points": points}) == []  # a policy that was ready
    assert completions_by_update({"chosen_update": 0, "points": [{"update": 0}]}) == []  # of an earlier version
