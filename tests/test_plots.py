"""Pictures: they appear, they show the numbers on disk, and they say what is missing."""

import io
import re

import numpy as np
import pytest
from made_up_run import ROOT, change, draw, make_run, plot_cells
from matplotlib.image import imread
from matplotlib.text import Text
from PIL import Image

from rlhf_utils.platforms.files import read_jsonl, write_jsonl
from rlhf_utils.report import notebook
from rlhf_utils.runs.run import Run

ALL = """01_sft_full_vs_qlora 02_reward_margins 02_reward_model_accuracy 03_ppo_training 04_alternatives
04_overoptimisation 04_reward_comparison 04_reward_kl_frontier 04_rouge_comparison 04_win_rate""".split()
ALIKE = {"rate": 0.3, "ci95": [0.2, 0.4]}
run = pytest.fixture(lambda tmp_path: make_run(tmp_path))


def png(run, name: str) -> bytes:
    draw(run, name)
    return (run / "plots" / f"{name}.png").read_bytes()


def texts(run, name: str) -> list[str]:
    figure = draw(run, name)
    return [figure.note, *(artist.get_text() for artist in figure.findobj(Text))]


def test_every_picture_is_drawn_wide_enough_and_not_blank(run, monkeypatch):
    cells, shown = {path.stem: "".join(plot_cells(path)) for path in ROOT.glob("0*/*.ipynb")}, []
    assert sorted(set(re.findall(r'picture\(run, "(\w+)"', "".join(cells.values())))) == ALL
    assert cells["02_reward_model"] == cells["03_sentiment_classifier"]
    monkeypatch.setattr(notebook, "get_ipython", lambda: True)
    monkeypatch.setattr(notebook, "display", shown.append)
    for name in ALL:
        content = png(run, name)
        image = imread(io.BytesIO(content))[..., :3]
        assert image.shape[1] == 1200 and image.shape[0] >= 450 and shown.pop().data == content
        assert 0.02 < np.mean(image.min(axis=-1) < 0.9) < 0.9
        assert Image.open(io.BytesIO(content)).text["Description"].endswith("Run: instruct, tiny scale, seed 0.")


def scaled(stage: str, key: str, factor: float | None):
    """Multiplies a figure of a training's log; with None it becomes null."""

    def edit(run) -> None:
        path = run / "checkpoints" / stage / "metrics.jsonl"
        write_jsonl(path, [row | {key: factor and row.get(key) and row[key] * factor} for row in read_jsonl(path)])

    return edit


def changed(name: str, edit):
    return lambda run: change(run, name, edit)


@pytest.mark.parametrize(
    ("plot", "edit"),
    [
        ("01_sft_full_vs_qlora", scaled("sft", "eval_loss", 1.5)),
        ("01_sft_full_vs_qlora", scaled("sft_qlora", "peak_memory_bytes", None)),
        ("02_reward_margins", changed("reward_model", lambda r: r["margins"].extend([-3.0] * 40))),
        ("02_reward_model_accuracy", changed("reward_model", lambda r: r.update(accuracy=0.7))),
        ("03_ppo_training", scaled("ppo", "kl", 1.5)),
        ("03_ppo_training", scaled("ppo", "value_clip_fraction", None)),
        ("04_overoptimisation", changed("overoptimise", lambda o: o["curve"][3].update(gold=1.0))),
        ("04_reward_comparison", changed("summary", lambda s: s["models"]["ppo"].update(gold=4.9))),
        ("04_reward_comparison", changed("summary", lambda s: s["models"]["ppo"].update(reward_ci95=[0.1, 0.9]))),
        ("04_reward_kl_frontier", changed("frontier", lambda f: f["points"][3].update(gold=4.4))),
        ("04_reward_kl_frontier", changed("frontier", lambda f: f.update(chosen_update=0))),
        ("04_reward_kl_frontier", changed("frontier", lambda f: f["best_of_n"][2].update(reward=1.0))),
        ("04_rouge_comparison", changed("summary", lambda s: s["models"]["ppo"].update(rouge2=0.11))),
        ("04_rouge_comparison", changed("summary", lambda s: s["models"]["sft"].update(rougeL=None))),
        ("04_win_rate", changed("summary", lambda s: s["win_rate"]["ppo_vs_sft"].update(ci95=[0.4, 0.8]))),
        ("04_win_rate", changed("summary", lambda s: s["win_rate"]["ppo_vs_sft"].update(wins=1))),
        ("04_win_rate", changed("summary", lambda s: s["win_rate"]["ppo_vs_sft"].update(length_controlled=ALIKE))),
    ],
)
def test_a_picture_changes_with_its_numbers(run, monkeypatch, plot, edit):
    monkeypatch.setattr(notebook, "DPI", 50)
    before = png(run, plot)
    assert png(run, plot) == before
    edit(run)
    assert png(run, plot) != before


