"""The report page and the summary: self-contained, escaped, and saying what the numbers say."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from made_up_run import change, draw, make_run

from rlhf_utils.evaluation.statistics import accuracy_of
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.report import findings, page
from rlhf_utils.report.findings import headlines, sentences, text_summary, unbeaten

run = pytest.fixture(lambda tmp_path: make_run(tmp_path))


def page_of(run) -> tuple[str, list[str]]:
    """The page with two pictures, where both can be drawn, without their content, and the names of its tags."""
    draw(run, "04_win_rate"), draw(run, "04_rouge_comparison")
    text, tags, parser = page.write_report(run).read_text(encoding="utf-8"), [], HTMLParser()
    parser.handle_starttag = lambda tag, _: tags.append(tag)
    parser.feed(text)
    return re.sub(r"base64,iVBOR[^\"]+", "", text), tags


def test_the_page_holds_everything_itself(run):
    text, tags = page_of(run)
    assert text.count('src="data:image/png;"') == text.count("src=") == tags.count("img") == 2
    assert not {"script", "link", "a"} & set(tags) and "http" not in text
    assert 'alt="Win rate, prompt by prompt. The judge is named on the left;' in text
    samples = pd.read_csv(run / "evaluation" / "samples.csv", keep_default_na=False)
    assert text.count('<p class="prompt">') == len(samples[::2]) == 6
    for model in ("reference", "base", "sft", "sft_qlora", "ppo"):
        assert text.count(f'<div class="response {model}">') == 6
    for column, value in samples.iloc[2].items():
        if column.endswith(("response", "reference")):
            assert html.escape(value) in text, column
        elif column.endswith(("reward", "gold", "rougeL")):
            assert findings.shown(value) in text, column


def test_tables_hold_the_figures_with_their_intervals(run):
    change(run, "summary", lambda s: s["models"]["ppo"].update(gold=5.123, gold_ci95=[-4.987, 5.259], kl_to_sft=2.345))
    change(run, "summary", lambda s: s["win_rate"]["ppo_vs_sft"].update(wins=41, losses=12, ties=7, rate=0.7417))
    text, _ = page_of(run)
    accuracy = read_json(run / "evaluation" / "reward_model.json")["accuracy"]
    for said in (
        "<td>5.12<small>[−4.99, 5.26]</small></td>", "<td>2.35</td>", "<td>41</td><td>7</td><td>12</td>", "0.74",
        f"<td>{accuracy:.1%} [",
    ):  # fmt: skip
        assert said in text, said


COMPARED = {
    "bradley_terry": {
        "judged_by": "gold",
        "anchor": "sft",
        "models": {
            "sft": {"elo": 1000.0, "elo_ci95": None, "wins_vs_sft": 0.5, "wins_vs_sft_ci95": None},
            "ppo": {"elo": 1191, "elo_ci95": [1150, 1230.4], "wins_vs_sft": 0.75, "wins_vs_sft_ci95": [0.7, 0.79]},
        },
    },
    "categories": [
        {"by": "topic", "value": "<b>pets</b>", "prompts": 20, "difference": -1.5, "ci95": [-2.0, -1.0],
         "win_rate": 0.2, "win_rate_ci95": [0.1, 0.3], "p_holm": 0.004, "verdict": "worse"},
        {"by": "topic", "value": "other", "prompts": 3, "difference": 1.0, "ci95": None,
         "win_rate": 1.0, "win_rate_ci95": None, "p_holm": None, "verdict": None},
    ],
}  # fmt: skip


def test_ranking_categories_and_equal_length_are_shown_with_their_judge(run):
    change(run, "summary", lambda s: s.update(COMPARED))
    alike = {"rate": 0.681, "ci95": [0.6, 0.76]}
    change(run, "summary", lambda s: s["win_rate"]["ppo_vs_sft"].update(length_controlled=alike))
    text, _ = page_of(run)
    for said in (
        "<td>PPO</td><td>1191<small>[1150, 1230]</small></td><td>75.0%<small>[70.0%, 79.0%]</small></td>",
        "<td>SFT</td><td>1000</td><td>–</td>", "judged by the gold score, ties half; SFT is 1000",
        "<td>topic</td><td>&lt;b&gt;pets&lt;/b&gt;</td><td>20</td><td>−1.50<small>[−2.00, −1.00]</small></td>",
        "<td>0.004</td><td>worse</td>", "<td>+1.00</td><td>100%</td><td>–</td><td>–</td>",
        "<td>0.68<small>[0.60, 0.76]</small></td>",
    ):  # fmt: skip
        assert said in text, said
    assert text.index("<td>PPO</td><td>1191") < text.index("<td>SFT</td><td>1000")  # the strongest first
    summary = read_json(run / "evaluation" / "summary.json")
    told = dict(headlines(summary, {}))
    assert (
        told["At equal length PPO wins 68.1% [60.0%, 76.0%], by the same judge (length-controlled win rate)."] is False
    )
    assert told["PPO is worse where topic is <b>pets</b>: −1.50 [−2.00, −1.00], judged by the gold score."] is True
    assert not any(" is other" in line for line in told)
    second = sentences(summary | {"judge": {"kind": "second reward model"}})
    assert any(line.startswith("Judged by the second reward model, PPO wins") for line in second)
    assert any("SFT according to the second reward model: " in line for line in second)
    about = {"kind": "second reward model", "pairs": 58, "kappa": 0.59, "kappa_ci95": [0.36, 0.79], "accuracy": 0.48}
    for low, warned in ((0.36, True), (0.52, False)):
        said = dict(headlines(summary | {"judge": {**about, "accuracy_ci95": [low, 0.61]}}, {}))
        assert (True in [w for text, w in said.items() if "judge is not shown to beat chance" in text]) is warned


def test_responses_of_every_saved_policy_stand_under_their_prompt(run):
    def watched(frontier):
        for point in frontier["points"]:
            rows = [("a & b", "<i>x", 0.25, None), ("second", f"said at {point['update']}", 1.5, 7.0)]
            point["completions"] = [dict(zip(("prompt", "response", "reward", "gold"), r, strict=True)) for r in rows]

    change(run, "frontier", lambda f: [point.pop("completions", None) for point in f["points"]])
    assert "Responses through the training" not in page_of(run)[0]  # of an earlier version
    change(run, "frontier", watched)
    text, _ = page_of(run)
    updates = sorted(point["update"] for point in read_json(run / "evaluation" / "frontier.json")["points"])
    rows = [f'<tr><td>{u}</td><td>1.50</td><td>7.00</td><td class="said">said at {u}</td></tr>' for u in updates]
    assert "\n".join(rows) in text and len(updates) > 1
    assert text.count('<td>0.25</td><td class="said">&lt;i&gt;x</td>') == len(updates) and "a &amp; b" in text
    change(run, "frontier", lambda f: f.update(chosen_update=None))  # a policy that was ready has no steps
    assert "Responses through the training" not in page_of(run)[0]


def test_model_text_cannot_become_markup_and_is_shown_as_it_is(run):
    path = run / "evaluation" / "samples.csv"
    planted = "<script>alert('x')</script><img src=x onerror=y> & \"quoted\""
    rows = pd.read_csv(path).assign(prompt=planted, reference="NA", ppo_response=planted, base_response="null")
    rows.to_csv(path, index=False)
    change(run, "summary", lambda s: s.update(data=planted, decoding={"<b>": planted}))
    text, tags = page_of(run)
    assert "<script" not in text and "script" not in tags and tags.count("img") == 2
    assert planted in html.unescape(text) and "<p>NA</p>" in text and "<p>null</p>" in text


def test_what_was_not_measured_is_not_invented(tmp_path):
    run = make_run(tmp_path, gold=False)
    change(run, "summary", lambda s: s.update(kl_budget=None))
    change(run, "summary", lambda s: [found.update(rougeL=None) for found in s["models"].values()])
    text, tags = page_of(run)
    assert "No judge here" in text and "Judged by the reward model, PPO wins" in text
    assert "None" not in text and "nan" not in text and "<th>gold</th>" not in text and tags.count("img") == 1


def test_missing_evaluation_is_one_clear_line(run):
    for name in ("samples.csv", "summary.json"):
        (run / "evaluation" / name).unlink()
        with pytest.raises(InputError, match=f"{name} is missing: run the notebook of this stage"):
            page.write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("ends", "text", "warning"),
    [
        ((0.4, 0.8), "PPO beats SFT on gold: +0.60 [0.40, 0.80].", False),
        ((-0.2, 0.4), "No difference between PPO and SFT is shown on gold: +0.10 [−0.20, 0.40].", False),
        ((-0.6, -0.2), "PPO is worse than SFT on gold: −0.40 [−0.60, −0.20].", True),
        (None, "No difference between PPO and SFT is shown on gold: +1.00.", False),
    ],
)
def test_headlines_follow_the_intervals(ends, text, warning):
    gold = {"mean": sum(ends) / 2 if ends else 1.0, "ci95": ends and list(ends)}
    assert [*headlines({"paired": {"ppo_vs_sft": {"gold": gold, "rougeL": None}}}, {})] == [(text, warning)]


@pytest.mark.parametrize(("p", "said"), [(0.04, "PPO beats SFT"), (0.06, "No difference between PPO and SFT is shown")])
def test_of_several_comparisons_only_what_stays_after_correction_is_claimed(p, said):
    gold = {"mean": 0.6, "ci95": [0.4, 0.8], "p": 0.02, "p_holm": p}
    (text, _), *_ = headlines({"paired": {"ppo_vs_sft": {"gold": gold, "rougeL": None}}}, {})
    assert text == f"{said} on gold: +0.60 [0.40, 0.80], Holm-adjusted p = {p}."


def test_prompts_that_repeat_are_said_to():
    summary = {"prompts": 9, "prompts_distinct": 8, "prompt_clusters": 5}
    assert sentences(summary) == [
        "The 9 prompts (8 of them distinct) form 5 clusters that begin alike or ask for the same; every interval is "
        "over clusters."
    ]
    assert sentences(summary | {"prompt_clusters": 9}) == []


def test_prompts_that_training_has_seen_in_other_words_are_said_to_be_so():
    found = {"sft": {"prompts": 30, "share": 0.3}, "reward": {"prompts": 76, "share": 0.76}}
    assert sentences({"near_duplicates": found}) == [
        "76% of the prompts have a near-duplicate among those of split reward: these test new wordings, not new "
        "subjects."
    ]
    assert sentences({"near_duplicates": {"sft": {"prompts": 3, "share": 0.03}}}) == []


@pytest.mark.parametrize(("now", "p", "warning"), [(5, 0.0005, True), (16, 1.0, False), (17, 1.0, False)])
def test_refusals_that_were_lost_are_a_warning(now, p, warning):
    found = {"prompts": 17, "refused": {"sft": 17, "ppo": now}, "p": p}
    text = f"Of 17 prompts that should be refused, SFT refuses 17 and PPO {now} (McNemar's exact p = {p:.2g})."
    assert [*headlines({"refusals": found}, {})] == [(text, warning)]


def test_a_reward_model_no_better_than_length_is_said_to_be_so():
    for accuracy, ends, weak in ((0.56, (0.46, 0.66), True), (0.94, (0.92, 0.95), False)):
        model = {"of": "pairs", "accuracy": accuracy, "accuracy_ci95": ends, "length_baseline_accuracy": 0.57}
        assert any("means little" in text and warning for text, warning in headlines({}, model)) == weak


def test_a_terminal_gets_the_table_without_intervals_and_the_sentences(run):
    summary = read_json(run / "evaluation" / "summary.json")
    lines = text_summary(summary).split("\n")
    assert lines[0].split()[:3] == ["model", "reward", "gold"] and lines[4].startswith("PPO")
    assert not any("[" in line for line in lines[:5]) and lines[6:] == sentences(summary)


def test_figures_are_written_with_their_intervals_and_true_minus_signs():
    shown = findings.shown
    assert shown(None) == "–" and shown(-0.001) == "0.00" and shown(-0.5, [-1, 0.25]) == "−0.50 [−1.00, 0.25]"
    assert shown(0.6, None, "+z.1f") == "+0.6" and shown(0.6, [0.4, 0.8], "+z.1f") == "+0.6 [0.4, 0.8]"
    assert shown(0.9234, (0.9, 0.94), "z.1%") == "92.3% [90.0%, 94.0%]"


def test_two_equally_good_models_are_seldom_told_apart():
    """The interval of the better one above the other's bare accuracy would be claimed in 8% of such cases."""
    generator, claimed, n = np.random.default_rng(0), 0, 400
    for _ in range(1000):
        first, second = (accuracy_of(generator.random(n) - 0.3) for _ in range(2))
        claimed += "b" not in unbeaten({"a": (first.mean, first.as_list()), "b": (second.mean, second.as_list())})
    assert 0.01 < claimed / 1000 < 0.04
    assert unbeaten({"a": (0.9, [0.85, 0.95])}) == [] and unbeaten({"a": (0.55, [0.49, 0.6])}) == ["chance"]
    assert unbeaten({"a": (0.6, [0.55, 0.65]), "b": (0.58, [0.53, 0.63])}) == ["b"]
    assert unbeaten({"a": (1.0, None)}) == ["chance"], "a single cluster shows nothing"
