"""The pages: Python is run as it is printed, on the loopback hub; generated parts are what the tool writes."""

from __future__ import annotations

import re

import pages
import pytest
from hub.client import ROOT, done, start

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
# What has to hold after a snippet that has this in it.
AFTER = {
    "PPOTrainer(": "import pathlib\nassert len(pathlib.Path('brevity/metrics.jsonl').read_text().splitlines()) == 1",
    "RewardMixture(": "assert reward(my_prompts, ['Fine.', 'Bad.', ''] ).shape == (3,)",
}


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS, ids=[re.search(r"(\w+)\(", text)[1] for text in SNIPPETS])
def test_a_snippet_runs(snippet, hub, tmp_path, monkeypatch):
    for long, short in SHRUNK.items():
        snippet = snippet.replace(long, short)
    checks = [check for sign, check in AFTER.items() if sign in snippet]
    assert checks, "say what has to hold after it"
    monkeypatch.chdir(tmp_path)
    done(start("\n".join([BEFORE, snippet, *checks]), hub.url, tmp_path / "home"))


def test_commands_of_the_pages_are_those_of_the_command_line():
    """Every `python -m rlhf_utils COMMAND --option` that a page shows is known to the parser."""
    from rlhf_utils.__main__ import _parser

    parser = _parser()
    known = {name: command.format_help() for name, command in parser._subparsers._group_actions[0].choices.items()}
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))]
    shown = [line for text in texts for line in re.findall(r"-m rlhf_utils ([^`\n#]+)", text)]
    assert len(shown) > 10
    for line in shown:
        command = line.split()[0]
        assert command in known, line
        for option in re.findall(r"(?<=\s)--[\w-]+", line):
            assert option in known[command], line


@pytest.mark.parametrize("page, generated", [("README.md", None), ("docs/settings.md", pages.settings)])
def test_generated_parts_are_up_to_date(page, generated):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == (generated() if generated else pages.filled(text)), "`make pages` writes them"


def test_the_readme_is_one_screen():
    """At most 900 words before the links to the documentation; code, addresses of links and marks aside."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Documentation")[0]
    text = re.sub(r"^\[!\[.*$|\]\([^)]*\)|<!--.*?-->", " ", text, flags=re.MULTILINE)
    assert len([word for word in text.split() if re.search(r"\w", word)]) <= 900
