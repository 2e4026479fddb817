"""Pictures: they appear, they show the numbers on disk, and they say what is missing."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from made_up_run import LEVELS, make_run, write_lines, write_object
from matplotlib.image import imread

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.report.plots import PLOTS, draw
from rlhf_utils.report.plots.results import bounds, number, run_caption
from rlhf_utils.report.plots.style import COLOURS, DPI

NEEDED = {
    "01_sft_full_vs_qlora",
    "02_reward_model_accuracy",
    "02_reward_margins",
    "02_reward_by_length",
    "03_ppo_training",
    "04_rouge_comparison",
    "04_reward_comparison",
    "04_reward_kl_frontier",
    "04_win_rate",
    "04_reward_range",
    "04_overoptimisation",
}


SMALL = 60  # dots per inch: quicker, and the pixels change with the numbers all the same


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr("rlhf_utils.report.plots.style.DPI", SMALL)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """Bytes of every picture of the made-up run as it is, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_utils.report.plots.style.DPI", SMALL)
        return {path.stem: path.read_bytes() for path in draw(make_run(tmp_path_factory.mktemp("unchanged")))}


def pixels(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return imread(io.BytesIO(content))[..., :3]


def has_colour(image, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(image - wanted).max(axis=-1) < 0.01).sum() > 20)


def change(run, name, edit):
    path = run / "evaluation" / f"{name}.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def without_gold(summary):
    for figures in summary["models"].values():
        figures.update(gold=None, gold_ci95=None)


def test_every_picture_is_drawn_wide_enough_and_not_blank(run, monkeypatch):
    monkeypatch.setattr("rlhf_utils.report.plots.style.DPI", DPI)
    paths = draw(run)
    assert {path.stem for path in paths} == set(PLOTS) == NEEDED
    for path in paths:
        image = pixels(path)
        assert image.shape[1] == 1200 and image.shape[0] >= 450
        assert 0.02 < np.mean(image.min(axis=-1) < 0.9) < 0.9
    assert sorted(p.name for p in (run / "plots").iterdir()) == sorted(f"{name}.png" for name in NEEDED)


def test_one_picture_by_name_with_or_without_the_ending(run):
    assert draw(run, "04_win_rate") == draw(run, "04_win_rate.png") == [run / "plots" / "04_win_rate.png"]
    with pytest.raises(InputError, match="no plot called 05_dreams: choose one of 01_sft_full_vs_qlora"):
        draw(run, "05_dreams")


@pytest.mark.parametrize(
    ("plot", "name", "edit"),
    [
        ("04_rouge_comparison", "summary", lambda s: s["models"]["ppo"].update(rouge2=0.11)),
        ("04_reward_comparison", "summary", lambda s: s["models"]["ppo"].update(gold=4.9)),
        ("04_reward_comparison", "summary", lambda s: s["models"]["ppo"].update(reward_ci95=[0.1, 0.9])),
        ("04_win_rate", "summary", lambda s: s["win_rate"]["ppo_vs_sft"].update(rate=0.5, ci95=[0.4, 0.6])),
        ("04_reward_kl_frontier", "frontier", lambda f: f["points"][3].update(gold=4.4)),
        ("04_reward_kl_frontier", "frontier", lambda f: f.update(chosen_update=16)),
        ("04_reward_kl_frontier", "frontier", lambda f: f["best_of_n"][2].update(reward=1.0)),
        ("04_reward_range", "summary", lambda s: s["reward_range"]["models"]["ppo"].__setitem__(3, 0.9)),
        ("02_reward_by_length", "reward_model", lambda r: r["by_length"][0].update(accuracy=0.5)),
        ("02_reward_model_accuracy", "reward_model", lambda r: r.update(accuracy=0.7)),
        ("02_reward_margins", "reward_model", lambda r: r["margins"].extend([-3.0] * 40)),
        ("02_reward_margins", "reward_model", lambda r: r["calibration"]["bins"][0].update(accuracy=0.9)),
    ],
)
def test_a_picture_changes_with_its_numbers(run, unchanged, plot, name, edit):
    change(run, name, edit)
    assert draw(run, plot)[0].read_bytes() != unchanged[plot]


