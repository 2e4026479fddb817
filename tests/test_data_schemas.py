"""Adapters: every accepted form of dataset, and rows of each that cannot be used."""

import math

import pytest

from rlhf_utils.data.schemas import (
    EARLIER_DIFFERENCE,
    EMPTY,
    NO_ANSWER_AT_END,
    NO_ANSWER_TURN,
    NO_PREFERENCE,
    SCHEMAS,
    UNKNOWN_LABEL,
    UNKNOWN_ROLE,
    Example,
    read_rows,
    recognise,
)
from rlhf_utils.platforms.errors import InputError

TWO_TURNS = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def dialogues(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


ACCEPTED = {
    "hub pairs": (
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        "pairs",
        ("p", "good", "bad"),
    ),
    "pairs with markers": (
        {"prompt": "\n\nHuman: p\n\nAssistant:", "chosen": " good", "rejected": "Assistant: bad"},
        "pairs",
        ("p", "good", "bad"),
    ),
    # As yitingxie/rlhf-reward-datasets has them.
    "prompt that ends before the marker": (
        {"prompt": "\n\nHuman: p ", "chosen": "Assistant: good", "rejected": "Assistant: bad"},
        "pairs",
        ("p", "good", "bad"),
    ),
    "pairs of messages": (
        {"prompt": [user("p")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        "pairs",
        ("p", "good", "bad"),
    ),
    "pairs that repeat the prompt": (
        {"prompt": "p", "chosen": [user("p"), assistant("good")], "rejected": [user("p"), assistant("bad")]},
        "pairs",
        ("p", "good", "bad"),
    ),
    "hh dialogues": (
        dialogues(f"{TWO_TURNS}\n\nAssistant: See you.", f"{TWO_TURNS}\n\nAssistant: No."),
        "pairs",
        ("Hi\n\nAssistant: Hello\n\nHuman: Bye", "See you.", "No."),
    ),
    "conversations": (
        dialogues(
            [
                {"role": "system", "content": "Be kind."},
                user("Hi"),
                assistant("Hello"),
                user("Bye"),
                assistant("See you."),
            ],
            [
                {"role": "system", "content": "Be kind."},
                user("Hi"),
                assistant("Hello"),
                user("Bye"),
                assistant("No."),
            ],
        ),
        "pairs",
        ("Be kind.\n\nHi\n\nAssistant: Hello\n\nHuman: Bye", "See you.", "No."),
    ),
    "shp, A preferred": (
        {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 9, "score_B": 2},
        "pairs",
        ("p", "a", "b"),
    ),
    "shp, B preferred": (
        {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": "0", "score_A": 2, "score_B": 9},
        "pairs",
        ("p", "b", "a"),
    ),
    "raw eli5": (
        {
            "title": "why?",
            "selftext": "really",
            "answers": {"text": ["mid", "best", "worst"], "score": [5, 70, -1]},
        },
        "pairs",
        ("why?\n\nreally", "best", "worst"),
    ),
    "raw eli5, list of answers": (
        {
            "title": "why?",
            "selftext": "[removed]",
            "answers": [
                {"text": "worst", "score": 1},
                {"text": "best", "score": 3},
                {"text": "[deleted]", "score": 0},
            ],
        },
        "pairs",
        ("why?", "best", "worst"),
    ),
    "demonstration": ({"prompt": "p", "response": "r"}, "demonstrations", ("p", "r", None)),
    "completion": ({"prompt": "p", "completion": " r"}, "demonstrations", ("p", "r", None)),
    "messages as completion": (
        {"prompt": [user("p")], "completion": [assistant("r")]},
        "demonstrations",
        ("p", "r", None),
    ),
    "question and answer": ({"question": "p", "answer": "r"}, "demonstrations", ("p", "r", None)),
    "alpaca": (
        {"instruction": "Sort", "input": "3 1 2", "output": "1 2 3"},
        "demonstrations",
        ("Sort\n\n3 1 2", "1 2 3", None),
    ),
    "alpaca without input": (
        {"instruction": "Sort", "input": "", "output": "1 2 3"},
        "demonstrations",
        ("Sort", "1 2 3", None),
    ),
    "messages": ({"messages": [user("p"), assistant("r")]}, "demonstrations", ("p", "r", None)),
    "imdb": ({"text": "fine film", "label": 1}, "labelled", ("fine film", None, None)),
    "reviews": ({"review": "bad film", "sentiment": "negative"}, "labelled", ("bad film", None, None)),
    "prompts": ({"prompt": "p", "id": 7}, "prompts", ("p", None, None)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_form(name):
    row, kind, expected = ACCEPTED[name]
    found, (example,), dropped = read_rows([row | {"unrelated": 1}], "here")
    assert found == kind and not dropped
    assert (example.prompt, example.chosen, example.rejected) == expected


def test_every_schema_is_covered_above():
    assert {id(recognise(row, "here")) for row, _, _ in ACCEPTED.values()} == {id(schema) for schema in SCHEMAS}


# What the datasets of the recipes really hold: the columns of a row, and the example that it is.
REAL = {
    "Dahoas/synthetic-instruct-gptj-pairwise": (
        {"prompt": "How do I boil an egg?", "chosen": "Seven minutes.", "rejected": "I don't know."},
        Example("How do I boil an egg?", "Seven minutes.", "I don't know."),
    ),
    # Prompts end before the marker of the answer, and both answers begin with it.
    "yitingxie/rlhf-reward-datasets": (
        {"prompt": "\n\nHuman: Boil an egg?\n\n", "chosen": "Assistant: Seven minutes.", "rejected": "Assistant: No."},
        Example("Boil an egg?", "Seven minutes.", "No."),
    ),
    "yitingxie/rlhf-reward-datasets, several turns": (
        {
            "prompt": f"{TWO_TURNS}\n\n",
            "chosen": "Assistant: See you!",
            "rejected": "Assistant: Who are you?",
        },
        Example("Hi\n\nAssistant: Hello\n\nHuman: Bye", "See you!", "Who are you?"),
    ),
    "stanfordnlp/imdb": ({"text": "A fine film.", "label": 1}, Example("A fine film.", extra={"label": 1})),
    "stanfordnlp/SHP": (
        {
            "post_id": "p", "domain": "explainlikeimfive_train", "upvote_ratio": 0.9, "history": "ELI5: Why blue?",
            "c_root_id_A": "a", "c_root_id_B": "b", "created_at_utc_A": 1, "created_at_utc_B": 2, "score_A": 3,
            "score_B": 30, "human_ref_A": "Paint.", "human_ref_B": "Scattering.", "labels": 0,
            "seconds_difference": 1.0, "score_ratio": 10.0,
        },
        Example("ELI5: Why blue?", "Scattering.", "Paint.", {"score_chosen": 30, "score_rejected": 3}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_rows_as_the_recipes_datasets_have_them(name):
    row, expected = REAL[name]
    _, examples, dropped = read_rows([row], name)
    assert examples == [expected] and not dropped


def test_labels_and_scores_are_kept():
    labels = ["positive", "NEG", 1, 0.0, "1", True]
    _, examples, _ = read_rows([{"text": "t", "label": label} for label in labels], "here")
    assert [example.extra["label"] for example in examples] == [1, 0, 1, 0, 1, 1]
    _, (example,), _ = read_rows([ACCEPTED["shp, B preferred"][0]], "here")
    assert example.extra == {"score_chosen": 9, "score_rejected": 2}


DROPPED = [
    ({"prompt": "p", "chosen": None, "rejected": "b"}, EMPTY),
    ({"prompt": "p", "chosen": "a", "rejected": math.nan}, EMPTY),
    ({"prompt": 7, "chosen": "a", "rejected": "b"}, EMPTY),
    ({"prompt": " \n", "chosen": "a", "rejected": "b"}, EMPTY),
    ({"prompt": "Human:\n\nAssistant:", "chosen": "a", "rejected": "b"}, EMPTY),
    ({"prompt": "p", "chosen": {"a": 1}, "rejected": "b"}, EMPTY),
    ({"prompt": "p", "chosen": [user("x")], "rejected": [assistant("b")]}, NO_ANSWER_AT_END),
    (
        {"prompt": "p", "chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]},
        EARLIER_DIFFERENCE,
    ),
    (
        dialogues(f"{TWO_TURNS}\n\nAssistant: a", "\n\nHuman: Hi\n\nAssistant: Hello there"),
        EARLIER_DIFFERENCE,
    ),
    (dialogues(f"{TWO_TURNS}\n\nAssistant: a", f"{TWO_TURNS}!\n\nAssistant: b"), EARLIER_DIFFERENCE),
    (dialogues("good", "bad"), NO_ANSWER_TURN),
    (
        dialogues(f"{TWO_TURNS}\n\nAssistant: a\n\nHuman: and?", f"{TWO_TURNS}\n\nAssistant: b"),
        NO_ANSWER_AT_END,
    ),
    (dialogues(f"{TWO_TURNS}\n\nAssistant:", f"{TWO_TURNS}\n\nAssistant: b"), EMPTY),
    (dialogues([assistant("a")], [assistant("b")]), EMPTY),
    (dialogues([user("x"), assistant("a")], "text"), EMPTY),
    ({"messages": []}, EMPTY),
    ({"messages": ["hello"]}, NO_ANSWER_AT_END),
    ({"messages": [{"role": "tool", "content": "x"}, assistant("a")]}, UNKNOWN_ROLE),
    ({"messages": [assistant("a"), assistant("b")]}, UNKNOWN_ROLE),
    ({"messages": [{"role": "user", "content": None}, assistant("b")]}, EMPTY),
    ({"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 2}, NO_PREFERENCE),
    ({"title": "why?", "answers": {"text": ["a", "b"], "score": [4, 4]}}, NO_PREFERENCE),
    ({"title": "why?", "answers": {"text": ["a"], "score": [4]}}, NO_PREFERENCE),
    ({"title": "why?", "answers": {"text": None, "score": None}}, NO_PREFERENCE),
    ({"title": "why?", "answers": "text"}, EMPTY),
    ({"text": "t", "label": -1}, UNKNOWN_LABEL),
    ({"text": "t", "label": "great"}, UNKNOWN_LABEL),
    ({"text": "t", "label": math.inf}, UNKNOWN_LABEL),
]


@pytest.mark.parametrize(("row", "reason"), DROPPED)
def test_row_that_cannot_be_used_is_dropped_with_its_reason(row, reason):
    _, examples, dropped = read_rows([row], "here")
    assert examples == [] and dropped == {reason: 1}


def test_a_row_without_one_of_the_columns_is_dropped_and_not_an_error():
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a"}, {}]
    _, examples, dropped = read_rows(rows, "here")
    assert len(examples) == 1 and dropped == {EMPTY: 2}


@pytest.mark.parametrize(
    "columns",
    [["prompt", "chosen"], ["prompt", "rejected"], ["chosen"], ["history", "prompt"], ["a", "b"], []],
)
def test_unknown_columns_name_what_was_found_and_what_is_accepted(columns):
    with pytest.raises(InputError) as caught:
        recognise(columns, "my.csv")
    message = str(caught.value)
    assert message.startswith(f"my.csv: columns found: {', '.join(columns) or 'none'}.") and "\n" not in message
    assert all(schema.accepts in message for schema in SCHEMAS)


def test_column_names_cannot_write_to_the_terminal():
    with pytest.raises(InputError) as caught:
        recognise(["\x1b[31mred", "x" * 500] + [f"column{number:03}" for number in range(99)], "my.csv")
    assert "\x1b" not in str(caught.value) and "and 89 more" in str(caught.value)
    assert "x" * 50 not in str(caught.value)


def test_text_is_kept_as_it_is():
    odd = "<b>bold</b> \x1b[31mred\x1b[0m 👩‍👩‍👧 \u2028 naïve \x00 end"
    _, (example,), _ = read_rows([{"prompt": odd, "chosen": odd, "rejected": "b\r\nc"}], "here")
    assert example == Example(odd, odd, "b\nc")


def test_half_a_surrogate_pair_becomes_text_that_can_be_written():
    _, (example,), _ = read_rows([{"prompt": "p \ud83d", "chosen": "\ud83d\ude00", "rejected": "b"}], "here")
    assert example.prompt == "p \ufffd" and example.chosen == "😀"
