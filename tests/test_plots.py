"""Pictures: they appear, they show the numbers on disk, and they say what is missing."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from made_up_run import make_run
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_json, write_jsonl
from rlhf_utils.report.plots import applicable, draw
from rlhf_utils.report.results import bounds, run_caption
from rlhf_utils.report.style import PLOTS, NothingToShow, save, shown

ALL = [
    "01_sft_full_vs_qlora", "02_reward_by_length", "02_reward_margins", "02_reward_model_accuracy", "03_ppo_training",
    "04_overoptimisation", "04_reward_comparison", "04_reward_kl_frontier", "04_reward_range", "04_rouge_comparison",
    "04_win_rate",
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("unchanged"))
    return {name: content(run, name) for name in ALL}


def content(run, name: str) -> list[str]:
    """The texts of a picture and the places of all that is drawn in it, without drawing it."""
    figure = Figure()
    note = PLOTS[name].draw(run, figure)
    found = [note]
    for artist in figure.findobj():
        match artist:
            case Text():
                found.append(artist.get_text())
            case Line2D():
                found.append(str(artist.get_xydata().round(6).tolist()))
            case Rectangle():
                found.append(str(np.round(artist.get_bbox().extents, 6).tolist()))
            case PathCollection():
                found.append(str(np.ma.filled(artist.get_offsets(), 0).round(6).tolist()))
            case LineCollection():
                found.append(str([np.round(segment, 6).tolist() for segment in artist.get_segments()]))
    return found


def change(run, name, edit):
    path = run / "evaluation" / f"{name}.json"
    value = json.loads(path.read_text())
    edit(value)
    write_json(path, value)


def test_every_picture_is_drawn_wide_enough_and_not_blank(run):
    paths = draw(run)
    assert [path.stem for path in paths] == sorted(PLOTS) == ALL
    for path in paths:
        image = imread(io.BytesIO(path.read_bytes()))[..., :3]
        assert image.shape[1] == 1200 and image.shape[0] >= 450
        assert 0.02 < np.mean(image.min(axis=-1) < 0.9) < 0.9
    assert sorted(p.name for p in (run / "plots").iterdir()) == [f"{name}.png" for name in ALL]


def test_one_picture_by_name_is_the_same_twice_and_stays_when_the_disk_is_full(run, monkeypatch):
    [path] = draw(run, "04_win_rate")
    before = path.read_bytes()
    assert draw(run, "04_win_rate.png") == [run / "plots" / "04_win_rate.png"] and path.read_bytes() == before
    with pytest.raises(InputError, match="no plot called 05_dreams: choose one of 01_sft_full_vs_qlora"):
        draw(run, "05_dreams")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhf_utils.platforms.files.os.replace", full_disk)
    with pytest.raises(InputError, match="the disk is full"):
        draw(run, "04_win_rate")
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("plot", "name", "edit"),
    [
        ("04_rouge_comparison", "summary", lambda s: s["models"]["ppo"].update(rouge2=0.11)),
        ("04_rouge_comparison", "summary", lambda s: s["models"]["ppo"].update(rouge2=None)),
        ("04_reward_comparison", "summary", lambda s: s["models"]["ppo"].update(gold=4.9)),
        ("04_reward_comparison", "summary", lambda s: s["models"]["ppo"].update(reward_ci95=[0.1, 0.9])),
        ("04_win_rate", "summary", lambda s: s["win_rate"]["ppo_vs_sft"].update(rate=0.5, ci95=[0.4, 0.6])),
        ("04_win_rate", "summary", lambda s: s["win_rate"]["ppo_vs_sft"].update(wins=1)),
        ("04_reward_kl_frontier", "frontier", lambda f: f["points"][3].update(gold=4.4)),
        ("04_reward_kl_frontier", "frontier", lambda f: f.update(chosen_update=16)),
        ("04_reward_kl_frontier", "frontier", lambda f: f["best_of_n"][2].update(reward=1.0)),
        ("04_reward_range", "summary", lambda s: s["reward_range"]["models"]["ppo"].__setitem__(3, 0.9)),
        ("04_overoptimisation", "overoptimise", lambda o: o["curve"][3].update(gold=1.0)),
        ("02_reward_by_length", "reward_model", lambda r: r["by_length"][0].update(accuracy=0.5)),
        ("02_reward_model_accuracy", "reward_model", lambda r: r.update(accuracy=0.7)),
        ("02_reward_margins", "reward_model", lambda r: r["margins"].extend([-3.0] * 40)),
        ("02_reward_margins", "reward_model", lambda r: r["calibration"]["bins"][0].update(accuracy=0.9)),
    ],
)
def test_a_picture_changes_with_its_numbers(run, unchanged, plot, name, edit):
    assert content(run, plot) == unchanged[plot]
    change(run, name, edit)
    assert content(run, plot) != unchanged[plot]


@pytest.mark.parametrize(
    ("plot", "stage", "key"),
    [
        ("03_ppo_training", "ppo", "kl"),
        ("03_ppo_training", "ppo", "value_clip_fraction"),
        ("01_sft_full_vs_qlora", "sft", "eval_loss"),
        ("01_sft_full_vs_qlora", "sft_qlora", "peak_memory_bytes"),
    ],
)
def test_training_pictures_follow_metrics_and_take_nulls(run, unchanged, plot, stage, key):
    path = run / "checkpoints" / stage / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, [{**row, key: row[key] * 1.5} if key in row else row for row in rows])
    second = content(run, plot)
    write_jsonl(path, [{**row, key: None} if key in row else row for row in rows])
    third = content(run, plot)
    assert unchanged[plot] != second != third != unchanged[plot]


def test_a_model_that_is_missing_is_not_drawn_and_a_null_is_not_zero(run):
    assert "SFT\n(QLoRA)" in content(run, "04_reward_comparison")
    change(run, "summary", lambda s: s["models"].pop("sft_qlora"))
    change(run, "summary", lambda s: [m.update(rouge1=None, rouge2=None, rougeL=None) for m in s["models"].values()])
    change(run, "summary", lambda s: s["models"]["ppo"].update(rouge1=0.4))
    found = content(run, "04_reward_comparison")
    assert "SFT\n(QLoRA)" not in found and "PPO" in found
    assert "0.40" in content(run, "04_rouge_comparison") and "0.00" not in content(run, "04_rouge_comparison")


def test_a_run_without_gold_references_or_extras_leaves_out_what_it_did_not_measure(tmp_path):
    run = make_run(tmp_path, gold=False)
    change(run, "summary", lambda s: [m.update(rouge1=None, rouge2=None, rougeL=None) for m in s["models"].values()])
    change(run, "summary", lambda s: s.update(win_rate=None, reward_range=None))
    change(run, "reward_model", lambda r: r.update(by_length=None))
    (run / "evaluation" / "overoptimise.json").unlink()
    write_json(run / "run.json", {"not_trained": ["sft_qlora"]})
    left_out = {"01_sft_full_vs_qlora", "02_reward_by_length", "04_overoptimisation", "04_reward_range"}
    assert set(applicable(run)) == set(ALL) - left_out
    for name in ("04_reward_comparison", "04_reward_kl_frontier"):
        assert "this recipe has no gold judge" in content(run, name)
    for name, why in (("04_win_rate", "no gold judge, so no win rate"), ("04_rouge_comparison", "no reference")):
        with pytest.raises(NothingToShow, match=why):
            content(run, name)
        assert draw(run, name)[0].stat().st_size > 1000


def test_one_update_one_prompt_and_one_pair_are_enough(tmp_path):
    run = make_run(tmp_path, prompts=1)
    path = run / "checkpoints" / "ppo" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    change(run, "frontier", lambda f: f.update(points=f["points"][:1], chosen_update=0))
    change(run, "reward_model", lambda r: r.update(margins=[0.0], pairs=1))
    assert all(content(run, name) for name in ALL)


@pytest.mark.parametrize(
    ("plot", "missing", "notebook"),
    [
        ("01_sft_full_vs_qlora", "checkpoints/sft/metrics.jsonl", "02_full_finetuning"),
        ("01_sft_full_vs_qlora", "checkpoints/sft_qlora/metrics.jsonl", "03_qlora"),
        ("02_reward_margins", "evaluation/reward_model.json", "02_reward_model"),
        ("03_ppo_training", "checkpoints/ppo/metrics.jsonl", "02_ppo_training"),
        ("04_rouge_comparison", "evaluation/samples.csv", "01_compare_models"),
        ("04_win_rate", "evaluation/summary.json", "01_compare_models"),
        ("04_reward_kl_frontier", "evaluation/frontier.json", "01_compare_models"),
    ],
)
def test_a_missing_file_names_the_notebook_to_run(run, plot, missing, notebook):
    (run / missing).unlink()
    with pytest.raises(InputError, match=f"{os.path.basename(missing)} is missing: run notebook {notebook} first"):
        draw(run, plot)
    assert not (run / "plots" / f"{plot}.png").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"update": 1}\n{"upd', "line 2 is not a JSON object"), ("[1]\n", "line 1 is not"), ("\n", "is empty")],
)
def test_broken_metrics_are_named_by_line(run, text, message):
    (run / "checkpoints" / "ppo" / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        draw(run, "03_ppo_training")


def test_figures_are_written_with_their_intervals_and_true_minus_signs():
    assert [bounds(v) for v in ([0, 1], None, [None, 1])] == [(0.0, 1.0), None, None]
    assert shown(None) == "–" and shown(-0.001) == "0.00" and shown(-0.5, [-1, 0.25]) == "−0.50 [−1.00, 0.25]"
    assert shown(0.6, [0.4, None], "+z.1f") == "+0.6" and shown(0.6, [0.4, 0.8], "+z.1f") == "+0.6 [0.4, 0.8]"
    assert shown(0.9234, (0.9, 0.94), "z.1%") == "92.3% [90.0%, 94.0%]"


def test_the_corner_names_the_run_and_dollar_signs_are_no_formulas(run, tmp_path):
    assert run_caption(run) == "instruct, tiny scale · seed 0"
    other = tmp_path / "costs $5 {and $x_{"
    other.mkdir()
    assert run_caption(other) == other.name
    save(other / "a.png", "$x{$ and $", run_caption(other), lambda f: f.add_subplot().set_title("$a{$") and "$\\frac$")
    assert (other / "a.png").stat().st_size > 1000
    write_json(other / "run.json", {"recipe": "imdb", "scale": "t4", "seed": 3})
    assert run_caption(other) == "imdb, t4 scale · seed 3"
