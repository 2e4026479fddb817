"""Continuations of reviews by a policy that has to learn them first: scale `small`, cut down as far as it goes."""

import json
import random

import pytest
from datasets import Dataset
from made import make, opened
from tiny import CPU, one_thread, save_tiny, tiny_tokenizer  # noqa: F401

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation.judge import about_judge, is_informed, judge_of, lexicon_judge
from rlhf_utils.platforms.files import read_json, read_jsonl
from rlhf_utils.rewards.reward_model import LABEL_FILE, load_reward
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.training import demonstration_tokens, labelled_tokens
from rlhf_utils.settings.recipes import load_recipe

WORDS = {1: ("wonderful", "great", "superb"), 0: ("terrible", "awful", "boring")}


def reviews(count: int) -> list[dict]:
    drawn = random.Random(0)
    return [{"text": f"{i:03} it is {drawn.choice(WORDS[i % 2])} and {drawn.choice(WORDS[i % 2])}", "label": i % 2}
            for i in range(count)]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("reviews")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews(400)))
    settings = {
        "dataset": str(folder / "rows.jsonl"), "policy": str(save_tiny(folder / "policy", eos_nats=3.0)),
        "data.min_text_characters": 0, "data.max_response_tokens": 40, "generation.max_new_tokens": 8,
        "reward_model.epochs": 6, "reward_model.learning_rate": 1e-2, "ppo.updates": 2, "ppo.save_every": 1,
        "ppo.rollout_batch_size": 8, "ppo.minibatch_size": 4, "ppo.max_new_tokens": 8, "ppo.kl_budget": None,
        "evaluation.prompts": 20, "evaluation.frontier_prompts": 10, "evaluation.bootstrap_samples": 200,
    }  # fmt: skip
    return make(opened("imdb", "small", folder / "out", settings), "base", "data", "sft", "sft_qlora", "reward_model")


def test_a_policy_learns_the_texts_themselves(run):
    for stage in ("sft", "sft_qlora"):
        result, losses = run.results(stage), read_jsonl(run.folder(stage) / "metrics.jsonl")
        held_out = [line["eval_loss"] for line in losses if "eval_loss" in line]
        assert result["rougeL"] is None and result["checked_prompts"] > 5 and held_out[-1] < held_out[0]


def test_texts_are_learned_whole_and_ended_where_they_end():
    rows = demonstration_tokens(Dataset.from_dict({"text": ["abc", "abcdef"]}), tiny_tokenizer(), 5)
    end = tiny_tokenizer().eos_token_id
    assert rows["input_ids"] == [[*tiny_tokenizer()("abc")["input_ids"], end], tiny_tokenizer()("abcde")["input_ids"]]
    assert rows["completion_mask"] == [[1] * 4, [1] * 5]


def test_a_classifier_reads_the_ending_after_each_text(run):
    ending = run.recipe.reward_model.ending
    assert read_json(run.folder("reward_model") / LABEL_FILE)["ending"] == ending == "\n\nThis film is"
    assert run.results("reward_model")["accuracy"] > 0.9
    reward = load_reward(run.folder("reward_model"), CPU)
    split = PreparedData.load(run.folder("data")).splits["evaluation"]
    texts = list(split["text"])
    rest = [text.removeprefix(prompt) for text, prompt in zip(texts, split["prompt"], strict=True)]
    right = (reward.probabilities(split["prompt"], rest) > 0.5).long().tolist()
    assert sum(map(int.__eq__, right, split["label"])) > 0.9 * len(right)
    # In PPO as in training: the same tokens, whatever the text is cut into.
    trained = labelled_tokens(split, reward.tokenizer, 40, ending)["input_ids"]
    starts, ends = reward._texts(split["prompt"], rest)
    assert trained == reward.tokenizer([a + b for a, b in zip(starts, ends, strict=True)])["input_ids"]


def test_a_lexicon_judges_where_no_preference_is_known(run):
    make(run, "ppo", "evaluation")
    summary, about = read_json(run.evaluation / "summary.json"), about_judge(run)
    assert summary["judge"] == about and about["kind"] == "lexicon (VADER)" and about["accuracy"] > 0.95
    assert is_informed(run) and summary["win_rate"]["ppo_vs_sft"]["judged_by"] == "gold"
    assert judge_of(run)(["It is "], ["wonderful"])[0] > 0.4 > -0.4 > judge_of(run)(["It is "], ["terrible"])[0]
    assert lexicon_judge(load_recipe("instruct")) is None
    for figures in summary["models"].values():
        assert -1 <= figures["gold"] <= 1 and figures["sft_perplexity"] > 1 and figures["rouge1"] is None
    assert {*summary["models"]} == {"base", "sft", "sft_qlora", "ppo"}
