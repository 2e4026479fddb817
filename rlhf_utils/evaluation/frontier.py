"""Reward and gold against KL: the policies saved along the way, the one that is published, and best-of-n."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from math import comb
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from datasets import Dataset

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation.evaluator import Evaluator
from rlhf_utils.evaluation.statistics import figures
from rlhf_utils.models.loading import copy_model, load_policy
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.files import link_or_copy, read_json, read_jsonl, write_json
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import PPOConfig

if TYPE_CHECKING:
    from rlhf_utils.ppo import PPOTrainer

BEST_OF = (1, 2, 4, 8, 16)


def measure_policies(
    run: Run, stage: str, evaluator: Evaluator, policies: Mapping[int, tuple[Path, float | None]]
) -> list[dict]:
    """One point for each `update: (folder, kl)`: reward and gold on the development prompts, with intervals.

    Two KLs to the SFT model, in nats per response: `kl`, which the budget is about, as training measured it at
    `ppo.temperature`; `kl_to_sft` of the responses here, at that of every comparison, `generation.temperature`.
    """
    split = _prompts(run)

    def point(update: int) -> dict:
        folder, kl = policies[update]
        found = evaluator.measure(load_policy(folder, evaluator.device), split)
        line = {"update": update, "kl": kl, "kl_to_sft": fmean(found.kl)}
        for name, values in {"reward": found.reward, "gold": found.gold}.items():
            # Of one prompt nobody knows how far another one would be off.
            error = stdev(values) / math.sqrt(len(values)) if len(values or ()) > 1 else None
            line |= {**figures(name, values, seed=run.recipe.seed), f"{name}_error": error}
        return line

    points = []
    for i, update in enumerate(policies):
        run.progress("measuring the policies along the way", i, len(policies))
        points.append(run.once(stage, f"policy-{update}", partial(point, update)))
    return points


def _prompts(run: Run) -> Dataset:
    """The prompts on which checkpoints are chosen; what is reported later is measured on others."""
    return PreparedData.load(run.folder("data")).first("development", run.recipe.evaluation.frontier_prompts)


def choose(points: Sequence[dict], budget: float | None) -> dict:
    """The chosen point and the rule: of those within `budget` nats that of least KL whose mean is within one standard
    error of the best (Breiman et al. 1984: of what cannot be told apart, the simplest), by gold where there is a judge,
    else by reward; point 0, the policy PPO started from, only where no other one is within."""
    within = [point for point in points if point["update"] > 0 and (budget is None or point["kl"] <= budget)]
    if not within:
        rule = "no policy that PPO made is within the KL budget, so it is the model PPO started from"
        return {"chosen_update": 0, "rule": rule}
    by = "gold" if within[0]["gold"] is not None else "reward"
    best = max(within, key=lambda point: point[by])
    good = [point for point in within if point[by] >= best[by] - (best[f"{by}_error"] or 0.0)]
    rule = f"within the KL budget, the least KL within one standard error of the best {by} on development prompts"
    return {"chosen_update": min(good, key=lambda point: point["kl"])["update"], "rule": rule}


def publish_chosen(run: Run, trainer: PPOTrainer) -> dict:
    """Measure the policies that PPO saved along the way on development prompts, choose one and publish it; returns the
    stage's results. Leaves `checkpoints/ppo`: the chosen policy (a plain causal LM), its value head, metrics.jsonl,
    samples.jsonl, `frontier/` with every policy, and frontier.json."""
    if not processes.is_main():
        run.publish("ppo")  # waits for the main process
        return run.results("ppo")
    work, history = trainer.output_dir, read_jsonl(trainer.output_dir / "metrics.jsonl")
    policies = {0: (run.folder("sft"), 0.0)} | trainer.store.measured()
    trainer.learner.optimizer.state.clear()  # measuring needs the memory
    points = measure_policies(run, "ppo", Evaluator(run), policies)
    decision = choose(points, trainer.config.kl_budget)
    chosen = decision["chosen_update"]

    def fill(folder: Path) -> None:
        copy_model(policies[chosen][0], folder)
        for name in ("metrics.jsonl", "samples.jsonl"):
            shutil.copy2(work / name, folder / name)
        for update, (policy, _) in policies.items():
            if update:
                shutil.copytree(policy, folder / "frontier" / f"update-{update:06d}", copy_function=link_or_copy)
        write_json(folder / "frontier.json", {"points": points, **decision})

    run.publish(
        "ppo",
        fill=fill,
        updates=sum(line["learning_rate"] is not None for line in history),
        published=f"update-{chosen:06d}",
        published_kl=policies[chosen][1],
        rule=decision["rule"],
        stopped=_stopped(history, trainer.config, chosen),
        **{key: history[-1][key] for key in ("episodes", "reward", "kl", "eos_rate")},
    )
    return run.results("ppo")


def _stopped(history: Sequence[dict], settings: PPOConfig, chosen: int) -> str | None:
    """What the KL budget did to a training, in a sentence; None where it did nothing."""
    over = [line for line in history[1:] if settings.kl_budget is not None and line["kl"] > settings.kl_budget]
    if not over:
        return None
    used = f"the policy of update {chosen} is used"
    if not chosen:
        used = "the SFT model itself is used; lower ppo.learning_rate, raise ppo.kl_coefficient or the budget"
    return (
        f"at update {over[0]['update']} the policy was {over[0]['kl']:.3g} nats per response from the SFT model, over "
        f"ppo.kl_budget={settings.kl_budget:g} at temperature {settings.temperature:g}, and {used}"
    )


def frontier(run: Run, evaluator: Evaluator) -> dict:
    """Reward and gold against KL: the policies saved along the way as the PPO stage measured them, the one it chose,
    and best-of-n of the SFT model."""
    if run.ready_model("ppo"):
        # What training measured of a ready policy nobody here knows.
        policies = {update: (run.folder(name), None) for update, name in enumerate(("sft", "ppo"))}
        points = measure_policies(run, "evaluation", evaluator, policies)
        found = {"points": points, "chosen_update": None, "rule": None}
    else:
        found = read_json(run.folder("ppo") / "frontier.json")
    return found | {
        "prompts": len(_prompts(run)),
        "kl_to_sft_temperature": run.recipe.generation.temperature,
        "best_of_n": run.once("evaluation", "best-of-n", partial(_best_of_n, run, evaluator)),
    }


def _best_of_n(run: Run, evaluator: Evaluator) -> list[dict]:
    """What sampling alone buys: the best by reward of n responses of the SFT model, whose KL to it is at most, and
    nearly, log n - (n - 1) / n (Beirami et al. 2024, arXiv:2401.01879)."""
    prompts = list(_prompts(run)["prompt"])
    step, drawn, points = len(prompts), prompts * max(BEST_OF), []
    run.progress("best-of-n of the SFT model")
    texts = [answer.text for answer in evaluator.answer(evaluator.reference, drawn)]
    reward = evaluator.reward(drawn, texts).tolist()
    gold = evaluator.judge(drawn, texts) if evaluator.judge else None
    for n in BEST_OF:
        point = {"n": n, "kl_to_sft": math.log(n) - (n - 1) / n}
        for name, values in {"reward": reward, "gold": gold}.items():
            best = values and [expected_best(reward[i::step], values[i::step], n) for i in range(step)]
            point |= figures(name, best, seed=run.recipe.seed)
        points.append(point)
    return points


def expected_best(order: Sequence[float], values: Sequence[float], n: int) -> float:
    """Mean, over all subsets of `n` of the responses, of the value of the one that is best by `order`: sorted by it,
    the response at place i (from 1) is the best of comb(i - 1, n - 1) of the comb(N, n) subsets."""
    ranked = [value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0])]
    return sum(comb(i, n - 1) * value for i, value in enumerate(ranked)) / comb(len(ranked), n)
