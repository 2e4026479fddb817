"""The written model of scaling: its tables in the documentation are what the commands print, and it behaves."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from rlhf_utils import costs, scaling
from rlhf_utils.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
T4, TWO_T4, H100, EIGHT, CLUSTER = scaling.CLUSTERS
SEVEN = scaling.SIZES["7 B"]


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("instruct", "full")


@pytest.fixture(scope="module")
def stage_seconds():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("stage_seconds")
    sys.path.remove(str(ROOT / "benchmarks"))


def in_document(name: str) -> str:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    return re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", text, re.DOTALL).group(1)


def test_the_plans_in_the_document_are_those_of_the_command(recipe):
    assert in_document("scaling") == scaling.table(recipe)


def test_the_measurements_in_the_document_are_those_of_the_command(stage_seconds):
    measured, benchmark = (json.loads(path.read_text()) for path in (stage_seconds.MEASURED, stage_seconds.BENCHMARK))
    assert in_document("measured") == stage_seconds.table(measured, benchmark)


def test_the_model_is_as_near_as_the_document_says(stage_seconds):
    measured, benchmark = (json.loads(path.read_text()) for path in (stage_seconds.MEASURED, stage_seconds.BENCHMARK))
    for what, estimated, found, _ in stage_seconds.comparisons(measured, benchmark):
        limit = 1.15 if "memory" in what else 5.5 if what.startswith("imdb") else 2.5
        assert 1 / limit < estimated / found < limit, what


def test_sizes_are_what_they_are_called():
    counts = [shape.parameters / 1e6 for shape in scaling.SIZES.values()]
    assert counts == pytest.approx([124, 355, 774, 1558, 6657], rel=0.01)


def test_one_gpu_exchanges_nothing_and_more_of_them_share_the_work(recipe):
    alone, together = (scaling.plan_sft(recipe, costs.GPT2, cluster) for cluster in (H100, EIGHT))
    assert (alone.method, alone.exchange) == ("alone", 0) and together.method == "DDP" and together.exchange > 0
    assert together.seconds - together.exchange == pytest.approx(alone.seconds / 8)
    assert together.rows == alone.rows / 8


def test_state_is_divided_only_where_it_does_not_fit(recipe):
    assert scaling.plan_sft(recipe, costs.GPT2, EIGHT).method == "DDP"
    assert scaling.plan_sft(recipe, SEVEN, EIGHT).method == "ZeRO-2"
    assert scaling.plan_sft(recipe, SEVEN, H100) is None and scaling.plan_sft(recipe, SEVEN, TWO_T4) is None
    assert scaling.plan_ppo(recipe, costs.GPT2, EIGHT).method == "full, DDP"
    assert scaling.plan_ppo(recipe, SEVEN, EIGHT).method == "lora, DDP"


@pytest.mark.parametrize("plan", [scaling.plan_sft, scaling.plan_reward_model, scaling.plan_ppo])
def test_no_plan_is_larger_than_its_gpu(recipe, plan):
    for shape in scaling.SIZES.values():
        for cluster in scaling.CLUSTERS:
            found = plan(recipe, shape, cluster)
            assert found is None or (found.memory <= cluster.memory and found.rows >= 1), (shape, cluster)


def test_sampling_a_token_is_latency_for_a_small_model_and_reading_for_a_large_one():
    assert scaling.token_seconds(costs.GPT2, H100) == costs.MACHINES["full"].step
    large = costs.Shape(8, 16_384, 50_257, 2048)
    assert scaling.token_seconds(large, H100) == costs.WEIGHT * large.parameters / H100.read
    assert scaling.kv_cache(costs.GPT2, 1000) == 2 * 12 * 768 * 2 * 1000
