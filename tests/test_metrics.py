"""The numbers against slow, independent definitions or known answers."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from rouge_score import rouge_scorer

from rlhf_utils.data.words import RougeTokenizer
from rlhf_utils.evaluation import metrics
from rlhf_utils.evaluation.metrics.assistant import repetition
from rlhf_utils.evaluation.metrics.style import phrases_of, without_phrase
from rlhf_utils.platforms.errors import InputError

WORDS = [f"w{i}" for i in range(25)]
WORDS += ["running", "runs", "The", "cats", "fairly-built", "don't", "don’t", "“so”", "5 €", "a\tb"]


def random_texts(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(0, 60))) for _ in range(count)]


# ROUGE


def test_rouge_is_the_rouge_score_package_sample_by_sample():
    predictions, references = random_texts(200, 1), random_texts(200, 2)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    expected = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    got = metrics.rouge_per_sample(predictions, references)
    for name in ("rouge1", "rouge2", "rougeL"):
        assert got[name] == pytest.approx([e[name].fmeasure for e in expected], abs=1e-12)
        assert metrics.rouge_scores(predictions, references)[name] == pytest.approx(np.mean(got[name]))


def test_rouge_known_answer_with_stems():
    got = metrics.rouge_scores(["the cats were running fast"], ["The cat was running, fast!"])
    # Words in common after stemming: the, cat, run, fast - four of five; bigrams: the-cat, run-fast.
    assert got == pytest.approx({"rouge1": 0.8, "rouge2": 0.5, "rougeL": 0.8})


SCRIPTS = {
    "Russian": ("Привет, МИР!", ["привет", "мир"]),
    "Greek": ("Ο ΣΊΣΥΦΟΣ", ["ο", "σίσυφος"]),
    "Hindi": ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो"]),
    "Arabic": ("السلام عليكم؟", ["السلام", "عليكم"]),
    "Persian": ("می\u200cخواهم", ["میخواهم"]),
    "Korean": ("한국어 단어", ["한국어", "단어"]),
    "Chinese": ("我喜欢面包。", list("我喜欢面包")),
    "Japanese": ("パンが好き", list("パンが好き")),
    "Thai": ("ดีมาก", ["ดี", "ม", "า", "ก"]),
    "Latin with marks": ("Cafe\u0301 naïve runs", ["café", "naïve", "run"]),
    "mixed": ("Brot 面包 running 👍🏽️", ["brot", "面", "包", "run"]),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_words_of_every_script_count(name):
    text, words = SCRIPTS[name]
    assert RougeTokenizer().tokenize(text) == words
    found = metrics.rouge_scores([text, "!"], [text, text])
    assert found["rouge1"] == found["rougeL"] == 0.5 and found["rouge2"] == (0.5 if len(words) > 1 else 0.0)
    assert metrics.distinct_n([text, text], 1) > 0


def test_phrases_and_repetition_in_a_script_without_spaces():
    assert "您 好 运" in phrases_of("祝您好运")
    assert without_phrase("祝您好运！祝 您好运 ok", "您 好 运") == "祝！祝 ok"
    assert without_phrase("Enjoy  the Result! Yes", "the result!") == "Enjoy Yes"
    assert repetition("好的好的好的好的") > 0.5 and repetition("我喜欢面包") == 0


def test_rouge_of_empty_answers_is_zero_and_not_an_error():
    assert metrics.rouge_scores(["", "..."], ["a b", "a b"]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_rouge_scores_a_thousand_pairs_quickly():
    predictions, references = random_texts(1000, 3), random_texts(1000, 4)
    start = time.perf_counter()
    metrics.rouge_per_sample(predictions, references)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["a", "b"], "predictions has 1 texts and references has 2"),
        ([], [], "predictions is empty"),
        (["a", None], ["a", "b"], r"predictions\[1\] is NoneType"),
        (["a"], [3], r"references\[0\] is int"),
        ("abc", ["a", "b", "c"], "predictions is str, not a list"),
    ],
)
def test_rouge_bad_input(predictions, references, message):
    for call in (metrics.rouge_scores, lambda p, r: metrics.Rouge().compute(predictions=p, references=r)):
        with pytest.raises(InputError, match=message):
            call(predictions, references)


def test_rouge_metric_is_an_evaluate_metric_with_the_same_numbers(tmp_path):
    import evaluate

    predictions, references = random_texts(30, 5), random_texts(30, 6)
    metric = metrics.Rouge(cache_dir=str(tmp_path))
    assert isinstance(metric, evaluate.Metric)
    expected = metrics.rouge_scores(predictions, references)
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(expected)
    for start in range(0, 30, 10):
        batch = slice(start, start + 10)
        metric.add_batch(predictions=predictions[batch], references=references[batch])
    assert metric.compute() == pytest.approx(expected)


def test_numbers_need_neither_torch_nor_evaluate():
    code = (
        "import sys, rlhf_utils.evaluation.metrics, rlhf_utils.report.plots, rlhf_utils.report.page\n"
        "print([name for name in ('torch', 'transformers', 'evaluate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Intervals


def test_mean_interval_agrees_with_the_normal_interval_on_many_values():
    values = np.random.default_rng(0).exponential(2.0, 4000)
    got = metrics.mean_interval(values)
    half = 1.959964 * values.std() / math.sqrt(values.size)
    assert got.mean == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_mean_interval_agrees_with_all_possible_resamples():
    values = [0.0, 1.0, 5.0, 9.0]
    means = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    got = metrics.mean_interval(values, samples=40_000)
    assert [got.low, got.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.26)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(7)
    draws = generator.normal(3, 1, (300, 60))
    hits = sum(not metrics.mean_interval(draw, samples=500).excludes(3) for draw in draws)
    assert 0.90 <= hits / 300 <= 0.985


def test_mean_interval_seed_level_one_value_and_constant_values():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert metrics.mean_interval(values, seed=1) == metrics.mean_interval(values, seed=1)
    narrow, wide = metrics.mean_interval(values, level=0.5), metrics.mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    one = metrics.mean_interval([0.3])
    assert (one.mean, one.as_list(), one.excludes(0), one.n) == (0.3, None, False, 1)
    constant = metrics.mean_interval([0.1] * 7)
    assert (constant.mean, constant.low, constant.high) == (0.1, 0.1, 0.1)


def test_bootstrap_does_not_depend_on_the_memory_chunk(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = metrics.mean_interval(values)
    monkeypatch.setattr("rlhf_utils.evaluation.metrics.statistics.BOOTSTRAP_CELLS", 50 * 7)
    assert metrics.mean_interval(values) == whole


def test_paired_difference_uses_the_pairing():
    generator = np.random.default_rng(0)
    prompts = generator.normal(0, 10, 100)
    got = metrics.paired_difference(prompts + 0.5 + generator.normal(0, 0.1, 100), prompts)
    assert got.mean == pytest.approx(0.5, abs=0.05)
    assert got.high - got.low < 0.1
    assert got.excludes(0)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Wilson intervals as tabulated in Newcombe (1998), Statistics in Medicine 17, table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(k, n, low, high):
    got = metrics.proportion_interval(k, n)
    assert (got.mean, got.n) == (k / n, n)
    assert [got.low, got.high] == pytest.approx([low, high], abs=5e-5)
    mirrored = metrics.proportion_interval(n - k, n)
    assert [1 - mirrored.high, 1 - mirrored.low] == pytest.approx([got.low, got.high])


# Comparisons


def test_win_rate_counts_and_interval():
    a, b = [1, 2, 3, 4, 5, 6], [0, 1, 2, 4, 5 - 1e-12, 7]
    got = metrics.win_rate(a, b)
    assert (got["wins"], got["losses"], got["ties"]) == (3, 1, 2)
    assert got["rate"] == pytest.approx(4 / 6)
    assert got["ci95"][0] < got["rate"] < got["ci95"][1]
    # Four decided prompts, three wins: 2 * (C(4,0) + C(4,1)) / 16.
    assert got["sign_test_p"] == pytest.approx(0.625)
    swapped = metrics.win_rate(b, a)
    assert (swapped["wins"], swapped["losses"], swapped["rate"]) == (1, 3, pytest.approx(1 - got["rate"]))


def test_win_rate_of_equal_outcomes_claims_no_certainty():
    assert metrics.win_rate([1] * 10, [0] * 10)["ci95"] == pytest.approx([0.7225, 1.0], abs=1e-4)
    tied = metrics.win_rate([1] * 10, [1] * 10)
    assert (tied["rate"], tied["sign_test_p"], tied["ties"]) == (0.5, 1.0, 10)
    assert tied["ci95"][0] < 0.5 < tied["ci95"][1]


def test_sign_test_against_the_binomial_sum():
    for wins, losses in itertools.product(range(9), range(9)):
        n = wins + losses
        tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1)) / 2**n
        assert metrics.sign_test(wins, losses) == pytest.approx(min(1.0, 2 * tail))
    assert metrics.sign_test(3000, 2000) < 1e-40


def test_distinct_n_is_li_et_al():
    texts = ["a b a b", "b a", "", "c"]
    # Seven words; unigrams a b c; bigrams a-b and b-a, none across two texts.
    assert metrics.distinct_n(texts, 1) == pytest.approx(3 / 7)
    assert metrics.distinct_n(texts, 2) == pytest.approx(2 / 7)
    assert metrics.distinct_n(["", " "], 2) == 0.0


def test_calibration_known_answer():
    margin = math.log(3)  # sigma = 0.75, in bin [0.75, 0.80) of ten
    got = metrics.calibration([margin + 1e-9] * 3 + [-margin - 1e-9] + [0.0, 0.0])
    assert [b["count"] for b in got["bins"]] == [2, 4]
    assert [b["accuracy"] for b in got["bins"]] == pytest.approx([0.5, 0.75])
    assert [b["predicted"] for b in got["bins"]] == pytest.approx([0.5, 0.75])
    assert got["expected_calibration_error"] == pytest.approx(0.0, abs=1e-6)
    overconfident = metrics.calibration([10.0, -10.0, 10.0, -10.0])
    assert overconfident["expected_calibration_error"] == pytest.approx(0.5, abs=1e-4)


def test_calibration_finds_a_calibrated_judge_calibrated():
    generator = np.random.default_rng(0)
    size = np.abs(generator.normal(0, 2, 20_000))
    right = generator.random(20_000) < 1 / (1 + np.exp(-size))
    assert metrics.calibration(np.where(right, size, -size))["expected_calibration_error"] < 0.015
    assert metrics.calibration(np.where(right, 3 * size, -3 * size))["expected_calibration_error"] > 0.08


def test_length_baseline_takes_its_direction_from_training_pairs():
    held_out = ([5, 9, 4, 7], [3, 2, 8, 7])  # longer is right 2.5 times of 4
    assert metrics.length_baseline(*held_out, [9, 8], [1, 2]) == pytest.approx(0.625)
    assert metrics.length_baseline(*held_out, [1, 2], [9, 8]) == pytest.approx(0.375)


# Bad input


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_values_are_named_by_position(bad):
    for call in (
        lambda v: metrics.mean_interval(v),
        lambda v: metrics.paired_difference(v, [0.0] * 3),
        lambda v: metrics.win_rate([0.0] * 3, v),
        lambda v: metrics.calibration(v),
        lambda v: metrics.length_baseline(v, [1] * 3, [1], [2]),
    ):
        with pytest.raises(ValueError, match=r"\[1\] is -?(nan|inf)"):
            call([1.0, bad, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.mean_interval([]), "values is empty"),
        (lambda: metrics.mean_interval([[1.0]]), "flat list"),
        (lambda: metrics.mean_interval(["x"]), "flat list of numbers"),
        (lambda: metrics.mean_interval([1.0], level=95), "level is 95"),
        (lambda: metrics.mean_interval([1.0], samples=0), "samples is 0"),
        (lambda: metrics.paired_difference([1.0], [1.0, 2.0]), "a has 1 values and b has 2"),
        (lambda: metrics.win_rate([1.0], [1.0, 2.0]), "a has 1 values and b has 2"),
        (lambda: metrics.proportion_interval(3, 2), "k is 3 of n = 2"),
        (lambda: metrics.proportion_interval(0, 0), "n is 0"),
        (lambda: metrics.distinct_n([], 2), "texts is empty"),
        (lambda: metrics.distinct_n(["a"], 0), "n is 0"),
        (lambda: metrics.calibration([1.0], bins=0), "bins is 0"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
