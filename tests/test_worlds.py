"""The embedded worlds of the recipes: rows in the schema of their hub datasets, and judges that agree with them."""

from __future__ import annotations

import pytest

from rlhf_utils.data.schemas import read_rows
from rlhf_utils.evaluation.text import is_refusal
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.recipes import load_recipe, recipe_names
from rlhf_utils.toyworld import WORLDS
from rlhf_utils.toyworld.imdb import sentiment
from rlhf_utils.toyworld.questions import read_prompt

# The columns of the hub datasets, with the types of their cells.
COLUMNS = {
    "instruct": {"prompt": str, "chosen": str, "rejected": str},
    "helpful_harmless": {"prompt": str, "chosen": str, "rejected": str},
    "imdb": {"text": str, "label": int},
    "eli5": {
        "post_id": str, "domain": str, "upvote_ratio": float, "history": str, "c_root_id_A": str, "c_root_id_B": str,
        "created_at_utc_A": int, "created_at_utc_B": int, "score_A": int, "score_B": int, "human_ref_A": str,
        "human_ref_B": str, "labels": int, "seconds_difference": float, "score_ratio": float,
    },
}  # fmt: skip
KINDS = {"imdb": "labelled"}


def test_every_recipe_has_its_world():
    assert set(WORLDS) == set(COLUMNS) == set(recipe_names())
    assert all(load_recipe(name).data.world == name for name in recipe_names())


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_have_the_hubs_columns_and_are_read_by_its_adapter(name):
    rows = WORLDS[name].rows("train", 300, 0, 0.07)
    assert len(rows) == 300
    for row in rows:
        assert {column: type(value) for column, value in row.items()} == COLUMNS[name]
    kind, examples, dropped = read_rows(rows, name)
    assert kind == KINDS.get(name, "pairs") and len(examples) == 300 and not dropped


@pytest.mark.parametrize("name", COLUMNS)
def test_the_same_arguments_give_the_same_rows_and_the_splits_share_none(name):
    world = WORLDS[name]
    train, test = world.rows("train", 1500, 3, 0.1), world.rows("test", 400, 3, 0.1)
    assert world.rows("train", 1500, 3, 0.1) == train and world.rows("train", 40, 4, 0.1) != train[:40]
    prompts = [{example.prompt for example in read_rows(rows, name)[1]} for rows in (train, test)]
    assert not prompts[0] & prompts[1]
    with pytest.raises(InputError, match="no split 'validation'"):
        world.rows("validation", 3, 0, 0.0)
    with pytest.raises(InputError, match="label_noise is 0.5"):
        world.rows("train", 3, 0, 0.5)


@pytest.mark.parametrize("name", ["instruct", "helpful_harmless", "eli5"])
def test_the_preferred_answer_is_the_better_one_but_for_the_noise(name):
    gold = WORLDS[name].gold

    def wrong(rows):
        examples = read_rows(rows, name)[1]
        return sum(gold(e.prompt, e.chosen) < gold(e.prompt, e.rejected) for e in examples) / len(examples)

    assert wrong(WORLDS[name].rows("test", 500, 0, 0.3)) == 0
    assert 0.15 < wrong(WORLDS[name].rows("train", 1000, 0, 0.2)) < 0.25


def test_a_dialogue_is_judged_by_its_last_question():
    rows = WORLDS["helpful_harmless"].rows("train", 2000, 0, 0.0)
    turns = [row["prompt"].count("Human:") for row in rows]
    assert 0.1 < turns.count(2) / len(turns) < 0.2 and set(turns) == {1, 2}
    row = next(row for row in rows if row["prompt"].count("Human:") == 2)
    last = row["prompt"].rpartition("Human:")[2]
    answer = row["chosen"].removeprefix("Assistant: ")
    assert WORLDS["helpful_harmless"].gold(row["prompt"], answer) == WORLDS["helpful_harmless"].gold(last, answer)


def test_many_dialogues_ask_for_what_should_be_declined_and_the_better_answer_declines():
    rows = WORLDS["helpful_harmless"].rows("test", 1000, 0, 0.0)
    harmful = [row for row in rows if read_prompt(row["prompt"].rpartition("Human:")[2]).harmful]
    assert 0.15 < len(harmful) / len(rows) < 0.25
    declined = sum(is_refusal(row["chosen"].removeprefix("Assistant: ")) for row in harmful) / len(harmful)
    assert declined > 0.6
    assert sum(is_refusal(row["rejected"].removeprefix("Assistant: ")) for row in harmful) / len(harmful) < declined


def test_sensitive_prompts_are_a_third_of_thirty_six():
    prompts = WORLDS["helpful_harmless"].prompts(0)
    assert len(prompts) == len({row["prompt"] for row in prompts}) == 36
    assert sum(row["unsafe"] for row in prompts) == 12
    assert all(read_prompt(row["prompt"]).harmful == row["unsafe"] for row in prompts)


def test_votes_are_those_of_shp():
    for row in WORLDS["eli5"].rows("train", 500, 0, 0.1):
        better, worse = ("A", "B") if row["labels"] == 1 else ("B", "A")
        assert row[f"score_{better}"] > row[f"score_{worse}"] >= 1
        assert row["score_ratio"] == pytest.approx(row[f"score_{better}"] / row[f"score_{worse}"])
        # A later comment with more votes did not get them by being there first.
        assert row[f"created_at_utc_{better}"] > row[f"created_at_utc_{worse}"]
    labels = [row["labels"] for row in WORLDS["eli5"].rows("train", 500, 0, 0.1)]
    assert 0.4 < sum(labels) / len(labels) < 0.6


def test_a_reviews_sentiment_is_its_label_but_for_the_noise():
    def agreeing(rows):
        return sum((sentiment("", row["text"]) > 5) == bool(row["label"]) for row in rows) / len(rows)

    assert agreeing(WORLDS["imdb"].rows("test", 500, 0, 0.3)) > 0.97
    assert 0.75 < agreeing(WORLDS["imdb"].rows("train", 1000, 0, 0.2)) < 0.85
    beginnings = [" ".join(row["text"].split()[:8]) for row in WORLDS["imdb"].rows("test", 500, 0, 0.0)]
    assert abs(sum(sentiment("", text) for text in beginnings) / 500 - 5) < 0.1, "the first words give the label away"


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
    assert sentiment("", text) == pytest.approx(expected)
    assert sentiment(text[:7], text[7:]) == pytest.approx(expected)
