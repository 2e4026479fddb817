"""Several seeds merged: intervals that cover seeds and prompts, a reward in one unit, and nothing of an earlier run."""

from pathlib import Path

import numpy as np
import pages
import pandas as pd
import pytest
from made_up_run import change, make_run

from rlhf_utils.evaluation.seeds import SEEDS, between_seeds, effect_size, merge, merge_runs, read_samples
from rlhf_utils.evaluation.statistics import mean_interval, student_t
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.report import page
from rlhf_utils.report.findings import shown
from rlhf_utils.report.seeds import by_seed, seed_sentences, seed_table, seeds_text

PROMPTS, SIMULATIONS = 30, 400


def simulated(generator: np.random.Generator, seeds: int, between: float, shared: bool) -> list:
    """Runs whose true mean is 0: a part of the seed's, one of the prompt's, and noise, which with it has SD 1.1."""
    prompts, runs = generator.normal(0, 1, PROMPTS), []
    for seed in range(seeds):
        own = prompts if shared else generator.normal(0, 1, PROMPTS)
        values = generator.normal(0, between) + own + generator.normal(0, 0.5, PROMPTS)
        runs.append((values, [i if shared else (seed, i) for i in range(PROMPTS)]))
    return runs


def covers(ends: list[float] | tuple) -> bool:
    return ends[0] <= 0.0 <= ends[1]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("between", [0.0, 0.3, 1.0])
def test_the_interval_of_five_seeds_covers_and_that_of_their_prompts_does_not(between, shared):
    generator, merged, prompts_only = np.random.default_rng(7), 0, 0
    for _ in range(SIMULATIONS):
        runs = simulated(generator, 5, between, shared)
        merged += covers(merge(runs, samples=200)["ci95"])
        pooled = mean_interval(np.concatenate([values for values, _ in runs]), samples=200)
        prompts_only += covers(pooled.as_list())
    # 400 simulations: two standard errors are 2 %. Conservative where seeds add nothing or share their prompts.
    assert 0.93 <= merged / SIMULATIONS <= (0.995 if shared else 0.985)
    if between == 1.0:
        assert prompts_only / SIMULATIONS < 0.6


def test_the_interval_is_students_t_of_the_means_and_never_narrower_than_that_of_the_prompts():
    runs = [([mean - 0.1, mean + 0.1], [(mean, 0), (mean, 1)]) for mean in (1.0, 2.0, 3.0, 4.0, 5.0)]
    found = merge(runs)
    assert [student_t(free) for free in (1, 2, 3, 4, 9, 30)] == pytest.approx(
        [12.706, 4.303, 3.182, 2.776, 2.262, 2.042], rel=0.003
    )
    half = 2.776 * np.std([1, 2, 3, 4, 5], ddof=1) / np.sqrt(5)
    assert found["mean"] == pytest.approx(3) and found["ci95"] == pytest.approx([3 - half, 3 + half], abs=0.01)
    assert found["seed_sd"] == pytest.approx(np.sqrt(2.5)) and found["by_seed"] == pytest.approx([1, 2, 3, 4, 5])
    wide = np.random.default_rng(0).normal(0, 1, 200)
    alike = [(wide, [(seed, i) for i in range(200)]) for seed in range(5)]  # the means are equal by construction
    pooled = mean_interval([*wide] * 5)
    assert merge(alike)["ci95"] == pytest.approx(pooled.as_list()) and merge(alike)["seed_sd"] < 1e-12
    same = [(wide, range(200)) for _ in range(5)]  # the same responses five times are no more than one run
    low, high = merge(same)["ci95"]
    assert high - low > 1.9 * (pooled.high - pooled.low)
    assert merge(alike)["prompt_sd"] == pytest.approx(wide.std(ddof=1) / np.sqrt(200), rel=0.01)


def test_one_run_keeps_its_own_interval_and_rates_stay_rates():
    values = np.random.default_rng(1).normal(0, 1, 50)
    one = merge([(values, range(50))])
    assert one["ci95"] == mean_interval(values).as_list() and one["seed_sd"] is None
    assert one == merge([(values, [("dialogue", i) for i in range(50)])]), "any name is one cluster, also a tuple"
    assert merge([([0.5], ["a"])])["ci95"] is None
    won = merge([(np.ones(20), [(seed, i) for i in range(20)]) for seed in range(3)], rate=True)
    assert won["ci95"][1] == 1.0 and 0.9 < won["ci95"][0] < 1.0
    low, high = merge([(np.repeat([1.0, 0.0], [k, 20 - k]), [(k, i) for i in range(20)]) for k in (10, 20)], True)[
        "ci95"
    ]
    assert (low, high) == (0.0, 1.0), "12.7 standard errors of two runs reach beyond what a rate can be"


