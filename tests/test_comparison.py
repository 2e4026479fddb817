"""Runs side by side: seeds are merged, what differs gives the name, and nothing is made up for what is missing."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from made_up_run import make_run

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.report.comparison import compare, grouped, read_result, table
from rlhf_utils.settings.recipes import load_recipe


def make(folder: Path, seed: int = 0, **overrides) -> Path:
    run = make_run(folder, seed=seed)
    recipe = load_recipe("instruct", "tiny", {"seed": seed, **{k.replace("__", "."): v for k, v in overrides.items()}})
    record = {"recipe": "instruct", "scale": "tiny", "settings": recipe.model_dump(mode="json"), "stages": {}}
    (run / "run.json").write_text(json.dumps(record))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        make(folder / "a"),
        make(folder / "b", seed=1),
        make(folder / "c", seed=2),
        make(folder / "d", ppo__kl_coefficient=0.02),
    ]


def test_runs_that_differ_in_their_seed_are_one_row_with_its_spread(runs):
    results = [read_result(run) for run in runs]
    groups = grouped(results)
    assert {name: len(found) for name, found in groups.items()} == {
        "instruct, tiny, ppo.kl_coefficient=0.1": 3,
        "instruct, tiny, ppo.kl_coefficient=0.02": 1,
    }
    values = [result.figures["gold gain"][0] for result in results[:3]]
    several, single = table(groups)
    assert several["seeds"] == "3" and several["against"] == "SFT" and single["seeds"] == "1"
    spread = f"{sum(values) / 3:.2f} [{min(values):.2f}, {max(values):.2f}]"
    assert several["gold gain"] == spread.replace("-", "−")
    found = json.loads((runs[3] / "evaluation" / "summary.json").read_text())["paired"]["ppo_vs_sft"]["gold"]
    own = f"{found['mean']:.2f} [{found['ci95'][0]:.2f}, {found['ci95'][1]:.2f}]"
    assert single["gold gain"] == own.replace("-", "−") and list(grouped(results[3:])) == ["instruct, tiny"]


def test_table_picture_and_page_are_written(runs, tmp_path):
    rows = compare(runs, tmp_path / "out")
    with open(tmp_path / "out" / "comparison.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
    assert (tmp_path / "out" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and all(row["run"] in page for row in rows) and "http" not in page


def test_a_figure_that_is_missing_is_a_dash(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs[0], copy)
    path = copy / "evaluation" / "summary.json"
    summary = json.loads(path.read_text())
    summary["paired"]["ppo_vs_sft"]["gold"] = None
    path.write_text(json.dumps(summary))
    assert table(grouped([read_result(copy)]))[0]["gold gain"] == "–"


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="is not a run: run.json is missing"):
        compare([tmp_path], tmp_path / "out")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="is not evaluated: summary.json is missing"):
        compare([tmp_path], tmp_path / "out")
    with pytest.raises(InputError, match="the same run twice"):
        compare([runs[0], runs[0]], tmp_path / "out")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="not made by this version"):
        compare([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
