"""PPO: the experience it collects and the step it takes."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    naive_logprobs,
    one_thread,  # noqa: F401
    save_tiny,
    tiny_tokenizer,
    tiny_trainer,
)

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


def actor_of(trainer, episodes):
    return trainer.actor(episodes.tokens, episodes.prompt_lengths, episodes.mask, 0.9)


def rows_of(rollout):
    """Prompt tokens and answer tokens of each episode."""
    parts = zip(rollout.episodes.tokens, rollout.episodes.prompt_lengths, rollout.answers, strict=True)
    for tokens, length, answer in parts:
        yield tokens[:length].tolist(), tokens[length : length + len(answer.tokens)].tolist()


# What is collected


def test_experience_is_what_a_naive_pass_over_each_bare_episode_gives(trainer):
    rollout = collect(trainer)
    lengths = {len(answer.tokens) for answer in rollout.answers}
    assert len(lengths) > 2 and len(set(rollout.episodes.prompt_lengths.tolist())) > 2, "these episodes are not ragged"
    for i, (prompt, answer) in enumerate(rows_of(rollout)):
        assert tiny_tokenizer().decode(prompt) == TEMPLATE.format(rollout.prompts[i])
        assert answer == rollout.answers[i].tokens and rollout.episodes.mask[i].sum() == len(answer)
        logprobs, entropy, states = naive_logprobs(trainer.policy(), prompt, answer, 0.9)
        values = trainer.actor.value_head(states).squeeze(-1)
        real = rollout.episodes.mask[i]
        for name, expected in {
            "logprobs": logprobs,
            "reference_logprobs": logprobs,
            "entropy": entropy,
            "values": values,
        }.items():
            found = getattr(rollout, name)[i]
            torch.testing.assert_close(found[real].double(), expected.double(), rtol=0, atol=1e-4)
            assert not found[~real].any()


def test_rows_cut_to_their_own_length_keep_their_values(trainer):
    rollout = collect(trainer)
    with torch.no_grad():
        whole, values = actor_of(trainer, rollout.episodes)
        order = rollout.episodes.mask.sum(dim=1).argsort()
        for rows in (order[:1], order[:3], order[-1:], order[[5, 0, 5]]):
            part = rollout.episodes.select(rows)
            assert part.mask.any(dim=0).all() and len(part) == len(rows)
            assert part.tokens.shape[1] == (part.prompt_lengths + part.mask.sum(dim=1)).max()
            found, found_values = actor_of(trainer, part)
            width = part.mask.shape[1]
            torch.testing.assert_close(found, whole[rows, :width], rtol=0, atol=1e-5)
            torch.testing.assert_close(found_values, values[rows, :width], rtol=0, atol=1e-5)
    assert rollout.episodes.select(order[:1]).tokens.shape[1] < rollout.episodes.tokens.shape[1]


def test_microbatches_hold_every_row_once_and_little_padding(trainer):
    episodes, everything = collect(trainer).episodes, torch.arange(12)
    lengths = episodes.prompt_lengths + episodes.mask.sum(dim=1)
    assert [len(rows) for rows in episodes.by_length(everything, None)] == [12]
    groups = episodes.by_length(everything, 5)
    assert sorted(torch.cat(groups).tolist()) == everything.tolist() and [len(rows) for rows in groups] != [5, 5, 2]
    for rows in groups:
        own = lengths[rows]
        assert len(rows) <= 5 and 1 - own.sum() / (own.max() * len(rows)) <= 0.1


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


def test_an_update_does_not_depend_on_the_ones_before_it(trainer):
    first = collect(trainer, update=5)
    collect(trainer, update=1)
    again = collect(trainer, update=5)
    assert first.answers == again.answers and torch.equal(first.advantages, again.advantages)


@pytest.mark.parametrize(
    ("settings", "pay"),
    [
        ({"missing_eos_penalty": 0.0}, lambda score: score),
        ({"missing_eos_penalty": 0.0, "reward_scale": 0.5}, lambda score: score / 2),
        (
            {"reward_scale": 2.0, "reward_clip": 3.0, "missing_eos_penalty": 4.0},
            lambda score: max(-3.0, min(3.0, 2 * score)),
        ),
    ],
)
def test_the_policy_is_paid_scaled_then_clipped_and_less_without_eos(policy, tmp_path, settings, pay):
    def reward(prompts, responses):
        return torch.tensor([len(response) - 4.0 for response in responses])

    trainer = tiny_trainer(policy, tmp_path, reward, rollout_batch_size=16, gae_lambda=1.0, **settings)
    rollout = collect(trainer, kl_coefficient=0.0)
    assert {answer.ended for answer in rollout.answers} == {True, False}
    for i, answer in enumerate(rollout.answers):
        paid = pay(len(answer.text) - 4.0) - settings["missing_eos_penalty"] * (not answer.ended)
        # The value head starts at 0 and nothing is discounted: the return of every token is what the answer is paid.
        assert rollout.returns[i][rollout.episodes.mask[i]].tolist() == pytest.approx([paid] * len(answer.tokens))
        assert rollout.scores[i] == len(answer.text) - 4.0


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


def test_a_reference_that_is_another_model_is_noticed(policy, tmp_path):
    trainer = tiny_trainer(policy, tmp_path)
    collected = trainer.rollouts.collect

    def with_another_reference(*arguments):
        trainer.trained.frozen.transformer.wpe.weight.data.mul_(1.5)
        return collected(*arguments)

    trainer.rollouts.collect = with_another_reference
    with pytest.raises(TrainingError, match="update 0: policy and reference differ"):
        trainer.train()


def test_dropout_left_on_is_noticed(policy, tmp_path):
    trainer = tiny_trainer(policy, tmp_path)
    for block in trainer.policy().transformer.h:
        block.mlp.dropout.p = 0.3
    with pytest.raises(TrainingError, match="update 0: the first minibatch's log-ratio is .* instead of 0"):
        trainer.train()
