"""Recipes of other forms: prompts cut from labelled texts, votes, the classifier that is paid, plain continuations."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from made import make, opened
from test_data_prepare import dropped
from tiny import CPU, one_thread, save_tiny, tiny_tokenizer, tiny_trainer  # noqa: F401

from rlhf_utils.data.prepared import prepare
from rlhf_utils.data.sources import Rows
from rlhf_utils.evaluation.judge import label_noise, length_alone, sides
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.rewards.reward_model import ClassifierReward, load_reward
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import DataSettings, Shares
from rlhf_utils.settings.template import TEMPLATES

PLAIN = TEMPLATES["continuation"]


def reviews(count: int) -> list[dict]:
    """Told apart by one letter; a number makes their beginnings differ."""
    kinds = [("It was zzzz zz z from the first to the last", 1), ("It was qqqq qq q from the last to the first", 0)]
    return [{"text": f"{i:03} {kinds[i % 2][0]} scene.", "label": kinds[i % 2][1]} for i in range(count)]


def prepared(rows: list[dict], **settings):
    settings = {"min_text_characters": 0, "shares": Shares(sft=0, evaluation=0.2), **settings}
    return prepare(Rows(rows, None, "made"), DataSettings(**settings), tiny_tokenizer(), 0, PLAIN)


def test_prompts_are_the_first_tokens_as_many_as_allowed():
    data = prepared(reviews(400), prompt_tokens=(3, 9))
    rows = [row for split in data.splits.values() for row in split]
    assert len(rows) == 400 and data.template_hash == PLAIN.hash
    assert all(row["text"].startswith(row["prompt"]) for row in rows)
    # One token is one byte here: of "012 It was" a blank at the end is taken off.
    assert {len(row["prompt"]) for row in rows} == {3, 5, 6, 8, 9}
    again = prepared(list(reversed(reviews(400))), prompt_tokens=(3, 9))
    found = sorted((row["text"], row["prompt"]) for split in again.splits.values() for row in split)
    assert found == sorted((row["text"], row["prompt"]) for row in rows)
    assert not {r["text"] for r in data.splits["reward"]} & {r["text"] for r in data.splits["ppo"]}


def test_short_texts_are_left_out_and_splits_cut_and_both_are_counted():
    rows = [*reviews(300), {"text": "Too short.", "label": 1}]
    data = prepared(rows, min_text_characters=20, split_rows={"reward": 25})
    assert len(data.splits["reward"]) == 25 and len(data.splits["ppo"]) > 25
    assert dropped(data, "reward")["over split_rows.reward 25"] > 50
    assert dropped(data, "train")["text under 20 characters"] == 1


def test_near_ties_of_votes_are_dropped_and_counted():
    votes = [(10, 9), (10, 5), (3, 2), (2, -7), (1, 0), (-1, -4), (None, None)]
    rows = [
        {"prompt": f"q {i}", "title": f"q {i}", "answers": {"text": ["good", "bad"], "score": list(pair)}}
        for i, pair in enumerate(votes[:-1])
    ]
    settings = DataSettings(min_score_ratio=1.5, shares=Shares(reward=0, ppo=0, development=0, evaluation=0))
    data = prepare(Rows(rows, None, "made"), settings, tiny_tokenizer(), 0)
    # 1 is the least vote that counts: (1, 0) and (-1, -4) are ties.
    assert sorted(data.splits["sft"]["prompt"]) == ["q 1", "q 2", "q 3"]
    assert {"reason": "votes too close", "dropped": 3, "left": 3} in data.report["train"]


def test_ppo_goes_on_with_plain_texts(tmp_path):
    seen = []

    def reward(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return torch.zeros(len(prompts))

    policy, tokenizer = save_tiny(tmp_path / "policy", eos_nats=3.0), tiny_tokenizer()
    trainer = tiny_trainer(policy, tmp_path / "out", reward, prompts=["ab", "abc"], updates=1, template=PLAIN)
    rollout = trainer.rollouts.collect(trainer.actor.eval(), 0, 0.0)
    episodes = rollout.episodes
    for prompt, row, length in zip(rollout.prompts, episodes.tokens, episodes.prompt_lengths, strict=True):
        assert row[:length].tolist() == tokenizer(prompt)["input_ids"]
    for (_, response), answer in zip(seen, rollout.answers, strict=True):
        assert response == tokenizer.decode(answer.tokens, skip_special_tokens=True)


def test_length_alone_takes_the_side_that_does_better_in_training():
    long, short = {"text": "a" * 30, "label": 1}, {"text": "a" * 5, "label": 0}
    long_is_0, short_is_1 = {**long, "label": 0}, {**short, "label": 1}
    pairs = [{"chosen": "aaaa", "rejected": "a"}] * 3
    for train, held_out, expected in (
        ([long, short] * 5, [long, short, short], 1.0),
        ([long, short] * 5, [long_is_0, short], 0.5),
        ([long_is_0, short_is_1], [long_is_0, short_is_1], 1.0),
        (pairs, [{"chosen": "a", "rejected": "aaa"}], 0.0),
        (pairs, [{"chosen": "aaa", "rejected": "a"}, {"chosen": "aa", "rejected": "aa"}], 0.75),
    ):
        assert length_alone(Dataset.from_list(train), Dataset.from_list(held_out), tiny_tokenizer()).mean == expected
    assert sides(Dataset.from_list([long, short])) == {"positive": ["a" * 30], "negative": ["a" * 5]}


def test_label_noise_is_what_the_judge_disagrees_with():
    def judge(prompts, responses):
        return [10.0 if "good" in text else 0.0 for text in responses]

    texts = [{"text": text, "label": label} for text, label in (("good", 1), ("bad", 0), ("good", 0), ("bad", 0))]
    assert label_noise(judge, Dataset.from_list(texts)) == 0.25
    right = {"prompt": "", "chosen": "good", "rejected": "bad"}
    assert label_noise(judge, Dataset.from_list([right, {**right, "chosen": "bad", "rejected": "good"}])) == 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews(400)))
    settings = {
        "dataset": str(folder / "rows.jsonl"), "policy": str(save_tiny(folder / "policy")),
        "data.min_text_characters": 0, "data.max_response_tokens": 64, "data.shares.evaluation": 0.2,
        "generation.max_new_tokens": 8, "ppo.max_new_tokens": 8, "reward_model.epochs": 3,
        "reward_model.learning_rate": 1e-2, "reward.fluency": 0.5, "reward.length": 0.2,
    }  # fmt: skip
    return make(opened("imdb", "tiny", folder / "out", settings), "base", "data", "sft")


def test_a_tuned_policy_is_published_as_it_is(run):
    result = run.results("sft")
    assert result == {"method": "already tuned"}
    assert read_json(run.folder("sft") / "config.json")["n_layer"] == 2
    assert "sft_qlora" not in run.stages


def test_a_classifier_is_trained_and_paid_for_its_label(run):
    result = make(run, "reward_model").results("reward_model")
    assert result["method"] == "trained" and result["accuracy"] > 0.9
    assert result["accuracy_ci95"][0] > max(result["untrained_accuracy"], result["length_baseline_accuracy"])
    report = read_json(run.evaluation / "reward_model.json")
    assert report["of"] == "texts" and report["pairs"] == len(report["margins"])
    reward = load_reward(run.folder("reward_model"), CPU)
    assert isinstance(reward, ClassifierReward) and reward.joint == ""
    ends = ["zzzz zz z from the first to the last scene.", "qqqq qq q from the last to the first scene."]
    good, bad = reward(["001 It was ", "002 It was "], ends).tolist()
    assert good > bad
    chances = reward.probabilities(["001 It was "], ["zzzz zz z from the first to the last scene."])
    assert 0.5 < chances.item() <= 1


def test_a_ready_classifier_is_measured_and_its_label_checked(run, tmp_path):
    copy = tmp_path / "classifier"
    shutil.copytree(make(run, "reward_model").folder("reward_model"), copy)
    for name in ("reward_label.json", "stage.json"):
        (copy / name).unlink()
    settings = {"dataset": run.recipe.dataset, "policy": run.recipe.policy, "models.reward_model": str(copy)}
    settings |= {"data": run.recipe.data.model_dump(), "generation.max_new_tokens": 8, "ppo.max_new_tokens": 8}
    other = opened("imdb", "tiny", tmp_path / "out", settings)
    result = make(other, "base", "data", "sft", "reward_model").results("reward_model")
    assert result["method"] == "ready" and result["accuracy"] > 0.9 and result["untrained_accuracy"] is None
    assert "trainable_parameters" not in result
    wrong = opened("imdb", "tiny", tmp_path / "out", {**settings, "reward_model.label": "GOOD"})
    with pytest.raises(InputError, match="no label 'GOOD'; choose one of NEGATIVE, POSITIVE"):
        make(wrong, "sft", "reward_model")
