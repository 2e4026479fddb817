"""Reward and gold against KL: the policies saved along the way, the one that is used, and best-of-n for comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from math import comb
from pathlib import Path
from statistics import fmean, stdev

from datasets import Dataset

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation.evaluator import Evaluator
from rlhf_utils.evaluation.metrics import mean_interval
from rlhf_utils.models.loading import load_policy
from rlhf_utils.runs.run import Run, Stage

RULE = "the least KL within one standard error of the best {by} on development prompts, of those within the KL budget"
NONE_WITHIN = "no policy that PPO made is within the KL budget, so it is the model PPO started from"
BEST_OF = (1, 2, 4, 8, 16)


def development_prompts(run: Run) -> Dataset:
    """The prompts on which checkpoints are chosen; what is reported later is measured on others."""
    return PreparedData.load(run.folder("data")).first("development", run.recipe.evaluation.frontier_prompts)


def measure_policies(
    stage: Stage, evaluator: Evaluator, policies: Mapping[int, tuple[Path, float | None]]
) -> list[dict]:
    """One point for each `update: (folder, kl)`: reward and gold on the development prompts, with intervals.

    There are two KLs to the SFT model, in nats per response: `kl`, which the budget is about, is that of the
    distribution PPO samples from, at `ppo.temperature`, as training measured it; `kl_to_sft` is that of the responses
    here, at the temperature of every comparison, `generation.temperature`.
    """
    split = development_prompts(stage.run)

    def point(update: int, folder: Path, kl: float | None) -> dict:
        found = evaluator.measure(load_policy(folder, evaluator.device), split)
        figures = {"update": update, "kl": kl, "kl_to_sft": fmean(found.kl)}
        for name, values in {"reward": found.reward, "gold": found.gold}.items():
            interval = mean_interval(values, seed=stage.run.recipe.seed) if values is not None else None
            figures |= {
                name: interval.mean if interval else None,
                f"{name}_ci95": interval.as_list() if interval else None,
                # Of one prompt nobody knows how far another one would be off.
                f"{name}_error": stdev(values) / math.sqrt(len(values)) if len(values or ()) > 1 else None,
            }
        return figures

    points = []
    for i, (update, (folder, kl)) in enumerate(policies.items()):
        stage.run.progress("measuring the policies along the way", i, len(policies))
        points.append(stage.once(f"policy-{update}", partial(point, update, folder, kl)))
    return points


def choose(points: Sequence[dict], budget: float | None) -> dict:
    """The chosen point and the rule by which it was.

    Of the points within `budget` nats: the one of least KL whose mean is within one standard error of the best mean, by
    gold where there is a judge, else by reward (the one-standard-error rule of Breiman et al. 1984: of what cannot be
    told apart, the simplest). Point 0, the policy PPO started from, is used only where no other one is within.
    """
    within = [point for point in points if point["update"] > 0 and (budget is None or point["kl"] <= budget)]
    if not within:
        return {"chosen_update": 0, "rule": NONE_WITHIN}
    by = "gold" if within[0]["gold"] is not None else "reward"
    best = max(within, key=lambda point: point[by])
    good = [point for point in within if point[by] >= best[by] - (best[f"{by}_error"] or 0.0)]
    return {"chosen_update": min(good, key=lambda point: point["kl"])["update"], "rule": RULE.format(by=by)}


def best_of_n(run: Run, evaluator: Evaluator) -> list[dict]:
    """What sampling alone buys: the best by reward of n answers of the SFT model, for n in `BEST_OF`.

    The KL of best-of-n to the SFT model is log n - (n - 1) / n, an upper bound that is nearly exact (Beirami et al.
    2024, arXiv:2401.01879). Means over all subsets of n among the answers drawn, so that no subset is special.
    """
    split, most = development_prompts(run), max(BEST_OF)
    prompts = list(split["prompt"])
    run.progress("best-of-n of the SFT model")
    answers = evaluator.answer(evaluator.reference, prompts * most)
    texts = [answer.text for answer in answers]
    reward = evaluator.reward(prompts * most, texts).tolist()
    gold = evaluator.judge(prompts * most, texts) if evaluator.judge else None
    points = []
    for n in BEST_OF:
        point = {"n": n, "kl_to_sft": math.log(n) - (n - 1) / n}
        for name, values in {"reward": reward, "gold": gold}.items():
            if values is None:
                point |= {name: None, f"{name}_ci95": None}
                continue
            means = [
                expected_best(reward[i :: len(prompts)], values[i :: len(prompts)], n) for i in range(len(prompts))
            ]
            interval = mean_interval(means, seed=run.recipe.seed)
            point |= {name: interval.mean, f"{name}_ci95": interval.as_list()}
        points.append(point)
    return points


def expected_best(order: Sequence[float], values: Sequence[float], n: int) -> float:
    """Mean, over all subsets of `n` of the answers, of the value of the one that is best by `order`.

    Sorted by `order`, the answer at place i (from 1) is the best of comb(i - 1, n - 1) of the comb(N, n) subsets.
    """
    ranked = [value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0])]
    return sum(comb(i, n - 1) * value for i, value in enumerate(ranked)) / comb(len(ranked), n)