def axes_of(figure, title: str):
    return next(axes for axes in figure.axes if axes.get_title("left").startswith(title))


def test_each_loss_has_its_own_axis_and_gold_its_band_on_its_whole_scale(run):
    metrics = run / "checkpoints" / "ppo" / "metrics.jsonl"
    rows = [row | {"gold": 4.0, "gold_std": 1.0} for row in read_jsonl(metrics)]
    write_jsonl(metrics, rows)
    figure = draw(run, "03_ppo_training")
    for title, key in (
        ("policy loss", "policy_loss"),
        ("value loss", "value_loss"),
        ("explained", "explained_variance"),
    ):
        (line,) = (line for line in axes_of(figure, title).lines if len(line.get_ydata()) == len(rows))
        assert list(line.get_ydata()) == [row[key] for row in rows] and list(line.get_xdata()) == list(range(len(rows)))
    gold = axes_of(figure, "judge")
    low, high = (end(gold.collections[0].get_paths()[0].vertices[:, 1]) for end in (min, max))
    assert gold.get_ylim() == (0, 10) and (low, high) == pytest.approx((4 - 1.96 / 128**0.5, 4 + 1.96 / 128**0.5))
    for name in ("04_reward_comparison", "04_reward_kl_frontier", "04_overoptimisation"):
        assert axes_of(draw(run, name), "gold").get_ylim() == (0, 10)
    write_jsonl(metrics, [row | {"gold": None, "gold_std": None} for row in rows])
    assert not [axes for axes in draw(run, "03_ppo_training").axes if axes.get_title("left").startswith("gold")]


def test_the_frontier_joins_nothing_that_was_not_measured(run):
    for axes in draw(run, "04_reward_kl_frontier").axes:
        drawn = [line for line in axes.lines if line.get_linestyle() != "None" and line.get_linewidth()]
        assert all(len(line.get_xdata()) == 1 for line in drawn)


def test_what_a_run_did_not_measure_is_left_out(tmp_path, monkeypatch):
    run, shown = make_run(tmp_path, gold=False), []
    metrics = run / "checkpoints" / "sft_qlora" / "metrics.jsonl"
    write_jsonl(metrics, read_jsonl(metrics)[-1:])  # as of a model that was ready
    change(run, "summary", lambda s: s["models"].pop("sft_qlora"))
    change(run, "summary", lambda s: [m.update(rouge1=None, rouge2=None, rougeL=None) for m in s["models"].values()])
    found = texts(run, "04_reward_comparison")
    assert "SFT\n(QLoRA)" not in found and "PPO" in found and "no judge" in found[0]
    assert "gold score (not optimized)" not in texts(run, "04_reward_kl_frontier")
    (run / "plots" / "04_rouge_comparison.png").write_bytes(b"of an earlier run")
    monkeypatch.setattr(notebook, "get_ipython", lambda: True)
    monkeypatch.setattr(notebook, "display", shown.append)
    for name, why in (("01_sft_full_vs_qlora", "sft_qlora was not trained"), ("04_rouge_comparison", "no reference")):
        draw(run, name)
        assert why in shown.pop().data and not (run / "plots" / f"{name}.png").exists()


def test_one_update_one_prompt_and_one_pair_are_enough(tmp_path):
    run = make_run(tmp_path, prompts=1)
    path = run / "checkpoints" / "ppo" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    change(run, "frontier", lambda f: f.update(points=f["points"][:1], chosen_update=0))
    change(run, "reward_model", lambda r: r.update(margins=[0.0], pairs=1))
    assert all(texts(run, name) for name in ALL)


def test_a_picture_is_written_whole_by_one_process_and_dollar_signs_are_no_formulas(run, monkeypatch):
    with notebook.picture(Run.load(run), "a", "$x{$ and $") as figure:
        figure.add_subplot().set_title("$a{$")
        figure.note = "$\\frac$"
    whole = (run / "plots" / "a.png").read_bytes()
    with pytest.raises(ZeroDivisionError), notebook.drawing(run / "plots" / "a.png", "b"):
        raise ZeroDivisionError
    monkeypatch.setattr(notebook.processes, "is_main", lambda: False)
    with notebook.drawing(run / "plots" / "a.png", "b"):
        pass
    assert len(whole) > 1000 and (run / "plots" / "a.png").read_bytes() == whole
