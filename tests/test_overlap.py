"""Near-duplicates between training and evaluation prompts, and what the summary says of them."""

from datasets import Dataset

from rlhf_utils.data.overlap import Closest, closest, near_duplicates
from rlhf_utils.data.prepared import PreparedData

KNOWN = [
    "How do I bake fresh bread for ten people?",
    "How do I bake",
    "Something else entirely",
    "How do I bake fresh bread",
]


def test_the_closest_prompt_shares_most_phrases_and_case_does_not_count():
    prompts = ["HOW do I bake fresh bread for two people?", "how do  I bake", "Why?", "bread fresh bake I do how"]
    # Of the five runs of five words in the first one, three are in the first known prompt.
    assert closest(prompts, KNOWN) == [
        Closest(prompts[0], KNOWN[0], 3 / 5),
        Closest(prompts[1], KNOWN[0], 1.0),
        Closest(prompts[2], None, 0.0),
        Closest(prompts[3], None, 0.0),
    ]
    assert closest(["a b c d e f"], []) == [Closest("a b c d e f", None, 0.0)] and closest([], KNOWN) == []


def test_each_split_that_is_learned_from_is_counted():
    splits = {"sft": KNOWN, "reward": KNOWN[2:3], "ppo": [], "development": KNOWN}
    data = PreparedData("pairs", {n: Dataset.from_dict({"prompt": p}) for n, p in splits.items()}, {}, "")
    found = near_duplicates(data, ["How do I bake fresh bread for two people?", "Something else entirely new", "Why?"])
    assert found == {
        "sft": {"prompts": 1, "share": 1 / 3},
        "reward": {"prompts": 0, "share": 0.0},
        "ppo": {"prompts": 0, "share": 0.0},
    }
