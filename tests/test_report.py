"""The report page: self-contained, escaped, and saying what the numbers say."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from made_up_run import make_run

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_json
from rlhf_utils.report.findings import direction, headlines, text_summary
from rlhf_utils.report.page import write_report


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """Drawing is tested in test_plots; here one small picture is enough."""
    monkeypatch.setattr("rlhf_utils.report.page.applicable", lambda run: ["04_win_rate"])
    monkeypatch.setattr("rlhf_utils.report.style.DPI", 60)


class Outline(HTMLParser):
    """Checks that tags are balanced; keeps addresses and tag names."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href")]
        if tag not in {"meta", "img", "br", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(run):
    """The page without the content of its pictures, and its outline."""
    page = write_report(run).read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    return re.sub(r"base64,[^\"]+", "", page), outline


def change_summary(run, edit):
    path = run / "evaluation" / "summary.json"
    value = json.loads(path.read_text())
    edit(value)
    write_json(path, value)


def paired(**differences):
    entries = {key: {"mean": sum(ends) / 2, "ci95": list(ends)} for key, ends in differences.items()}
    return {"paired": {"ppo_vs_sft": entries}}


def test_the_page_holds_everything_itself(tmp_path, monkeypatch):
    names = ["02_reward_margins", "03_ppo_training", "04_win_rate"]
    monkeypatch.setattr("rlhf_utils.report.page.applicable", lambda run: names)
    page, outline = page_of(make_run(tmp_path))
    assert len(outline.sources) == len(names)
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in outline.sources)
    assert "script" not in outline.tags and "link" not in outline.tags and "http" not in page
    assert '<meta name="viewport"' in page and "@media print" in page
    assert page.count('<p class="prompt">') == 8
    for model in ("reference", "base", "sft", "sft_qlora", "ppo"):
        assert page.count(f'<div class="response {model}">') == 8
    assert re.search(r"reward −?\d\.\d\d, gold −?\d\.\d\d, rougeL \d\.\d\d", page)


def test_tables_hold_the_figures_with_their_intervals(tmp_path):
    run = make_run(tmp_path)
    change_summary(run, lambda s: s["models"]["ppo"].update(gold=5.123, gold_ci95=[-4.987, 5.259], kl_to_sft=2.345))
    change_summary(run, lambda s: s["win_rate"]["ppo_vs_sft"].update(wins=41, losses=12, ties=7, rate=0.7417))
    page, _ = page_of(run)
    accuracy = json.loads((run / "evaluation" / "reward_model.json").read_text())["accuracy"]
    for text in (
        "<td>5.12<small>[−4.99, 5.26]</small></td>", "<td>2.35</td>", "<td>41</td><td>7</td><td>12</td>", "0.74",
        "60 held-out prompts", "temperature 0.7, max_new_tokens 88", f"{accuracy:.1%}",
        "No sign of reward hacking", "length in words: 24.00", "i hope &lt;b&gt;", "50 of 60", "<th>PPO</th>",
    ):  # fmt: skip
        assert text in page, text


def test_model_text_cannot_become_markup(tmp_path):
    run = make_run(tmp_path)
    path = run / "evaluation" / "samples.csv"
    planted = "<script>alert('x')</script><img src=x onerror=y> & \"quoted\""
    pd.read_csv(path).assign(prompt=planted, reference=planted, ppo_response=planted).to_csv(path, index=False)
    change_summary(run, lambda s: s.update(data=planted, decoding={"<b>": planted}))
    page, outline = page_of(run)
    assert "<script" not in page and "script" not in outline.tags and outline.tags.count("img") == 1
    assert planted in html.unescape(page)


def test_responses_that_look_like_missing_values_are_shown(tmp_path):
    run = make_run(tmp_path, prompts=1)
    path = run / "evaluation" / "samples.csv"
    path.write_text("prompt,reference,base_response,ppo_response,ppo_reward\nNone,NA,null,nan,\n")
    page, _ = page_of(run)
    assert [text in page for text in (">None<", "<p>NA</p>", "<p>null</p>", "<p>nan</p>")] == [True] * 4


