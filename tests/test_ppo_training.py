"""PPO: what it learns, how it stops and fails, what it warns of, and what it leaves behind."""

import math
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import CPU, PROMPTS, one_thread, save_tiny, tiny_tokenizer, tiny_trainer, without_timing  # noqa: F401

from rlhf_utils.models.generation import answer_prompts
from rlhf_utils.models.loading import load_policy
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import read_json, read_jsonl
from rlhf_utils.ppo import PPOConfig
from rlhf_utils.ppo.tracking import copy_tracked
from rlhf_utils.ppo.trainer import warnings_of
from rlhf_utils.settings.sections import GenerationSettings
from rlhf_utils.settings.template import TEMPLATE

METRICS = set(
    """update episodes reward reward_std kl kl_k3 kl_coefficient objective entropy policy_loss value_loss clip_fraction
    value_clip_fraction skipped_steps update_kl ratio_error gradient_norm explained_variance response_tokens eos_rate
    learning_rate tokens_per_second seconds phase_seconds reward_terms gold gold_std warnings""".split()
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

    size = {"updates": 16, "rollout_batch_size": 128, "minibatch_size": 64, "epochs": 4, "max_new_tokens": 5}
    size |= {"learning_rate": 6e-3, "kl_coefficient": 0.0, "missing_eos_penalty": 0.0, "save_every": 100}
    trainer = tiny_trainer(save_tiny(tmp_path / "policy", spread=0.05), tmp_path / "out", reward, **size)
    assert first_letters(trainer, "b") < 0.03
    trainer.train()
    assert first_letters(trainer, "b") > 0.95


def test_the_learning_rate_rises_step_by_step_and_falls_update_by_update(policy, tmp_path):
    """Adam's first steps are as large as the rate: without a rise the first update alone leaves the clip range."""
    for ratio in (0.0, 0.25):
        settings = dict(updates=10, learning_rate=1e-3, final_learning_rate_ratio=0.5, epochs=4, warmup_ratio=ratio)
        learner = tiny_trainer(policy, tmp_path, **settings).learner
        rates = [learner.learning_rates(u, s)[0] for u in range(10) for s in range(learner.steps)]
        rising = math.ceil(ratio * 10 * learner.steps)
        assert rates[rising] == max(rates[rising:]) and rates[-1] == pytest.approx(0.5e-3)
        assert rates[:rising] == pytest.approx([1e-3 * (s + 1) / (rising + 1) for s in range(rising)], rel=0.2)


def test_the_objective_in_the_metrics_is_what_is_paid(policy, tmp_path):
    """Scaled, clipped, less where an answer does not end, and less the price of its KL."""
    settings = dict(reward_scale=3.0, reward_clip=2.0, missing_eos_penalty=0.7, kl_coefficient=0.3, learning_rate=5e-3)
    trainer, rollouts = tiny_trainer(policy, tmp_path, **settings), []
    collect = trainer.rollouts.collect
    trainer.rollouts.collect = lambda *how: rollouts.append(collect(*how)) or rollouts[-1]
    history = trainer.train()
    assert history[-1]["kl"] > 0.05
    for line, rollout in zip(history, rollouts, strict=False):
        kl = (rollout.logprobs - rollout.reference_logprobs).sum(dim=1)
        kept = [max(-2.0, min(2.0, 3.0 * score)) for score in rollout.scores.tolist()]
        paid = [k - 0.7 * (not a.ended) - 0.3 * n for k, a, n in zip(kept, rollout.answers, kl.tolist(), strict=True)]
        assert line["objective"] == pytest.approx(sum(paid) / len(paid), abs=1e-4)


# Failing


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0] * 7 + [math.nan], "returned nan for the response '.* must be finite"),
        (torch.zeros(8, 1), r"returned shape \(8, 1\) for 8 responses; one float each is wanted"),
    ],
)
def test_a_reward_that_is_nan_or_infinite_is_named_with_its_update(policy, tmp_path, returned, words):
    calls = iter([[1.0] * 8, returned])
    with pytest.raises(TrainingError, match=f"update 1: the reward function {words}"):
        tiny_trainer(policy, tmp_path, lambda prompts, responses: next(calls)).train()


