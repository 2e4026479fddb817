"""The assistant score: refusals, relevance, and the weights between its parts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import CPU, one_thread, tiny_model, tiny_tokenizer  # noqa: F401

from rlhf_utils.data.sources import load_rows, read_rows
from rlhf_utils.evaluation.assistant import embedder, relevance, safety, weighted, without_copied
from rlhf_utils.platforms.names import PACKAGED
from rlhf_utils.settings.recipes import load_recipe
from rlhf_utils.settings.sections import AssistantScore, DataSettings

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


def test_an_unsafe_prompt_is_weighed_without_relevance():
    weights = AssistantScore(relevance=0.5, safety=0.3, fluency=0.2)
    assert weighted(weights, 1.0, 0.0, 0.5) == pytest.approx(0.6)
    assert weighted(weights, None, 1.0, 0.5) == pytest.approx((0.3 + 0.1) / 0.5)
    assert weighted(AssistantScore(relevance=1, safety=0, fluency=0), None, 1.0, 1.0) == 0


def test_relevance_is_taken_after_the_common_part():
    """Raw states share a large common part; without taking it out everything would be relevant to everything."""
    common = torch.tensor([100.0, 0.0, 0.0])
    states = {"about a": [0.0, 1.0, 0.1], "about b": [0.0, -1.0, 0.1], "answer a": [0.0, 1.0, -0.1]}
    states |= {"answer b": [0.0, -1.0, -0.1], "": [0.0, 1.0, 0.0]}

    def embed(texts):
        return torch.stack([common + torch.tensor(states[text]) for text in texts])

    spoken = {"one": ["answer a", "answer b"], "two": ["", "answer a"]}
    found = relevance(embed, ["about a", "about b"], spoken, center=True)
    assert min(found["one"]) > 0.8 and found["two"][1] == 0
    assert found["two"][0] == 0, "an empty answer is relevant to nothing"
    assert relevance(embed, ["about a", "about b"], spoken, center=False)["two"][1] > 0.9


PROMPT = "How do I clean my bike?"


@pytest.mark.parametrize(
    ("response", "left"),
    [
        (PROMPT, ""), (PROMPT.upper() + " " + PROMPT, ""), ("", ""), ("?!", ""), ("how do I clean ...", ""),
        (f'You ask "{PROMPT}" Use soap.', "You ask Use soap."), ("To clean a bike, use soap.",) * 2, ("Bike",) * 2,
        ("I clean my bike, and you, my dear, wash.", "and you, my dear, wash."),
    ],
)  # fmt: skip
def test_what_is_copied_from_the_prompt_is_left_out(response, left):
    assert without_copied(response, PROMPT) == left


@pytest.mark.parametrize(
    ("prompt", "response", "left"),
    [
        ("Paris", "paris is nice", "is nice"),
        ("", "Hello", "Hello"),
        ("怎么洗自行车？", "怎么洗自行车？用肥皂", "用肥皂"),
    ],
)
def test_short_prompts_and_scripts_without_spaces(prompt, response, left):
    assert without_copied(response, prompt) == left


ON_TOPIC = {
    PROMPT: "Rinse the bike with water, clean the chain with a soft brush, and dry the bike.",
    "How do I bake bread at home?": "Mix flour, water and yeast, let the bread dough rise, and bake it in a hot oven.",
    "What should I feed my cat?": "A cat should have meat twice a day, and fresh water; do not feed a cat chocolate.",
    "Why is the sky blue?": "Air scatters blue light more than red light, and so the sky looks blue to us.",
    "How can I learn to play the guitar?": "Learn three chords on the guitar and play them slowly each day.",
    "Where can I park my car downtown?": "You can park the car in the garage behind the station in downtown.",
}


@pytest.mark.parametrize("name", [None, "minilm"])
def test_on_topic_is_above_off_topic_is_above_repeating(name):
    """Without the removal the question repeated is the most relevant of all."""
    if name and not PACKAGED[name].source:
        pytest.skip("its package is not installed")
    model = SimpleNamespace(device=CPU, reference=tiny_model(), tokenizer=tiny_tokenizer())
    for key, weight in model.reference.named_parameters():
        if ".h." in key or "wpe" in key:  # states that tell of the words, as after training
            weight.data *= 0.1
    prompts, on_topic, embed = list(ON_TOPIC), list(ON_TOPIC.values()), embedder(name, model)
    spoken = {"on": on_topic, "off": on_topic[1:] + on_topic[:1], "same": prompts, "empty": [""] * len(prompts)}
    spoken["same and more"] = [f"You ask me this: {prompt}" for prompt in prompts]
    found = relevance(embed, prompts, spoken, center=name is None)
    mean = {key: sum(values) / len(values) for key, values in found.items()}
    assert mean["on"] > mean["off"] > mean["same"] == mean["empty"] == 0 and mean["on"] > mean["same and more"]


def test_the_record_names_the_embedder_that_was_there(monkeypatch):
    """A run must not change silently with what is installed where it goes on."""
    hashes = set()
    for there, name in ((Path("model"), "minilm"), (None, None)):
        monkeypatch.setattr(type(PACKAGED["minilm"]), "source", there)
        recipe = load_recipe("helpful_harmless")
        assert recipe.model_dump()["evaluation"]["assistant"]["embedder"] == name
        hashes.add(recipe.section_hash("evaluation.assistant"))
    assert len(hashes) == 2, "the stage would be taken for made with the other one"


REAL = Path(__file__).parents[1] / "../shared/data/hh_helpful.jsonl.gz"


@pytest.mark.skipif(not REAL.is_file() or not PACKAGED["minilm"].source, reason="the rows or the package are not here")
def test_relevance_ranks_real_pairs():
    """A prompt's own chosen response above that of another prompt."""
    _, rows, _ = read_rows(load_rows(str(REAL), DataSettings(), seed=0).train, "rows")
    rows = rows[:: len(rows) // 60][:60]
    prompts, own = [row.prompt for row in rows], [row.chosen for row in rows]
    spoken = {"own": own, "other": own[1:] + own[:1]}
    found = relevance(embedder("minilm", SimpleNamespace(device=CPU)), prompts, spoken, center=False)
    assert sum(a > b for a, b in zip(found["own"], found["other"], strict=True)) / len(rows) >= 0.9
