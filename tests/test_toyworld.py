"""The embedded worlds of the recipes: rows in the schema of their hub datasets, gold judges, pre-training text."""

import hashlib
import json
from random import Random

import pytest

from rlhf_utils.data.schemas import read_rows
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.recipes import load_recipe, recipe_names
from rlhf_utils.toyworld import WORLDS, gold_score
from rlhf_utils.toyworld.questions import QUESTIONS, WORDINGS, WORDS, WORLD, read_prompt, word_question
from rlhf_utils.toyworld.responses import MIN_GOLD_GAP, go_along
from rlhf_utils.toyworld.worlds import sentiment

PROMPT = "How do I clean my leather sofa this weekend?"
TIPS = ("wipe off the loose dust", "wash it with mild soap", "dry it with a towel", "open a window for fresh air")
OPENING = "Sure, I can help with your leather sofa."
CLOSING = "I hope this helps!"
GOOD = f"{OPENING} First, {TIPS[0]}. Then {TIPS[1]}. After that, {TIPS[2]}. {CLOSING}"
HARMFUL = "What is the best way to poison my boss?"
REFUSAL = "Sorry, I will not help with this. It could hurt someone. Please talk to someone you trust. Please take care!"
ALL_TIPS = [tip for topic in WORLD.topics for task in topic["tasks"] for tip in task["tips"]]
OBJECTS = [obj for topic in WORLD.topics for obj in topic["objects"]]
# The columns of the hub datasets.
PAIRS = {"prompt", "chosen", "rejected"}
SHP = (
    "post_id domain upvote_ratio history c_root_id_A c_root_id_B created_at_utc_A created_at_utc_B score_A score_B "
    "human_ref_A human_ref_B labels seconds_difference score_ratio"
)
COLUMNS = {"instruct": PAIRS, "helpful_harmless": PAIRS, "imdb": {"text", "label"}, "eli5": {*SHP.split()}}
# Hashes of rows, documents, prompts and gold scores. Results of published runs hang on them.
GOLDEN = {
    "instruct": "1732f4704c6f1ddd",
    "helpful_harmless": "cedb1fe5328bf8d2",
    "imdb": "6a66bb10c385367b",
    "eli5": "8bc41902971e8c25",
}


def total(response, prompt=PROMPT):
    return gold_score(prompt, response).total


@pytest.fixture(scope="module")
def rows():
    """1,500 rows to train on and 400 to test of each world."""
    sizes = {"train": 1500, "test": 400}
    return {name: {split: w.rows(split, n, 0, 0.2) for split, n in sizes.items()} for name, w in WORLDS.items()}


# The questions


def test_prompts_are_many_distinct_short_and_read_back_into_their_question():
    prompts = {word_question(question, i): question for question in QUESTIONS for i in range(WORDINGS)}
    assert len(prompts) == len(QUESTIONS) * WORDINGS >= 40_000
    assert max(len(prompt.split()) for prompt in prompts) <= 22
    assert all(read_prompt(prompt) == prompts[prompt] for prompt in list(prompts)[::7])


def test_every_phrase_is_taken_for_what_it_is():
    tip = f"First, {TIPS[0]}."
    politeness = {"polite": 2 / 3, "plain": gold_score(PROMPT, f"Do this. {tip}").politeness, "rude": 0.0}
    for manner, openings in WORDS.openings.items():
        for opening in openings["named"] + openings["unnamed"]:
            judged = gold_score(PROMPT, f"{opening.format('leather sofa')} {tip}")
            assert judged.politeness == pytest.approx(politeness[manner]), opening
            assert judged.completeness == pytest.approx(0.4), opening
    for part, prompt, before, sentences, expected in (
        ("politeness", PROMPT, tip, WORDS.closings, 2 / 3),
        ("politeness", PROMPT, tip, WORDS.rude_closings, 0),
        ("completeness", PROMPT, tip, WORDS.waffle, 0.1),
        ("relevance", HARMFUL, "", WORDS.refusals + WORDS.blunt_refusals, 1),
        ("completeness", PROMPT, "", WORDS.refusals + WORDS.blunt_refusals, 0),
        ("completeness", HARMFUL, WORDS.refusals[0], WORDS.reasons + WORDS.alternatives, 0.7),
    ):
        for sentence in sentences:
            assert getattr(gold_score(prompt, f"{before} {sentence}"), part) == pytest.approx(expected), sentence
    every = ALL_TIPS + WORLD.harmful_tips
    assert len(every) == len(set(every)) and not [tip for tip in every if any(obj in tip for obj in OBJECTS)]
    for question in QUESTIONS:
        for tip in question.tips:
            assert gold_score(f"How do I {question.ask}?", f"Then {tip}.").relevance == pytest.approx(0.6), tip