def test_a_loss_that_is_nan_or_infinite_is_named_with_its_update(policy, tmp_path):
    trainer = tiny_trainer(policy, tmp_path)
    trainer.on_update = lambda line: line["update"] == 1 and trainer.actor.value_head.weight.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="update 2: the loss is nan; lower ppo.learning_rate"):
        trainer.train()
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2


def test_impossible_inputs_are_refused_before_training(policy, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no prompts.*at least one"):
        tiny_trainer(policy, tmp_path, prompts=[])
    with pytest.raises(InputError, match="longest prompt has .* context is 96; lower"):
        tiny_trainer(policy, tmp_path, prompts=["x" * 80])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file exists|not a directory"):
        tiny_trainer(policy, tmp_path / "file")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="wandb, which is not installed; `pip install wandb`"):
        tiny_trainer(policy, tmp_path, report_to=("wandb",))


def test_each_training_of_a_process_has_its_own_precision(policy, tmp_path):
    """Also where both trainers are made first, as accelerate keeps one precision for the whole process."""
    trainers = {name: tiny_trainer(policy, tmp_path / name, precision=name, updates=1) for name in ("fp32", "bf16")}
    exact, rounded, again = (trainers[name].train(resume=False)[0]["entropy"] for name in ("fp32", "bf16", "fp32"))
    assert exact == again and rounded == pytest.approx(exact, abs=0.05) and rounded != exact


# What is left behind


def test_metrics_samples_and_checkpoints_say_what_happened(policy, tmp_path, capsys):
    lines = []
    trainer = tiny_trainer(policy, tmp_path, updates=5, keep_checkpoints=1, on_update=lines.append)
    history = trainer.train()
    assert lines == history == read_jsonl(tmp_path / "metrics.jsonl")
    assert all(set(line) == METRICS for line in history)
    assert [line["update"] for line in history] == [0, 1, 2, 3, 4]
    assert re.findall(r"^update +(\d)/5 .* KL (\S+)", capsys.readouterr().out, re.M)[0] == ("0", "0.00")
    assert [line["episodes"] for line in history] == [8, 16, 24, 32, 40]
    assert history[-1]["learning_rate"] == pytest.approx(1e-4)
    assert sum(history[-1]["phase_seconds"].values()) == pytest.approx(history[-1]["seconds"])
    samples = read_jsonl(tmp_path / "samples.jsonl")
    assert [sample["update"] for sample in samples] == [0] * 4 + [2] * 4 + [4] * 4
    assert all(sample["prompt"] in PROMPTS and sample["reward"] == sample["response"].count("e") for sample in samples)
    folders = trainer.store.policies()
    assert [folder.name for folder in folders] == ["update-000002", "update-000004", "update-000005"]
    states = [read_json(folder / "state.json") for folder in folders]
    assert [state["kl"] for state in states[:2]] == [history[2]["kl"], history[4]["kl"]] and states[2]["kl"] is not None
    assert [folder for folder in folders if (folder / "training").is_dir()] == folders[-1:]
    saved = load_policy(folders[-1] / "policy", CPU).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in trainer.policy().state_dict().items())


def test_a_judge_is_watched_and_changes_nothing(policy, tmp_path):
    """It likes what the reward function does not, and nothing is learnt from it."""

    def judge(prompts, responses):
        return [-float(response.count("e")) for response in responses]

    history = tiny_trainer(policy, tmp_path / "a", judge=judge).train()
    assert [line["gold"] for line in history] == pytest.approx([-line["reward"] for line in history])
    assert [line["gold_std"] for line in history] == pytest.approx([line["reward_std"] for line in history])
    alone = tiny_trainer(policy, tmp_path / "b").train()
    assert [{**line, "gold": None, "gold_std": None} for line in without_timing(history)] == without_timing(alone)


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


