"""Continuations of reviews by a policy that has to learn them first: scale `small`, cut down as far as it goes."""

import json
import random
import re

import pytest
import torch
from datasets import Dataset
from made import make, opened
from tiny import CPU, one_thread, save_tiny, tiny_tokenizer  # noqa: F401

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.data.tokens import first_tokens
from rlhf_utils.evaluation.evaluator import held_out_losses
from rlhf_utils.evaluation.judge import about_judge, is_informed, judge_of, lexicon_judge
from rlhf_utils.models.loading import load_policy, load_tokenizer
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, read_jsonl
from rlhf_utils.report.findings import accuracies
from rlhf_utils.report.page import write_report
from rlhf_utils.rewards import reward_model
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
        # The tokens of the tiny model are bytes, and " bad" begins as " good" does.
        "reward_model.words": ["bad", "good"], "reward_model.epochs": 6, "reward_model.learning_rate": 1e-2,
        "ppo.updates": 2, "ppo.save_every": 1,
        "ppo.rollout_batch_size": 8, "ppo.minibatch_size": 4, "ppo.max_new_tokens": 8, "ppo.kl_budget": None,
        "evaluation.prompts": 20, "evaluation.frontier_prompts": 10, "evaluation.bootstrap_samples": 200,
    }  # fmt: skip
    return make(opened("imdb", "small", folder / "out", settings), "base", "data", "sft", "sft_qlora", "reward_model")


def test_a_policy_learns_the_texts_themselves(run):
    for stage in ("sft", "sft_qlora"):
        result, losses = run.results(stage), read_jsonl(run.folder(stage) / "metrics.jsonl")
        held_out = [line["eval_loss"] for line in losses if "eval_loss" in line]
        assert result["rougeL"] is None and result["checked_prompts"] > 5 and held_out[-1] < held_out[0]
        policy, rows = load_policy(run.folder(stage), CPU), PreparedData.load(run.folder("data")).splits["development"]
        tokenizer = load_tokenizer(run.folder("base"))
        rows = demonstration_tokens(rows.select(range(result["checked_prompts"])), tokenizer, 40)
        assert result["held_out_loss"] == pytest.approx(loss_of(policy, rows), rel=1e-4), "that of what is published"


def loss_of(policy, rows: Dataset) -> float:
    """transformers' own loss per token, row by row."""
    total = count = 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        labels = ids.masked_fill(torch.tensor([row["completion_mask"]]) == 0, -100)
        learned = int((labels[:, 1:] != -100).sum())
        total, count = total + learned * policy(input_ids=ids, labels=labels).loss.item(), count + learned
    return total / count


@pytest.mark.parametrize("size", [1, 3])
def test_the_held_out_losses_of_responses_are_those_of_transformers(tmp_path, size):
    pairs = {"prompt": ["How?", "Why is it so?", "When?"], "chosen": ["So.", "For a reason that is long.", "Now."]}
    policy = load_policy(save_tiny(tmp_path / "policy"), CPU).eval()
    rows = demonstration_tokens(Dataset.from_dict(pairs).select(range(size)), tiny_tokenizer(), 99)
    losses = held_out_losses(policy, tiny_tokenizer(), rows, CPU)
    assert len(losses) == size and sum(losses) / size == pytest.approx(loss_of(policy, rows), rel=1e-5)


def test_texts_are_learned_whole_and_ended_where_they_end():
    rows = demonstration_tokens(Dataset.from_dict({"text": ["abc", "abcdef"]}), tiny_tokenizer(), 5)
    end = tiny_tokenizer().eos_token_id
    assert rows["input_ids"] == [[*tiny_tokenizer()("abc")["input_ids"], end], tiny_tokenizer()("abcde")["input_ids"]]
    assert rows["completion_mask"] == [[1] * 4, [1] * 5]


