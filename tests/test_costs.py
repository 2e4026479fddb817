"""Estimates of download, memory and time: from the settings, and near what has been measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_utils.runs import costs
from rlhf_utils.settings.recipes import SCALES, load_recipe, recipe_names

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "ppo_vs_trl.json"


def test_parameters_of_gpt2_are_counted_right():
    assert costs.GPT2.parameters == 124_439_808
    assert costs.SHAPES["gpt2-medium"].parameters == 354_823_168


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("scale", SCALES)
def test_every_recipe_has_an_estimate(name, scale):
    found = costs.estimate(load_recipe(name, scale))
    assert found.seconds > 60 and found.memory > 3e8
    assert (found.download == 0) == (scale == "tiny")
    if scale == "t4":
        assert found.memory < 14e9, "a T4 has 16 GB, some of which is taken"
        assert found.seconds < 4 * 3600, "a free session ends after some hours"
    if scale == "tiny":
        assert found.seconds < 11 * 60


def test_a_pinned_model_costs_what_the_model_costs():
    plain, pinned = (load_recipe("instruct", "t4", {"policy": name}) for name in ("gpt2", "gpt2@607a30d"))
    assert costs.estimate(plain) == costs.estimate(pinned) != costs.Estimate(None, None, None)


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_a_policy_costs_what_its_configuration_says(source, tmp_path, monkeypatch):
    """A shrunk model of a known name needs no 11 GB of disk; nobody is asked for it."""
    usual = costs.shape_of(load_recipe("instruct", "t4"))
    folder = tmp_path / "models--gpt2" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 2, "n_embd": 64}))
    (folder / "model.safetensors").touch()
    (tmp_path / "models--gpt2" / "refs").mkdir()
    (tmp_path / "models--gpt2" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shape = costs.shape_of(load_recipe("instruct", "t4", {"policy": str(folder) if source == "folder" else "gpt2"}))
    assert (shape.layers, shape.width, shape.vocabulary) == (2, 64, 50_257)
    assert shape.parameters < usual.parameters / 10


def test_an_unknown_policy_has_none():
    found = costs.estimate(load_recipe("instruct", "t4", {"policy": "somebody/something"}))
    assert found == costs.Estimate(None, None, None)


@pytest.mark.parametrize(
    "change, figure",
    [
        ({"ppo.updates": 200}, "seconds"),
        ({"sft.epochs": 3}, "seconds"),
        ({"sft.micro_batch_size": 32}, "memory"),
        ({"policy": "gpt2-medium"}, "download"),
        ({"models.reward_model": "gpt2"}, "download"),
    ],
)
def test_settings_that_cost_more_are_seen_to(change, figure):
    usual, dearer = (costs.estimate(load_recipe("instruct", "t4", overrides)) for overrides in ({}, change))
    assert getattr(dearer, figure) > getattr(usual, figure)


def test_memory_is_near_what_the_benchmark_measured():
    """GPT-2 124M on a CPU: full fine-tuning with its reference, 32 + 48 tokens; the reward model there is tiny."""
    raw = json.loads(BENCHMARK.read_text())["raw"]
    episodes = raw["episodes"]["fixed"]
    measured = min(run["peak_memory_bytes"] for run in raw["fixed_fp32"]["ours"])
    settings = {
        "policy": "gpt2", "data.max_prompt_tokens": 1, "ppo.max_new_tokens": 80, "ppo.method": "full",
        "ppo.rollout_batch_size": episodes, "ppo.minibatch_size": episodes, "models.sft": "gpt2",
    }  # fmt: skip
    estimated = costs.estimate(load_recipe("instruct", "tiny", settings)).memory - 4 * costs.GPT2.parameters
    assert estimated == pytest.approx(measured, rel=0.25)
