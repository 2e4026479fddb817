"""Every accepted form of dataset, responses that run on, lists that stand there as text, and rows that are dropped."""

import json

import pytest

from rlhf_utils.data.sources import (
    EARLIER_DIFFERENCE,
    EMPTY,
    NO_ANSWER_AT_END,
    NO_PREFERENCE,
    NO_RESPONSE,
    SCHEMAS,
    UNKNOWN_LABEL,
    UNKNOWN_ROLE,
    Example,
    read_rows,
)
from rlhf_utils.platforms.errors import InputError

TWO_TURNS = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye"
BYE = "Hi\n\nAssistant: Hello\n\nHuman: Bye"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def dialogues(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def shp(label, **more):
    return {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": label, **more}


def reddit(answers, **more):
    return {"title": "why?", "answers": answers, **more}


CONVERSATION = [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Hello"), user("Bye")]
RAW = {"text": ["mid", "best", "worst"], "score": [5, 70, -1]}
DELETED = [{"text": text, "score": score} for text, score in (("worst", 1), ("best", 3), ("[deleted]", 0))]
VOTES = {"score_chosen": 9, "score_rejected": 2}
# The row, and the example's prompt, chosen, rejected, and extra.
ACCEPTED = {
    # Dahoas/synthetic-instruct-gptj-pairwise
    "pairs": (pair("p", "good", "bad"), "p", "good", "bad"),
    "pairs with markers": (pair("\n\nHuman: p\n\nAssistant:", " good", "Assistant: bad"), "p", "good", "bad"),
    # yitingxie/rlhf-reward-datasets: prompts end before the marker of the response, and both responses begin with it.
    "several turns": (pair(f"{TWO_TURNS}\n\n", "Assistant: a", "Assistant: b"), BYE, "a", "b"),
    "pairs of messages": (pair([user("p")], [assistant("a")], [assistant("b")]), "p", "a", "b"),
    "pairs that repeat the prompt": (
        pair("p", [user("p"), assistant("a")], [user("p"), assistant("b")]), "p", "a", "b"),
    "hh dialogues": (
        dialogues(f"{TWO_TURNS}\n\nAssistant: See you.", f"{TWO_TURNS}\n\nAssistant: No."), BYE, "See you.", "No."),
    "conversations": (
        dialogues([*CONVERSATION, assistant("a")], [*CONVERSATION, assistant("b")]), f"Be kind.\n\n{BYE}", "a", "b"),
    "shp, A preferred": (shp(1, score_A=9, score_B=2), "p", "a", "b", VOTES),
    "shp, B preferred": (shp("0", score_A=2, score_B=9), "p", "b", "a", VOTES),
    "raw eli5": (
        reddit(RAW, selftext="really"),
        "why?\n\nreally", "best", "worst", {"score_chosen": 70, "score_rejected": -1}),
    "raw eli5, list of answers": (
        reddit(DELETED, selftext="[removed]"), "why?", "best", "worst", {"score_chosen": 3, "score_rejected": 1}),
    "a tool call": (pair("p", '[{"name": "f", "arguments": {}}]', "b"), "p", '[{"name": "f", "arguments": {}}]', "b"),
    "imdb": ({"text": "fine film", "label": 1}, "fine film", None, None, {"label": 1}),
    "reviews": ({"review": "bad", "sentiment": "negative"}, "bad", None, None, {"label": 0}),
    "web pages": ({"review": "bad. <br /><br />1<2", "sentiment": "neg"}, "bad.\n\n1<2", None, None, {"label": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_form(name):
    row, *expected = ACCEPTED[name]
    kind, examples, dropped = read_rows([row | {"unrelated": 1}], "here")
    assert (kind, examples, dropped) == ("pairs" if expected[1] else "labelled", [Example(*expected)], {})


def test_what_rows_say_of_their_prompts_is_kept():
    cells = [
        {"category": "a  b", "unsafe": "True"}, {"topic": "t", "category": "c", "unsafe": 0},
        {"subset": 3, "unsafe": ""}, {"topic": None, "unsafe": None},
    ]  # fmt: skip
    _, examples, _ = read_rows([pair("p", "a", "b") | cell for cell in cells], "here")
    told = [{"topic": "a b", "unsafe": "yes"}, {"topic": "t", "unsafe": "no"}, {"topic": "3"}, {}]
    assert [example.extra for example in examples] == told


def test_labels_in_every_spelling():
    labels = ["positive", "NEG", 1, 0.0, "1", "0.0", True]
    _, examples, _ = read_rows([{"text": "t", "label": label} for label in labels], "here")
    assert [example.extra["label"] for example in examples] == [1, 0, 1, 0, 1, 0, 1]


DROPPED = [
    (pair("p", None, "b"), EMPTY),
    (pair("p", "Assistant: ", "b"), EMPTY),
    (pair("p", "Human: I see.", "b"), NO_RESPONSE),
    (pair("p", [user("x")], [assistant("b")]), NO_ANSWER_AT_END),
    (pair("p", [user("x"), assistant("a")], [user("y"), assistant("b")]), EARLIER_DIFFERENCE),
    (pair([{"role": "tool", "content": "x"}], "a", "b"), UNKNOWN_ROLE),
    (pair("[{'from': 'human', 'value': 'x'}]", "a", "b"), UNKNOWN_ROLE),
    (dialogues(f"{TWO_TURNS}\n\nAssistant: a", "\n\nHuman: Hi\n\nAssistant: Hello there"), EARLIER_DIFFERENCE),
    (dialogues("good", "bad"), NO_ANSWER_AT_END),
    (dialogues(f"{TWO_TURNS}\n\nAssistant: a\n\nHuman: and?", f"{TWO_TURNS}\n\nAssistant: b"), NO_ANSWER_AT_END),
    (shp(2), NO_PREFERENCE),
    (reddit({"text": ["a", "b"], "score": [4, 4]}), NO_PREFERENCE),
    ({"text": "t", "label": -1}, UNKNOWN_LABEL),
    ({"text": " <br>\n<BR/>", "label": 1}, EMPTY),
]


@pytest.mark.parametrize(("row", "reason"), DROPPED)
def test_row_that_cannot_be_used_is_dropped_with_its_reason_and_no_error(row, reason):
    _, examples, dropped = read_rows([row], "here")
    assert examples == [] and dropped == {reason: 1}


@pytest.mark.parametrize("columns", [["prompt", "chosen"], ["a", "b"], []])
def test_unknown_columns_name_what_was_found_and_what_is_accepted(columns):
    with pytest.raises(InputError) as caught:
        read_rows([dict.fromkeys(columns)], "my.csv")
    message = str(caught.value)
    assert message.startswith(f"my.csv: columns found: {', '.join(columns) or 'none'}.") and "\n" not in message
    assert all(f"({accepted})" in message for accepted in SCHEMAS)


# Responses that run on with a further turn

FURTHER = [
    "\n\nHuman: thanks\n\nAssistant: You are welcome.", "\n\n**User:** thanks", "\n\nUSER: thanks", "\nAssistant: more",
    "\n\n### Instruction:\nNow this", "\n### Human: thanks", "\n\n### Response:\nmore",
    "<|im_end|>\n<|im_start|>user\nthanks", "\n<|user|>\nthanks", "<|endoftext|>",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nthanks", "<end_of_turn>\n<start_of_turn>user\nthanks",
    " [INST] thanks [/INST]", "</s>", " </s><s>[INST] thanks [/INST]", "</s>\n<|user|>\nthanks</s>",
    "</s>USER: thanks", "\n<human>: thanks",
]  # fmt: skip
OWN = ["Assistant: ", "<|assistant|>\n", "<|im_start|>assistant\n", "### Response:\n", "<start_of_turn>model\n",
       " [/INST] "]  # fmt: skip
WHOLE = [
    "The User: field holds a name, and Human: is a film.",
    "1. Open it.\n2. Choose a user: yours.\n\nuser: root",
    "## Instructions\n\n1. Mix.\n\n### Response times\n\nFast.",
    "if a <| b |> c then <b>d</b> and <s>e</s> f and <s>g</s><s>h</s> i",
    "def f(x):\n    return {'role': x}",
]
RUN_ON = [(f"Good.\nYes.{further}", "Good.\nYes.", True) for further in FURTHER]
RUN_ON += [(f"{marker}Good.", "Good.", False) for marker in OWN] + [(text, text, False) for text in WHOLE]


@pytest.mark.parametrize(("response", "kept", "cut"), RUN_ON)
def test_a_further_turn_is_cut_off_and_nothing_else(response, kept, cut):
    _, examples, _ = read_rows([pair("p\n\nUser: x", "bad", response)], "here")
    assert examples == [Example("p\n\nUser: x", "bad", kept, cut=cut)]


ON = "good\n\nHuman: thanks\n\nAssistant: welcome"
FORMS = [
    pair("p", ON, "bad"), pair("p", "good", ON.replace("good", "bad")),
    dialogues([user("p"), assistant(ON)], [user("p"), assistant("bad")]),
    dialogues("\n\nHuman: p\n\nAssistant: good\nUser: x", "\n\nHuman: p\n\nAssistant: bad"),
    {"history": "p", "human_ref_A": "bad", "human_ref_B": ON, "labels": 0},
    {"title": "p", "answers": {"text": [ON, "bad"], "score": [9, 1]}},
]  # fmt: skip


@pytest.mark.parametrize("row", FORMS)
def test_every_form_is_cut(row):
    _, (example,), dropped = read_rows([row], "here")
    assert (example.prompt, example.chosen, example.rejected) == ("p", "good", "bad") and example.cut and not dropped


# Lists as text

CHAT = [user("Is it 'so' {or} \"not\"?\n\nSay } {"), assistant("It's so.\n")]


@pytest.mark.parametrize("text", [str(CHAT), json.dumps(CHAT), json.dumps(CHAT, indent=2)])
def test_spelled_messages_are_messages(text):
    expected = [Example(CHAT[0]["content"], "It's so.", "No.")]
    assert read_rows([dialogues(text, str([CHAT[0], assistant("No.")]))], "here")[1] == expected
    assert read_rows([pair(text[: text.rindex("{")].rstrip(", \n") + "]", "It's so.", "No.")], "here")[1] == expected


@pytest.mark.parametrize("text", [str(CHAT)[:-20], "[{'role': open('x'), 'content': ''}]", str(CHAT) + "[" * 99_999])
def test_messages_as_text_that_cannot_be_read_are_dropped(text):
    _, examples, dropped = read_rows([pair("p", text, "b")], "here")
    assert not examples and dropped == {UNKNOWN_ROLE: 1}