def test_a_tracker_gets_every_number_of_an_update(policy, tmp_path, monkeypatch):
    trainer, lines, finished = tiny_trainer(policy, tmp_path), {}, []
    log = lambda figures, step, **_: lines.update({step: figures})  # noqa: E731
    tracker = SimpleNamespace(name="wandb", log=log, finish=lambda: finished.append(True))
    monkeypatch.setattr(trainer.accelerator, "log_with", [tracker])
    monkeypatch.setattr(trainer.accelerator, "init_trackers", lambda *_: trainer.accelerator.trackers.append(tracker))
    history = trainer.train()
    assert finished == [True] and list(lines) == [0, 1, 2] and lines[2]["kl"] == history[-1]["kl"]
    assert lines[2]["phase_seconds/learning"] > 0 and {type(v) for v in lines[2].values()} <= {int, float}


TABLE = [
    {"prompt": "a | b", "update": update, "response": "<script>x</script>\nz", "reward": 0.5 * update, "gold": None}
    for update in (0, 3)
]


def test_tensorboard_gets_the_figures_and_the_completions_as_text_that_cannot_become_markup(policy, tmp_path):
    pytest.importorskip("tensorboardX")
    trainer = tiny_trainer(policy, tmp_path, report_to=("tensorboard",))
    trainer.train()
    trainer.log_table("completions", TABLE)
    assert trainer.accelerator.trackers == []
    copy_tracked(tmp_path, tmp_path / "kept")  # as a stage does, whose work folder is removed
    written = b"".join(path.read_bytes() for path in (tmp_path / "kept" / "rlhf-gpt2-ppo").glob("events*"))
    assert b"phase_seconds/learning" in written and b"completions/text_summary" in written
    row = b"a &#124; b|3|&lt;script&gt;x&lt;/script&gt; <br> z|1.5"
    assert b"prompt|update|response|reward\n-|-|-|-\n" in written and row in written


def test_a_tracker_with_tables_gets_one_under_the_name_of_the_training(policy, tmp_path, monkeypatch):
    trainer, opened, logged = tiny_trainer(policy, tmp_path, updates=1), [], []
    tracker = SimpleNamespace(name="wandb", log=lambda *_, **__: None, finish=lambda: None)
    tracker.log_table = lambda name, dataframe: logged.append((name, dataframe.to_dict("records")))
    monkeypatch.setattr(trainer.accelerator, "log_with", [tracker])

    def open_one(_, settings, own):
        opened.append(own["wandb"]["id"])
        trainer.accelerator.trackers.append(tracker)

    monkeypatch.setattr(trainer.accelerator, "init_trackers", open_one)
    trainer.train()
    trainer.log_table("completions", TABLE)
    assert logged == [] and len(opened) == 1  # nothing is opened where no tracker was asked for
    trainer.config = trainer.config.model_copy(update={"report_to": ("wandb",)})
    trainer.log_table("completions", TABLE)
    read = [{key: value for key, value in row.items() if key != "gold"} for row in TABLE]
    assert logged == [("completions", read)] and len(opened) == 2 and len({*opened}) == 1


# Warnings in plain words

HEALTHY = {"kl": 1.0, "eos_rate": 0.95, "entropy": 2.0}


def history_of(updates: int = 12, **last) -> list[dict]:
    """A healthy training, but for what its last update says."""
    lines = [{**HEALTHY, "kl": 0.1 * i} for i in range(updates)]
    return [*lines[:-1], {**lines[-1], **last}]


@pytest.mark.parametrize(
    "last, name, words",
    [
        ({"kl": -0.8}, "negative_kl", "-0.80 nats .*cannot be negative"),
        ({"kl": 11.0}, "over_budget", "11.0 nats .*at temperature 0.9 .*budget of 10: training ends"),
        ({"eos_rate": 0.7}, "eos_falling", "only 70% .*with EOS, after 95%"),
        ({"entropy": 0.5}, "entropy_collapse", "from 2.00 to 0.50"),
    ],
)
def test_each_trouble_is_told_with_its_figures_and_a_healthy_training_is_left_alone(last, name, words):
    config = PPOConfig(kl_budget=10.0, temperature=0.9)
    assert all(warnings_of(history_of(updates), config) == {} for updates in (1, 2, 5, 12))
    found = warnings_of(history_of(**last), config)
    assert list(found) == [name] and re.search(words, found[name]) and "\n" not in found[name]