def test_an_effect_size_has_no_unit_and_scatters_as_its_values_say():
    generator = np.random.default_rng(2)
    old = generator.normal(3, 2, 400)
    new = old + 1.0 + generator.normal(0, 1, 400)
    values = effect_size(new - old, old)
    assert values.mean() == pytest.approx((new - old).mean() / old.std())
    assert effect_size(10 * (new - old), 10 * old - 7) == pytest.approx(values)
    draws = generator.integers(0, 400, (2000, 400))
    slow = np.std([(new[d] - old[d]).mean() / old[d].std() for d in draws])
    assert values.std() / 20 == pytest.approx(slow, rel=0.06)
    assert effect_size(new[:1], old[:1]) is None


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Three runs alike but for their seed, their prompts, the unit of their reward, and PPO's gold."""
    made = []
    for seed in range(3):
        made.append(run := make_run(tmp_path / f"{seed}", prompts=40))
        record, samples = read_json(run / "run.json"), run / "evaluation" / "samples.csv"
        record["seed"] = record["settings"]["seed"] = seed
        write_json(run / "run.json", record)
        rows = pd.read_csv(samples, keep_default_na=False)
        rows["ppo_gold"] -= 0.5 * seed
        rows["prompt"] = [f"{seed}: {prompt}" for prompt in rows["prompt"]]
        for model in ("base", "sft", "sft_qlora", "ppo"):
            rows[f"{model}_reward"] *= 10**seed
        rows.to_csv(samples, index=False)
    return made


def test_the_figures_of_runs_are_merged_and_a_raw_reward_is_not(runs):
    merged, rows = merge_runs(runs), pd.read_csv(runs[0] / "evaluation" / "samples.csv")
    figures, gain = merged["figures"], rows["ppo_gold"] - rows["sft_gold"]
    assert (merged["seeds"], merged["judged_by"]) == ([0, 1, 2], "gold")
    assert figures["ppo_vs_sft"]["gold"]["by_seed"] == pytest.approx([gain.mean() - 0.5 * k for k in range(3)])
    assert figures["ppo_vs_sft"]["win_rate"]["by_seed"][0] == ((gain > 1e-9) + (abs(gain) <= 1e-9) / 2).mean()
    assert figures["ppo_vs_sft"]["effect_size"]["seed_sd"] == pytest.approx(0, abs=1e-9)
    assert not [name for found in figures.values() for name in found if name == "reward"]
    accuracy = read_json(runs[0] / "evaluation" / "reward_model.json")["accuracy"]
    assert figures["reward_model"]["accuracy"]["mean"] == pytest.approx(accuracy)
    lines, text = seed_table(merged), seeds_text(merged)
    assert {"figure", "mean [95% CI]", "SD of seeds", "by prompts", "by seed"} == {*lines[0]}
    assert all(line in text for line in seed_sentences(merged)) and "3 seeds say little" in text
    mean = shown(figures["ppo_vs_sft"]["gold"]["mean"], None, "+z.2f")
    assert f"over seeds, gold {mean} [" in by_seed(merged)
    assert f"above 0 in {sum(gain.mean() > 0.5 * k for k in range(3))} of 3 runs" in text


def test_without_gold_the_reward_decides_the_wins_and_what_was_not_measured_is_left_out(tmp_path):
    run = make_run(tmp_path, gold=False)
    path = run / "evaluation" / "samples.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = rows.drop(columns=[name for name in rows if name.endswith(("_gold", "_rougeL"))])
    rows.assign(ppo_positivity="0.75", base_positivity="0.25", sft_positivity="0.5").to_csv(path, index=False)
    merged = merge_runs([run])
    assert merged["judged_by"] == "reward" and {*merged["figures"]["ppo"]} == {"positivity", "eos_rate", "mean_tokens"}
    assert "PPO − SFT on positivity: +0.25 [0.25, 0.25], above 0 in 1 of 1 runs." in seed_sentences(merged)
    assert "PPO vs SFT, judged by the reward model: " in seeds_text(merged)
    # What a few runs say of how much runs differ is of the reward, and of gold where it is known.
    assert "over seeds, reward (effect size) +" in by_seed(merged) and "gold" not in by_seed(merged)


def test_the_readme_shows_the_merged_seeds_before_the_single_run(runs):
    about = f"One run, seed 0: `instruct`, `tiny`, {len(read_samples(runs[0]))} held-out prompts."
    assert pages.results(runs[0]).startswith(about)
    write_json(runs[0] / "evaluation" / SEEDS, merged := merge_runs(runs))
    text = pages.results(runs[0])
    assert text.startswith("3 seeds: ") and text.index(seeds_text(merged)) < text.index("One run, seed 0: ")


def test_the_page_shows_the_seeds_of_this_run_only(runs):
    assert between_seeds(runs[0]) is None
    assert "Between seeds" not in page.write_report(runs[0]).read_text(encoding="utf-8")
    write_json(runs[0] / "evaluation" / SEEDS, merge_runs(runs))
    text = page.write_report(runs[0]).read_text(encoding="utf-8")
    assert "<h2>Between seeds</h2>" in text and f"<td>{seed_table(between_seeds(runs[0]))[0]['by seed']}</td>" in text
    change(runs[0], "seeds", lambda merged: merged.update(fingerprint="of an earlier run"))
    assert between_seeds(runs[0]) is None