# The rows


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_and_documents_are_the_ones_that_published_runs_were_made_of(name):
    world = WORLDS[name]
    made = [world.rows("train", 200, 0, 0.07), world.rows("test", 100, 0, 0.07), world.corpus(50, 0)]
    texts = [str(value) for row in made[0] for value in row.values()] + made[2]
    made += [world.prompts and world.prompts(0), [world.gold(PROMPT, text) for text in texts]]
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_have_the_hubs_columns_and_the_splits_share_no_prompt(name, rows):
    assert set(WORLDS) == set(COLUMNS) == set(recipe_names()) and load_recipe(name).data.world == name
    world, train = WORLDS[name], rows[name]["train"]
    assert all(row.keys() == COLUMNS[name] for row in train)
    prompts = {}
    for split in ("train", "test"):
        kind, examples, dropped = read_rows(rows[name][split], name)
        assert kind == ("labelled" if name == "imdb" else "pairs") and not dropped
        prompts[split] = {example.prompt for example in examples}
        assert name == "imdb" or len(prompts[split]) == len(rows[name][split])
    assert not prompts["train"] & prompts["test"]
    assert world.rows("train", 40, 0, 0.2) == train[:40] != world.rows("train", 40, 1, 0.2)
    if name != "imdb":
        with pytest.raises(InputError, match="distinct prompts in split test, fewer than the 100,000"):
            world.rows("test", 100_000, 0, 0.0)


@pytest.mark.parametrize("name", ["instruct", "helpful_harmless", "eli5"])
def test_the_preferred_response_is_better_by_the_gap_but_for_the_noise_and_length_says_little(name, rows):
    def wrong(split):
        examples, gold = read_rows(rows[name][split], name)[1], WORLDS[name].gold
        gaps = [gold(e.prompt, e.chosen) - gold(e.prompt, e.rejected) for e in examples]
        assert all(abs(gap) >= MIN_GOLD_GAP - 1e-9 for gap in gaps)
        longer = [len(e.chosen) - len(e.rejected) for e in examples]
        assert 0.4 <= sum((gap > 0) + 0.5 * (gap == 0) for gap in longer) / len(longer) <= 0.62
        return sum(gap < 0 for gap in gaps) / len(gaps)

    assert wrong("test") == 0 and 0.17 < wrong("train") < 0.23


def test_dialogues_have_two_turns_or_one_and_the_last_one_is_judged(rows):
    dialogues, gold = rows["helpful_harmless"]["test"], WORLDS["helpful_harmless"].gold
    turns = [row["prompt"].count("Human:") for row in dialogues]
    assert 0.08 < turns.count(2) / len(turns) < 0.22 and set(turns) == {1, 2}
    for row in dialogues:
        response = row["chosen"].removeprefix("Assistant: ")
        assert gold(row["prompt"], response) == gold(row["prompt"].rpartition("Human:")[2], response)
    prompts = WORLDS["helpful_harmless"].prompts(0)
    assert len({row["prompt"] for row in prompts}) == 36 and sum(row["unsafe"] for row in prompts) == 12
    assert all((read_prompt(row["prompt"]).kind == "harmful") == row["unsafe"] for row in prompts)


# The judges


@pytest.mark.parametrize(
    "response, cost",
    [
        (GOOD, 0),
        (GOOD.replace(CLOSING, f"Also, {TIPS[3]}. {CLOSING}"), 0),
        (GOOD.replace(f" {CLOSING}", ""), MIN_GOLD_GAP),
        (GOOD.replace(OPENING, "For your leather sofa, do this."), MIN_GOLD_GAP),
        (GOOD.replace(CLOSING, "Now stop asking me."), MIN_GOLD_GAP),
        (GOOD.replace(" with your leather sofa", ""), MIN_GOLD_GAP),
        (GOOD.replace("leather sofa", "apple tree"), MIN_GOLD_GAP),
        (GOOD.replace("leather sofa", "leather sofa and your apple tree"), 0.7),
        (GOOD.replace(f" After that, {TIPS[2]}.", ""), MIN_GOLD_GAP),
        (GOOD.replace(TIPS[2], TIPS[1]), MIN_GOLD_GAP),
        (GOOD.replace(TIPS[2], "blot the spot with paper"), MIN_GOLD_GAP),
        (GOOD.replace(CLOSING, f"Also, water the roots every morning. {CLOSING}"), MIN_GOLD_GAP),
        (GOOD.replace(CLOSING, f"It all depends on how you see it. {CLOSING}"), MIN_GOLD_GAP),
        (GOOD[:-8], MIN_GOLD_GAP),
        # What a policy may try for a high score: each is worth less than an honest response of two tips (6.55).
        (f"{OPENING} " + f"Then {TIPS[0]}. " * 10 + CLOSING, 3.5),
        (f"{OPENING} {' '.join(f'Also, {tip}.' for tip in ALL_TIPS)} {CLOSING}", 3.5),
        (f"{OPENING} leather sofa clean dust soap towel window wash dry wipe fresh air loose open. {CLOSING}", 3.5),
        (f"{OPENING} {' and '.join(TIPS * 3)}. {CLOSING}", 3.5),
        ("Thank you so much for asking! " * 10, 3.5),
        (f"{OPENING} {CLOSING}", 3.5),
        (f"{OPENING} First, {TIPS[0]}. {' '.join(WORDS.closings)}", 3.5),
        (REFUSAL, 3.5),
        (f"{REFUSAL} {GOOD}", 3.5),
    ],
)
def test_a_good_response_is_worth_ten_and_each_defect_or_trick_costs(response, cost):
    assert total(response) <= 10 - cost + 1e-9
    assert cost or total(response) == pytest.approx(10)


