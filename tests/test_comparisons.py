"""Win rates at equal length, the Bradley-Terry ranking and kinds of prompts, against known answers."""

import math

import numpy as np
import pytest
from datasets import Dataset

from rlhf_utils.data.prepared import cluster_key
from rlhf_utils.evaluation.comparisons import (
    bradley_terry,
    categories,
    kinds_of,
    length_controlled,
    refusals,
    strengths,
)
from rlhf_utils.toyworld.gold import QUESTIONS


def simulated(theta: float, phi: float, n: int = 4000, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of two models and how much longer the first one's responses are, by the model of the paper."""
    generator = np.random.default_rng(0)
    longer = generator.normal(shift, 20, n)
    wins = generator.random(n) < 1 / (1 + np.exp(-theta - phi * np.tanh(longer / longer.std())))
    return wins.astype(float), 1.0 - wins, longer


@pytest.mark.parametrize("theta", [0.0, 0.8, -0.5])
def test_what_length_decides_is_taken_out_of_a_win_rate_and_the_rest_is_left(theta):
    for phi, shift in ((3.0, 15.0), (0.0, 15.0), (-2.0, 5.0)):
        a, b, longer = simulated(theta, phi, shift=shift)
        got, truth = length_controlled(a, b, longer, samples=200), 1 / (1 + math.exp(-theta))
        assert got["rate"] == pytest.approx(truth, abs=0.03), (phi, a.mean())
        assert got["ci95"][0] < truth < got["ci95"][1] and np.ptp(got["ci95"]) < 0.12
    plain = np.mean(simulated(theta, 3.0, shift=15.0)[0])
    assert plain > 1 / (1 + math.exp(-theta)) + 0.08  # which length alone had brought


def test_at_equal_length_ties_are_halves_and_clusters_are_drawn_whole():
    a, b, longer = simulated(0.8, 2.0, n=120)
    got, swapped = length_controlled(a, b, longer), length_controlled(b, a, -longer)
    assert swapped["rate"] == pytest.approx(1 - got["rate"])
    assert length_controlled(np.r_[a, b], np.r_[b, a], np.zeros(240))["rate"] == pytest.approx(0.5)
    halves = length_controlled([1, 0, 0.5, 0.5], [0, 1, 0.5, 0.5], [3, 3, -3, -3], samples=100)
    assert halves["rate"] == pytest.approx(0.5)
    # Each prompt five times is no more information than once.
    often = length_controlled(*(np.repeat(of, 5) for of in (a, b, longer)), clusters=np.repeat(np.arange(120), 5))
    assert often["rate"] == pytest.approx(got["rate"], abs=1e-3)
    assert np.ptp(often["ci95"]) == pytest.approx(np.ptp(got["ci95"]), rel=0.1)


def test_wins_that_length_separates_and_wins_of_one_side_alone_stay_finite():
    longer = np.array([-9.0, -5.0, -1.0, 2.0, 4.0, 8.0])
    got = length_controlled(np.sign(longer), np.zeros(6), longer, samples=100)
    assert 0.05 < got["rate"] < 0.95 and 0 <= got["ci95"][0] <= got["ci95"][1] <= 1
    # All won: nothing depends on length, and Wilson's interval is that of the plain rate.
    assert length_controlled([1] * 10, [0] * 10, longer[[0] * 10])["ci95"] == pytest.approx([0.7225, 1.0], abs=1e-4)
    assert length_controlled([1, 0], [0, 1], [1, 2], clusters=["a", "a"])["ci95"] is None


def test_lengths_that_are_nowhere_equal_say_nothing_of_equal_length():
    generator = np.random.default_rng(0)
    a = (generator.random(250) < 0.8).astype(float)
    low, high = length_controlled(a, 1 - a, generator.normal(50, 5, 250), samples=100)["ci95"]
    assert low < 0.05 and high > 0.95


def test_bradley_terry_of_two_models_is_the_odds_of_a_win():
    sft, ppo = np.zeros(120), np.r_[np.ones(75), np.zeros(30), -np.ones(15)]  # won 75, tied 30: 90 of 120
    got = bradley_terry({"ppo": ppo, "sft": sft}, "sft")
    assert got["ppo"]["elo"] == pytest.approx(1000 + 400 * math.log10(3), abs=0.5)
    assert got["ppo"]["wins_vs_sft"] == pytest.approx(0.75, abs=1e-3)
    low, high = got["ppo"]["wins_vs_sft_ci95"]
    assert low == pytest.approx(0.685, abs=0.02) and high == pytest.approx(0.815, abs=0.02)
    assert got["sft"] == {"elo": 1000.0, "wins_vs_sft": 0.5, "elo_ci95": None, "wins_vs_sft_ci95": None}
    beaten = bradley_terry({"sft": sft, "ppo": ppo, "base": np.full(120, -9.0)}, "sft")["base"]
    assert -1500 < beaten["elo"] < 0 and beaten["wins_vs_sft"] < 0.01
    assert beaten["elo_ci95"] is beaten["wins_vs_sft_ci95"] is None  # the ridge alone says how far


def test_bradley_terry_as_published():
    """American League baseball, 1987 (Agresti 2002, Categorical Data Analysis, section 10.6): Milwaukee, Detroit,
    Toronto, New York, Boston, Cleveland, Baltimore, and the estimates against the last."""
    wins = """0 7 9 7 7 9 11  6 0 7 5 11 9 9  4 6 0 7 7 8 12  6 8 6 0 6 7 10  6 2 6 7 0 7 12  4 4 5 6 6 0 6
    2 4 1 3 1 7 0"""
    table = np.array(wins.split(), float).reshape(7, 7)[::-1, ::-1]
    published = [0.0, 0.684, 1.108, 1.248, 1.294, 1.436, 1.581]
    assert strengths(table[None])[0] == pytest.approx(published, abs=0.01)


def test_prompts_are_grouped_by_what_is_known_of_them():
    rows = {
        "prompt": [" ".join(["w"] * (i + 1)) for i in range(30)],
        "topic": ["a"] * 12 + ["b"] * 10 + ["c", None] * 4,
    }
    found = kinds_of(Dataset.from_dict(rows | {"unsafe": ["yes"] * 3 + ["no"] * 20 + [None] * 7}), synthetic=False)
    assert {by: {value: len(at) for value, at in of.items()} for by, of in found.items()} == {
        "topic": {"a": 12, "b": 10, "other": 8},
        "prompt length": {"up to 10 words": 10, "11 to 20 words": 10, "over 20 words": 10},
        "should refuse": {"yes": 3, "no": 20},
    }
    assert kinds_of(Dataset.from_dict({"prompt": ["same words"] * 9}), synthetic=False) == {}
    harmful, risky, ordinary = (
        next(question.wordings[:12] for question in QUESTIONS if question.kind == kind)
        for kind in ("harmful", "risky", "ordinary")
    )
    known = kinds_of(Dataset.from_dict({"prompt": [*ordinary, *risky, *harmful, "what else"]}), synthetic=True)
    assert known["should refuse"] == {
        "yes": [*range(24, 36)], "no, only sounds harmful": [*range(12, 24)], "no": [*range(12)],
    }  # fmt: skip
    assert known["topic"]["harm"] == [*range(24, 36)] and known["topic"]["other"] == [36]


def test_wordings_of_one_request_are_one_cluster_and_so_is_what_follows_one_turn():
    one, other = QUESTIONS[0], QUESTIONS[-1]
    assert len({cluster_key(prompt) for prompt in one.wordings}) == 1
    assert cluster_key(one.wordings[0]) != cluster_key(other.wordings[0])
    follows = f"Hello there\n\nAssistant: Hi.\n\nHuman: {one.wordings[0]}"
    assert cluster_key(follows) == cluster_key("hello  there") != cluster_key("Hello you")


def test_the_same_prompts_are_one_category_and_lost_refusals_are_counted():
    kinds = {
        "topic": {"harm": [*range(17)], "car": [*range(17, 40)]},
        "should refuse": {"yes": [*range(17)], "no": [20, 21]},
    }
    rows = categories(kinds, np.zeros(40), np.ones(40), [*range(40)], samples=200)
    assert [row["value"] for row in rows] == ["harm", "car", "no"]
    no, yes = "I'm sorry, but I can't help with that.", "Sure! First, fit the tires."
    found = refusals(kinds, {"sft": [no] * 40, "ppo": [yes] * 12 + [no] * 5 + [yes] * 23})
    assert found == {"prompts": 17, "refused": {"sft": 17, "ppo": 5}, "p": pytest.approx(2 / 2**12)}
    assert refusals({"topic": kinds["topic"]}, {"sft": [no] * 40, "ppo": [no] * 40}) is None


def test_a_category_is_called_worse_only_where_all_of_them_together_allow_it():
    generator = np.random.default_rng(1)
    kinds = {"topic": {f"{i}": [*range(20 * i, 20 * i + 20)] for i in range(20)}, "length": {"few": [*range(9)]}}
    noise = generator.normal(0, 1, 400)
    b, names = np.zeros(400), [f"{i}" for i in range(400)]
    rows = categories(kinds, noise, b, names, samples=1000)
    assert len(rows) == 21 and {row["verdict"] for row in rows[:-1]} == {"not shown"}
    assert rows[-1]["verdict"] is rows[-1]["ci95"] is rows[-1]["p_holm"] is None and rows[-1]["prompts"] == 9
    moved = noise + np.where(np.arange(400) < 20, -2.0, 0.0)
    alone = {"topic": {"0": kinds["topic"]["0"]}}
    slightly = noise + np.where(np.arange(400) < 20, -0.35 - noise[:20].mean(), 0.0)
    (one,), (among, *_) = (categories(of, slightly, b, names, samples=1000) for of in (alone, kinds))
    assert (one["verdict"], among["verdict"]) == ("worse", "not shown")
    assert one["p_holm"] < 0.05 < among["p_holm"] == pytest.approx(20 * one["p_holm"])
    first, *others = categories(kinds, moved, b, names, samples=1000)
    assert first["verdict"] == "worse" and first["difference"] < -1 and first["win_rate"] < 0.2
    assert {row["verdict"] for row in others[:-1]} == {"not shown"}
    # All of a category's prompts in one cluster: one fact, whatever their number.
    assert categories(kinds, moved, b, ["one"] * 20 + names[20:], samples=1000)[0]["verdict"] is None
