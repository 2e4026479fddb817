"""The report page: self-contained, escaped, and saying what the numbers say."""

from __future__ import annotations

import csv
import html
import json
import re
from html.parser import HTMLParser

import pytest
from made_up_run import make_run

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.report.findings import direction, headlines
from rlhf_utils.report.page import write_report
from rlhf_utils.report.plots import PLOTS

VOID = {"meta", "img", "br", "link"}


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """Drawing is tested in test_plots; here one real picture is enough."""
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
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(run):
    page = write_report(run).read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    return page, outline


def change_summary(run, edit):
    path = run / "evaluation" / "summary.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))
    return value


def paired(**differences):
    entries = {key: {"mean": sum(ends) / 2, "ci95": list(ends)} for key, ends in differences.items()}
    return {"paired": {"ppo_vs_sft": entries}}


def test_the_page_is_self_contained_with_every_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_utils.report.page.applicable", lambda run: PLOTS)
    page, outline = page_of(make_run(tmp_path))
    assert len(outline.sources) == len(PLOTS)
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in outline.sources)
    assert "script" not in outline.tags and "link" not in outline.tags
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)
    assert '<meta name="viewport"' in page and "@media print" in page


def test_tables_hold_the_figures_with_their_intervals(tmp_path):
    run = make_run(tmp_path)
    change_summary(run, lambda s: s["models"]["ppo"].update(gold=5.123, gold_ci95=[-4.987, 5.259], kl_to_sft=2.345))
    change_summary(run, lambda s: s["win_rate"]["ppo_vs_sft"].update(wins=41, losses=12, ties=7, rate=0.7417))
    page, _ = page_of(run)
    for text in (
        "5.12",
        "[−4.99, 5.26]",
        "2.35",
        "<td>41</td><td>7</td><td>12</td>",
        "0.74",
        "60 held-out prompts",
    ):
        assert text in page
    assert "temperature 0.7, max_new_tokens 88" in page
    accuracy = json.loads((run / "evaluation" / "reward_model.json").read_text())["accuracy"]
    assert f"{accuracy:.1%}" in page


def test_model_text_cannot_become_markup(tmp_path):
    run = make_run(tmp_path)
    path = run / "evaluation" / "samples.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    planted = "<script>alert('x')</script><img src=x onerror=y> & \"quoted\""
    for row in rows:
        row.update(prompt=planted, reference=planted, ppo_response=planted)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    change_summary(run, lambda s: s.update(data=planted, decoding={"<b>": planted}))
    page, outline = page_of(run)
    assert "<script" not in page and "script" not in outline.tags and outline.tags.count("img") == 1
    assert planted in html.unescape(page)


def test_eight_examples_side_by_side_with_scores(tmp_path):
    page, _ = page_of(make_run(tmp_path))
    assert page.count('<p class="prompt">') == 8
    for model in ("reference", "base", "sft", "sft_qlora", "ppo"):
        assert page.count(f'<div class="answer {model}">') == 8
    assert re.search(r"reward −?\d\.\d\d, gold −?\d\.\d\d, rougeL \d\.\d\d", page)


def test_answers_that_look_like_missing_values_are_shown(tmp_path):
    run = make_run(tmp_path, prompts=1)
    path = run / "evaluation" / "samples.csv"
    path.write_text("prompt,reference,base_response,ppo_response,ppo_reward\nNone,NA,null,nan,\n")
    page, _ = page_of(run)
    assert [text in page for text in (">None<", "<p>NA</p>", "<p>null</p>", "<p>nan</p>")] == [True] * 4


def test_without_gold_nothing_is_invented(tmp_path):
    page, _ = page_of(make_run(tmp_path, gold=False))
    text = re.sub(r"base64,[^\"]+", "", page)
    assert "No gold judge here" in text and "Win rates" not in text
    assert "None" not in text and "nan" not in text and "<th>gold</th>" not in text


