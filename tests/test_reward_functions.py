"""Rewards other than the reward model: a classifier's label, fluency, length, and weighted mixtures of named parts."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import CPU, PROMPTS, count_letter, one_thread, save_tiny, tiny_model, tiny_tokenizer, tiny_trainer  # noqa: F401
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.rewards import ClassifierReward, FluencyReward, LengthPenalty, RewardMixture
from rlhf_utils.settings.template import TEMPLATE

TEXTS = ["Yes.", "It is, I think, a matter of taste and of time", "No", "well then"]


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(3)
    config = DistilBertConfig(
        vocab_size=257, dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=80, initializer_range=0.3
    )
    config.id2label, config.label2id = {0: "NEGATIVE", 1: "POSITIVE"}, {"NEGATIVE": 0, "POSITIVE": 1}
    return DistilBertForSequenceClassification(config).eval()


@pytest.mark.parametrize("label, column", [("NEGATIVE", 0), ("POSITIVE", 1)])
def test_a_classifiers_reward_is_its_label_logit_on_prompt_and_response(classifier, label, column):
    found = ClassifierReward(classifier, tiny_tokenizer(), label, CPU)(PROMPTS[:4], TEXTS)
    for i, (prompt, text) in enumerate(zip(PROMPTS[:4], TEXTS, strict=True)):
        alone = classifier(torch.tensor([tiny_tokenizer()(f"{prompt} {text}")["input_ids"]])).logits[0, column]
        assert found[i] == pytest.approx(alone.item(), abs=1e-4)


def test_a_label_the_classifier_does_not_have_is_told_with_the_ones_it_has(classifier):
    with pytest.raises(InputError, match="no label 'positive'; choose one of NEGATIVE, POSITIVE"):
        ClassifierReward(classifier, tiny_tokenizer(), "positive", CPU)


def test_a_text_longer_than_the_classifier_reads_is_cut_from_the_left(classifier):
    reward = ClassifierReward(classifier, tiny_tokenizer(), "POSITIVE", CPU)
    long, whole = reward(["a" * 50, "a" * 30], ["b" * 49, "b" * 49])
    torch.testing.assert_close(long, whole)
    assert reward.cut == 1


def test_fluency_is_the_mean_log_likelihood_of_the_response():
    model, tokenizer = tiny_model(seed=4), tiny_tokenizer()
    found = FluencyReward(model, tokenizer, CPU)(PROMPTS[:4], TEXTS)
    for i, (prompt, text) in enumerate(zip(PROMPTS[:4], TEXTS, strict=True)):
        start, answer = (
            tokenizer(TEMPLATE.format(prompt))["input_ids"],
            tokenizer(TEMPLATE.completion(text))["input_ids"],
        )
        with torch.no_grad():
            logits = model(torch.tensor([start + answer])).logits[0].double().log_softmax(dim=-1)
        expected = sum(logits[len(start) - 1 + t, token].item() for t, token in enumerate(answer)) / len(answer)
        assert found[i] == pytest.approx(expected, abs=1e-4)


def test_an_empty_response_is_not_fluent():
    reward = FluencyReward(tiny_model(spread=0.02), tiny_tokenizer(), CPU)
    empty, spoken = reward(["hm", "hm"], ["", "some words"]).tolist()
    assert empty == pytest.approx(-torch.tensor(257.0).log().item()) and spoken > empty - 1


def test_length_is_fined_only_beyond_the_limit():
    found = LengthPenalty(4)(["p"] * 4, ["", "a b c d", "a b c d e f", "a b c d e f g h"])
    assert found.tolist() == [0.0, 0.0, -0.5, -1.0]


def test_a_mixture_is_the_weighted_sum_and_ppo_logs_each_part(tmp_path):
    mixture = RewardMixture(letters=(2.0, count_letter("e")), short=(0.5, LengthPenalty(1)))
    prompts, texts = ["p"] * 2, ["e e", "x"]
    assert mixture(prompts, texts).tolist() == [2 * 2 - 0.5, 0.0]
    trainer = tiny_trainer(save_tiny(tmp_path / "policy"), tmp_path / "out", mixture)
    trainer.train()
    for line in map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()):
        terms = line["reward_terms"]
        assert set(terms) == {"letters", "short"}
        assert line["reward"] == pytest.approx(2 * terms["letters"] + 0.5 * terms["short"], abs=1e-5)


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least one part"):
        RewardMixture()
