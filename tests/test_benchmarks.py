"""The benchmark's workload is what it says, our side of it runs, and the figures come from the runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from tiny import one_thread  # noqa: F401

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        importlib.import_module("workload").prepare(folder, None, size={"n_layer": 2, "n_embd": 32, "n_head": 2})
    return folder


@pytest.mark.parametrize("name", ["fixed", "ragged"])
def test_a_workload_has_the_lengths_that_it_says(module, work, name, tmp_path):
    prompts = json.loads((work / "prompts.json").read_text())[name]
    job = {"program": "ours", "policy": f"{work}/policy_{name}", "reward": f"{work}/reward", "goal": None}
    job |= {"prompts": prompts, "config": module("workload").settings(name, 8, 2, "fp32")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    module("one_training").main(tmp_path / "job.json", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["seconds_per_update"]) == len(found["rewards"]) == 2 and found["peak_memory_bytes"] > 1e8
    if name == "fixed":
        assert found["prompt_tokens"] == 32 and found["response_tokens"] == [48, 48] and found["eos_rate"] == [0, 0]
    else:
        lengths = [len(prompt.split()) for prompt in prompts]
        assert min(found["eos_rate"]) > 0.5 and 5 < found["response_tokens"][0] < 90
        assert min(lengths) == 1 and max(lengths) == 254


def test_the_gpu_script_runs_without_one(module, tmp_path):
    gpu = module("gpu")
    gpu.prepare(tmp_path)
    for precision in ("bf16", "fp16"):
        found = gpu.numbers("numbers", precision, tmp_path)
        assert found["outside_clip"] == 0 and found["k3_per_response"] < 0.002 and found["log_ratio_max"] > 0
    found, again = (gpu.ppo(what, "bf16", tmp_path) for what in ("ppo-lora", "resumed-lora"))
    assert again["rewards_not_killed"] == found["rewards"] == found["rewards_not_killed"]
    assert found["kl_k3_at_update_0"] < 0.002 and found["peak_gb"] > 0.1


def test_the_published_figures_are_those_of_the_raw_ones(module):
    published = json.loads((BENCHMARKS / "ppo_vs_trl.json").read_text())
    found = module("ppo_vs_trl").figures(published["raw"])
    assert found == {name: pytest.approx(value) for name, value in published.items() if name != "raw"}
    # Written out for one of them: 12 episodes of 80 tokens, 4 epochs, forward and backward, the head at 48 of them.
    runs = published["raw"]["fixed_fp32"]["ours"]
    flops = 3 * 4 * 12 * (80 * (2 * 85054464 + 2 * 12 * 768 * 80) + 48 * 2 * 768 * 50257)
    rates = sorted(flops / run["phase_seconds"][0]["learning"] for run in runs)
    assert found["update_flops"] == pytest.approx((rates[0] + rates[-1]) / 2)


def test_a_reward_is_reached_when_three_updates_in_a_row_are_there_on_average(module):
    reached = module("workload").reached
    assert reached([1.0, 1.0], 0.5) is None and reached([0.0, 0.6, 0.9, 0.2], 0.5) == 2
    assert reached([0.0, 0.4, 0.9, 0.1, 0.9], 0.6) == 4 and reached([0.0] * 9, 0.1) is None


def test_without_a_run_the_time_to_reward_is_not_made_up(module, tmp_path):
    assert module("ppo_vs_trl").finished_run(tmp_path, tmp_path, quick=True) is None
    assert module("ppo_vs_trl").time_to_reward(None, quick=True) is None
