"""Warnings in plain words: each comes with its figure and cause, and a healthy training gets none."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from tiny import count_letter, one_thread, save_tiny, tiny_trainer  # noqa: F401

from rlhf_utils.ppo.health import phrase_shares, spreading_phrase, warnings_of
from rlhf_utils.settings.sections import PPOConfig

HEALTHY = {
    "kl": 1.0,
    "eos_rate": 0.95,
    "entropy": 2.0,
    "reward": 0.0,
    "reward_std": 1.0,
    "value_loss": 0.5,
    "episodes": 128,
    "phrase": "once upon a time",
    "phrase_share": 0.1,
    "phrase_share_at_start": 0.05,
}


def history(updates: int = 12, **last) -> list[dict]:
    """A training whose reward rises steadily, but for what its last update says."""
    lines = [{**HEALTHY, "reward": 0.1 * i, "kl": 0.1 * i} for i in range(updates)]
    return [*lines[:-1], {**lines[-1], **last}]


def test_a_healthy_training_is_left_alone():
    for updates in (1, 2, 5, 30):
        assert warnings_of(history(updates), PPOConfig(kl_budget=10.0)) == {}


@pytest.mark.parametrize(
    "last, name, words",
    [
        ({"kl": -0.8}, "negative_kl", "-0.80 nats .*cannot be negative"),
        ({"kl": 11.0}, "over_budget", "11.0 nats .*at temperature 0.9 .*budget of 10: training ends"),
        ({"eos_rate": 0.7}, "eos_falling", "only 70% .*with EOS, after 95%"),
        ({"entropy": 0.5}, "entropy_collapse", "from 2.00 to 0.50"),
        ({"value_loss": 9.0}, "value_loss", "jumped to 9, from 0.5"),
        ({"phrase_share": 0.8}, "one_phrase", "'once upon a time' appears in 80% .*at first in 5%"),
    ],
)
def test_each_trouble_is_told_with_its_figures(last, name, words):
    found = warnings_of(history(**last), PPOConfig(kl_budget=10.0, temperature=0.9))
    assert list(found) == [name]
    assert re.search(words, found[name]) and "\n" not in found[name]


def test_a_reward_that_does_not_move_is_told_once_there_is_enough_to_go_by():
    flat = [{**HEALTHY, "reward": 0.01 * (i % 2)} for i in range(30)]
    assert "reward_flat" not in warnings_of(flat[:9], PPOConfig())
    assert list(warnings_of(flat, PPOConfig())) == ["reward_flat"]


def test_phrases_are_counted_once_an_answer():
    shares = phrase_shares(["A b c d a b c d", "a b c d", "a b c", ""])
    assert shares["a b c d"] == 0.5 and shares["d a b c"] == 0.25 and len(shares) == 4


def test_a_phrase_that_is_paid_for_is_seen_spreading(tmp_path):
    found = spreading_phrase(["e e e e e"] * 7 + ["x"], phrase_shares(["a b c d", "e e e e"] + ["x"] * 6))
    assert found == {"phrase": "e e e e", "phrase_share": 0.875, "phrase_share_at_start": 0.125}
    assert spreading_phrase(["x"], {}) == {"phrase": None, "phrase_share": 0.0, "phrase_share_at_start": 0.0}
    texts, letters = iter(["a b c d"] * 8 + ["e e e e"] * 8), count_letter("e")
    trainer = tiny_trainer(save_tiny(tmp_path / "policy"), tmp_path / "out", letters, updates=2)
    collect = trainer.rollouts.collect

    def said(*how):
        rollout = collect(*how)
        rollout.answers = [replace(answer, text=next(texts, "")) for answer in rollout.answers]
        return rollout

    trainer.rollouts.collect = said
    lines = trainer.train()
    assert lines[0]["phrase"] is None and lines[1]["phrase"] == "e e e e" and lines[1]["phrase_share"] == 1.0
    assert list(lines[1]["warnings"]) == ["one_phrase"]
