"""Stage `ppo`: the fine-tuned model learns from the reward model."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation.evaluator import Evaluator
from rlhf_utils.evaluation.frontier import choose, measure_policies, stopped
from rlhf_utils.evaluation.judge import judge_of
from rlhf_utils.models.loading import copy_model, load_policy, load_tokenizer
from rlhf_utils.platforms.files import link_or_copy, write_json
from rlhf_utils.platforms.memory import add_seconds, phase
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.ppo import PPOTrainer
from rlhf_utils.ppo.checkpoint import update_name
from rlhf_utils.ppo.record import progress
from rlhf_utils.rewards.functions import FluencyReward, LengthPenalty, RewardFunction, RewardMixture, load_reward
from rlhf_utils.runs.base import fetch_policy
from rlhf_utils.runs.run import Run


def ppo_trainer(run: Run, work: Path) -> PPOTrainer:
    """The PPO trainer as this series uses it: from the SFT model, against the reward model, on prompts no other
    stage saw."""
    updates = run.recipe.ppo.updates

    def report(line: dict) -> None:
        run.progress(f"PPO: {progress(line)}", min(line["update"] + 1, updates), updates)

    return PPOTrainer(
        policy=run.folder("sft"),
        tokenizer=load_tokenizer(run.folder("sft")),
        reward_function=reward_function(run),
        prompts=list(PreparedData.load(run.folder("data")).splits["ppo"]["prompt"]),
        config=run.recipe.ppo.model_copy(update={"seed": run.recipe.ppo.seed + run.recipe.seed}),
        output_dir=work,
        on_update=report,
        critic=run.folder("reward_model") if run.recipe.ppo.critic == "separate" else None,
        judge=judge_of(run),
        template=run.recipe.template,
    )


def reward_function(run: Run) -> RewardFunction:
    """What PPO is paid: the run's reward model, and the terms that `recipe.reward` gives a weight."""
    device, weights = detect_device(run.recipe.ppo.precision), run.recipe.reward
    terms = {"reward_model": (1.0, load_reward(run.folder("reward_model"), device))}
    if weights.fluency:
        sft = load_policy(run.folder("sft"), device), load_tokenizer(run.folder("sft"))
        terms["fluency"] = (weights.fluency, FluencyReward(*sft, device, run.recipe.template))
    if weights.length:
        terms["length"] = (weights.length, LengthPenalty(weights.length_words))
    return RewardMixture(**terms) if len(terms) > 1 else terms["reward_model"][1]


def train_ppo(run: Run) -> dict:
    """Run PPO; leaves `checkpoints/ppo` (a plain causal LM), its value head, metrics, samples, and the policies along
    the way with what each of them measured.

    Which of them is published is decided on development prompts (`frontier.choose`).
    """
    if run.has("ppo"):
        return run.results("ppo")
    if run.ready_model("ppo"):
        fetch_policy(run, "ppo")
        return run.results("ppo")
    with run.stage("ppo") as stage:
        with phase("load"):
            trainer = ppo_trainer(run, stage.work)
        history = trainer.train(resume=True)
        # Of all updates, those of earlier processes among them.
        for line in history:
            for name, seconds in line["phase_seconds"].items():
                add_seconds(name, seconds)
        stage.leave_to_main()
        policies = {0: (run.folder("sft"), 0.0)} | trainer.store.measured()
        del trainer  # and with it the optimizer's state: measuring needs the memory
        evaluator = Evaluator(run)
        with phase("evaluate"):
            points = measure_policies(stage, evaluator, policies)
        decision = choose(points, run.recipe.ppo.kl_budget)
        chosen, kl = policies[decision["chosen_update"]]
        learnt = [line for line in history if line["learning_rate"] is not None]
        stage.results = {
            "updates": len(learnt),
            "published": update_name(decision["chosen_update"]),
            "published_kl": kl,
            "rule": decision["rule"],
            "stopped": stopped(history, run.recipe.ppo, decision["chosen_update"]),
            **{key: history[-1][key] for key in ("episodes", "reward", "kl", "eos_rate")},
        }
        with stage.publish() as folder:
            copy_model(chosen, folder)
            for name in ("metrics.jsonl", "samples.jsonl"):
                shutil.copy2(stage.work / name, folder / name)
            for update, (policy, _) in policies.items():
                if update:
                    shutil.copytree(policy, folder / "frontier" / update_name(update), copy_function=link_or_copy)
            write_json(folder / "frontier.json", {"points": points, **decision})
    return run.results("ppo")
