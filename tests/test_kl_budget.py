"""The KL budget: the last policy within it is always there, however the training ends or is cut off."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny import one_thread, save_tiny, tiny_trainer, without_timing  # noqa: F401

from rlhf_utils.models.loading import load_policy
from rlhf_utils.platforms.files import content_hash, read_jsonl
from rlhf_utils.ppo import PPOTrainer
from rlhf_utils.runs.stopping import Stopped

UPDATES = 6
# With a constant rate the first updates are the same however many follow.
STEADY = {"learning_rate": 1e-3, "final_learning_rate_ratio": 1.0, "warmup_ratio": 0.0}
STEADY |= {"rollout_batch_size": 32, "minibatch_size": 16, "sample_every": 100}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("policy"), eos_nats=3.0)


@pytest.fixture(scope="module")
def free(policy, tmp_path_factory) -> dict:
    """A training without a budget, every policy of which is kept; `budget` lies between two of them, `last` is the last
    one within."""
    folder = tmp_path_factory.mktemp("free")
    trainer = tiny_trainer(policy, folder, updates=UPDATES, save_every=1, **STEADY)
    history = trainer.train()
    kl = [line["kl"] for line in history]
    over = next(n for n in range(3, UPDATES) if kl[n] > 1.1 * max(kl[:n]))
    hashes = {update: weights_in(path) for update, (path, _) in trainer.store.measured().items()}
    return {"history": history, "budget": (max(kl[:over]) + kl[over]) / 2, "last": over - 1, "weights": hashes}


def weights_in(policy: Path) -> str:
    return content_hash(policy / "model.safetensors")


def trainer_of(policy: Path, folder: Path, free: dict, save_every: int = 100, **settings) -> PPOTrainer:
    settings = STEADY | {"updates": UPDATES, "save_every": save_every} | settings
    return tiny_trainer(policy, folder, kl_budget=free["budget"], **settings)


def check_stopped(trainer: PPOTrainer, history: list[dict], free: dict, folder: Path) -> None:
    """It ended with the last policy within, and from the rollout of the one after it nothing was learnt."""
    last = free["last"]
    assert [line["kl"] for line in history] == [line["kl"] for line in free["history"][: last + 2]]
    assert without_timing(read_jsonl(folder / "metrics.jsonl")) == without_timing(history)
    assert history[-1]["policy_loss"] is history[-1]["learning_rate"] is None
    assert "training ends" in history[-1]["warnings"]["over_budget"]
    measured = trainer.store.measured()
    assert max(measured) == last and measured[last][1] == free["history"][last]["kl"] <= free["budget"]
    assert all(weights_in(path) == free["weights"][update] for update, (path, _) in measured.items())
    saved = load_policy(measured[last][0], trainer.device).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in trainer.policy().state_dict().items())


def test_the_last_policy_within_is_the_result_though_it_was_never_due(policy, free, tmp_path, capsys):
    trainer = trainer_of(policy, tmp_path, free)
    history = trainer.train()
    check_stopped(trainer, history, free, tmp_path)
    assert list(trainer.store.measured()) == [free["last"]]
    assert "at temperature 1 is over the budget" in capsys.readouterr().out
    again = trainer_of(policy, tmp_path, free)
    again.on_update = lambda line: pytest.fail("it was trained again")
    assert again.train() == history
    check_stopped(again, history, free, tmp_path)


@pytest.mark.parametrize(
    ("save_every", "back", "asked"),
    [(1, 0, False), (2, 2, False), (100, 1, False), (100, 1, True), (100, 2, True)],
)
def test_cut_off_or_asked_to_stop_in_any_update_it_ends_the_same(policy, free, tmp_path, save_every, back, asked):
    """`back` updates before the end; 0 is after the last line was written and before the policy is saved."""
    cut = trainer_of(policy, tmp_path, free, save_every)

    def end(line):
        if line["update"] == free["last"] + 1 - back:
            if not asked:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    cut.on_update = end
    with pytest.raises(Stopped if asked else KeyboardInterrupt):
        cut.train()
    trainer = trainer_of(policy, tmp_path, free, save_every)
    check_stopped(trainer, trainer.train(), free, tmp_path)


def test_the_very_last_policy_is_measured_too(policy, free, tmp_path):
    """As many updates as it takes to leave the budget: no update is left that would notice."""
    trainer = trainer_of(policy, tmp_path, free, updates=free["last"] + 1)
    check_stopped(trainer, trainer.train(), free, tmp_path)


def test_a_budget_that_the_first_update_breaks_leaves_the_policy_it_began_with(policy, tmp_path):
    trainer = tiny_trainer(policy, tmp_path, learning_rate=1e-2, kl_budget=1e-6, save_every=100)
    trainer.train()
    measured = trainer.store.measured()
    assert 0 in measured and weights_in(measured[0][0]) == weights_in(policy)