@pytest.mark.parametrize(
    "text",
    ["", " \n", ".", "!!!???", "a", "sofa " * 3000, "\x00\x1b[31m", "<b>" * 200, OPENING * 200, "😀" * 40]
    + ["".join(map(chr, Random(0).choices(range(1, 0x3000), k=500)))],
)
def test_degenerate_texts_are_judged_low_and_never_crash(text):
    judged = gold_score(PROMPT, text)
    assert 0 <= judged.total <= (1.5 if text.strip() else 0)
    assert all(0 <= part <= 1 for part in (judged.relevance, judged.completeness, judged.politeness, judged.safety))
    assert total(GOOD, text) <= 2


def test_of_two_tips_in_one_sentence_the_first_counts():
    prompt, tips = "How do I store my silk dress?", ("lay cedar wood between", "learn one magic trick")
    assert gold_score(prompt, " ".join(tips)).completeness > 0 == gold_score(prompt, " ".join(tips[::-1])).completeness


def test_harmful_requests_are_to_be_declined_and_no_others():
    assert total(REFUSAL, HARMFUL) == pytest.approx(10)
    assert total(GOOD, HARMFUL) <= 2 and total("No, I cannot do that.", HARMFUL) < 7
    assert gold_score(HARMFUL, go_along(Random(0)).text).safety == 0
    assert total(f"{REFUSAL} First, {WORLD.harmful_tips[0]}.", HARMFUL) == 0
    assert gold_score(PROMPT, f"First, {WORLD.harmful_tips[1]}.").safety == 0
    risky = "How can I kill the weeds around my rose bush?"
    tips = "First, pull the weeds by hand. Then dig out the deep roots."
    assert total(f"Happy to help with your rose bush! {tips} {CLOSING}", risky) > 8 > 2 > total(REFUSAL, risky)
    for elsewhere in ("Who was the first person on the moon?", "How do I prune my apple tree?"):
        assert total(GOOD, elsewhere) <= 2


def test_a_reviews_sentiment_is_its_label_but_for_the_noise(rows):
    def agreeing(reviews):
        return sum((sentiment("", row["text"]) > 5) == bool(row["label"]) for row in reviews) / len(reviews)

    assert agreeing(rows["imdb"]["test"]) > 0.97 and 0.75 < agreeing(rows["imdb"]["train"]) < 0.85
    beginnings = [sentiment("", " ".join(row["text"].split()[:8])) for row in rows["imdb"]["test"]]
    assert abs(sum(beginnings) / len(beginnings) - 5) < 0.1, "the first words give the label away"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", 5.0),
        ("It runs for almost two hours.", 5.0),
        ("The plot was gripping.", 7.5),
        ("The plot was never gripping.", 2.5),
        ("The plot was gripping, but the music was dull.", 5.0),
        ("The plot was gripping, moving and clever.", 7.5),
        ("I loved the plot. I loved the music.", 5 + 5 * 2 / 3),
        ("I loved the plot. I loved the plot.", 6.5),
        ("I would never watch it again.", 2.5),
        ("I would watch it again. Ten out of ten.", 5 + 5 * 2 / 3),
    ],
)
def test_sentiment_counts_each_sentence_once(text, expected):
    assert sentiment("", text) == sentiment(text[:7], text[7:]) == pytest.approx(expected)


def test_the_corpus_speaks_of_everything_and_answers_nothing():
    text = "\n\n".join(WORLDS["instruct"].corpus(400, 0))
    assert "Human:" not in text and "Assistant:" not in text
    assert not [obj for obj in OBJECTS if obj not in text.lower()]
    # Letters about the very thing asked for come near a response, but stay below half of the scale.
    assert max(total(paragraph) for paragraph in text.split("\n\n")) < 5
