"""The numbers against slow, independent definitions or known answers."""

import importlib
import itertools
import math
import random
from pathlib import Path

import evaluate
import numpy as np
import pandas as pd
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


def test_kappa_as_published():
    """Fleiss, Levin and Paik 2003, table 18.1: two raters, three diagnoses, kappa 0.676 with a standard error of 0.088,
    by the formula of Fleiss, Cohen and Everitt 1969, so 0.50 to 0.85."""
    table = [[75, 1, 4], [5, 4, 1], [0, 0, 10]]
    cells = [(i, j) for i in range(3) for j in range(3) for _ in range(table[i][j])]
    a, b = zip(*cells, strict=True)
    found = statistics.kappa_interval(a, b)
    assert found.mean == pytest.approx(0.676, abs=5e-4) and found.n == 100
    assert (found.low, found.high) == pytest.approx((0.504, 0.848), abs=0.03)
    # The same verdicts twice in a conversation are no more verdicts.
    twice = statistics.kappa_interval([*a, *a], [*b, *b], clusters=[*range(100)] * 2)
    assert (twice.low, twice.high) == (found.low, found.high)
    assert statistics.kappa_interval([*a, *a], [*b, *b]).low > found.low


def test_kappa_claims_no_certainty():
    assert statistics.kappa_interval([1] * 5, [1] * 5) is None, "there is no chance to be better than"
    always = statistics.kappa_interval([0] * 6, [-1, 1, 0, 0, 1, -1])
    assert (always.mean, always.as_list()) == (0.0, None), "0 whatever the other says"
    alike = statistics.kappa_interval([0, 1, 1], [0, 1, 1])
    assert alike.mean == alike.high == 1.0 and alike.low < 0.5
    never = statistics.agreement([1, 1, -1], [-1, -1, 1])
    assert never["kappa"] == never["kappa_ci95"][0] == -1.0 and never["kappa_ci95"][1] > 0.0
    alone = statistics.kappa_interval([1, -1], [1, 1], clusters=["a", "a"])
    assert (alone.mean, alone.low, alone.high) == (0.0, None, None)


def test_agreement_does_not_depend_on_which_response_stands_first():
    a, b = [1.5, 2, -1, 4, -3, 1], [2, 3, -0.1, -4, 1, 1]
    turned = [[value * turn for value, turn in zip(side, (1, -1, -1, 1, 1, -1), strict=True)] for side in (a, b)]
    found = statistics.agreement(a, b)
    assert found == statistics.agreement(*turned) and found["agreement"] == pytest.approx(4 / 6)
    assert found["kappa"] == pytest.approx(2 * 4 / 6 - 1), "chance is one half where nobody says tie"
    assert statistics.agreement([0, 0], [0, 0])["kappa"] is None


def test_the_interval_of_kappa_covers():
    """Two judges, each right on 85 % of 80 pairs whatever the other says."""
    random_numbers, truth, hits = np.random.default_rng(0), 2 * (0.85**2 + 0.15**2) - 1, 0
    for _ in range(200):
        sides = [np.where(random_numbers.random(80) < 0.85, 1, -1) for _ in range(2)]
        low, high = statistics.agreement(*sides, samples=400)["kappa_ci95"]
        hits += low <= truth <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_rates_by_clusters_count_effective_outcomes():
    outcomes, source = np.random.default_rng(0).integers(0, 2, 60), np.random.default_rng(1)
    alone, order = statistics.rate_interval(outcomes), source.permutation(300)
    repeated, names = np.repeat(outcomes, 5)[order], np.repeat(np.arange(60), 5)[order]
    copies = statistics.rate_interval(repeated, names)
    # Copies say nothing new; taken for independent they would.
    assert copies.as_list() == pytest.approx(alone.as_list(), abs=1e-9) and copies.n == 300
    plain = statistics.rate_interval(repeated)
    assert plain.high - plain.low < 0.5 * (copies.high - copies.low)
    # Without clusters nearly Wilson's own interval: n - 1 degrees of freedom.
    assert alone.as_list() == pytest.approx(statistics.proportion_interval(outcomes.sum(), 60).as_list(), abs=0.01)
    assert statistics.standard_error(repeated, names) == pytest.approx(outcomes.std(ddof=1) / math.sqrt(60))
    assert statistics.standard_error([1.0, 2.0], ["a", "a"]) is None
    assert statistics.rate_interval([1, 0], ["a", "a"]).as_list() == statistics.proportion_interval(0.5, 1).as_list()


@pytest.mark.parametrize("sizes", ["independent", "1 to 5 per prompt", "5 per prompt"])
@pytest.mark.parametrize(
    "what", ["mean of skewed scores", "paired difference", "win rate with ties", "accuracy near 95%"]
)
def test_intervals_cover_what_they_say(monkeypatch, what, sizes):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    coverage = importlib.import_module("coverage")
    line = coverage.simulate(what, sizes, clusters=60, simulations=400)
    # 400 simulations know the coverage to 2%: none of them may lie clearly outside of 93% to 97%.
    low, high = statistics.proportion_interval(line.covered, 400).as_list()
    assert low < 0.97 and high > 0.93
    if sizes == "5 per prompt":
        assert line.plain < 0.92 * 400


def test_holm_against_a_table_worked_out_by_hand():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, and none smaller than the one before it.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.5]) == [1.0, 1.0] and statistics.holm([0.04]) == [0.04] and statistics.holm([]) == []


def test_sign_flips_against_all_of_them_and_by_clusters():
    values, names = [3.0, 1.0, -0.5, 2.0, 0.25, 1.5], ["a", "a", "b", "c", "d", "e"]
    sums = [4.0, -0.5, 2.0, 0.25, 1.5]
    flips = [abs(np.dot(signs, sums)) >= abs(sum(sums)) - 1e-12 for signs in itertools.product((-1, 1), repeat=5)]
    assert statistics.sign_flip_p(values, names) == pytest.approx(np.mean(flips), abs=0.007)
    assert statistics.sign_flip_p([1.0] * 100) == 1 / 20_001 and statistics.sign_flip_p([1.0, -1.0] * 9) == 1.0
    assert statistics.sign_flip_p([1.0, 2.0], ["a", "a"]) is None
    # Copies of one prompt are no evidence.
    assert statistics.sign_flip_p(np.repeat(values[:3], 50), np.repeat(["a", "b", "c"], 50)) >= 0.2


def test_rank_correlation_with_ties_and_nothing_to_rank():
    a, b = [1.0, 2.0, 2.0, 4.0, 5.0], [2.0, 1.0, 3.0, 3.0, 9.0]
    ranks = pd.DataFrame({"a": a, "b": b}).rank()
    got = statistics.rank_correlation(a, b)
    assert got.mean == pytest.approx(np.corrcoef(ranks["a"], ranks["b"])[0, 1]) and got.low < got.mean < got.high
    assert statistics.rank_correlation(a, [-x for x in a]).as_list() == pytest.approx([-1.0, -1.0])
    assert statistics.rank_correlation(a, [1.0] * 5) is None
    source = np.random.default_rng(0)
    x, names = source.normal(size=50), np.repeat(np.arange(50), 6)
    y = x + source.normal(size=50)
    alone = statistics.rank_correlation(x, y)
    wide, narrow = (
        statistics.rank_correlation(np.repeat(x, 6), np.repeat(y, 6), clusters) for clusters in (names, None)
    )
    # Six copies of each tell no more than one does.
    assert wide.high - wide.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)