def test_an_empty_summary_and_absent_models_are_no_error(tmp_path):
    run = make_run(tmp_path)
    (run / "evaluation" / "reward_model.json").unlink()
    (run / "evaluation" / "summary.json").write_text("{}")
    page, _ = page_of(run)
    assert "The summary holds no comparison of PPO with another model." in page


def test_a_picture_that_cannot_be_drawn_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_utils.report.page.applicable", lambda run: ["03_ppo_training"])
    run = make_run(tmp_path)
    (run / "checkpoints" / "ppo" / "metrics.jsonl").unlink()
    page, _ = page_of(run)
    assert "03_ppo_training is not shown" in page and "run notebook 02_ppo_training first" in page


@pytest.mark.parametrize("name", ["summary.json", "samples.csv"])
def test_missing_evaluation_is_one_clear_line(tmp_path, name):
    run = make_run(tmp_path)
    (run / "evaluation" / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing: run notebook 01_compare_models first"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_headlines_follow_the_intervals():
    def texts(**differences):
        return [line.text for line in headlines(paired(**differences), [])]

    assert texts(gold=(0.4, 0.8), reward=(0.5, 0.9))[0] == "PPO beats SFT on gold: +0.60 [0.40, 0.80]."
    assert texts(gold=(-0.2, 0.4))[0] == "No difference between PPO and SFT is shown on gold: +0.10 [−0.20, 0.40]."
    hacked = headlines(paired(gold=(-0.6, -0.2), reward=(0.5, 0.7)), [])
    assert hacked[0].text == "PPO is worse than SFT on gold: −0.40 [−0.60, −0.20]." and hacked[0].warning
    for level in ("hacking", "suspected", "none"):
        verdict = {"hacking": {"level": level, "text": f"the verdict: {level}"}}
        line = next(line for line in headlines({**paired(gold=(0.1, 0.2)), **verdict}, []) if "verdict" in line.text)
        assert line.warning == (level != "none")


def test_the_panel_against_cheating_is_on_the_page(tmp_path):
    page, _ = page_of(make_run(tmp_path))
    text = re.sub(r"base64,[^\"]+", "", page)
    assert "prefer the same of two answers on 81.0% [70.0%, 90.0%] of 58 prompts" in text and "0.74" in text
    assert "No sign of reward hacking" in text and "length in words: 24.00" in text
    assert "i hope &lt;b&gt;" in text and "50 of 60" in text and "<th>PPO</th>" in text


def test_a_policy_that_left_the_data_is_warned_of():
    def warned(share):
        return [line.warning for line in headlines({"reward_range": {"above_data": {"ppo": share}}}, [])]

    assert warned(0.6) == [True] and True not in warned(0.05)


def test_a_second_reward_model_as_judge_is_named_with_its_agreement():
    judge = {"kind": "second reward model", "agreement": 0.8, "agreement_ci95": [0.75, 0.85]}
    texts = [line.text for line in headlines({"judge": judge}, [])]
    assert texts == [
        "Gold is a second reward model, trained on other pairs; it agrees with the first on 80.0% [75.0%, 85.0%]."
    ]


def test_a_difference_without_an_interval_claims_nothing():
    assert [direction(d) for d in (None, {"mean": None}, {"mean": 0.5}, {"mean": 0.5, "ci95": None})] == [
        None,
        None,
        0,
        0,
    ]
    assert direction({"mean": 0.5, "ci95": [0.0, 1.0]}) == 0


def test_a_reward_model_no_better_than_length_is_said_to_be_so():
    weak = [("trained reward model", 0.56, (0.46, 0.66)), ("answer length alone", 0.62, None)]
    good = [("trained reward model", 0.94, (0.92, 0.95)), ("answer length alone", 0.57, None)]
    assert any("means little" in line.text for line in headlines(paired(reward=(0.5, 0.9)), weak))
    assert not any("means little" in line.text for line in headlines(paired(reward=(0.5, 0.9)), good))
