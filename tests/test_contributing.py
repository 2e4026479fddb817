"""The worked examples of CONTRIBUTING.md do what it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rlhf_utils import rewards, stages
from rlhf_utils.settings import recipes
from rlhf_utils.settings import sections as settings
from rlhf_utils.settings.recipes import load_recipe
from rlhf_utils.stages import ppo

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def with_the_example(tmp_path, monkeypatch):
    (source,) = blocks("yaml")
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "support.yaml").write_text(source, encoding="utf-8")
    monkeypatch.setattr(recipes.resources, "files", lambda package: tmp_path)


@pytest.mark.parametrize("scale", ["tiny", "t4"])
def test_the_recipe_is_complete(with_the_example, scale):
    recipe = load_recipe("support", scale)
    assert recipe.reward.length == 0.3
    assert recipe.dataset == "data/support_pairs.jsonl"
    assert set(recipe.reading) <= {path.stem for path in ROOT.glob("0*/*.ipynb")}


def test_the_reward_is_one():
    name_space = {"Sequence": Sequence, "Tensor": torch.Tensor, "torch": torch}
    definition, use = blocks("python")
    exec(definition, name_space)
    assert name_space["QuestionReward"]()(["a", "b"], ["Which one? ", "This one."]).tolist() == [1.0, 0.0]
    terms, weights = {}, type("Weights", (), {"question": 0.5})
    exec(use, {**name_space, "terms": terms, "weights": weights})
    assert terms["question"][0] == 0.5


def test_what_it_points_to_is_there():
    assert hasattr(ppo, "reward_function") and hasattr(settings, "RewardTerms") and hasattr(rewards, "RewardMixture")
    named = re.findall(r"`([\w/*]+\.(?:py|yaml|toml|md))`", TEXT)
    assert named
    for name in named:
        places = (ROOT, ROOT / "rlhf_utils", ROOT / "tests", Path(stages.__file__).parent)
        assert name.endswith("support.yaml") or any(list(place.glob(name)) for place in places), name
