"""The prompt template: one text for every stage, and a hash that notices a change."""

from dataclasses import replace

import pytest

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.template import TEMPLATE, TEMPLATES, check_template

SHORT = "\n\nHuman: Why is the sky blue?\n\nAssistant:"
LONG = "\n\nHuman: Hi!\n\nAssistant: Hello, how can I help?\n\nHuman: Tell me a joke.\n\nAssistant:"


@pytest.mark.parametrize("empty", ["", " ", "\n\n", "\t"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_space_is_in_the_completion_and_an_empty_response_adds_nothing(name, empty):
    """A space at the end of a text is a token of its own, which no reward model has met."""
    template = TEMPLATES[name]
    text = template.text("How long?", empty)
    assert text == template.format("How long?") + (empty if name == "continuation" else "")
    assert template.text("How long?", "Six") == template.format(" How long?\n") + template.joint + "Six"
    assert TEMPLATE.text("How long?", "Six") == "Human: How long?\n\nAssistant: Six"


@pytest.mark.parametrize("dialogue", [SHORT, LONG])
def test_formatting_the_normal_form_gives_the_dialogue_back(dialogue):
    prompt = TEMPLATE.normal(dialogue)
    assert not prompt.startswith("Human:") and not prompt.endswith("Assistant:")
    assert TEMPLATE.format(prompt) == dialogue.removeprefix("\n\n")


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("plain question?", "plain question?"),
        ("Human: one line Assistant:", "one line"),
        ("who is the Assistant:", "who is the Assistant:"),
        ("question\n\nAssistant:", "question"),
        ("Human: Human: twice", "Human: twice"),
        ("\n\nHuman:\n\nAssistant:", ""),
        ("Humanity: a history", "Humanity: a history"),
    ],
)
def test_normal_form_removes_the_outer_markers_once(text, prompt):
    assert TEMPLATE.normal(text) == prompt


def test_every_piece_of_the_template_changes_the_hash():
    others = [{"opening": "User: "}, {"closing": "\nAssistant:"}, {"joint": ""}, {"trims": False}, {}]
    assert len({replace(TEMPLATE, **other).hash for other in others}) == 5 and len(TEMPLATE.hash) == 16


def test_a_stage_made_with_another_template_is_refused():
    check_template(TEMPLATE.hash, "reward_model", TEMPLATE)
    for found in ("0123456789abcdef", None):
        with pytest.raises(InputError, match="checkpoints/sft was made with prompt template .*--fresh"):
            check_template(found, "checkpoints/sft", TEMPLATE)