def test_a_classifier_reads_the_ending_after_each_text_in_ppo_as_in_training(run, monkeypatch):
    ending = run.recipe.reward_model.ending
    assert read_json(run.folder("reward_model") / LABEL_FILE)["ending"] == ending == "\n\nThis film is"
    assert run.results("reward_model")["accuracy"] > 0.9
    reward = load_reward(run.folder("reward_model"), CPU)
    split = PreparedData.load(run.folder("data")).splits["evaluation"]
    texts = list(split["text"])
    rest = [text.removeprefix(prompt) for text, prompt in zip(texts, split["prompt"], strict=True)]
    right = (reward.probabilities(split["prompt"], rest) > 0.5).long().tolist()
    assert sum(map(int.__eq__, right, split["label"])) > 0.9 * len(right)
    read = []
    monkeypatch.setattr(reward_model, "class_logits", lambda model, rows, _: read.extend(rows) or torch.zeros(1, 2))
    reward(split["prompt"], rest)
    assert read == labelled_tokens(split, reward.tokenizer, 60, ending)["input_ids"]
    assert reward.tokenizer.decode(read[0]).endswith(ending)
    # Cut, the text is shorter, and the ending is whole.
    cut = labelled_tokens(split, reward.tokenizer, 30, ending)["input_ids"]
    assert {len(row) for row in cut} == {30} and cut[0][-len(reward.after) :] == reward.after


def test_a_classifier_begins_as_two_words_of_the_language_model(run):
    tokenizer, start = tiny_tokenizer(), run.recipe.reward_model.ending
    assert first_tokens(tokenizer, start, ("bad", "good")) == tokenizer("bg")["input_ids"]
    with pytest.raises(InputError, match="' bad', ' good' begin with the same token after"):
        first_tokens(tokenizer, start, (" bad", " good"))
    # What it knew before the training is a baseline of its own.
    report = read_json(run.evaluation / "reward_model.json")
    assert 0 <= report["start_accuracy"] < report["accuracy"] and len(report["start_accuracy_ci95"]) == 2
    assert "the head it started from" in accuracies(report)
    with pytest.raises(InputError, match="set both"):
        load_recipe("imdb", "small", {"reward_model.ending": ""})
    with pytest.raises(InputError, match="for labeled texts"):
        load_recipe("instruct", "small", {"reward_model.ending": "This answer is"})


def test_a_lexicon_judges_where_no_preference_is_known(run):
    make(run, "ppo", "evaluation")
    summary, about = read_json(run.evaluation / "summary.json"), about_judge(run)
    assert summary["judge"] == about and about["kind"] == "lexicon (VADER)"
    assert 0.7 < about["accuracy"] < 0.9, "of texts cut to what it judges; of whole ones it is over 0.95"
    assert is_informed(about) and summary["win_rate"]["ppo_vs_sft"]["judged_by"] == "gold"
    assert judge_of(run)(["It is "], ["wonderful"])[0] > 0.4 > -0.4 > judge_of(run)(["It is "], ["terrible"])[0]
    assert lexicon_judge(load_recipe("instruct")) is None
    # Where negative texts are paid for, it likes them; of what other labels mean it knows nothing.
    paid = {
        (scale, label): judge_of(Run(load_recipe("imdb", scale, {"reward_model.label": label}), "out"))
        for scale, label in (("small", "NEGATIVE"), ("small", "FUN"), ("tiny", "POSITIVE"), ("tiny", "NEGATIVE"))
    }
    assert paid["small", "NEGATIVE"](["It is "], ["terrible"])[0] > 0.4 and paid["small", "FUN"] is None
    texts = [""], ["the film was great. i loved it."]
    assert paid["tiny", "POSITIVE"](*texts)[0] + paid["tiny", "NEGATIVE"](*texts)[0] == 10
    for figures in summary["models"].values():
        assert -1 <= figures["gold"] <= 1 and figures["sft_perplexity"] > 1 and figures["rouge1"] is None
    assert {*summary["models"]} == {"base", "sft", "sft_qlora", "ppo"}
    page = write_report(run.root).read_text("utf-8")
    seen = re.sub(r"(?s)<style.*?</style>|<[^>]*>", " ", page)
    assert ", judge " in seen and not re.search(r"\bgold\b", seen)
