"""The numbers against slow, independent definitions or known answers."""

import itertools
import math
import random

import evaluate
import numpy as np
import pytest
from rouge_score import rouge_scorer

from rlhf_utils.data.tokens import RougeTokenizer
from rlhf_utils.evaluation import statistics
from rlhf_utils.evaluation.rouge import ROUGE_NAMES, Rouge
from rlhf_utils.evaluation.style import distinct_n, phrases_of, repetition, without_phrase

WORDS = [f"w{i}" for i in range(25)]
WORDS += ["running", "runs", "The", "cats", "fairly-built", "don't", "don’t", "“so”", "5 €", "a\tb"]


def random_texts(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(0, 60))) for _ in range(count)]


def rouge(predictions: list[str], references: list[str], **how) -> dict:
    return Rouge().compute(predictions=predictions, references=references, **how)


def test_rouge_is_an_evaluate_metric_with_the_numbers_of_the_rouge_score_package(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "nothing is written here"))
    predictions, references = random_texts(100, 1), random_texts(100, 2)
    scorer = rouge_scorer.RougeScorer(list(ROUGE_NAMES), use_stemmer=True)
    expected = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    metric, got = Rouge(), rouge(predictions, references, use_aggregator=False)
    for start in range(0, 100, 30):
        batch = slice(start, start + 30)
        metric.add_batch(predictions=predictions[batch], references=references[batch])
    collected = metric.compute()
    for name in ROUGE_NAMES:
        assert got[name] == pytest.approx([e[name].fmeasure for e in expected], abs=1e-12)
        assert rouge(predictions, references)[name] == collected[name] == pytest.approx(np.mean(got[name]))
    assert list(tmp_path.iterdir()) == []


def test_rouge_known_answer_with_stems_and_nothing_for_empty_responses():
    # Words in common after stemming: the, cat, run, fast - four of five; bigrams: the-cat, run-fast.
    got = rouge(["the cats were running fast"], ["The cat was running, fast!"])
    assert got == pytest.approx({"rouge1": 0.8, "rouge2": 0.5, "rougeL": 0.8})
    assert rouge(["", "..."], ["a b", "a b"]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Привет, МИР!", ["привет", "мир"]),
        ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो"]),
        ("我喜欢面包。", list("我喜欢面包")),
        ("Brot 面包 running 👍🏽️", ["brot", "面", "包", "run"]),
    ],
)
def test_words_of_every_script_count(text, words):
    assert RougeTokenizer().tokenize(text) == words
    found = rouge([text, "!"], [text, text])
    assert found["rouge1"] == found["rougeL"] == 0.5 and found["rouge2"] == (0.5 if len(words) > 1 else 0.0)


def test_phrases_repetition_and_distinct_n_in_any_script():
    assert phrases_of("A b c") == {"a b", "b c", "a b c"} and "您 好 运" in phrases_of("祝您好运")
    assert without_phrase("祝您好运！祝 您好运 ok", "您 好 运") == "祝！祝 ok"
    assert without_phrase("Enjoy  the Result! Yes", "the result!") == "Enjoy Yes"
    assert repetition("好的好的好的好的") > 0.5 and repetition("我喜欢面包") == repetition("too short") == 0
    assert repetition("a b c a b c") == pytest.approx(1 / 4)
    # Li et al.: seven words; unigrams a b c; bigrams a-b and b-a, none across two texts.
    texts = ["a b a b", "b a", "", "c"]
    assert distinct_n(texts, 1) == pytest.approx(3 / 7) and distinct_n(texts, 2) == pytest.approx(2 / 7)
    assert distinct_n(["", " "], 2) == 0.0


def test_mean_interval_agrees_with_all_possible_resamples_and_repeats_itself():
    values = [0.0, 1.0, 5.0, 9.0]
    means = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    got = statistics.mean_interval(values, samples=40_000)
    assert got.as_list() == pytest.approx(np.quantile(means, [statistics.tail(4), 1 - statistics.tail(4)]), abs=0.26)
    assert statistics.mean_interval(values, seed=1) == statistics.mean_interval(values, seed=1)


def test_paired_difference_uses_the_pairing():
    generator = np.random.default_rng(0)
    prompts = generator.normal(0, 10, 100)
    got = statistics.paired_difference(prompts + 0.5 + generator.normal(0, 0.1, 100), prompts)
    assert got.mean == pytest.approx(0.5, abs=0.05)
    assert got.high - got.low < 0.1 and got.sign == 1


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Wilson intervals as tabulated in Newcombe (1998), Statistics in Medicine 17, table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(k, n, low, high):
    got, mirrored = statistics.proportion_interval(k, n), statistics.proportion_interval(n - k, n)
    assert (got.mean, got.n) == (k / n, n)
    assert got.as_list() == pytest.approx([low, high], abs=5e-5)
    assert [1 - mirrored.high, 1 - mirrored.low] == pytest.approx(got.as_list())


def test_win_rate_counts_and_interval():
    a, b = [1, 2, 3, 4, 5, 6], [0, 1, 2, 4, 5 - 1e-12, 7]
    got, swapped = statistics.win_rate(a, b), statistics.win_rate(b, a)
    assert (got["wins"], got["losses"], got["ties"]) == (3, 1, 2)
    assert got["rate"] == pytest.approx(4 / 6) and got["ci95"][0] < got["rate"] < got["ci95"][1]
    assert (swapped["wins"], swapped["losses"], swapped["rate"]) == (1, 3, pytest.approx(1 - got["rate"]))


@pytest.mark.parametrize(("scores", "ci95"), [([1] * 10, [0.7225, 1.0]), ([0] * 10, [0.2366, 0.7634])])
def test_win_rate_of_equal_outcomes_claims_no_certainty(scores, ci95):
    assert statistics.win_rate(scores, [0] * 10)["ci95"] == pytest.approx(ci95, abs=1e-4)


def test_sign_test_against_all_outcomes():
    def p(wins: int, losses: int) -> float:
        return statistics.win_rate([1] * wins + [-1] * losses + [0], [0] * (wins + losses + 1))["sign_test_p"]

    for wins, losses in itertools.product(range(4), range(4)):
        n = wins + losses
        as_far = sum(abs(2 * sum(flips) - n) >= abs(wins - losses) for flips in itertools.product((0, 1), repeat=n))
        assert p(wins, losses) == pytest.approx(as_far / 2**n)
    assert p(3000, 2000) < 1e-40


def test_calibration_known_answer():
    margin = math.log(3)  # sigma = 0.75, in bin [0.75, 0.80) of ten
    got = statistics.calibration([margin + 1e-9] * 3 + [-margin - 1e-9] + [0.0, 0.0])
    assert [b["count"] for b in got["bins"]] == [2, 4]
    assert [b["accuracy"] for b in got["bins"]] == pytest.approx([0.5, 0.75])
    assert [b["predicted"] for b in got["bins"]] == pytest.approx([0.5, 0.75])
    assert got["expected_calibration_error"] == pytest.approx(0.0, abs=1e-6)
    overconfident = statistics.calibration([10.0, -10.0, 10.0, -10.0])
    assert overconfident["expected_calibration_error"] == pytest.approx(0.5, abs=1e-4)
