"""Who judges beside the reward model: the gold preference, from which no model learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from datasets import Dataset

from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.rewards import RewardModel
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.settings.sections import EMBEDDED

# Gold scores lie in 0 to 10.
MIDDLE = 5.0
Judge = Callable[[Sequence[str], Sequence[str]], list[float]]


def gold_judge(recipe: Recipe) -> Judge | None:
    """The judge that no model was trained on: the embedded world's written-down preference; None for other data."""
    if recipe.dataset != EMBEDDED:
        return None
    from rlhf_utils.toyworld import WORLDS

    gold = WORLDS[recipe.data.world].gold
    return lambda prompts, responses: [gold(p, r) for p, r in zip(prompts, responses, strict=True)]


def judge_of(run: Run) -> Judge | None:
    """Who judges the policies of `run`: the gold preference, or the second reward model where there is one."""
    if "judge_model" in run.stages:
        second = RewardModel.load(run.folder("judge_model"), detect_device())
        return lambda prompts, responses: second(prompts, responses).tolist()
    return gold_judge(run.recipe)


def about_judge(run: Run) -> dict | None:
    """What `summary.json` says of the judge: its kind and, of a second reward model, its figures."""
    if "judge_model" in run.stages:
        return {"kind": "second reward model", **run.results("judge_model")}
    return {"kind": "gold preference"} if gold_judge(run.recipe) else None


def label_noise(judge: Judge, split: Dataset) -> float:
    """Share of a split's labels that the judge disagrees with: pairs the other way round, or texts on the other side
    of the middle of its scale."""
    if "label" in split.column_names:
        scores = judge([""] * len(split), split["text"])
        right = [(score > MIDDLE) == bool(label) for score, label in zip(scores, split["label"], strict=True)]
        return 1.0 - sum(right) / len(right)
    better, worse = (judge(split["prompt"], split[side]) for side in ("chosen", "rejected"))
    return sum(b < w for b, w in zip(better, worse, strict=True)) / len(split)
