"""Stage `overoptimise`: what cheating looks like. PPO against a weak reward model, with nothing to hold it back."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_utils.data import PreparedData
from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.evaluator import Evaluator
from rlhf_utils.evaluation.hacking import judge_gain
from rlhf_utils.evaluation.judge import judge_of
from rlhf_utils.models.loading import load_tokenizer
from rlhf_utils.platforms.files import write_json, write_jsonl
from rlhf_utils.ppo import PPOTrainer
from rlhf_utils.rewards.functions import RewardModel
from rlhf_utils.runs.run import Run
from rlhf_utils.stages.reward_model import train_weak_model

_NAME = "PPO without restraint"


def overoptimise(run: Run) -> dict | None:
    """Train a reward model on few pairs, run PPO against it with a small KL price, and let the panel against cheating
    judge the result; leaves `evaluation/overoptimise.json`. None where `evaluation.overoptimise` is not set.

    The curve is what PPO saw while it trained: the weak reward, and the judge beside it (Gao et al. 2023,
    arXiv:2210.10760, on what becomes of the true objective).
    """
    settings = run.recipe.evaluation.overoptimise
    if "overoptimise" not in run.stages:
        return None
    if run.skips("overoptimise"):
        return run.results("overoptimise")
    with run.stage("overoptimise") as stage:
        data, evaluator = PreparedData.load(run.folder("data")), Evaluator(run)
        weak, accuracy = train_weak_model(run, stage.work / "reward", settings.pairs)
        history, policy = _optimise(run, weak, stage.work / "ppo")
        split = data.first("evaluation", run.recipe.evaluation.prompts)
        prompts = list(split["prompt"])
        run.progress("judging the policy without restraint")
        before, after = (evaluator.measure(model, split, weak) for model in (evaluator.reference, policy))
        verdict = judge_gain(prompts, before, after, weak, evaluator.judge, (LABELS["sft"], _NAME), run.recipe.seed)
        stage.results = {
            "accuracy": accuracy,
            "pairs": settings.pairs,
            "updates": len(history),
            **{key: verdict[key] for key in ("level", "text", "evidence")},
        }
        shown = [0, len(prompts) // 3, 2 * len(prompts) // 3]
        write_json(
            run.evaluation / "overoptimise.json",
            {
                **stage.results,
                "curve": [{key: line[key] for key in ("update", "reward", "gold", "kl")} for line in history],
                "phrases": verdict["phrases"],
                "examples": [
                    {"prompt": prompts[i], "SFT": before.texts[i], _NAME: after.texts[i]} for i in dict.fromkeys(shown)
                ],
            },
        )
        with stage.publish() as folder:
            write_jsonl(folder / "metrics.jsonl", history)
    return run.results("overoptimise")


def _optimise(run: Run, weak: RewardModel, work: Path) -> tuple[list[dict], torch.nn.Module]:
    settings = run.recipe.evaluation.overoptimise
    config = run.recipe.ppo.model_copy(
        update={
            "updates": settings.updates,
            "kl_coefficient": settings.kl_coefficient,
            "learning_rate": settings.learning_rate or run.recipe.ppo.learning_rate,
            "kl_budget": None,
            "kl_budget_action": "stop",
            "critic": "shared",
            "save_every": settings.updates,
            "sample_every": settings.updates,
        }
    )
    trainer = PPOTrainer(
        policy=run.folder("sft"),
        tokenizer=load_tokenizer(run.folder("sft")),
        reward_function=weak,
        prompts=list(PreparedData.load(run.folder("data")).splits["ppo"]["prompt"]),
        config=config,
        output_dir=work,
        on_update=lambda line: run.progress("PPO without restraint", line["update"] + 1, settings.updates),
        judge=judge_of(run),
        template=run.recipe.template,
    )
    return trainer.train(), trainer.policy()
