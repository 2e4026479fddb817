"""Responses that run on with a further turn, and message lists that a file spells as text."""

import json
from pathlib import Path

import pytest
from rlhf_utils.data.schemas import _alone as alone, _spelled

from rlhf_utils.data.prepare import CUT, prepare
from rlhf_utils.data.schemas import EMPTY, NO_RESPONSE, UNKNOWN_ROLE, read_rows
from rlhf_utils.data.sources import Rows, load_rows
from rlhf_utils.settings.sections import DataSettings

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "data"
RUN_ON = [
    "\n\nHuman: thanks\n\nAssistant: You are welcome.",
    "\nHuman: thanks",
    "\n\nUser: thanks",
    "\n\n**User:** thanks",
    "\n\nUSER: thanks",
    "\n\nAssistant: and more",
    "\n\n### Instruction:\nNow this",
    "\n### Human: thanks",
    "\n\n### Response:\nmore",
    "<|im_end|>\n<|im_start|>user\nthanks",
    "\n<|user|>\nthanks",
    "<|endoftext|>",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nthanks",
    "<end_of_turn>\n<start_of_turn>user\nthanks",
    " [INST] thanks [/INST]",
    "</s>",
    " </s><s>[INST] thanks [/INST]",
    "</s>\n<|user|>\nthanks</s>",
    "</s>USER: thanks",
    "\n<human>: thanks",
]
WHOLE = [
    "The User: field holds a name, and Human: is a film.",
    "1. Open it.\n2. Choose a user: yours.\n\nuser: root",
    "## Instructions\n\n1. Mix.\n\n### Response times\n\nFast.",
    "if a <| b |> c then <b>d</b> and <s>e</s> f and <s>g</s><s>h</s> i",
    "def f(x):\n    return {'role': x}",
]
OWN = [
    "Assistant: ",
    "<|assistant|>\n",
    "<|im_start|>assistant\n",
    "### Response:\n",
    "<start_of_turn>model\n",
    " [/INST] ",
]


@pytest.mark.parametrize("further", RUN_ON)
def test_a_further_turn_is_cut_off(further):
    assert alone(f"Good.\nYes.{further}") == ("Good.\nYes.", True)


@pytest.mark.parametrize("text", WHOLE)
def test_other_text_stays_whole(text):
    assert alone(text) == (text, False)


@pytest.mark.parametrize("marker", OWN)
def test_the_marker_of_the_response_itself_is_no_further_turn(marker):
    assert alone(f"{marker}Good.") == ("Good.", False)


def messages(*texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=False)]


