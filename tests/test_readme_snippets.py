"""The pages: Python is run as it is printed, on the loopback hub; generated parts are what the tool writes."""

import re

import pages
import pytest
import yaml
from hub.client import ROOT, done, start

import rlhf_utils

PRINTED = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/your_own.md"))
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PRINTED, re.MULTILINE | re.DOTALL)
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
# What has to hold after them.
AFTER = """
import pathlib
assert len(pathlib.Path("brevity/metrics.jsonl").read_text().splitlines()) == 1
assert reward(my_prompts, ["Fine.", "Bad.", ""]).shape == (3,)
"""


@pytest.mark.slow
def test_the_snippets_run(hub, tmp_path):
    printed = "\n".join(SNIPPETS)
    for long, short in SHRUNK.items():
        assert long in printed
        printed = printed.replace(long, short)
    done(start("\n".join([BEFORE, printed, AFTER]), hub.url, tmp_path / "home", cwd=tmp_path))


def test_the_version_stands_in_one_place_and_where_people_look_for_it():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    assert cited == rlhf_utils.__version__
    assert f"\n## {cited} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_generated_parts_are_up_to_date():
    text, settings = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/settings.md"))
    assert text == pages.filled(text) and settings == pages.settings(), "`make pages` writes them"
    assert (ROOT / "docs" / "published_runs.md").read_text(encoding="utf-8") == pages.published_runs()
