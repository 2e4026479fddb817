"""PPO: the experience it collects, the step it takes, what it learns, and how it stops."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny import (
    CPU,
    PROMPTS,
    naive_logprobs,
    one_thread,  # noqa: F401
    save_tiny,
    tiny_tokenizer,
    tiny_trainer,
    without_timing,
)

from rlhf_utils.errors import InputError, TrainingError
from rlhf_utils.generation import answer_prompts
from rlhf_utils.models import load_policy
from rlhf_utils.ppo.record import samples_table
from rlhf_utils.settings import GenerationSettings
from rlhf_utils.template import TEMPLATE

METRICS = set(
    """update episodes reward reward_std kl kl_k3 kl_coefficient objective entropy policy_loss value_loss clip_fraction
    value_clip_fraction update_kl ratio_error gradient_norm explained_variance response_tokens eos_rate learning_rate
    tokens_per_second seconds phase_seconds reward_terms phrase phrase_share phrase_share_at_start gold
    warnings""".split()
)


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


def test_a_fresh_pass_gives_the_log_probabilities_and_values_of_sampling(trainer):
    rollout = collect(trainer)
    with torch.no_grad():
        episodes = rollout.episodes
        logprobs, values = actor_of(trainer, episodes)
    torch.testing.assert_close(logprobs, rollout.logprobs, rtol=0, atol=1e-4)
    torch.testing.assert_close(values, rollout.values, rtol=0, atol=1e-4)
    assert values.abs().max() > 0.1


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


def test_every_prompt_is_seen_once_per_epoch_in_an_order_of_seed_and_update_alone(policy, tmp_path):
    prompts = [f"prompt {i}" for i in range(10)]

    def order(updates, seed):
        rollouts = tiny_trainer(policy, tmp_path, prompts=prompts, rollout_batch_size=4, seed=seed).rollouts
        return [rollouts.prompt_indices(update) for update in updates]

    seen = sum(order(range(15), 0), [])
    epochs = [seen[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert order([7, 2], 0) == [seen[28:32], seen[8:12]]
    assert order(range(15), 1) != order(range(15), 0)


def test_a_batch_larger_than_the_prompts_goes_round_them(policy, tmp_path):
    rollouts = tiny_trainer(policy, tmp_path, prompts=["a", "b", "c"], rollout_batch_size=8).rollouts
    seen = rollouts.prompt_indices(0) + rollouts.prompt_indices(1) + rollouts.prompt_indices(2)
    assert [seen.count(i) for i in range(3)] == [8, 8, 8]


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


def test_the_gradient_is_that_of_the_loss_written_down_naively(policy, tmp_path):
    found = first_gradients(tiny_trainer(policy, tmp_path / "a", **ONE_STEP))
    other = tiny_trainer(policy, tmp_path / "b", **ONE_STEP)
    rollout, losses, tokens = collect(other), 0.0, 0
    for i, (prompt, answer) in enumerate(rows_of(rollout)):
        output = other.policy()(torch.tensor([[*prompt, *answer]]), output_hidden_states=True)
        before = slice(len(prompt) - 1, -1)
        logprobs = torch.log_softmax(output.logits[0, before], dim=-1)[range(len(answer)), answer]
        values = other.actor.value_head(output.hidden_states[-1][0, before])[:, 0]
        for t in range(len(answer)):
            ratio = (logprobs[t] - rollout.logprobs[i, t]).exp()
            losses = losses - ratio * rollout.advantages[i, t] + 0.1 * 0.5 * (values[t] - rollout.returns[i, t]) ** 2
            tokens += 1
    (losses / tokens).backward()
    for gradient, parameter in zip(found, other.actor.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)
    assert max(gradient.abs().max() for gradient in found) > 0.01


@pytest.mark.parametrize("size", [1, 3, 6])
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


# What is learned


def first_letters(trainer, letter, tokens):
    """Share of 420 fresh answers that begin with `letter`."""
    prompts = [TEMPLATE.format(prompt) for prompt in PROMPTS] * 60
    settings = GenerationSettings(max_new_tokens=tokens, temperature=1.0, batch_size=len(prompts))
    answers = answer_prompts(trainer.policy(), tiny_tokenizer(), prompts, settings, CPU, seed=1)
    return sum(tiny_tokenizer().decode(answer.tokens[:1]) == letter for answer in answers) / len(answers)


@pytest.mark.parametrize("tokens", [1, 5], ids=["bandit", "reward four tokens later"])
def test_ppo_learns_to_say_what_is_rewarded(tmp_path, tokens):
    """One of 257 tokens is rewarded, and with five tokens only as the first of them, while the reward comes with the
    last: the credit has to find its way back."""

    def reward(prompts, responses):
        return torch.tensor([float(response.startswith("b")) for response in responses])

    trainer = tiny_trainer(
        save_tiny(tmp_path / "policy", spread=0.05),
        tmp_path / "out",
        reward,
        updates=20,
        rollout_batch_size=128,
        minibatch_size=64,
        epochs=4,
        max_new_tokens=tokens,
        learning_rate=5e-3,
        kl_coefficient=0.0,
        missing_eos_penalty=0.0,
        save_every=100,
    )
    assert first_letters(trainer, "b", tokens) < 0.03
    trainer.train()
    assert first_letters(trainer, "b", tokens) > 0.95


# Stopping and failing


def test_the_kl_budget_stops_training_for_good(policy, tmp_path):
    settings = dict(updates=8, learning_rate=1e-2, kl_budget=0.05, save_every=100)
    history = tiny_trainer(policy, tmp_path, **settings).train()
    assert 1 < len(history) < 8
    assert history[-1]["kl"] > 0.05 and all(line["kl"] <= 0.05 for line in history[:-1])
    again = tiny_trainer(policy, tmp_path, **settings)
    assert again.train() == history
    assert again.store.policies()[-1].name == f"update-{len(history):06d}"


def test_over_the_kl_budget_the_steps_shrink(policy, tmp_path):
    settings = dict(updates=6, learning_rate=1e-2, final_learning_rate_ratio=1.0, kl_budget_action="shrink")
    history = tiny_trainer(policy, tmp_path, kl_budget=0.05, **settings).train()
    rates = [line["learning_rate"] for line in history]
    over = [line["kl"] > 0.05 for line in history]
    assert len(history) == 6 and any(over[:-1]) and not over[0]
    assert rates[1:] == pytest.approx([r / 2 if o else r for r, o in zip(rates[:-1], over[:-1], strict=True)])


def test_the_adaptive_controller_moves_the_coefficient(policy, tmp_path):
    settings = dict(updates=4, learning_rate=1e-2, kl_controller="adaptive", kl_target=0.1, kl_horizon=80)
    history = tiny_trainer(policy, tmp_path, **settings).train()
    for line, following in zip(history[:-1], history[1:], strict=True):
        error = min(max(line["kl"] / 0.1 - 1, -0.2), 0.2)
        assert following["kl_coefficient"] == pytest.approx(line["kl_coefficient"] * (1 + error * 8 / 80))
    assert history[0]["kl_coefficient"] == 0.05 != history[1]["kl_coefficient"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_named_with_its_update(policy, tmp_path, bad):
    calls = []

    def reward(prompts, responses):
        calls.append(None)
        return [1.0] * 7 + [bad if len(calls) == 2 else 0.0]

    with pytest.raises(TrainingError, match=f"update 1: the reward function returned {bad} for the answer '"):
        tiny_trainer(policy, tmp_path, reward).train()


@pytest.mark.parametrize("shape", [(8, 1), (7,), ()])
def test_a_reward_function_of_the_wrong_shape_is_told_the_right_one(policy, tmp_path, shape):
    with pytest.raises(TrainingError, match=r"returned shape .* for 8 answers; it must return one number per answer"):
        tiny_trainer(policy, tmp_path, lambda prompts, responses: torch.zeros(shape)).train()


def test_a_loss_that_is_no_number_is_named_with_its_update(policy, tmp_path):
    with pytest.raises(TrainingError, match="update 0: the (loss|gradient norm) is (nan|inf)"):
        tiny_trainer(policy, tmp_path / "steep", learning_rate=1e25).train()
    trainer = tiny_trainer(policy, tmp_path / "broken")

    def break_value_head(line):
        if line["update"] == 1:
            trainer.actor.value_head.weight.data.fill_(math.nan)

    trainer.on_update = break_value_head
    with pytest.raises(TrainingError, match="update 2: the loss is nan; lower ppo.learning_rate"):
        trainer.train()
    assert len((tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()) == 2


def test_an_overflow_that_fp16_steps_over_does_not_end_training(policy, tmp_path, monkeypatch):
    """With a loss scaler the first gradient norms of a training are infinite, and JSON knows no infinity."""

    class Scaler:
        scale = staticmethod(lambda loss: loss)
        state_dict = staticmethod(dict)

    trainer = tiny_trainer(policy, tmp_path, updates=2)
    norms = iter([math.inf, 2.0, 4.0, 6.0] + [math.inf] * 4)
    monkeypatch.setattr(trainer.accelerator, "scaler", Scaler)
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda *_: torch.tensor(next(norms)))
    assert [line["gradient_norm"] for line in trainer.train()] == [4.0, None]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["gradient_norm"] is None


def test_impossible_inputs_are_refused_before_training(policy, tmp_path):
    with pytest.raises(InputError, match="no prompts.*at least one"):
        tiny_trainer(policy, tmp_path, prompts=[])
    with pytest.raises(InputError, match="longest prompt has .* context is 96; lower"):
        tiny_trainer(policy, tmp_path, prompts=["x" * 80])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="in the way|not a folder"):
        tiny_trainer(policy, tmp_path / "file")


def test_a_second_precision_in_one_process_is_refused_in_words(policy, tmp_path):
    tiny_trainer(policy, tmp_path)
    with pytest.raises(InputError, match="already trained in another precision than bf16.*process of its own"):
        tiny_trainer(policy, tmp_path, precision="bf16")


# What is left behind


def test_metrics_samples_and_checkpoints_say_what_happened(policy, tmp_path):
    lines = []
    trainer = tiny_trainer(policy, tmp_path, updates=5, keep_checkpoints=1, on_update=lines.append)
    history = trainer.train()
    assert lines == history == [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line) == METRICS for line in history)
    assert [line["update"] for line in history] == [0, 1, 2, 3, 4]
    assert [line["episodes"] for line in history] == [8, 16, 24, 32, 40]
    assert history[-1]["learning_rate"] == pytest.approx(1e-4)
    assert sum(history[-1]["phase_seconds"].values()) == pytest.approx(history[-1]["seconds"])
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["update"] for sample in samples] == [0] * 4 + [2] * 4 + [4] * 4
    assert all(sample["prompt"] in PROMPTS and sample["reward"] == sample["response"].count("e") for sample in samples)
    folders = trainer.store.policies()
    assert [folder.name for folder in folders] == ["update-000002", "update-000004", "update-000005"]
    best = trainer.store.best(history, None)
    assert best == max(folders[:2], key=lambda folder: history[int(folder.name[-1])]["reward"])
    assert [folder for folder in folders if (folder / "training").is_dir()] == [best, folders[-1]]
    saved = load_policy(folders[-1] / "policy", CPU)
    for name, tensor in trainer.policy().state_dict().items():
        assert torch.equal(saved.state_dict()[name], tensor)


def test_a_judge_is_watched_and_decides_which_checkpoint_is_best(policy, tmp_path):
    """It likes what the reward function does not, and nothing is learnt from it."""

    def reward(prompts, responses):
        return [float(len(response)) for response in responses]

    def judge(prompts, responses):
        return [-float(len(response)) for response in responses]

    settings = dict(updates=7, save_every=1, keep_checkpoints=1)
    judged = tiny_trainer(policy, tmp_path / "a", reward, judge=judge, **settings)
    alone = tiny_trainer(policy, tmp_path / "b", reward, **settings)
    history, without = judged.train(), alone.train()
    assert [line["gold"] for line in history] == pytest.approx([-line["reward"] for line in history])
    assert [{**line, "gold": None} for line in without_timing(history)] == without_timing(without)
    rewards = {f"update-{i:06d}": history[i]["reward"] for i in range(1, 7)}
    assert len(set(rewards.values())) > 2
    assert judged.store.best(history, None).name == max(rewards, key=lambda name: (-rewards[name], name))
    assert alone.store.best(without, None).name == max(rewards, key=lambda name: (rewards[name], name))


def test_a_table_of_samples_is_shown(policy, tmp_path, capsys):
    tiny_trainer(policy, tmp_path, updates=3).train()
    out = capsys.readouterr().out
    assert out.count("samples of update") == 2
    first = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert f"{first['reward']:+.2f}  {' '.join(first['prompt'].split())}" in out


def test_samples_are_cut_to_one_line_each():
    table = samples_table([{"update": 7, "prompt": "p" * 50 + "\nend", "response": "x\ny" + "z" * 99, "reward": 1.5}])
    title, row = table.split("\n")
    assert title == "  samples of update 8" and "ppp end  x y" in row and row.endswith("z…") and len(row) < 120


def test_training_again_without_resuming_is_the_same_training(policy, tmp_path):
    trainer = tiny_trainer(policy, tmp_path, kl_controller="adaptive", kl_horizon=80)
    first = trainer.train(resume=False)
    assert without_timing(trainer.train(resume=False)) == without_timing(first)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(first)
