"""PPO beside simpler methods: what is measured of them, in tables, in sentences, and over seeds."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from made import cells
from made_up_run import make_run
from published import QUOTED_CHARACTERS, quoted
from tiny import CPU, PROMPTS, count_letter, one_thread, save_tiny, tiny_model, tiny_tokenizer  # noqa: F401

from rlhf_utils.evaluation.evaluator import Answered, Evaluator
from rlhf_utils.evaluation.seeds import alternatives_of, merge_runs
from rlhf_utils.models.language_model import positions_named
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.ppo import PPOConfig
from rlhf_utils.ppo.policies import trainable_policy
from rlhf_utils.report.alternatives import cost_table, method_sentences, method_table, seed_table
from rlhf_utils.runs.training import checkpointing
from rlhf_utils.settings.recipes import load_recipe
from rlhf_utils.settings.sections import GroupSettings
from rlhf_utils.settings.template import TEMPLATE

FIGURES = ("gold", "reward", "rougeL")
SHARE = {"rate": 0.6, "ci95": [0.5, 0.7]}


def method(gold: float, seconds: float, **more) -> dict:
    line = {name: gold for name in FIGURES} | {f"{name}_ci95": [gold - 1, gold + 1] for name in FIGURES}
    line |= {"kl_to_sft": 2.0, "entropy": 1.5, "distinct_2": 0.5, "eos_rate": 1.0, "mean_tokens": 30.0}
    return line | {"responses": 256, "seconds": seconds, "peak_bytes": 2_000_000_000, "draws": 1} | more


def gain(mean: float, p: float) -> dict:
    judged = {"mean": mean, "ci95": [mean - 0.3, mean + 0.3], "p": p, "p_holm": p}
    return {"judge": judged, "win_rate": SHARE, "length_controlled": SHARE}


FOUND = {
    "judge": {"kind": "gold preference"}, "judged_by": "gold", "temperature": 0.7,
    "budget": {"responses": 256, "seconds": 20.0},
    "methods": {
        "sft": method(6.0, 0.0), "ppo": method(8.0, 20.0), "dpo": method(8.5, 10.0), "rloo": method(8.1, 60.0),
        "rloo_in_time": method(7.0, 19.0, responses=80),
        "best_of_16": method(9.0, 0.0, draws=16, peak_bytes=None, entropy=None),
    },
    "gains": {
        "ppo": {"sft": gain(2.0, 0.001)},
        "dpo": {"sft": gain(2.5, 0.001), "ppo": gain(0.5, 0.01)},
        "rloo": {"sft": gain(2.1, 0.001), "ppo": gain(0.1, 0.6)},
        "rloo_in_time": {"sft": gain(1.0, 0.001), "ppo": gain(-1.0, 0.01)},
        "best_of_16": {"sft": gain(3.0, 0.001), "ppo": gain(0.5, 0.06)},
    },
}  # fmt: skip


def test_sentences_follow_the_corrected_p_values_and_the_clock():
    assert method_sentences(FOUND) == [
        "DPO beats PPO according to the gold score: +0.50 [0.20, 0.80], Holm-adjusted p = 0.01.",
        "No difference between RLOO and PPO is shown according to the gold score: +0.10 [\u22120.20, 0.40], "
        "Holm-adjusted p = 0.6.",
        "PPO beats RLOO, in PPO's time according to the gold score: \u22121.00 [\u22121.30, \u22120.70], "
        "Holm-adjusted p = 0.01.",
        "No difference between best of 16 and PPO is shown according to the gold score: +0.50 [0.20, 0.80], "
        "Holm-adjusted p = 0.06.",
        "Of 3 alternatives to PPO: 1 better, 0 worse, 2 not shown to differ.",
        "RLOO trained 3.0 times as long as PPO.",
    ]


def test_tables_have_a_row_for_each_method_and_a_dash_for_what_has_no_meaning():
    rows = {row["method"]: row for row in method_table(FOUND)}
    assert list(rows) == ["SFT", "PPO", "DPO", "RLOO", "RLOO, in PPO's time", "best of 16"]
    assert rows["PPO"]["gold"] == "8.00 [7.00, 9.00]" and rows["PPO"]["wins vs PPO, equal length"] == "\u2013"
    assert rows["best of 16"]["entropy (nats/token)"] == "\u2013" != rows["DPO"]["entropy (nats/token)"]
    costs = {row["method"]: row for row in cost_table(FOUND)}
    assert "SFT" not in costs and costs["best of 16"]["samples per response"] == "16"
    assert costs["RLOO"]["training, s"] == "60" and costs["best of 16"]["peak memory, GB"] == "\u2013"


def test_entropy_is_that_of_the_policy_that_sampled():
    """-log pi = -log pi_sft - kl, summed over tokens."""
    found = Answered(["a", "b"], [True, True], [0.0, 0.0], None, surprise=[2.0, 1.0], kl=[1.0, 3.0], tokens=[4, 6])
    assert found.entropy == pytest.approx((2.0 * 4 + 1.0 * 6 - 4.0) / 10)


def test_the_best_of_n_is_the_best_of_n_responses_to_the_same_prompt():
    evaluator, reward = object.__new__(Evaluator), count_letter("m")
    split = Dataset.from_dict({"prompt": PROMPTS, "chosen": [None] * len(PROMPTS)})
    evaluator.device, evaluator.tokenizer, evaluator.reward, evaluator.judge = CPU, tiny_tokenizer(), reward, None
    evaluator.reference, evaluator.run = tiny_model(eos_nats=2.0), SimpleNamespace()
    evaluator.run.recipe = load_recipe("instruct", "tiny", {"generation.max_new_tokens": 12})
    one, many = (evaluator.best_of(split, n) for n in (1, 8))
    drawn = evaluator.answer(evaluator.reference, PROMPTS * 8)
    best = np.array([answer.text.count("m") for answer in drawn]).reshape(8, len(PROMPTS)).max(axis=0)
    assert many.reward == best.tolist() and sum(many.reward) > sum(one.reward)
    assert one.kl == [0.0] * len(PROMPTS) and many.kl[0] == pytest.approx(math.log(8) - 7 / 8)


@pytest.fixture
def runs(tmp_path):
    """Two runs with another seed each, and in both PPO and DPO on the same prompts."""
    found = []
    for seed in range(2):
        run = make_run(tmp_path / f"{seed}")
        write_json(run / "run.json", read_json(run / "run.json") | {"seed": seed})
        prompts = pd.read_csv(run / "evaluation" / "samples.csv")["prompt"]
        rows = {"prompt": prompts + " please" * 60}
        for name, gold in {"sft": 5.0, "ppo": 7.0, "dpo": 8.0 + seed}.items():
            rows |= {f"{name}_{key}": value for key, value in {"response": "x", "reward": 0.0, "gold": gold}.items()}
        table = pd.DataFrame(rows).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
        (run / "evaluation" / "alternatives.csv").write_text(table)
        found.append(run)
    return found


def test_seeds_are_merged_against_ppo_of_the_same_seed(runs):
    assert {name: list(of) for name, of in alternatives_of(runs[0]).items()} == {
        "sft": ["gold", "gain", "win_rate"], "ppo": ["gold"], "dpo": ["gold", "gain", "win_rate"],
    }  # fmt: skip
    merged = merge_runs(runs)
    assert merged["alternatives"]["dpo"]["gain"]["by_seed"] == [1.0, 2.0]
    assert merged["alternatives"]["dpo"]["win_rate"]["mean"] == 1.0
    rows = {row["method"]: row for row in seed_table(merged)}
    assert rows["DPO"]["gold \u2212 PPO's"].startswith("+1.50") and rows["PPO"]["gold \u2212 PPO's"] == "\u2013"
    (runs[1] / "evaluation" / "alternatives.csv").unlink()
    assert merge_runs(runs)["alternatives"] == {}, "only one of them has it"


def test_of_somebody_elses_prompts_the_beginnings_are_published(runs, tmp_path):
    record = read_json(runs[0] / "run.json")
    record["settings"]["dataset"] = "outputs/rows.jsonl"
    write_json(runs[0] / "run.json", record)
    rows = pd.read_csv(quoted(runs[0], tmp_path / "small") / "evaluation" / "alternatives.csv")
    assert rows["prompt"].str.len().max() <= QUOTED_CHARACTERS and (rows["dpo_response"] == "x").all()


@pytest.mark.parametrize("stage", ["rloo", "grpo"])
@pytest.mark.parametrize("named", [True, False])
def test_before_the_first_step_policy_and_reference_agree_on_padded_prompts(stage, named, tmp_path):
    """trl's KL of a policy that has learned nothing is 0 only where both count positions alike."""
    policy = save_tiny(tmp_path / "policy", eos_nats=3.0)
    groups = GroupSettings(responses_per_prompt=2, kl_coefficient=0.1)
    known = {"folder": lambda _: policy, "work": lambda name: tmp_path / name}
    known["recipe"] = SimpleNamespace(seed=0, rloo=groups, grpo=groups)
    ppo = PPOConfig(updates=1, rollout_batch_size=8, minibatch_size=8, epochs=1, max_new_tokens=6, learning_rate=1e-3)
    variables = {"run": SimpleNamespace(**known), "ppo": ppo, "budget": {"responses": 8}, "KEPT": 1, "math": math}
    variables |= {"prompts": PROMPTS, "template": TEMPLATE, "tokenizer": tiny_tokenizer(), "device": CPU}
    variables |= {"Dataset": Dataset, "checkpointing": checkpointing, "trainable_policy": trainable_policy}
    variables |= {
        "paid": lambda asked, texts, ended: torch.tensor([float(len(text)) for text in texts]),
        "positions_named": positions_named,
    }
    trainer = cells("04_03", "def group_arguments(", "def group_trainer(", **variables).group_trainer(stage)
    if not named:
        trainer.ref_model.base_model._forward_pre_hooks.clear()
    trainer.train()
    (kl,) = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert abs(kl) < 1e-5 if named else abs(kl) > 1e-3
