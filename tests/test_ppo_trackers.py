"""Figures also go to TensorBoard or Weights & Biases when `report_to` says so, and nowhere otherwise."""

from __future__ import annotations

import pytest
from tiny import one_thread, save_tiny, tiny_trainer  # noqa: F401

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.ppo import trackers


class Recorder:
    """Stands for a tracker of accelerate."""

    made: list[Recorder] = []

    def __init__(self, name, **where):
        self.name, self.where, self.lines, self.finished = name, where, [], False
        Recorder.made.append(self)

    def start(self):
        self.started = True

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, figures, step):
        self.lines.append((step, figures))

    def finish(self):
        self.finished = True


@pytest.fixture(autouse=True)
def recorders(monkeypatch):
    Recorder.made = []
    monkeypatch.setattr(trackers, "TensorBoardTracker", Recorder)
    monkeypatch.setattr(trackers, "WandBTracker", Recorder)
    return Recorder.made


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("policy"))


def test_without_report_to_nobody_is_told(policy, tmp_path, recorders):
    tiny_trainer(policy, tmp_path).train()
    assert recorders == []


def test_every_number_of_an_update_is_sent(policy, tmp_path, recorders, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
    history = tiny_trainer(policy, tmp_path, report_to=("tensorboard", "wandb")).train()
    assert [recorder.name for recorder in recorders] == ["ppo", "rlhf-gpt2-ppo"]
    for recorder in recorders:
        assert recorder.finished and recorder.settings["learning_rate"] == "0.001"
        assert [step for step, _ in recorder.lines] == [0, 1, 2]
        figures = recorder.lines[-1][1]
        assert figures["kl"] == history[-1]["kl"] and figures["phase_seconds/learning"] > 0
        assert all(isinstance(value, int | float) for value in figures.values())


def test_a_tracker_that_is_not_installed_is_told_before_training(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="wandb, which is not installed; `pip install wandb`"):
        tiny_trainer(policy, tmp_path, report_to=("wandb",))
