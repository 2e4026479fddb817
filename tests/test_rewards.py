"""Rewards: one text has one score, whatever stands beside it in the batch; a classifier's label, fluency, length, and
weighted mixtures."""

import random

import pytest
import torch
from made import cells
from tiny import (  # noqa: F401
    CONTEXT,
    CPU,
    PROMPTS,
    count_letter,
    one_thread,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
    tiny_trainer,
    token_rows,
)
from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPT2ForSequenceClassification

from rlhf_utils.models.loading import load_reward_model, load_tokenizer, save_model
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.rewards import ClassifierReward, FluencyReward, RewardMixture, RewardModel, load_reward
from rlhf_utils.rewards.reward_model import class_logits
from rlhf_utils.settings.template import TEMPLATE

RESPONSES = ["yes", "", "No, it is not.", "a much longer answer that goes on", "é 🙂", "x", "y " * 20]
ROWS = token_rows((4, 30, 11, 1, 30, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model with a head wide enough for scores to differ, as `save_model` leaves it."""
    source = save_tiny(tmp_path_factory.mktemp("policy"))
    torch.manual_seed(3)
    model = load_reward_model(source, CPU, fresh_head=True)
    model.score.weight.data.normal_()
    target = tmp_path_factory.mktemp("reward")
    save_model(model, load_tokenizer(source), target)
    return target


def score_tokens(model, rows, batch_size: int = 64) -> torch.Tensor:
    return class_logits(model, rows, CPU, batch_size)[:, 0]


@pytest.fixture
def reward(folder) -> RewardModel:
    return load_reward(folder, CPU)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_score_is_the_one_transformers_gives_to_the_sequence_alone(folder, reward, batch_size):
    theirs = GPT2ForSequenceClassification.from_pretrained(folder).eval()
    rows = random.Random(0).sample(ROWS, len(ROWS))
    with torch.no_grad():
        expected = torch.stack([theirs(torch.tensor([row])).logits[0, 0] for row in rows])
    assert expected.std() > 0.1, "scores that hardly differ would prove nothing"
    torch.testing.assert_close(score_tokens(reward.model, rows, batch_size), expected, rtol=0, atol=1e-5)


def test_an_eos_inside_or_at_the_end_is_a_token_like_any_other(reward):
    """Padding has the same id; transformers' own class would read the score before it."""
    eos = reward.tokenizer.eos_token_id
    rows = [[5, eos, 9, 8], [5, 9, eos], [5, 9, eos, eos], [eos], [5, 9]]
    for row, score in zip(rows, score_tokens(reward.model, rows), strict=True):
        with torch.no_grad():
            state = reward.model.transformer(torch.tensor([row])).last_hidden_state[0, -1]
            assert score.item() == pytest.approx(reward.model.score(state).item(), abs=1e-5)
    scores = score_tokens(reward.model, rows[1:3] + rows[-1:])
    assert len({round(score, 4) for score in scores.tolist()}) == 3


def test_a_text_over_the_context_is_cut_from_the_left_of_its_prompt_and_counted(reward):
    prompts, answer = ["why? " * 30, "hm"], "a good answer"
    long, short = reward.logits(prompts, [answer] * 2)
    assert reward.cut == 1
    kept = reward.tokenizer(TEMPLATE.text(prompts[0], answer))["input_ids"][-CONTEXT:]
    torch.testing.assert_close(long, score_tokens(reward.model, [kept])[0])
    torch.testing.assert_close(short, reward.logits(prompts[1:], [answer])[0])


def test_calibration_gives_mean_zero_and_spread_one_and_keeps_the_order(reward):
    raw = reward(PROMPTS, RESPONSES)
    reward.calibrate(PROMPTS, RESPONSES)
    scaled = reward(PROMPTS, RESPONSES)
    assert abs(raw.mean()) + abs(raw.std() - 1) > 0.05, "already on that scale: nothing to calibrate"
    assert scaled.mean().item() == pytest.approx(0, abs=1e-5) and scaled.std().item() == pytest.approx(1, abs=1e-5)
    assert scaled.argsort().tolist() == raw.argsort().tolist()
    torch.testing.assert_close(reward.logits(PROMPTS, RESPONSES), raw)


def test_the_scale_is_saved_beside_the_model_and_found_again(reward, tmp_path):
    save_model(reward.model, reward.tokenizer, tmp_path)
    reward.calibrate(PROMPTS, RESPONSES)
    reward.save_scale(tmp_path)
    again = load_reward(tmp_path, CPU)
    assert torch.equal(again(PROMPTS, RESPONSES), reward(PROMPTS, RESPONSES))


# Other rewards

TEXTS = ["Yes.", "It is, I think, a matter of taste and of time", "No", "well then"]


@pytest.mark.parametrize("label, column", [("NEGATIVE", 0), ("POSITIVE", 1)])
def test_a_classifiers_reward_is_its_label_logit_on_prompt_and_response(label, column):
    torch.manual_seed(3)
    size = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 80}
    config = DistilBertConfig(vocab_size=257, initializer_range=0.3, **size)
    config.id2label, config.label2id = {0: "NEGATIVE", 1: "POSITIVE"}, {"NEGATIVE": 0, "POSITIVE": 1}
    classifier = DistilBertForSequenceClassification(config).eval()
    reward = ClassifierReward(classifier, tiny_tokenizer(), CPU, label)
    found = reward(PROMPTS[:4], TEXTS)
    for i, (prompt, text) in enumerate(zip(PROMPTS[:4], TEXTS, strict=True)):
        alone = classifier(torch.tensor([tiny_tokenizer()(f"{prompt} {text}")["input_ids"]])).logits[0, column]
        assert found[i] == pytest.approx(alone.item(), abs=1e-4)
    long, whole = reward(["a" * 50, "a" * 30], ["b" * 49, "b" * 49])
    torch.testing.assert_close(long, whole)
    assert reward.cut == 1, "cut from the left"
    with pytest.raises(InputError, match="no label 'positive'; choose one of NEGATIVE, POSITIVE"):
        ClassifierReward(classifier, tiny_tokenizer(), CPU, "positive")


def test_fluency_is_the_mean_log_likelihood_of_the_response():
    model, tokenizer = tiny_model(seed=4), tiny_tokenizer()
    found = FluencyReward(model, tokenizer, CPU)(PROMPTS[:4], TEXTS)
    for i, (prompt, text) in enumerate(zip(PROMPTS[:4], TEXTS, strict=True)):
        start, answer = (tokenizer(t)["input_ids"] for t in (TEMPLATE.format(prompt), TEMPLATE.completion(text)))
        with torch.no_grad():
            logits = model(torch.tensor([start + answer])).logits[0].double().log_softmax(dim=-1)
        expected = sum(logits[len(start) - 1 + t, token].item() for t, token in enumerate(answer)) / len(answer)
        assert found[i] == pytest.approx(expected, abs=1e-4)


def test_a_mixture_is_the_weighted_sum_and_ppo_logs_each_part(tmp_path):
    length_penalty = cells("03_02", "def length_penalty(").length_penalty
    mixture = RewardMixture(letters=(2.0, count_letter("e")), short=(0.5, length_penalty(1)))
    assert mixture(["p"] * 2, ["e e", "x"]).tolist() == [2 * 2 - 0.5, 0.0]
    for line in tiny_trainer(save_tiny(tmp_path / "policy"), tmp_path / "out", mixture).train():
        terms = line["reward_terms"]
        assert set(terms) == {"letters", "short"}
        assert line["reward"] == pytest.approx(2 * terms["letters"] + 0.5 * terms["short"], abs=1e-5)
