"""The benchmark's workload is what it says, our side of it runs, and the figures come from the runs."""

import importlib
import json
from pathlib import Path

import pytest
from tiny import one_thread  # noqa: F401

from rlhf_utils.platforms.files import read_json

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_published_figures_are_those_of_the_raw_ones(tmp_path):
    published, program = read_json(BENCHMARKS / "ppo_vs_trl.json"), importlib.import_module("ppo_vs_trl")
    found = program.figures(published["raw"])
    assert json.loads(json.dumps(found)) == {name: pytest.approx(v) for name, v in published.items() if name != "raw"}
    # Without a run the time to a reward is not made up.
    assert program.time_to_reward(program.finished_run(tmp_path, tmp_path, quick=True), quick=True) is None