ON = "good\n\nHuman: thanks\n\nAssistant: welcome"
FORMS = {
    "pairs": {"prompt": "p", "chosen": ON, "rejected": "bad"},
    "the worse answer": {"prompt": "p", "chosen": "good", "rejected": ON.replace("good", "bad")},
    "pairs of messages": {"chosen": messages("p", ON), "rejected": messages("p", "bad")},
    "dialogues": {
        "chosen": "\n\nHuman: p\n\nAssistant: good\nUser: x",
        "rejected": "\n\nHuman: p\n\nAssistant: bad",
    },
    "SHP": {"history": "p", "human_ref_A": "bad", "human_ref_B": ON, "labels": 0},
    "Reddit": {"title": "p", "answers": {"text": [ON, "bad"], "score": [9, 1]}},
    "demonstrations": {"instruction": "p", "output": ON},
    "messages": {"messages": messages("p", ON)},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_cut_and_counted(name):
    kind, (example,), dropped = read_rows([FORMS[name]], "here")
    assert (example.prompt, example.chosen, example.rejected) == ("p", "good", "bad" if kind == "pairs" else None)
    assert example.cut and not dropped


def test_what_is_no_response_at_all_is_dropped():
    rows = [{"prompt": "p", "chosen": text, "rejected": "bad"} for text in ("Human: I see.", "Assistant: ", "good")]
    _, examples, dropped = read_rows(rows, "here")
    assert len(examples) == 1 and dropped == {NO_RESPONSE: 1, EMPTY: 1}


def test_labelled_texts_and_prompts_keep_their_turns():
    text = "I asked.\n\nHuman: really?\n\nAssistant: yes"
    _, (example,), _ = read_rows([{"text": text, "label": 1}], "here")
    assert example.prompt == text
    _, (example,), _ = read_rows([{"prompt": text, "chosen": "a", "rejected": "b"}], "here")
    assert example.prompt == text and not example.cut


class Words:
    def __call__(self, texts, **_):
        return {"input_ids": [text.split() for text in texts]}


def test_the_report_counts_them():
    rows = [{"prompt": f"p {i}", "chosen": "good\n\nUser: x" if i % 2 else "good", "rejected": "b"} for i in range(100)]
    data = prepare(Rows(rows, None, "mine", "f"), DataSettings(), Words(), 0)
    assert f"{CUT}: 50" in str(data.report) and sum(len(split) for split in data.splits.values()) == 100
    assert all(set(split["chosen"]) == {"good"} for split in data.splits.values() if len(split))


# Lists as text

CHAT = messages("Is it 'so' {or} \"not\"?\n\nSay } {", "It's so.\n")
NUMPY = "[" + "\n ".join(map(str, CHAT)) + "]"
SPELLINGS = {
    "Python": str(CHAT),
    "JSON": json.dumps(CHAT),
    "indented JSON": json.dumps(CHAT, indent=2),
    "numpy": NUMPY,
    "numpy in one line": NUMPY.replace("\n ", " "),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelled_messages_are_messages(name):
    text, bad = SPELLINGS[name], str(messages(CHAT[0]["content"], "No."))
    assert spelled(text) == CHAT
    for row in ({"messages": text}, {"prompt": text[: text.rindex("{")] + "]", "completion": "It's so."}):
        _, (example,), _ = read_rows([row], "here")
        assert (example.prompt, example.chosen) == (CHAT[0]["content"], "It's so.")
    _, (example,), _ = read_rows([{"chosen": text, "rejected": bad}], "here")
    assert (example.prompt, example.chosen, example.rejected) == (CHAT[0]["content"], "It's so.", "No.")


@pytest.mark.parametrize("text", [NUMPY[:-20], "[{'role': open('x'), 'content': ''}]", NUMPY[:-1] + "," + "[" * 99_999])
def test_a_list_that_cannot_be_read_names_its_column(text):
    _, examples, dropped = read_rows([{"prompt": "p", "chosen": text, "rejected": "b"}], "here")
    assert not examples and dropped == {"list in column chosen cannot be read": 1}


def test_spelled_answers_of_reddit_and_messages_of_other_roles():
    row = {"title": "why?", "answers": "{'text': ['a', 'b'], 'score': [2, 5]}"}
    _, (example,), _ = read_rows([row], "here")
    assert (example.chosen, example.rejected) == ("b", "a")
    row = {"messages": "[{'from': 'human', 'value': 'x'}, {'role': 'assistant', 'content': 'y'}]"}
    _, _, dropped = read_rows([row], "here")
    assert dropped == {UNKNOWN_ROLE: 1}


def test_a_response_that_is_a_list_of_something_else_stays_text():
    call = '[{"name": "weather", "arguments": {"city": "Oslo"}}]'
    _, (example,), _ = read_rows([{"prompt": "Weather?", "response": call}], "here")
    assert example.chosen == call


@pytest.mark.parametrize(("name", "cut"), [("markers.jsonl", 240), ("messages_as_text.csv", 0)])
def test_the_files_of_the_reports(name, cut):
    if not (CASES / name).is_file():
        pytest.skip(f"{name} is not here")
    _, examples, dropped = read_rows(load_rows(str(CASES / name), DataSettings(), 0).train, name)
    assert len(examples) == 480 and not dropped and sum(example.cut for example in examples) == cut
    assert not any(sign in answer for e in examples for answer in (e.chosen, e.rejected) for sign in ("Human:", "role"))
