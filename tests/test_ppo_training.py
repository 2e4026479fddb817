"""PPO: what it learns, how it stops and fails, and what it leaves behind."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny import (
    CPU,
    PROMPTS,
    one_thread,  # noqa: F401
    save_tiny,
    tiny_tokenizer,
    tiny_trainer,
    without_timing,
)

from rlhf_utils.models.generation import answer_prompts
from rlhf_utils.models.loading import load_policy
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.ppo.record import samples_table
from rlhf_utils.settings.sections import GenerationSettings
from rlhf_utils.settings.template import TEMPLATE

METRICS = set(
    """update episodes reward reward_std kl kl_k3 kl_coefficient objective entropy policy_loss value_loss clip_fraction
    value_clip_fraction skipped_steps update_kl ratio_error gradient_norm explained_variance response_tokens eos_rate
    learning_rate tokens_per_second seconds phase_seconds reward_terms phrase phrase_share phrase_share_at_start gold
    warnings""".split()
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Ends about every second answer of ten tokens."""
    return save_tiny(tmp_path_factory.mktemp("policy"), eos_nats=3.0)


# What is learned


def first_letters(trainer, letter):
    """Share of 420 fresh answers that begin with `letter`."""
    prompts = [TEMPLATE.format(prompt) for prompt in PROMPTS] * 60
    settings = GenerationSettings(max_new_tokens=1, temperature=1.0, batch_size=len(prompts))
    answers = answer_prompts(trainer.policy(), tiny_tokenizer(), prompts, settings, CPU, seed=1)
    return sum(tiny_tokenizer().decode(answer.tokens[:1]) == letter for answer in answers) / len(answers)


@pytest.mark.parametrize(("unit", "least"), [(1.0, 0.0), (200.0, -6000.0)], ids=["one", "raw rewards"])
def test_ppo_learns_to_say_what_is_rewarded(tmp_path, unit, least):
    """One of 257 tokens is rewarded as the first of five, while the reward comes with the last: the credit has to find
    its way back. In which unit, and how far from 0, rewards are, is of no account."""

    def reward(prompts, responses):
        return torch.tensor([least + unit * float(response.startswith("b")) for response in responses])

    trainer = tiny_trainer(
        save_tiny(tmp_path / "policy", spread=0.05),
        tmp_path / "out",
        reward,
        updates=20,
        rollout_batch_size=128,
        minibatch_size=64,
        epochs=4,
        max_new_tokens=5,
        learning_rate=5e-3,
        kl_coefficient=0.0,
        missing_eos_penalty=0.0,
        save_every=100,
    )
    assert first_letters(trainer, "b") < 0.03
    trainer.train()
    assert first_letters(trainer, "b") > 0.95


# Stopping and failing


def test_the_adaptive_controller_moves_the_coefficient(policy, tmp_path):
    settings = dict(updates=4, learning_rate=1e-2, kl_controller="adaptive", kl_target=0.1, kl_horizon=80)
    history = tiny_trainer(policy, tmp_path, **settings).train()
    for line, following in zip(history[:-1], history[1:], strict=True):
        error = min(max(line["kl"] / 0.1 - 1, -0.2), 0.2)
        assert following["kl_coefficient"] == pytest.approx(line["kl_coefficient"] * (1 + error * 8 / 80))
    assert history[0]["kl_coefficient"] == 0.05 != history[1]["kl_coefficient"]


def test_the_rate_rises_step_by_step_and_the_first_update_stays_within_the_clip(policy, tmp_path):
    """Adam's first steps are as large as the rate: without a rise the first update alone leaves the clip range."""
    settings = dict(updates=10, learning_rate=1e-3, final_learning_rate_ratio=0.5, epochs=4)
    clipped = {}
    for ratio in (0.0, 0.25):
        trainer = tiny_trainer(policy, tmp_path / str(ratio), warmup_ratio=ratio, **settings)
        steps = trainer.learner.steps
        rates = [trainer.learner.learning_rates(u, s)[0] for u in range(10) for s in range(steps)]
        rising = math.ceil(ratio * 10 * steps)
        assert rates[rising] == max(rates[rising:]) and rates[-1] == pytest.approx(0.5e-3)
        assert rates[:rising] == pytest.approx([1e-3 * (s + 1) / (rising + 1) for s in range(rising)], rel=0.2)
        trainer.on_update = stop_after_the_first(clipped, ratio)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert clipped[0.25] < 0.5 * clipped[0.0], clipped


def stop_after_the_first(found: dict, name: float):
    def on_update(line):
        found[name] = line["clip_fraction"]
        raise KeyboardInterrupt

    return on_update


