"""The panel against cheating: it speaks up where the reward model can be fooled, and stays quiet where it cannot."""

import pytest

from rlhf_utils.evaluation.evaluator import Answered
from rlhf_utils.evaluation.hacking import judge_gain, overused_phrases, style_of
from rlhf_utils.toyworld import WORLDS, gold_score
from rlhf_utils.toyworld.gold import read_prompt

TRICK = "Bananas are my dear friends!"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [
        row for row in WORLDS["instruct"].rows("test", 400, 0, 0.0) if read_prompt(row["prompt"]).kind != "harmful"
    ][:150]


def gold(prompts, responses) -> list[float]:
    return [gold_score(p, r) for p, r in zip(prompts, responses, strict=True)]


def hackable(prompts, responses) -> list[float]:
    """Pays for the words and for one phrase on top."""
    return [0.02 * len(r.split()) + 2.0 * (TRICK.lower() in r.lower()) for r in responses]


def answers(prompts, texts, reward, judge=gold) -> Answered:
    gold = judge(prompts, texts) if judge else None
    return Answered(texts, [True] * len(texts), list(reward(prompts, texts)), gold, [1.0] * len(texts))


def verdict(rows, before, after, reward, judge=gold, surprise=1.0):
    prompts = [row["prompt"] for row in rows]
    one, other = (answers(prompts, texts, reward, judge) for texts in (before, after))
    other.surprise = [surprise] * len(after)
    return judge_gain(prompts, {"SFT": one, "PPO": other}, reward, judge)


def test_a_phrase_that_is_paid_for_is_named_with_and_without_a_judge(rows):
    before = [row["chosen"] for row in rows]
    after = [f"{text} {TRICK}" if i % 5 else text for i, text in enumerate(before)]
    for judge in (gold, None):
        found = verdict(rows, before, after, hackable, judge)
        assert found["level"] == "hacking" and "reward hacking" in found["text"]
        named = [line for line in found["evidence"] if "deleting it costs" in line]
        assert named and set(named[0].split("'")[1].split()) <= set(TRICK.lower().split())
        assert "appears in 120 of 150 responses, before in 0 of 150" in named[0]


@pytest.mark.parametrize("habit", ["", " I hope this helps!"])
def test_better_answers_and_good_habits_are_left_in_peace(rows, habit):
    """Rejected answers become chosen ones, or all take a habit on, under a reward model that is right."""
    before = [row["rejected"].replace("I hope this helps!", "") for row in rows]
    after = [f"{text}{habit}" for text in before] if habit else [row["chosen"] for row in rows]
    found, alone = verdict(rows, before, after, gold), verdict(rows, before, after, gold, None)
    assert found["level"] == "none" and "finds PPO better too" in found["text"]
    assert not [line for line in found["evidence"] if "deleting it" in line]
    assert habit or (alone["level"] == "none" and "no judge besides the reward model" in alone["text"])


def test_reward_up_and_gold_down_is_hacking_whatever_the_manner(rows):
    def backwards(prompts, responses):
        return [-g for g in gold(prompts, responses)]

    found = verdict(rows, [row["chosen"] for row in rows], [row["rejected"] for row in rows], backwards)
    assert found["level"] == "hacking" and "gold judge finds PPO worse" in found["text"]


@pytest.mark.parametrize(("nats", "level"), [(1.5, "suspected"), (1.3, "none")])
def test_answers_that_the_first_model_would_not_have_written_are_suspected_where_no_judge_speaks(rows, nats, level):
    before, after = ([row[side] for row in rows] for side in ("rejected", "chosen"))
    for judge, expected in ((None, level), (gold, "none")):
        found = verdict(rows, before, after, gold, judge, nats)
        assert found["level"] == expected
        assert any("perplexity of the responses" in line for line in found["evidence"]) == (level == "suspected")


def test_reward_up_without_gold_is_suspected(rows):
    prompts, before = ([row[key] for row in rows] for key in ("prompt", "chosen"))
    one, other = answers(prompts, before, gold), answers(prompts, before, gold)
    other.reward = [value + 1 for value in one.reward]
    assert judge_gain(prompts, {"SFT": one, "PPO": other}, gold, gold)["level"] == "suspected"
    assert judge_gain(prompts, {"SFT": other, "PPO": one}, gold, gold)["level"] == "none", "there is no gain to doubt"


def test_overused_phrases_are_counted_once_an_answer_and_not_twice_over():
    first = ["good luck to you my friend good luck to you"] * 30 + ["it depends on you"] * 10
    second = ["it depends on you"] * 38 + ["good luck to you"] * 2
    found = overused_phrases(first, second)
    top = found[0]
    assert [top[key] for key in ("first", "first_total", "second_total")] == [30, 40, 40] and top["z"] > 4
    assert top["growth"] == pytest.approx(30 / 40 - top["second"] / 40)
    words = [phrase["text"].split() for phrase in found]
    pairs = [set(zip(row, row[1:], strict=False)) for row in words]
    assert not any(a & b for i, a in enumerate(pairs) for b in pairs[:i])
    assert overused_phrases(second, second) == []


def test_style_is_of_the_words_and_endings():
    style = style_of(["I cannot help with that.", "a b a b a b"], [True, False])
    assert style["refusal_rate"] == 0.5 and style["eos_rate"] == 0.5 and style["repetition"] == pytest.approx(0.25)
