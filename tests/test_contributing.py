"""The worked examples of CONTRIBUTING.md do what it says, and what it points to is there."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from made_up_run import make_run

from rlhf_utils.runs.run import Run
from rlhf_utils.settings import recipes
from rlhf_utils.settings.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLOT, REWARD, USE = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_recipe_is_complete(tmp_path, monkeypatch):
    (tmp_path / "support.yaml").write_text(re.search(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)[1], encoding="utf-8")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    for scale in ("tiny", "t4"):
        recipe = load_recipe("support", scale)
        assert recipe.reward.length == 0.3 and recipe.dataset == "data/support_pairs.jsonl"
    assert set(recipe.reading) <= {path.stem for path in ROOT.glob("0*/*.ipynb")}


def test_the_plot_is_one(tmp_path):
    run = Run.load(make_run(tmp_path))
    exec(PLOT, {"run": run})
    assert (run.plots / "03_entropy.png").is_file()


def test_the_reward_is_one():
    names = {"Sequence": Sequence, "Tensor": torch.Tensor, "torch": torch, "terms": {}}
    exec(REWARD, names)
    exec(USE, names | {"weights": SimpleNamespace(question=0.5)})
    weight, reward = names["terms"]["question"]
    assert weight == 0.5 and reward(["a", "b"], ["Which one? ", "This one."]).tolist() == [1.0, 0.0]
