"""Runs side by side: seeds are merged, what differs gives the name, and nothing is made up for what is missing."""

import csv
import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_up_run import make_run

from rlhf_utils.evaluation.seeds import merge_runs
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.report.findings import shown
from rlhf_utils.report.page import compare, comparison_table, grouped, read_result


def make(folder: Path, seed: int, kl: float, gain: float) -> Path:
    """A run in which PPO is better by `gain` on average, on prompts of its own."""
    run = make_run(folder)
    samples = run / "evaluation" / "samples.csv"
    rows = pd.read_csv(samples, keep_default_na=False)
    # None of the synthetic dataset's, whose wordings of one request would be one cluster in all runs.
    rows["prompt"] = [f"prompt {place} of run {folder.name}" for place in rows.index]
    rows["ppo_gold"] = rows["sft_gold"] + gain + (-1.0) ** rows.index
    rows.to_csv(samples, index=False)
    record = read_json(run / "run.json")
    record["seed"] = seed
    record["settings"]["seed"], record["settings"]["ppo"]["kl_coefficient"] = seed, kl
    write_json(run / "run.json", record)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    given = [(0, 0.1, 0.5), (1, 0.1, -0.75), (2, 0.1, 0.1), (0, 0.02, 0.2)]
    return [make(folder / f"{i}", *settings) for i, settings in enumerate(given)]


def test_runs_that_differ_in_their_seed_are_one_row_with_the_interval_of_the_merged_seeds(runs):
    results = [read_result(run) for run in runs]
    several, single = comparison_table(grouped(results))
    assert [several["run"], single["run"]] == [f"instruct, tiny, ppo.kl_coefficient={kl}" for kl in (0.1, 0.02)]
    assert (several["seeds"], several["against"], single["seeds"]) == ("3", "SFT", "1")
    # Student's t of -0.75, 0.1 and 0.5 with two degrees of freedom: no least and greatest value in brackets.
    assert several["gold gain"] == "−0.05 [−1.64, 1.54]"
    low, high = merge_runs(runs[:3])["figures"]["ppo_vs_sft"]["gold"]["ci95"]
    assert several["gold gain"].endswith(shown(-0.05, [low, high])[5:])
    assert single["gold gain"].startswith("0.20 [−0.")
    kl = f"{read_json(runs[0] / 'evaluation' / 'summary.json')['models']['ppo']['kl_to_sft']:.2f}"
    assert (single["KL, nats"], several["KL, nats"]) == (kl, f"{kl} [{kl}, {kl}]")
    assert list(grouped(results[3:])) == ["instruct, tiny"]


def test_table_and_picture_are_written(runs, tmp_path):
    rows = compare(runs, tmp_path / "out")
    with open(tmp_path / "out" / "comparison.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
    assert (tmp_path / "out" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    copy = shutil.copytree(runs[0], tmp_path / "run")
    rows = pd.read_csv(copy / "evaluation" / "samples.csv", keep_default_na=False)
    rows.drop(columns=["ppo_gold", "sft_gold"]).to_csv(copy / "evaluation" / "samples.csv", index=False)
    assert [row["gold gain"] for row in compare([copy], tmp_path / "out")] == ["–"]


@pytest.mark.filterwarnings("error")
def test_a_long_list_of_changed_settings_leaves_room_for_the_picture(runs, tmp_path):
    other = shutil.copytree(runs[0], tmp_path / "other")
    record = read_json(other / "run.json")
    record["settings"]["ppo"] = {key: 1 for key in record["settings"]["ppo"]}
    write_json(other / "run.json", record)
    rows = compare([runs[0], other], tmp_path / "out")
    assert all(f"ppo.{key}=" in row["run"] for row in rows for key in ("updates", "epochs", "kl_coefficient"))


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="the same run twice"):
        compare([runs[0], runs[0]], tmp_path / "out")
    with pytest.raises(InputError, match="the same run twice"):
        compare([runs[0], shutil.copytree(runs[0], tmp_path / "copy")], tmp_path / "out")
    names = ("summary.json", "reward_model.json", "samples.csv")
    for left in ("run.json", *(f"evaluation/{name}" for name in names)):
        with pytest.raises(InputError, match=f"{left} is missing: run the notebook"):
            compare([tmp_path], tmp_path / "out")
        write_json(tmp_path / left, {})
    with pytest.raises(InputError, match="not made by this version"):
        compare([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
