"""All four recipes at scale t4, models and data by the names that the recipes give them, on the loopback hub."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hub.client import ROOT, environment

from rlhf_utils.platforms.hub import wanted_dataset, wanted_model
from rlhf_utils.settings.recipes import load_recipe, recipe_names


@pytest.mark.slow
def test_every_recipe_passes_at_t4_through_hub_names_and_records_what_it_read(hub, tmp_path):
    """In one process: most of a reduced run is imports."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hub" / "all_recipes.py"), str(tmp_path / "out")],
        env=environment(hub.url, tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = {
        found["recipe"]: found for found in map(json.loads, filter(lambda x: x[0] == "{", done.stdout.splitlines()))
    }
    assert sorted(told) == recipe_names()
    for name, found in told.items():
        recipe, plain = load_recipe(name, "t4"), name == "imdb"
        assert found["models"] == (["base", "ppo"] if plain else ["base", "ppo", "sft", "sft_qlora"])
        data = wanted_dataset(recipe.dataset, recipe.data.revision, recipe.data.data_dir)
        wanted = {"base": {recipe.policy: wanted_model(recipe.policy)}, "data": {str(data): data}}
        if plain:
            wanted["reward_model"] = {recipe.models.reward_model: wanted_model(recipe.models.reward_model)}
        assert found["commits"] == {
            stage: {
                key: hub.repositories[one.kind, one.name].revisions[one.revision or "main"] for key, one in of.items()
            }
            for stage, of in wanted.items()
        }
