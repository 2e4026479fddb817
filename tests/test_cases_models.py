"""Models that people brought and on which the series once failed (`shared/cases`), each taken through its stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made import make
from tiny import one_thread  # noqa: F401
from transformers import AutoModelForCausalLM

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation.compare import evaluate_models
from rlhf_utils.evaluation.evaluator import Evaluator
from rlhf_utils.evaluation.reward_report import fetch_ready
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_jsonl
from rlhf_utils.rewards import load_reward
from rlhf_utils.runs.named import check_named_models
from rlhf_utils.runs.run import Run

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
MODELS = CASES / "models"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CASES.is_dir(), reason="no cases beside the checkout")]
SMALL = {
    "data.max_prompt_tokens": 96, "data.max_response_tokens": 96, "data.split_rows.sft": 32,
    "data.split_rows.reward": 32, "generation.max_new_tokens": 16, "ppo.max_new_tokens": 16, "ppo.updates": 1,
    "ppo.rollout_batch_size": 16, "ppo.minibatch_size": 8, "ppo.epochs": 1, "reward_model.epochs": 1,
    "evaluation.prompts": 20, "evaluation.frontier_prompts": 10, "evaluation.reward_pairs": 20,
    "evaluation.bootstrap_samples": 100,
}  # fmt: skip


def open_run(folder: Path, recipe: str = "instruct", data: str = "pairs.jsonl", **named) -> Run:
    names = {key.replace("__", "."): str(MODELS / value) for key, value in named.items()}
    return Run.open(recipe, "tiny", folder, {**SMALL, "dataset": str(CASES / "data" / data), **names})


def ready(folder: Path, reward_model: str = "rm_same", sft: str = "good_sft", **named) -> Run:
    return open_run(folder, models__sft=sft, models__ppo="good_sft", models__reward_model=reward_model, **named)


def test_the_prefix_of_torch_compile_comes_off(tmp_path):
    run = ready(tmp_path, sft="good_sft_orig_mod")
    check_named_models(run)
    fetch_ready(run)
    theirs = AutoModelForCausalLM.from_pretrained(MODELS / "good_sft").state_dict()
    ours, info = AutoModelForCausalLM.from_pretrained(run.folder("sft"), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.state_dict().items())


@pytest.mark.parametrize("reward_model", ["rm_other_small", "rm_deberta", "rm_padminus"])
def test_a_ready_reward_model_reads_with_its_own_tokenizer(tmp_path, reward_model):
    """The SFT model's own reward is 0 by definition, on the answers that the scale was made with."""
    run = ready(tmp_path / "out", reward_model=reward_model)
    check_named_models(run)
    assert fetch_ready(run)["reward_model"]["pairs"] == 20
    prompts, evaluator = list(PreparedData.load(run.folder("data")).splits["development"]["prompt"]), Evaluator(run)
    answers = [answer.text for answer in evaluator.answer(evaluator.reference, prompts)]
    assert answers[0].startswith("Wipe"), "sampled with another tokenizer than the policy's"
    rewards = load_reward(run.folder("reward_model"), evaluator.device)(prompts, answers)
    # The scale was made with two answers to each of so few prompts, which this model gives alike.
    assert abs(rewards.mean()) < 1e-3 and abs(rewards.std() - 1) < 0.05
    if reward_model != "rm_padminus":
        named = {"policy": "gpt2", "models.reward_model": reward_model}
        named = {key: str(MODELS / name) for key, name in named.items()} | {"ppo.critic": "separate"}
        with pytest.raises(InputError, match="ppo.critic separate.*ppo.critic=shared"):
            check_named_models(Run.open("instruct", "tiny", tmp_path / "critic", {**SMALL, **named}))


@pytest.mark.parametrize("policy", ["opt", "llama_nobos"])
def test_the_series_passes_with_the_defaults(tmp_path, policy):
    run = open_run(tmp_path, policy=policy)
    check_named_models(run)
    make(run, "base", "data", "sft", "sft_qlora", "reward_model", "ppo")
    for stage in ("base", "sft", "sft_qlora", "ppo"):
        _, info = AutoModelForCausalLM.from_pretrained(run.folder(stage), output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
    if policy == "opt":
        assert set(evaluate_models(run)["models"]) == {"base", "sft", "sft_qlora", "ppo"}


def test_continuations_keep_their_leading_space(tmp_path):
    run = open_run(tmp_path, "imdb", "reviews.jsonl", policy="llama_nobos")
    make(run, "base", "data", "sft", "reward_model", "ppo")
    samples = read_jsonl(run.folder("ppo") / "samples.jsonl")
    evaluator = Evaluator(run)
    prompts = list(PreparedData.load(run.folder("data")).splits["ppo"]["prompt"])[:30]
    answers = evaluator.answer(evaluator.reference, prompts)
    spaced = [
        answer.text.startswith(" ")
        for answer in answers
        if evaluator.tokenizer.convert_ids_to_tokens(answer.tokens[0]).startswith("▁")
    ]
    assert spaced and all(spaced) and samples