def test_the_objective_in_the_metrics_is_what_is_paid(policy, tmp_path):
    """Scaled, clipped, less where an answer does not end, and less the price of its KL."""
    settings = dict(reward_scale=3.0, reward_clip=2.0, missing_eos_penalty=0.7, kl_coefficient=0.3, learning_rate=5e-3)
    trainer, rollouts = tiny_trainer(policy, tmp_path, **settings), []
    collect = trainer.rollouts.collect
    trainer.rollouts.collect = lambda *how: rollouts.append(collect(*how)) or rollouts[-1]
    history = trainer.train()
    assert history[-1]["kl"] > 0.05
    for line, rollout in zip(history, rollouts, strict=False):
        paid = []
        for answer, score, row, other in zip(
            rollout.answers, rollout.scores, rollout.logprobs, rollout.reference_logprobs, strict=True
        ):
            kept = max(-2.0, min(2.0, 3.0 * score.item())) - (0.0 if answer.ended else 0.7)
            paid.append(kept - 0.3 * (row - other).sum().item())
        assert line["objective"] == pytest.approx(sum(paid) / len(paid), abs=1e-4)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0] * 7 + [math.nan], "returned nan for the response '.* must be finite"),
        ([1.0] * 7 + [math.inf], "returned inf for the response '"),
        (torch.zeros(8, 1), r"returned shape \(8, 1\) .* for 8 responses, .* must return one float per response"),
        (torch.tensor(1.0), r"returned shape \(\) "),
        ([True] * 8, r"returned shape \(8,\) of torch.bool"),
        ([1.0, "good"] * 4, "returned what is no list of numbers .* for 8 responses"),
    ],
)
def test_a_reward_that_is_no_number_is_named_with_its_update(policy, tmp_path, returned, words):
    calls = iter([[1.0] * 8, returned])
    with pytest.raises(TrainingError, match=f"update 1: the reward function {words}"):
        tiny_trainer(policy, tmp_path, lambda prompts, responses: next(calls)).train()


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


def test_each_training_of_a_process_has_its_own_precision(policy, tmp_path):
    """Also where both trainers are made first, as accelerate keeps one precision for the whole process."""
    trainers = {name: tiny_trainer(policy, tmp_path / name, precision=name, updates=1) for name in ("fp32", "bf16")}
    for precision in ("fp32", "bf16", "fp32"):
        line = trainers[precision].train(resume=False)[0]
        # Rounding to 16 bits is what makes log-probabilities of sampling and of the reference differ before any step.
        assert (line["kl_k3"] > 1e-8) == (precision == "bf16"), (precision, line["kl_k3"])


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
    states = [read_json(folder / "state.json") for folder in folders]
    assert [state["kl"] for state in states[:2]] == [history[2]["kl"], history[4]["kl"]] and states[2]["kl"] is not None
    assert [folder for folder in folders if (folder / "training").is_dir()] == folders[-1:]
    saved = load_policy(folders[-1] / "policy", CPU)
    for name, tensor in trainer.policy().state_dict().items():
        assert torch.equal(saved.state_dict()[name], tensor)


def test_a_judge_is_watched_and_changes_nothing(policy, tmp_path):
    """It likes what the reward function does not, and nothing is learnt from it."""

    def reward(prompts, responses):
        return [float(len(response)) for response in responses]

    def judge(prompts, responses):
        return [-float(len(response)) for response in responses]

    history = tiny_trainer(policy, tmp_path / "a", reward, judge=judge).train()
    assert [line["gold"] for line in history] == pytest.approx([-line["reward"] for line in history])
    alone = tiny_trainer(policy, tmp_path / "b", reward).train()
    assert [{**line, "gold": None} for line in without_timing(history)] == without_timing(alone)


def test_the_loop_in_a_notebook_is_the_one_of_train(policy, tmp_path):
    """Left in the middle of an update and entered again, it goes on from its checkpoint."""
    history, trainer, seen = tiny_trainer(policy, tmp_path / "a").train(), tiny_trainer(policy, tmp_path / "b"), []
    for _ in range(2):
        for update in trainer.remaining():
            rollout = trainer.collect()
            losses = trainer.learn(rollout)
            seen.append(update)
            if len(seen) == 3:
                break
            trainer.record(rollout, losses)
    assert seen == [0, 1, 2, 2] and without_timing(trainer.history) == without_timing(history)


class Tracker:
    """Stands for one of accelerate's, with a table."""

    name = "wandb"

    def __init__(self):
        self.lines, self.tables, self.finished = [], [], False

    def log(self, figures, step):
        self.lines.append((step, figures))

    def log_table(self, name, columns, data, step):
        self.tables.append((step, columns, data))

    def finish(self):
        self.finished = True


def test_trackers_get_every_number_of_an_update_and_the_samples(policy, tmp_path, monkeypatch):
    trainer, tracker = tiny_trainer(policy, tmp_path), Tracker()
    monkeypatch.setattr(trainer.accelerator, "log_with", [tracker])
    monkeypatch.setattr(trainer.accelerator, "init_trackers", lambda *_: trainer.accelerator.trackers.append(tracker))
    history = trainer.train()
    assert tracker.finished and [step for step, _ in tracker.lines] == [0, 1, 2]
    figures = tracker.lines[-1][1]
    assert figures["kl"] == history[-1]["kl"] and figures["phase_seconds/learning"] > 0
    assert all(isinstance(value, int | float) for value in figures.values())
    assert [step for step, *_ in tracker.tables] == [0, 2] and tracker.tables[0][1][1:] == [
        "prompt",
        "response",
        "reward",
    ]


def test_a_tracker_that_is_not_installed_is_told_before_training(policy, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_utils.ppo.trainer.get_available_trackers", list)
    with pytest.raises(InputError, match="wandb, which is not installed; `pip install wandb`"):
        tiny_trainer(policy, tmp_path, report_to=("wandb",))


def test_a_table_of_samples_is_shown_cut_to_one_line_each(policy, tmp_path, capsys):
    tiny_trainer(policy, tmp_path, updates=3).train()
    assert capsys.readouterr().out.count("samples of update") == 2
    table = samples_table([{"update": 7, "prompt": "p" * 50 + "\nend", "response": "x\ny" + "z" * 99, "reward": 1.5}])
    title, row = table.split("\n")
    assert title == "  samples of update 8" and "ppp end  x y" in row and row.endswith("z…") and len(row) < 120
