"""The benchmark's programs run and are measured alike, and the published figures come from the published runs."""

import importlib
import json
from pathlib import Path

import pytest
from tiny import CPU, PROMPTS, one_thread, save_tiny, tiny_tokenizer  # noqa: F401

from rlhf_utils.models.loading import load_reward_model, save_model
from rlhf_utils.platforms.files import read_json, write_json

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_published_figures_are_those_of_the_raw_ones():
    published, program = read_json(BENCHMARKS / "ppo_vs_trl.json"), importlib.import_module("ppo_vs_trl")
    found = json.loads(json.dumps(program.figures(published["raw"])))
    assert found.keys() == published.keys() - {"raw"}
    for name, value in found.items():
        nested = name == "speedup_of_each_pair"  # which approx does not compare
        assert value == (published[name] if nested else pytest.approx(published[name])), name


@pytest.mark.parametrize("program", ["ours", "rloo", "grpo"])
def test_each_program_is_measured_at_every_update(program, tmp_path):
    policy = save_tiny(tmp_path / "policy", eos_nats=3.0)
    save_model(load_reward_model(policy, CPU, fresh_head=True), tiny_tokenizer(), tmp_path / "reward")
    config = dict(updates=2, rollout_batch_size=8, minibatch_size=4, microbatch_size=2, epochs=2, max_new_tokens=6)
    job = {"program": program, "policy": policy, "reward": tmp_path / "reward", "prompts": PROMPTS, "goal": None}
    job |= {"world": "instruct", "config": {**config, "precision": "fp32", "learning_rate": 1e-3}}
    write_json(tmp_path / "job.json", json.loads(json.dumps(job, default=str)))
    importlib.import_module("one_training").main(tmp_path / "job.json", tmp_path / "out.json")
    found = read_json(tmp_path / "out.json")
    assert [len(found[name]) for name in ("seconds", "seconds_per_update", "rewards", "gold")] == [2] * 4
    assert found["rewards"][0] != found["rewards"][1] and found["peak_memory_bytes"] > 2**20
    assert found["seconds"] == sorted(found["seconds"]) and all(0 <= gold <= 10 for gold in found["gold"])
