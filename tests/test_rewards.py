"""Scoring: one text has one score, whatever stands beside it in the batch."""

from __future__ import annotations

import json
import random

import pytest
import torch
from tiny import CONTEXT, CPU, PROMPTS, one_thread, save_tiny, tiny_tokenizer, token_rows  # noqa: F401
from transformers import GPT2ForSequenceClassification

from rlhf_utils.models.language_model import right_padded
from rlhf_utils.models.loading import load_reward_model, load_tokenizer, save_model
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.rewards import RewardModel
from rlhf_utils.rewards.reward_model import SCALE_FILE, class_logits
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
    return RewardModel.load(folder, CPU)


def test_a_score_is_the_one_transformers_gives_to_the_sequence_alone(folder, reward):
    theirs = GPT2ForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = torch.stack([theirs(torch.tensor([row])).logits[0, 0] for row in ROWS])
    assert expected.std() > 0.1, "scores that hardly differ would prove nothing"
    torch.testing.assert_close(score_tokens(reward.model, ROWS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_score_depends_on_neither_batch_nor_order(reward, batch_size):
    alone = torch.cat([score_tokens(reward.model, [row]) for row in ROWS])
    order = random.Random(0).sample(range(len(ROWS)), len(ROWS))
    shuffled = score_tokens(reward.model, [ROWS[i] for i in order], batch_size)
    torch.testing.assert_close(shuffled, alone[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_score_does_not_depend_on_the_tokenizers_padding_side(reward, side):
    expected = reward.logits(PROMPTS, RESPONSES)
    reward.tokenizer.padding_side = side
    assert torch.equal(reward.logits(PROMPTS, RESPONSES), expected)


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


def test_what_is_scored_is_the_templates_text(reward):
    rows = [
        reward.tokenizer(TEMPLATE.text(prompt, response), add_special_tokens=False)["input_ids"]
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    torch.testing.assert_close(reward.logits(PROMPTS, RESPONSES), score_tokens(reward.model, rows))


def test_a_text_over_the_context_is_cut_from_the_left_of_its_prompt_and_counted(reward, capsys):
    prompts, answer = ["why? " * 30, "hm"], "a good answer"
    long, short = reward.logits(prompts, [answer] * 2)
    assert reward.cut == 1 and "1 of 2 texts are longer than the 96 tokens" in capsys.readouterr().err
    kept = reward.tokenizer(TEMPLATE.text(prompts[0], answer))["input_ids"][-CONTEXT:]
    torch.testing.assert_close(long, score_tokens(reward.model, [kept])[0])
    torch.testing.assert_close(short, reward.logits(prompts[1:], [answer])[0])
    assert not capsys.readouterr().err, "said once"


def test_more_or_fewer_responses_than_prompts_is_an_error(reward):
    with pytest.raises(ValueError):
        reward(PROMPTS, RESPONSES[:-1])


def test_calibration_gives_mean_zero_and_spread_one_and_keeps_the_order(reward):
    raw = reward(PROMPTS, RESPONSES)
    reward.calibrate(PROMPTS, RESPONSES)
    scaled = reward(PROMPTS, RESPONSES)
    assert abs(raw.mean()) + abs(raw.std() - 1) > 0.05, "already on that scale: nothing to calibrate"
    assert scaled.mean().item() == pytest.approx(0, abs=1e-5) and scaled.std().item() == pytest.approx(1, abs=1e-5)
    assert scaled.argsort().tolist() == raw.argsort().tolist()
    torch.testing.assert_close(reward.logits(PROMPTS, RESPONSES), raw)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.filterwarnings("ignore:std")  # torch's remark on the spread of one number
def test_answers_that_all_score_alike_cannot_be_calibrated_on(reward, count):
    with pytest.raises(InputError, match="same score.*train it on more pairs"):
        reward.calibrate(PROMPTS[:1] * count, RESPONSES[:1] * count)


def test_the_scale_is_saved_beside_the_model_and_found_again(reward, tmp_path):
    save_model(reward.model, reward.tokenizer, tmp_path)
    assert (RewardModel.load(tmp_path, CPU).mean, RewardModel.load(tmp_path, CPU).std) == (0.0, 1.0)
    reward.calibrate(PROMPTS, RESPONSES)
    reward.save_scale(tmp_path)
    assert json.loads((tmp_path / SCALE_FILE).read_text()) == {"mean": reward.mean, "std": reward.std}
    again = RewardModel.load(tmp_path, CPU)
    assert torch.equal(again(PROMPTS, RESPONSES), reward(PROMPTS, RESPONSES))


def test_scoring_has_no_gradient_and_leaves_the_models_mode(reward):
    reward.model.train()
    scores = reward(PROMPTS, RESPONSES)
    assert reward.model.training and not scores.requires_grad
    assert scores.shape == (len(PROMPTS),) and scores.dtype == torch.float32


def test_right_padding_puts_rows_at_the_left_edge():
    tokens, lengths = right_padded([[5], [6, 7, 8]], 3)
    assert tokens.tolist() == [[5, 3, 3], [6, 7, 8]] and lengths.tolist() == [1, 3]


def test_a_byte_is_a_token_in_these_tests():
    """What the other tests of models count on."""
    assert tiny_tokenizer()("Human: é", add_special_tokens=False)["input_ids"].__len__() == len("Human: é".encode())
