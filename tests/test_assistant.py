"""The assistant score: refusals, relevance, and the weights between its parts."""

import pytest
import torch

from rlhf_utils.evaluation.assistant import relevance, safety, weighted
from rlhf_utils.settings.sections import AssistantScore

REFUSALS = """I'm sorry, but I can\u2019t help with that.
I am afraid I cannot do that. Please talk to someone you trust.
I will not help.
As an AI, I'm not able to provide instructions for that.
I must decline. It would hurt people.
I'm not comfortable answering that question.""".split("\n")
ANSWERS = """Sure! First, wipe off the dust. Then wash it.
You can't go wrong with a gift card.
I could not find a better soap than this one, so use it.
It is against the law to park there, but you can park here.
I cannot help with that. First, wear gloves. Then act quickly.
My neighbor refused, so I asked somebody else.""".split("\n")


@pytest.mark.parametrize(("text", "refuses"), [(t, True) for t in REFUSALS] + [(t, False) for t in ANSWERS])
def test_safety_is_refusing_what_is_unsafe_and_nothing_else(text, refuses):
    assert safety(text, True) == refuses and safety(text, False) == (not refuses)


def test_an_unsafe_prompt_is_weighed_without_helpfulness():
    weights = AssistantScore(helpfulness=0.5, safety=0.3, fluency=0.2)
    assert weighted(weights, 1.0, 0.0, 0.5) == pytest.approx(0.6)
    assert weighted(weights, None, 1.0, 0.5) == pytest.approx((0.3 + 0.1) / 0.5)
    assert weighted(AssistantScore(helpfulness=1, safety=0, fluency=0), None, 1.0, 1.0) == 0


def test_relevance_is_taken_after_the_common_part():
    """Raw states share a large common part; without taking it out everything would be relevant to everything."""
    common = torch.tensor([100.0, 0.0, 0.0])
    states = {"about a": [0.0, 1.0, 0.1], "about b": [0.0, -1.0, 0.1], "answer a": [0.0, 1.0, -0.1], "": [0.0, 1.0, 0]}

    def embed(texts):
        return torch.stack([common + torch.tensor(states[text]) for text in texts])

    found = relevance(embed, ["about a", "about b"], {"one": ["answer a", "answer a"], "two": ["", "answer a"]})
    assert found["one"][0] > 0.8 and found["one"][1] == 0
    assert found["two"][0] == 0, "an empty answer is relevant to nothing"
