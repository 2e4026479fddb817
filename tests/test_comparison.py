"""Runs side by side: seeds are merged, what differs gives the name, and nothing is made up for what is missing."""

import csv
import shutil
from pathlib import Path

import pytest
from made_up_run import change, make_run

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.report.page import compare, comparison_table, grouped, read_result


def make(folder: Path, seed: int, kl: float, gain: float) -> Path:
    run = make_run(folder, prompts=1)
    record = read_json(run / "run.json")
    record["settings"]["seed"], record["settings"]["ppo"]["kl_coefficient"] = seed, kl
    write_json(run / "run.json", record)
    change(run, "summary", lambda s: s["paired"]["ppo_vs_sft"]["gold"].update(mean=gain, ci95=[gain - 1, gain + 0.25]))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    given = [(0, 0.1, 0.5), (1, 0.1, -0.75), (2, 0.1, 0.1), (0, 0.02, 0.2)]
    return [make(folder / f"{i}", *settings) for i, settings in enumerate(given)]


def test_runs_that_differ_in_their_seed_are_one_row_with_its_spread(runs):
    results = [read_result(run) for run in runs]
    several, single = comparison_table(grouped(results))
    assert [several["run"], single["run"]] == [f"instruct, tiny, ppo.kl_coefficient={kl}" for kl in (0.1, 0.02)]
    assert (several["seeds"], several["against"], single["seeds"]) == ("3", "SFT", "1")
    assert several["gold gain"] == "−0.05 [−0.75, 0.50]" and single["gold gain"] == "0.20 [−0.80, 0.45]"
    assert list(grouped(results[3:])) == ["instruct, tiny"]


def test_table_and_picture_are_written(runs, tmp_path):
    rows = compare(runs, tmp_path / "out")
    with open(tmp_path / "out" / "comparison.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
    assert (tmp_path / "out" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    copy = shutil.copytree(runs[0], tmp_path / "run")
    change(copy, "summary", lambda s: s["paired"]["ppo_vs_sft"].update(gold=None))
    assert [row["gold gain"] for row in compare([copy], tmp_path / "out")] == ["–"]


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="the same run twice"):
        compare([runs[0], runs[0]], tmp_path / "out")
    with pytest.raises(InputError, match="the same run twice"):
        compare([runs[0], shutil.copytree(runs[0], tmp_path / "copy")], tmp_path / "out")
    for left in ("run.json", "evaluation/summary.json"):
        with pytest.raises(InputError, match=f"{left} is missing: run the notebook"):
            compare([tmp_path], tmp_path / "out")
        write_json(tmp_path / left, {})
    with pytest.raises(InputError, match="not made by this version"):
        compare([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
