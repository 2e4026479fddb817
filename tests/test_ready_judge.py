"""A ready reward model, never trained here, as the judge: it decides, beside whatever else could."""

import json
import shutil
from pathlib import Path

import pytest
from architectures import save_encoder
from made import make, opened
from tiny import CPU, one_thread, save_tiny, tiny_tokenizer  # noqa: F401

from rlhf_utils.data.prepared import PreparedData, conversation_key
from rlhf_utils.evaluation.judge import about_judge, judge_of
from rlhf_utils.evaluation.statistics import agreement
from rlhf_utils.models.loading import load_classifier, load_reward_model, save_model
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.rewards import load_reward
from rlhf_utils.runs.stages import check_named_models, check_names
from rlhf_utils.series import fetch_ready

CASES = Path(__file__).parents[1] / "../shared/cases/models"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Rows of conversations that begin alike by fives, a policy, a reward model, and encoders as judges."""
    folder = tmp_path_factory.mktemp("ready")
    rows = [
        {"prompt": f"A {i // 5}?\n\nAssistant: Y\n\nHuman: {i}?", "chosen": f"Good {i}.", "rejected": f"Bad {i}"}
        for i in range(300)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = save_tiny(folder / "policy", eos_nats=3.0)
    save_model(load_reward_model(policy, CPU, fresh_head=True), tiny_tokenizer(), folder / "reward")
    save_encoder(folder / "judge", "bert")
    return folder


def settings(folder: Path, **changed) -> dict:
    return {
        "dataset": str(folder / "rows.jsonl"), "policy": str(folder / "policy"), "models.sft": str(folder / "policy"),
        "models.reward_model": str(folder / "reward"), "models.ppo": str(folder / "policy"),
        "models.judge": str(folder / "judge"), "data.max_prompt_tokens": 74, "data.max_response_tokens": 20,
        "generation.max_new_tokens": 8, "ppo.max_new_tokens": 8, "evaluation.bootstrap_samples": 200,
        "evaluation.prompts": 12, "evaluation.frontier_prompts": 6,
        "data.shares.evaluation": 0.3, "data.shares.development": 0.1,
    } | {key.replace("__", "."): value for key, value in changed.items()}  # fmt: skip


def test_it_decides_and_its_agreement_with_the_reward_model_is_known(folder, tmp_path, monkeypatch):
    # The package's own prompts are longer than what this policy reads.
    asked = [{"prompt": f"Ask {i}?", "unsafe": i % 3 == 0} for i in range(12)]
    monkeypatch.setattr("rlhf_utils.evaluation.assistant.read_jsonl", lambda _: asked)
    own = {"models.sft_qlora": None, "evaluation.overoptimise": None, "evaluation.assistant.embedder": None}
    run = opened("helpful_harmless", "tiny", tmp_path, settings(folder) | own)
    assert "judge" in run.fetched
    found = fetch_ready(run)["judge"]
    assert found["method"] == "ready" and found["source"] == str(folder / "judge")
    pairs, judge = PreparedData.load(run.folder("data")).splits["evaluation"], load_reward(run.folder("judge"), CPU)
    own, margins = judge.margins(pairs).tolist(), read_json(run.evaluation / "reward_model.json")["margins"]
    clusters = [conversation_key(prompt) for prompt in pairs["prompt"]]
    assert len({*clusters}) < len(clusters) / 2
    expected = agreement(own, margins, clusters)
    assert {key: found[key] for key in expected} == expected
    assert found["kappa_ci95"] != agreement(own, margins)["kappa_ci95"], "the interval is not of conversations"
    summary = read_json(make(run, "evaluation").evaluation / "summary.json")
    assert summary["judge"] == about_judge(run) and summary["judge"]["kind"] == "ready reward model"
    assert {"source", "accuracy", "accuracy_ci95", "kappa", "kappa_ci95", "pairs"} <= summary["judge"].keys()
    assert summary["win_rate"]["ppo_vs_sft"]["judged_by"] == "gold"
    assert summary["assistant"]["relevance_by"] == "mean-pooled states of the SFT model"
    for part in ("quality", "relevance", "safety", "fluency", "refusal_unsafe", "refusal_harmless"):
        low, high = summary["models"]["ppo"][f"{part}_ci95"]
        assert 0 <= low <= summary["models"]["ppo"][part] <= high <= 1
    # Scaled by the SFT model's responses like any other reward.
    scores = judge_of(run)(["Question 1?"] * 2, ["Good 1.", "Bad 1"])
    assert scores == judge(["Question 1?"] * 2, ["Good 1.", "Bad 1"]).tolist() and judge.std != 1.0


def test_it_stands_beside_the_second_reward_model_and_decides(folder, tmp_path):
    training = {"reward_model.epochs": 1, "models.ppo": None, "data.shares.judge": 0.2}
    run = opened("instruct", "tiny", tmp_path, settings(folder, **training))
    assert {"judge_model", "judge"} <= {*run.stages} and "judge" not in run.fetched and "judge" in run.needs("ppo")
    make(run, "base", "data", "sft", "reward_model", "judge_model")
    both = [run.results(stage) for stage in ("judge_model", "judge")]
    assert all(-1 <= found["kappa_ci95"][0] <= found["kappa"] <= found["kappa_ci95"][1] <= 1 for found in both)
    assert about_judge(run)["kind"] == "ready reward model" and both[0]["trained_on"] > 0
    changed = opened("instruct", "tiny", tmp_path, settings(folder, **training, models__judge=None))
    assert changed.is_complete("judge_model") and about_judge(changed)["kind"] == "second reward model"
    assert changed.fingerprint("ppo") != run.fingerprint("ppo"), "PPO logs the judge's score"


def test_it_replaces_the_gold_preference_only_where_it_is_named(folder):
    plain, named = (
        opened("instruct", "tiny", folder / "out", own) for own in ({}, {"models.judge": str(folder / "judge")})
    )
    assert "judge" not in plain.stages and "judge" in named.stages and "judge" not in named.splits
    assert plain.fingerprint("reward_model") == named.fingerprint("reward_model")


def refused(folder: Path, judge: str | Path, **changed) -> str:
    run = opened("instruct", "tiny", folder / "out", settings(folder, models__judge=str(judge), **changed))
    with pytest.raises(InputError) as told:
        check_names(run, run.stages)
        check_named_models(run)
    assert "\n" not in str(told.value) and str(judge) in str(told.value)
    return str(told.value)


def test_what_is_no_judge_is_refused_before_anything_is_made(folder, tmp_path):
    shutil.copytree(folder / "reward", tmp_path / "copy")
    for same in (folder / "reward", folder / "x" / ".." / "reward", tmp_path / "copy"):
        (folder / "x").mkdir(exist_ok=True)
        assert "no independent judge" in refused(folder, same)
    for one, other in (("me/rm", "me/rm@v2"), ("me/rm:a", "me/rm:a")):
        assert "no independent judge" in refused(folder, other, models__reward_model=one)
    assert "there is no folder" in refused(folder, "./missing")
    assert "no trained head" in refused(folder, folder / "policy")
    two = load_classifier(folder / "policy", CPU, labels=["a", "b"])
    save_model(two, tiny_tokenizer(), tmp_path / "two")
    assert "score.weight has shape" in refused(folder, tmp_path / "two")
    with pytest.raises(InputError, match="models.judge .* for a dialogue"):
        opened("imdb", "tiny", folder / "out", {"models.judge": "me/rm"})


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
def test_the_shared_cases(folder):
    def checked(name: str, **changed) -> None:
        changed = {"policy": str(CASES / "gpt2"), "models__sft": None, "models__ppo": None} | changed
        run = opened("instruct", "tiny", folder / "out", settings(folder, models__judge=str(CASES / name), **changed))
        check_names(run, run.stages)
        check_named_models(run)

    for name in ("rm_same", "rm_other_small", "rm_padminus", "rm_deberta"):
        checked(name)
        checked(name, ppo__critic="separate", models__reward_model=None)
    for name in ("gpt2", "adapter_nohead"):
        with pytest.raises(InputError, match=name):
            checked(name, models__adapter_base=str(CASES / "gpt2"))