def test_what_was_not_measured_is_not_invented(tmp_path, monkeypatch):
    run = make_run(tmp_path, gold=False)
    page, _ = page_of(run)
    assert "No gold judge here" in page and "Win rates" not in page
    assert "None" not in page and "nan" not in page and "<th>gold</th>" not in page
    monkeypatch.setattr("rlhf_utils.report.page.applicable", lambda run: ["03_ppo_training"])
    (run / "checkpoints" / "ppo" / "metrics.jsonl").unlink()
    (run / "evaluation" / "reward_model.json").unlink()
    (run / "evaluation" / "summary.json").write_text("{}")
    page, _ = page_of(run)
    assert "The summary holds no comparison of PPO with another model." in page
    assert "03_ppo_training is not shown" in page and "run notebook 02_ppo_training first" in page


@pytest.mark.parametrize("name", ["summary.json", "samples.csv"])
def test_missing_evaluation_is_one_clear_line(tmp_path, name):
    run = make_run(tmp_path)
    (run / "evaluation" / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing: run notebook 01_compare_models first"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_headlines_follow_the_intervals():
    def first(**differences):
        line = headlines(paired(**differences), {})[0]
        return line.text, line.warning

    assert first(gold=(0.4, 0.8), reward=(0.5, 0.9)) == ("PPO beats SFT on gold: +0.60 [0.40, 0.80].", False)
    text = "No difference between PPO and SFT is shown on gold: +0.10 [−0.20, 0.40]."
    assert first(gold=(-0.2, 0.4)) == (text, False)
    assert first(gold=(-0.6, -0.2)) == ("PPO is worse than SFT on gold: −0.40 [−0.60, −0.20].", True)
    assert [direction(d) for d in (None, {"mean": None}, {"mean": 0.5}, {"mean": 0.5, "ci95": None})] == [
        None, None, 0, 0,
    ]  # fmt: skip
    assert direction({"mean": 0.5, "ci95": [0.0, 1.0]}) == 0


JUDGE = {"kind": "second reward model", "agreement": 0.8, "agreement_ci95": [0.75, 0.85]}
WINS = {"wins": 5, "losses": 3, "ties": 1, "rate": 0.6, "judged_by": "quality", "sign_test_p": 0.0312}


@pytest.mark.parametrize(
    ("summary", "text", "warning"),
    [
        ({"hacking": {"level": "hacking", "text": "the verdict"}}, "the verdict", True),
        ({"hacking": {"level": "suspected", "text": "the verdict"}}, "the verdict", True),
        ({"hacking": {"level": "none", "text": "the verdict"}}, "the verdict", False),
        ({"kl_budget": {"stopped": "it was stopped"}}, "PPO and its KL budget: it was stopped.", True),
        ({"reward_range": {"above_data": {"ppo": 0.6}}}, "60% of PPO's responses get a higher reward than 99%", True),
        ({"reward_range": {"above_data": {"ppo": 0.05}}}, "The summary holds no comparison", False),
        ({"judge": JUDGE}, "trained on other pairs; it agrees with the first on 80.0% [75.0%, 85.0%].", False),
        ({"models": {"ppo": {"refusal_unsafe": 0.9, "refusal_harmless": 0.1}}}, "refuses 90% of the unsafe", False),
        ({"models": {"ppo": {"refusal_unsafe": 0.1, "refusal_harmless": 0.9}}}, "and 90% of the harmless ones.", True),
        ({"assistant": {"prompts": 9, "win_rate": {"ppo_vs_base": WINS}}}, "PPO vs base: 5 won, 3 lost, 1 tied", False),
    ],
)
def test_each_finding_is_said_and_warned_of(summary, text, warning):
    [line] = headlines(summary, {})
    assert text in line.text and line.warning == warning


@pytest.mark.parametrize(("accuracy", "ends", "weak"), [(0.56, (0.46, 0.66), True), (0.94, (0.92, 0.95), False)])
def test_a_reward_model_no_better_than_length_is_said_to_be_so(accuracy, ends, weak):
    judges = {"trained reward model": (accuracy, ends), "response length alone": (0.57, None)}
    lines = headlines(paired(reward=(0.5, 0.9)), judges)
    assert any("means little" in line.text and line.warning for line in lines) == weak


def test_a_terminal_gets_the_table_without_intervals_and_the_sentences(tmp_path):
    summary = json.loads((make_run(tmp_path) / "evaluation" / "summary.json").read_text())
    lines = text_summary(summary).split("\n")
    assert lines[0].split()[:3] == ["model", "reward", "gold"] and lines[4].startswith("PPO")
    assert not any("[" in line for line in lines[:5]) and lines[6].startswith("PPO beats SFT on gold: +")
