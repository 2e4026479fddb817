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
    groups = grouped([read_result(run) for run in runs])
    assert [len(group.runs) for group in groups] == [3, 1]
    assert groups[0].name == "instruct, tiny, ppo.kl_coefficient=0.1"
    assert groups[1].name == "instruct, tiny, ppo.kl_coefficient=0.02"
    values = [read_result(run).figures["gold"][0] for run in runs[:3]]
    mean, low, high = groups[0].spread("gold")
    assert (low, high) == (min(values), max(values)) and mean == pytest.approx(sum(values) / 3)
    rows = table(groups)
    assert rows[0]["seeds"] == "3" and rows[0]["against"] == "SFT"
    assert rows[0]["gold gained"] == f"{mean:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")


def test_a_single_run_keeps_its_own_interval(runs):
    summary = json.loads((runs[3] / "evaluation" / "summary.json").read_text())
    found = summary["paired"]["ppo_vs_sft"]["gold"]
    low, high = found["ci95"]
    row = table(grouped([read_result(runs[3])]))[0]
    assert row["gold gained"] == f"{found['mean']:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")
    assert row["run"] == "instruct, tiny"


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
    assert table(grouped([read_result(copy)]))[0]["gold gained"] == "–"


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
