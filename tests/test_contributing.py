"""The worked examples of CONTRIBUTING.md do what it says, and what it points to is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from made_up_run import make_run

from rlhf_utils.report import plots
from rlhf_utils.settings import recipes
from rlhf_utils.settings.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("scale", ["tiny", "t4"])
def test_the_recipe_is_complete(tmp_path, monkeypatch, scale):
    (tmp_path / "support.yaml").write_text(*blocks("yaml"), encoding="utf-8")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    recipe = load_recipe("support", scale)
    assert recipe.reward.length == 0.3 and recipe.dataset == "data/support_pairs.jsonl"
    assert set(recipe.reading) <= {path.stem for path in ROOT.glob("0*/*.ipynb")}


def test_the_plot_is_one(tmp_path, monkeypatch):
    monkeypatch.setitem(plots.PLOTS, "03_entropy", None)  # taken out again after the test
    exec(blocks("python")[0], vars(plots).copy())
    assert plots.draw(make_run(tmp_path), "03_entropy").is_file()


def test_the_reward_is_one():
    names = {"Sequence": Sequence, "Tensor": torch.Tensor, "torch": torch}
    _, definition, use = blocks("python")
    exec(definition, names)
    assert names["QuestionReward"]()(["a", "b"], ["Which one? ", "This one."]).tolist() == [1.0, 0.0]
    terms, weights = {}, type("Weights", (), {"question": 0.5})
    exec(use, {**names, "terms": terms, "weights": weights})
    assert terms["question"][0] == 0.5


def test_what_it_points_to_is_there():
    named = re.findall(r"`([\w/*]+(?:\.(?:py|yaml|toml|md|txt)|/))`", TEXT)
    assert len(named) > 25
    for name in set(named) - {"rlhf_utils/settings/recipes/support.yaml"}:
        assert any(list(place.glob(name)) for place in (ROOT, ROOT / "tests")), name
