"""The benchmark's workload is what it says, our side of it runs, and the figures come from the runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from tiny import one_thread  # noqa: F401

from rlhf_utils.platforms.files import read_json, write_json

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_workload_has_the_lengths_that_it_says(tmp_path, monkeypatch):
    workload, training = importlib.import_module("workload"), importlib.import_module("one_training")
    workload.prepare(tmp_path, None, size={"n_layer": 2, "n_embd": 32, "n_head": 2})
    monkeypatch.setattr(training, "matmul_rate", lambda *_: 1e9)  # takes longer than the rest
    measured = {}
    for name, prompts in read_json(tmp_path / "prompts.json").items():
        job = {"program": "ours", "policy": f"{tmp_path}/policy_{name}", "reward": f"{tmp_path}/reward", "goal": None}
        job |= {"prompts": prompts, "config": workload.settings(name, 8, 1, "fp32") | {"epochs": 1}}
        write_json(tmp_path / "job.json", job)
        training.main(tmp_path / "job.json", tmp_path / "out.json")
        measured[name] = found = read_json(tmp_path / "out.json")
        assert len(found["seconds_per_update"]) == len(found["rewards"]) == 1 and found["peak_memory_bytes"] > 1e8
    fixed, ragged, lengths = measured["fixed"], measured["ragged"], [len(prompt.split()) for prompt in prompts]
    assert fixed["prompt_tokens"] == 32 and fixed["response_tokens"] == [48] and fixed["eos_rate"] == [0]
    assert min(ragged["eos_rate"]) > 0.5 and 5 < ragged["response_tokens"][0] < 90
    assert min(lengths) == 1 and max(lengths) == 254


def test_the_published_figures_are_those_of_the_raw_ones(tmp_path):
    published, program = read_json(BENCHMARKS / "ppo_vs_trl.json"), importlib.import_module("ppo_vs_trl")
    found = program.figures(published["raw"])
    assert json.loads(json.dumps(found)) == {name: pytest.approx(v) for name, v in published.items() if name != "raw"}
    # Without a run the time to a reward is not made up.
    assert program.time_to_reward(program.finished_run(tmp_path, tmp_path, quick=True), quick=True) is None
