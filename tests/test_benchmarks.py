"""The benchmark's workload is what it says, our side of it runs, and the figures come from the runs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from tiny import one_thread  # noqa: F401

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = {"n_layer": 2, "n_embd": 32, "n_head": 2}


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in ("workload", "run_ours", "ppo_vs_trl")}
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def work(modules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    modules["workload"].prepare(folder, None, size=SMALL)
    return folder


def measured(modules, work, name, monkeypatch, tmp_path) -> dict:
    out = tmp_path / "result.json"
    options = {"work": work, "workload": name, "episodes": 8, "updates": 2, "out": out}
    monkeypatch.setattr(sys, "argv", ["run_ours.py", *(str(x) for n, v in options.items() for x in (f"--{n}", v))])
    modules["run_ours"].main()
    return json.loads(out.read_text())


def test_fixed_answers_never_end_and_prompts_have_32_tokens(modules, work, monkeypatch, tmp_path):
    found = measured(modules, work, "fixed", monkeypatch, tmp_path)
    assert found["prompt_tokens"] == 32 and found["response_tokens"] == [48, 48] and found["eos_rate"] == [0, 0]
    assert len(found["seconds_per_update"]) == 2 and found["peak_memory_bytes"] > 1e8


def test_ragged_answers_end_at_different_lengths(modules, work, monkeypatch, tmp_path):
    found = measured(modules, work, "ragged", monkeypatch, tmp_path)
    assert min(found["eos_rate"]) > 0.5 and 5 < found["response_tokens"][0] < 90
    lengths = [len(prompt.split()) for prompt in json.loads((work / "prompts.json").read_text())["ragged"]]
    assert min(lengths) == 1 and max(lengths) == 254


def test_the_gpu_script_runs_without_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    gpu.prepare(tmp_path)
    for precision in ("bf16", "fp16"):
        found = gpu.numbers("numbers", precision, tmp_path)
        assert found["outside_clip"] == 0 and found["k3_per_response"] < 0.002 and found["log_ratio_max"] > 0
    found = gpu.ppo("ppo-lora", "bf16", tmp_path)
    assert (
        gpu.ppo("resumed-lora", "bf16", tmp_path)["rewards_not_killed"]
        == found["rewards"]
        == found["rewards_not_killed"]
    )
    assert found["kl_k3_at_update_0"] < 0.002 and found["peak_gb"] > 0.1


def test_figures_are_medians_over_pairs(modules):
    def run(seconds, memory):
        return {
            "seconds_per_update": [99.0, seconds], "peak_memory_bytes": memory, "phase_seconds": [{"learning": 2.0}],
            "response_tokens": [48], "prompt_tokens": 32, "block_parameters": 100, "layers": 1, "width": 10,
            "vocabulary": 5, "episodes": 8, "matmul_flops": 1e5,
        }  # fmt: skip

    pairs = {"ours": [run(1, 10), run(2, 10), run(9, 10)], "trl": [run(4, 40), run(4, 20), run(18, 50)]}
    curves = {
        "ours_0.1": {"seconds": [1, 2, 3, 4], "rewards": [0, 0.6, 0.6, 0.6]},
        "ours_0.2": {"seconds": [1, 2, 3, 4], "rewards": [0, 0.1, 0.1, 0.1]},
        "trl_0.1": {"seconds": [10, 20, 30, 40], "rewards": [0.6, 0.6, 0.6, 0.1]},
        "trl_0.2": {"seconds": [10, 20, 30, 40], "rewards": [0.1, 0.6, 0.6, 0.6]},
    }
    world = {"run": "x", "reward": 0.6, **curves}
    raw = {"episodes": {"fixed": 8, "ragged": 8}, "fixed_fp32": pairs, "ragged_fp32": pairs, "world": world}
    figures = modules["ppo_vs_trl"].figures(raw)
    assert figures["fixed_fp32_speedup"] == figures["ragged_best_speedup"] == 2.0
    assert figures["memory_ratio"] == 0.25
    assert figures["time_to_reward_ratio"] == pytest.approx(4 / 30)
    # 8 episodes, 4 epochs, forward and backward of 80 tokens, the head at 48 of them, in 2 s.
    assert figures["matmul_fraction"] == pytest.approx(3 * 4 * 8 * (80 * (200 + 2 * 10 * 80) + 48 * 100) / 2 / 1e5)


def test_a_reward_is_reached_when_three_updates_in_a_row_are_there_on_average(modules):
    reached = modules["workload"].reached
    assert reached([1.0, 1.0], 0.5) is None and reached([0.0, 0.6, 0.9, 0.2], 0.5) == 2
    assert reached([0.0, 0.4, 0.9, 0.1, 0.9], 0.6) == 4 and reached([0.0] * 9, 0.1) is None


def test_without_a_run_the_time_to_reward_is_not_made_up(modules, tmp_path):
    assert modules["ppo_vs_trl"].finished_run(tmp_path, tmp_path, quick=True) is None
    assert modules["ppo_vs_trl"].time_to_reward(None, quick=True) is None
