"""The README's Python is run as it is printed, with the names of real models, on the loopback hub."""

from __future__ import annotations

import re

import pytest
from hub.client import ROOT, done, start

SNIPPETS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
# What a reader has before: these names stand in the snippets without being made there.
BEFORE = """
import warnings
from rlhf_utils.models.loading import load_classifier, load_classifier_tokenizer, load_policy, load_tokenizer
from rlhf_utils.platforms.runtime import detect_device

my_prompts = ["Why is the sky blue?", "How do I bake bread?", "What is tea?"]
device = detect_device()
classifier, its_tokenizer = (load("lvwerra/distilbert-imdb", *more) for load, more in (
    (load_classifier, [device]), (load_classifier_tokenizer, [])))
language_model, tokenizer = load_policy("gpt2", device), load_tokenizer("gpt2")
"""
# Fewer and smaller updates, nothing else.
SHRUNK = {"updates=50": "updates=1, rollout_batch_size=4, minibatch_size=4, epochs=1, max_new_tokens=4"}
# What has to hold after a snippet that has this in it.
AFTER = {
    "PPOTrainer(": "import pathlib\nassert len(pathlib.Path('brevity/metrics.jsonl').read_text().splitlines()) == 1",
    "RewardMixture(": "assert reward(my_prompts, ['Fine.', 'Bad.', ''] ).shape == (3,)",
}


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS, ids=[re.search(r"(\w+)\(", text)[1] for text in SNIPPETS])
def test_a_snippet_of_the_readme_runs(snippet, hub, tmp_path, monkeypatch):
    for long, short in SHRUNK.items():
        snippet = snippet.replace(long, short)
    checks = [check for sign, check in AFTER.items() if sign in snippet]
    assert checks, "say what has to hold after it"
    monkeypatch.chdir(tmp_path)
    done(start("\n".join([BEFORE, snippet, *checks]), hub.url, tmp_path / "home"))
