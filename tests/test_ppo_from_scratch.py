"""Notebook 3.1: its PPO in 60 lines, and the same updates by `PPOTrainer`, on other models and settings."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from test_language_model import of
from tiny import PROMPTS, one_thread, save_tiny, tiny_tokenizer  # noqa: F401

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.models.loading import save_model
from rlhf_utils.rewards import reward_model
from rlhf_utils.settings.recipes import load_recipe

NOTEBOOK = Path(__file__).resolve().parents[1] / "03_ppo_alignment" / "01_ppo_from_scratch.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
SETTINGS = {"updates": 3, "rollout_batch_size": 12, "minibatch_size": 4, "max_new_tokens": 12, "learning_rate": 5e-3}


def letters(prompts, responses):
    return torch.tensor([sum(map(str.isalpha, response)) / 4 for response in responses])


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_the_ppo_of_the_notebook_is_60_lines_in_small_cells():
    shown = [source(cell).splitlines() for cell in CELLS if "ppo" in cell["metadata"].get("tags", [])]
    assert 40 < sum(bool(line.strip()) for cell in shown for line in cell) <= 60
    assert max(map(len, shown)) <= 12


FAST = {"learning_rate": 5e-4}
CASES = [
    ("GPT-2", {"warmup_ratio": 0.5, "epochs": 2, "missing_eos_penalty": 1.5}),
    ("Llama", FAST | {"warmup_ratio": 0.0, "epochs": 3, "gae_lambda": 0.8, "gamma": 0.9, "temperature": 0.8}),
    ("OPT", FAST | {"value_learning_rate": 2e-3, "kl_coefficient": 0.5, "clip_range": 0.05, "seed": 7}),
]


@pytest.mark.parametrize(("architecture", "settings"), CASES)
def test_every_cell_runs_and_the_trainer_gives_the_same_numbers(tmp_path, monkeypatch, architecture, settings):
    if architecture == "GPT-2":
        save_tiny(tmp_path / "sft", eos_nats=3.0)
    else:
        save_model(of(architecture), tiny_tokenizer(), tmp_path / "sft")
    data = SimpleNamespace(splits={"ppo": Dataset.from_dict({"prompt": PROMPTS})})
    monkeypatch.setattr(PreparedData, "load", lambda folder: data)
    monkeypatch.setattr(reward_model, "load_reward", lambda folder, device: letters)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    run = SimpleNamespace(recipe=load_recipe("instruct", "tiny"), folder=lambda stage: tmp_path / stage)
    run.progress = lambda *_: None
    names, begun = {"run": run}, False
    for cell in CELLS:
        if begun:
            exec(compile(source(cell), cell["id"], "exec"), names)
        begun = begun or "open_run(" in source(cell)
        if "config = PPOConfig(" in source(cell):
            names["config"] = names["config"].model_copy(update=SETTINGS | settings)
    assert len(names["curve"]) == 3 and names["figures"] < 1e-5 and names["difference"] < 1e-5
    moved = max((p - names["reference"].state_dict()[n]).abs().max() for n, p in names["weights"].items())
    assert moved > 5e-4 and max(line[4] for line in names["curve"]) > 0, "nothing was learnt, or no clip was active"
