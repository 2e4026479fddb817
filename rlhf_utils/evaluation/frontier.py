"""Reward and gold against KL: the policies saved along the way, and best-of-n."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from datasets import Dataset

from rlhf_utils.data.prepared import PreparedData, cluster_key
from rlhf_utils.evaluation.evaluator import Evaluator
from rlhf_utils.evaluation.statistics import figures, standard_error
from rlhf_utils.models.loading import load_policy
from rlhf_utils.platforms.files import read_json
from rlhf_utils.runs.run import Run

BEST_OF = (1, 2, 4, 8, 16)
WATCHED = 4  # development prompts whose responses are kept, to be read update by update


def measure_policies(
    run: Run,
    stage: str,
    evaluator: Evaluator,
    policies: Mapping[int, tuple[Path, float | None]],
    trial: str = "",
) -> list[dict]:
    """One point for each `update: (folder, kl)`: reward and gold on the development prompts, with intervals, and the
    `completions` of the first of them: prompt, response, reward, gold. `trial` tells trainings of one stage apart.

    Two KLs to the SFT model, in nats per response: `kl`, which the budget is about, as training measured it at
    `ppo.temperature`; `kl_to_sft` of the responses here, at that of every comparison, `generation.temperature`.
    """
    split = _prompts(run)
    clusters = list(map(cluster_key, split["prompt"]))

    def point(update: int) -> dict:
        folder, kl = policies[update]
        found = evaluator.measure(load_policy(folder, evaluator.device), split)
        line = {"update": update, "kl": kl, "kl_to_sft": fmean(found.kl)}
        for name, values in {"reward": found.reward, "gold": found.gold}.items():
            line |= figures(name, values, clusters=clusters, seed=run.recipe.seed)
            line[f"{name}_error"] = values and standard_error(values, clusters)
        read = zip(split["prompt"], found.texts, found.reward, found.gold or [None] * len(split), strict=True)
        named = [dict(zip(("prompt", "response", "reward", "gold"), row, strict=True)) for row in read]
        return line | {"completions": named[:WATCHED]}

    points = []
    for i, update in enumerate(policies):
        run.progress("measuring the policies along the way", i, len(policies))
        points.append(run.once(stage, f"{trial}policy-{update}", partial(point, update)))
    return points


def completions_by_update(frontier: Mapping) -> list[dict]:
    """The `completions` of frontier.json as rows, update after update for each prompt; none of a ready policy."""
    points = [] if frontier["chosen_update"] is None else sorted(frontier["points"], key=lambda point: point["update"])
    found = [(point["update"], point.get("completions", [])) for point in points]
    longest = max((len(said) for _, said in found), default=0)
    return [{"update": update, **said[place]} for place in range(longest) for update, said in found if said]


def frontier(run: Run, evaluator: Evaluator) -> dict:
    """Reward and gold against KL: the saved policies as PPO measured them, the chosen one, and best-of-n of SFT."""
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


def _prompts(run: Run) -> Dataset:
    """The prompts on which checkpoints are chosen; what is reported later is measured on others."""
    return PreparedData.load(run.folder("data")).first("development", run.recipe.evaluation.frontier_prompts)


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
            point |= figures(name, best, clusters=list(map(cluster_key, prompts)), seed=run.recipe.seed)
        points.append(point)
    return points


def expected_best(order: Sequence[float], values: Sequence[float], n: int) -> float:
    """Mean, over all subsets of `n` of the responses, of the value of the one that is best by `order`: sorted by it,
    the response at place i (from 1) is the best of comb(i - 1, n - 1) of the comb(N, n) subsets."""
    ranked = [value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0])]
    return sum(math.comb(i, n - 1) * value for i, value in enumerate(ranked)) / math.comb(len(ranked), n)
