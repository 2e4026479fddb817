"""The stages of a run: what each is made from, which settings change it, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_utils.settings.sections import EvaluationSettings


@dataclass(frozen=True)
class StageKind:
    """What a stage is made from: other stages, and the settings that change its result; `leaves` are the files outside
    its checkpoint folder without which it is not complete."""

    needs: tuple[str, ...]
    settings: tuple[str, ...]
    notebook: str
    leaves: tuple[str, ...] = ()


# The settings that the comparison depends on: all of its section but those of the demonstration of cheating.
_EVALUATION = [name for name in EvaluationSettings.model_fields if name != "overoptimise"]
STAGES: dict[str, StageKind] = {
    "base": StageKind(
        (), ("name", "scale", "seed", "dataset", "policy", "form", "data", "base"), "01_data_and_baseline"
    ),
    "data": StageKind(("base",), ("data",), "01_data_and_baseline"),
    "sft": StageKind(("base", "data"), ("sft", "generation", "tuned_policy"), "02_full_finetuning"),
    "sft_qlora": StageKind(("base", "data"), ("sft", "qlora", "generation"), "03_qlora"),
    "reward_model": StageKind(
        ("sft", "data"),
        ("reward_model", "evaluation.reward_pairs"),
        "02_reward_model",
        ("evaluation/reward_model.json",),
    ),
    "judge_model": StageKind(("sft", "data"), ("reward_model", "evaluation.reward_pairs"), "02_reward_model"),
    "ppo": StageKind(
        ("sft", "reward_model", "judge_model", "data"),
        ("reward", "ppo", "generation", "evaluation.frontier_prompts"),
        "02_ppo_training",
    ),
    "evaluation": StageKind(
        ("base", "data", "sft", "sft_qlora", "reward_model", "judge_model", "ppo"),
        ("generation", *(f"evaluation.{name}" for name in _EVALUATION)),
        "01_compare_models",
        (
            "evaluation/samples.csv",
            "evaluation/frontier.json",
            "evaluation/summary.json",
            "evaluation/judge_pairs.jsonl",
        ),
    ),
    "overoptimise": StageKind(
        ("sft", "reward_model", "judge_model", "data"),
        ("reward_model", "ppo", "generation", "evaluation.prompts", "evaluation.overoptimise"),
        "02_reward_hacking",
        ("evaluation/overoptimise.json",),
    ),
}
