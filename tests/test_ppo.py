"""PPO: the experience it collects and the step it takes."""

import pytest
import torch
from tiny import naive_logprobs, one_thread, save_tiny, tiny_tokenizer, tiny_trainer  # noqa: F401

from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.ppo import PPOConfig
from rlhf_utils.ppo.rollout import prompt_indices
from rlhf_utils.settings.template import TEMPLATE


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Ends about every second answer of ten tokens."""
    return save_tiny(tmp_path_factory.mktemp("policy"), eos_nats=3.0)


@pytest.fixture
def trainer(policy, tmp_path):
    """With a value head that says something: it starts at 0."""
    trainer = tiny_trainer(policy, tmp_path, rollout_batch_size=12, minibatch_size=12, temperature=0.9)
    torch.manual_seed(2)
    torch.nn.init.normal_(trainer.actor.value_head.weight, std=0.3)
    torch.nn.init.constant_(trainer.actor.value_head.bias, 0.2)
    return trainer


def collect(trainer, update=0, kl_coefficient=0.05):
    return trainer.rollouts.collect(trainer.actor.eval(), update, kl_coefficient)


# What is collected


def test_experience_is_what_a_naive_pass_over_each_bare_episode_gives(trainer):
    rollout = collect(trainer)
    episodes, lengths = rollout.episodes, {len(answer.tokens) for answer in rollout.answers}
    assert len(lengths) > 2 and len(set(episodes.prompt_lengths.tolist())) > 2, "these episodes are not ragged"
    for i, answer in enumerate(rollout.answers):
        start, real = int(episodes.prompt_lengths[i]), episodes.mask[i]
        prompt, said = episodes.tokens[i, :start].tolist(), episodes.tokens[i, start : start + int(real.sum())].tolist()
        assert tiny_tokenizer().decode(prompt) == TEMPLATE.format(rollout.prompts[i]) and said == answer.tokens
        logprobs, entropy, states = naive_logprobs(trainer.policy(), prompt, said, 0.9)
        expected = {"logprobs": logprobs, "reference_logprobs": logprobs, "entropy": entropy}
        for name, values in {**expected, "values": trainer.actor.value_head(states).squeeze(-1)}.items():
            found = getattr(rollout, name)[i]
            torch.testing.assert_close(found[real].double(), values.double(), rtol=0, atol=1e-4)
            assert not found[~real].any()


def test_every_prompt_is_seen_once_per_epoch_in_an_order_of_seed_and_update_alone():
    def order(updates, seed=0, count=10, size=4):
        config = PPOConfig(rollout_batch_size=size, minibatch_size=size, seed=seed)
        return [prompt_indices(count, config, update) for update in updates]

    seen = sum(order(range(15)), [])
    epochs = [seen[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert order([7, 2]) == [seen[28:32], seen[8:12]]
    assert order(range(15), seed=1) != order(range(15))
    rounds = sum(order(range(3), count=3, size=8), [])
    assert [rounds.count(i) for i in range(3)] == [8, 8, 8]


@pytest.mark.parametrize(
    ("penalty", "scale", "clip"), [(0.0, 1.0, None), (0.0, 0.5, None), (4.0, 2.0, 3.0)], ids=["bare", "scaled", "all"]
)
def test_the_policy_is_paid_scaled_then_clipped_and_less_without_eos(policy, tmp_path, penalty, scale, clip):
    def reward(prompts, responses):
        return torch.tensor([len(response) - 4.0 for response in responses])

    how = {"missing_eos_penalty": penalty, "reward_scale": scale, "reward_clip": clip}
    trainer = tiny_trainer(policy, tmp_path, reward, rollout_batch_size=16, gae_lambda=1.0, **how)
    rollout = collect(trainer, kl_coefficient=0.0)
    assert {answer.ended for answer in rollout.answers} == {True, False}
    for i, answer in enumerate(rollout.answers):
        score, limit = len(answer.text) - 4.0, clip or 1e9
        paid = max(-limit, min(limit, scale * score)) - penalty * (not answer.ended)
        # The value head starts at 0 and nothing is discounted: the return of every token is what the answer is paid.
        assert rollout.returns[i][rollout.episodes.mask[i]].tolist() == pytest.approx([paid] * len(answer.tokens))
        assert rollout.scores[i] == score


# The step


def first_gradients(trainer) -> list[torch.Tensor]:
    """Gradients at the first optimizer step of a training."""
    seen, step = [], trainer.learner.optimizer.step

    def recording():
        if not seen:
            seen.extend(parameter.grad.clone() for parameter in trainer.actor.parameters())
        step()

    trainer.learner.optimizer.step = recording
    trainer.train(resume=False)
    return seen


ONE_STEP = dict(updates=1, epochs=1, rollout_batch_size=12, minibatch_size=12, max_grad_norm=1e9)


@pytest.mark.parametrize("size", [1, 6])
def test_microbatches_take_the_same_step_as_the_minibatch(policy, tmp_path, size):
    whole, parts = (
        tiny_trainer(policy, tmp_path / str(micro), microbatch_size=micro, learning_rate=3e-4, **ONE_STEP)
        for micro in (None, size)
    )
    start = [parameter.clone() for parameter in whole.actor.parameters()]
    for one, many in zip(first_gradients(whole), first_gradients(parts), strict=True):
        torch.testing.assert_close(many, one, rtol=0, atol=1e-5 * one.abs().max().item())
    moved = 0.0
    for before, one, many in zip(start, whole.actor.parameters(), parts.actor.parameters(), strict=True):
        torch.testing.assert_close(many, one, rtol=0, atol=1e-6)
        moved = max(moved, (one - before).abs().max().item())
    assert moved > 1e-4


def test_the_first_update_starts_at_kl_zero_and_ratio_one(policy, tmp_path):
    line = tiny_trainer(policy, tmp_path, **ONE_STEP).train()[0]
    assert abs(line["kl"]) < 1e-4 and abs(line["kl_k3"]) < 1e-6
    assert line["ratio_error"] < 1e-4 and abs(line["update_kl"]) < 1e-6 and line["clip_fraction"] == 0


def test_a_reference_that_is_another_model_and_dropout_left_on_are_noticed(policy, tmp_path):
    trainer = tiny_trainer(policy, tmp_path / "other")
    trainer.actor.trained.frozen.transformer.wpe.weight.data.mul_(1.5)
    with pytest.raises(TrainingError, match="update 0: policy and reference differ"):
        trainer.train()
    trainer = tiny_trainer(policy, tmp_path / "dropout")
    for block in trainer.policy().transformer.h:
        block.mlp.dropout.p = 0.3
    with pytest.raises(TrainingError, match="update 0: the first minibatch's log-ratio is .* instead of 0"):
        trainer.train()