def test_the_same_numbers_give_the_same_picture(run, unchanged):
    assert draw(run, "04_win_rate")[0].read_bytes() == unchanged["04_win_rate"]


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
    write_lines(path, [{**row, key: row[key] * 1.5} if key in row else row for row in rows])
    second = draw(run, plot)[0].read_bytes()
    write_lines(path, [{**row, key: None} if key in row else row for row in rows])
    third = draw(run, plot)[0].read_bytes()
    assert len({unchanged[plot], second, third}) == 3


def test_a_model_missing_from_the_summary_is_not_drawn(run):
    before = pixels(draw(run, "04_reward_comparison")[0])
    change(run, "summary", lambda s: s["models"].pop("sft_qlora"))
    after = pixels(draw(run, "04_reward_comparison")[0])
    assert has_colour(before, COLOURS["sft_qlora"]) and not has_colour(after, COLOURS["sft_qlora"])
    assert has_colour(after, COLOURS["ppo"])


def test_a_null_is_not_drawn_as_zero(run):
    change(run, "summary", lambda s: [m.update(rouge1=None) for m in s["models"].values()])
    change(run, "summary", lambda s: s["models"]["ppo"].update(rouge2=None, rougeL=None))
    null = draw(run, "04_rouge_comparison")[0].read_bytes()
    change(run, "summary", lambda s: s["models"]["ppo"].update(rouge2=0.0, rougeL=0.0))
    assert draw(run, "04_rouge_comparison")[0].read_bytes() != null


def test_a_run_without_gold_or_references_draws_its_evaluation(tmp_path):
    run = make_run(tmp_path, gold=False)
    change(
        run,
        "summary",
        lambda s: [m.update(rouge1=None, rouge2=None, rougeL=None) for m in s["models"].values()],
    )
    change(run, "summary", lambda s: s.update(win_rate=None))
    for name in (name for name in PLOTS if name.startswith("04_")):
        draw(run, name)
    assert not has_colour(pixels(run / "plots" / "04_rouge_comparison.png"), COLOURS["ppo"])


def test_one_update_and_one_prompt_are_enough(tmp_path):
    run = make_run(tmp_path, prompts=1)
    path = run / "checkpoints" / "ppo" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    change(run, "frontier", lambda f: f.update(points=f["points"][:1], chosen_update=0))
    change(run, "reward_model", lambda r: r.update(margins=[0.0], pairs=1))
    assert len(draw(run)) == len(PLOTS)


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
    ("content", "message"),
    [
        ('{"update": 1}\n{"upd', "line 2 is not valid JSON"),
        ("[1]\n", "line 1 is not a JSON object"),
        ("\n", "is empty"),
    ],
)
def test_broken_metrics_are_named_by_line(run, content, message):
    (run / "checkpoints" / "ppo" / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        draw(run, "03_ppo_training")


def test_a_failed_drawing_leaves_the_old_picture(run, monkeypatch):
    path = draw(run, "04_win_rate")[0]
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhf_utils.platforms.files.os.replace", full_disk)
    with pytest.raises(InputError, match="the disk is full"):
        draw(run, "04_win_rate")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_numbers_that_are_not_numbers_are_not_figures():
    assert [number(v) for v in (1, 0.5, None, float("nan"), float("inf"), True, "3")] == [
        1.0,
        0.5,
        *[None] * 5,
    ]
    assert [bounds(v) for v in ([0, 1], None, [None, 1], [1])] == [(0.0, 1.0), None, None, None]


def test_the_corner_names_recipe_scale_and_seed(run, tmp_path):
    assert run_caption(run) == "instruct, tiny scale · seed 0"
    (tmp_path / "mine").mkdir()
    assert run_caption(tmp_path / "mine") == "mine"
    write_object(tmp_path / "mine" / "run.json", {"recipe": "imdb", "scale": "t4", "seed": 3})
    assert run_caption(tmp_path / "mine") == "imdb, t4 scale · seed 3"


def test_models_have_different_colours():
    assert len({COLOURS[name] for name in LEVELS}) == len(LEVELS)
