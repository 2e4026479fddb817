"""Stage `ppo`: the fine-tuned model learns from the reward model."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_utils.data import PreparedData
from rlhf_utils.errors import TrainingError
from rlhf_utils.models import copy_model, load_policy, load_tokenizer
from rlhf_utils.ppo import PPOTrainer
from rlhf_utils.ppo.trainer import progress
from rlhf_utils.rewards import FluencyReward, LengthPenalty, RewardFunction, RewardMixture, load_reward
from rlhf_utils.runs import Run
from rlhf_utils.runtime import detect_device
from rlhf_utils.stages.base import publish_ready
from rlhf_utils.stages.judge import gold_judge


def ppo_trainer(run: Run, work: Path) -> PPOTrainer:
    """The PPO trainer as this series uses it: from the SFT model, against the reward model, on prompts no other
    stage saw."""
    updates = run.recipe.ppo.updates

    def report(line: dict) -> None:
        done, text = line["update"] + 1, f"PPO: {progress(line)}"
        run.progress(text, done, updates)
        if done % max(1, updates // 8) == 0 or done == 1:
            print(f"update {done:>4}/{updates}   {text}", flush=True)

    return PPOTrainer(
        policy=run.folder("sft"),
        tokenizer=load_tokenizer(run.folder("sft")),
        reward_function=reward_function(run),
        prompts=list(PreparedData.load(run.folder("data")).splits["ppo"]["prompt"]),
        config=run.recipe.ppo.model_copy(update={"seed": run.recipe.ppo.seed + run.recipe.seed}),
        output_dir=work,
        on_update=report,
        critic=run.folder("reward_model") if run.recipe.ppo.critic == "separate" else None,
        judge=gold_judge(run.recipe),
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
    """Run PPO; leaves `checkpoints/ppo` (a plain causal LM), its value head, metrics, samples and the policies
    along the way.

    The published policy is the last checkpoint within the KL budget.
    """
    if run.skips("ppo"):
        return run.results("ppo")
    if run.ready_model("ppo"):
        return publish_ready(run, "ppo")
    with run.stage("ppo") as stage:
        trainer = ppo_trainer(run, stage.work)
        history = trainer.train(resume=True)
        chosen = _within_budget(trainer.store.policies(), history, run.recipe.ppo.kl_budget)
        stage.results = {
            "updates": len(history),
            "published": chosen.name,
            **{key: history[-1][key] for key in ("episodes", "reward", "kl", "eos_rate")},
        }
        with stage.publish() as folder:
            copy_model(chosen / "policy", folder)
            for name in ("metrics.jsonl", "samples.jsonl"):
                shutil.copy2(stage.work / name, folder / name)
            for policy in trainer.store.policies():
                shutil.copytree(policy / "policy", folder / "frontier" / policy.name)
    return run.results("ppo")


def _within_budget(policies: list[Path], history: list[dict], budget: float | None) -> Path:
    """The last saved policy whose KL is not over `budget`.

    Update N measures the policy after N updates before it learns, so the KL of checkpoint N is that of line N. The last
    checkpoint of a full training has no such line; after a stop over the budget it is known to be over.
    """
    stopped = budget is not None and history[-1]["kl"] > budget

    def fits(policy: Path) -> bool:
        update = int(policy.name.split("-")[1])
        return budget is None or (history[update]["kl"] <= budget if update < len(history) else not stopped)

    within = [policy for policy in policies if fits(policy)]
    if not within:
        raise TrainingError(
            f"PPO passed its KL budget of {budget} nats at update {len(history) - 1}, before a policy within it was "
            "saved; lower ppo.learning_rate, raise ppo.kl_coefficient, or lower ppo.save_every"
        )
    return within[-1]
