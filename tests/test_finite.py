"""A figure that is no number ends the training before the step; fp16's overflows are the scaler's."""

import math

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from tiny import one_thread, save_tiny, tiny_trainer  # noqa: F401
from tiny_sft import sft

from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.ppo.learner import MOST_SKIPPED
from rlhf_utils.runs import training
from rlhf_utils.runs.training import train_resumably


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("policy"))


def broken_gradient(model, value=math.inf, on=lambda call: call == 3):
    """Make one gradient of `model` `value` in its backward passes for which `on` holds, counted from 1."""
    calls = []

    def change(gradient):
        calls.append(None)
        return torch.full_like(gradient, value) if on(len(calls)) else gradient

    model.transformer.h[0].mlp.c_fc.weight.register_hook(change)


def test_a_gradient_of_ppo(policy, tmp_path):
    trainer = tiny_trainer(policy, tmp_path)
    broken_gradient(trainer.actor.policy)
    with pytest.raises(TrainingError, match="update 0: the gradient norm is (inf|nan); lower ppo.learning_rate"):
        trainer.train()


def test_a_gradient_of_a_trl_trainer(tmp_path):
    trainer, model = sft(tmp_path)
    broken_gradient(model, math.nan, on=lambda call: call == 2)
    with pytest.raises(TrainingError, match=r"step 2: grad_norm is (inf|nan); lower the learning_rate"):
        train_resumably(trainer, tmp_path)
    assert not (tmp_path / "checkpoint-2").exists()


def test_who_stops_before_it_is_seen_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    trainer, model = sft(tmp_path)
    monkeypatch.setattr(
        training, "stop_asked", lambda: model.transformer.h[1].mlp.c_fc.bias.data.fill_(math.nan) is not None
    )
    trainer.args.logging_steps = trainer.state.logging_steps = 1000
    train_resumably(trainer, tmp_path)
    assert not any(tmp_path.glob("checkpoint-*"))


def test_a_loss_of_a_trl_trainer_leaves_the_checkpoint_before(tmp_path):
    trainer, model = sft(tmp_path)
    steps = []

    def break_weights(*_):
        steps.append(None)
        if len(steps) == 4:
            model.transformer.h[1].mlp.c_fc.bias.data.fill_(math.nan)

    model.register_forward_pre_hook(break_weights)
    with pytest.raises(TrainingError, match=r"step 4: loss is nan; lower .*; the same command goes on"):
        train_resumably(trainer, tmp_path)

    # The same command goes on from step 2 and, with weights that hold, comes to its end.
    again, _ = sft(tmp_path)
    train_resumably(again, tmp_path)
    assert again.state.global_step == 5


class TestOverflowOfFp16:
    """accelerate makes its scaler on GPUs only; torch's own works on a CPU too."""

    @staticmethod
    def with_scaler(trainer):
        scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=10**6)
        plain = trainer.learner.optimizer.optimizer
        trainer.learner.optimizer = AcceleratedOptimizer(plain, device_placement=False, scaler=scaler)
        # What accelerate does before it clips, under fp16 alone.
        trainer.accelerator.unscale_gradients = lambda *_: scaler.unscale_(plain)
        return scaler

    def test_a_step_is_left_out_and_counted(self, policy, tmp_path):
        trainer = tiny_trainer(policy, tmp_path, updates=1, epochs=1)
        scaler = self.with_scaler(trainer)
        broken_gradient(trainer.actor.policy, on=lambda call: call == 1)
        (line,) = trainer.train()
        assert line["skipped_steps"] == 1 and math.isfinite(line["gradient_norm"])
        assert scaler.get_scale() == 2.0**15, "halved by the overflow"
        assert all(parameter.isfinite().all() for parameter in trainer.actor.parameters())

    def test_nothing_but_overflows_ends_the_training(self, policy, tmp_path):
        trainer = tiny_trainer(policy, tmp_path, updates=50, epochs=2)
        self.with_scaler(trainer)
        broken_gradient(trainer.actor.policy, on=lambda call: True)
        with pytest.raises(TrainingError, match=f"overflowed in {MOST_SKIPPED} steps in a row.* fp32"):
            trainer.train()
