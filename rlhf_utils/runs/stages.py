"""The stages of a run: what each is made from, which settings change it, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_utils.settings.sections import EvaluationSettings


@dataclass(frozen=True)
class StageKind:
    """`needs`: the stages it is made from; `settings`: those that change its result; `leaves`: files outside its
    checkpoint folder without which it is not complete."""

    needs: tuple[str, ...]
    settings: tuple[str, ...]
    leaves: tuple[str, ...] = ()


# All of the section but the settings of the demonstration.
_COMPARISON = tuple(f"evaluation.{name}" for name in EvaluationSettings.model_fields if name != "overoptimise")
_COMPARED = ("samples.csv", "frontier.json", "summary.json", "judge_pairs.jsonl")

STAGES: dict[str, StageKind] = {
    "base": StageKind((), ("name", "scale", "seed", "dataset", "policy", "form", "data", "base")),
    "data": StageKind(("base",), ("data",)),
    "sft": StageKind(("base", "data"), ("sft", "generation", "tuned_policy")),
    "sft_qlora": StageKind(("base", "data"), ("sft", "qlora", "generation")),
    "reward_model": StageKind(
        ("sft", "data"), ("reward_model", "evaluation.reward_pairs"), ("evaluation/reward_model.json",)
    ),
    "judge_model": StageKind(("sft", "data"), ("reward_model", "evaluation.reward_pairs")),
    "ppo": StageKind(
        ("sft", "reward_model", "judge_model", "data"),
        ("reward", "ppo", "generation", "evaluation.frontier_prompts"),
    ),
    "evaluation": StageKind(
        ("base", "data", "sft", "sft_qlora", "reward_model", "judge_model", "ppo"),
        ("generation", *_COMPARISON),
        tuple(f"evaluation/{name}" for name in _COMPARED),
    ),
    "overoptimise": StageKind(
        ("sft", "reward_model", "judge_model", "data"),
        ("reward_model", "ppo", "generation", "evaluation.prompts", "evaluation.overoptimise"),
        ("evaluation/overoptimise.json",),
    ),
}
