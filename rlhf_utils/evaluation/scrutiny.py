"""A second look at the gain: is the policy cheating, has it left what the reward model knows, do the judges agree?"""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pandas as pd
from datasets import Dataset

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.data.tokens import beginnings
from rlhf_utils.evaluation.evaluator import Answered, Evaluator
from rlhf_utils.evaluation.hacking import Answers, judge_gain
from rlhf_utils.evaluation.metrics import proportion_interval
from rlhf_utils.report.results import LABELS
from rlhf_utils.runs.run import Run

_DATA_ROWS = 500
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def scrutinise(run: Run, evaluator: Evaluator, split: Dataset, answered: dict[str, Answered]) -> dict:
    """`hacking`: the verdict on PPO against what it started from; `reward_range`: rewards of the data's own texts and
    of every model; `agreement`: how far reward and judge rank alike, None without a judge."""
    before = "sft" if "sft" in answered else "base"
    judge = (lambda p, r: evaluator.judge(list(p), list(r))) if evaluator.judge else None
    verdict = judge_gain(
        list(split["prompt"]),
        _as_answers(answered[before]),
        _as_answers(answered["ppo"]),
        lambda p, r: evaluator.reward(list(p), list(r)).tolist(),
        judge,
        (LABELS[before], LABELS["ppo"]),
        run.recipe.seed,
    )
    return {
        "hacking": verdict.as_dict(),
        "reward_range": reward_range(run, evaluator, answered),
        "agreement": agreement(answered, before),
    }


def reward_range(run: Run, evaluator: Evaluator, answered: dict[str, Answered]) -> dict | None:
    """Quantiles of the reward of the better and the worse texts of held-out data and of every model's answers, and the
    share of each model's answers above the 99th percentile of the better ones: there nobody has taught the reward model
    anything. None where there is no better text."""
    rows = PreparedData.load(run.folder("data")).first("evaluation", _DATA_ROWS)
    texts: dict[str, list[float]] = {}
    if "label" in rows.column_names:
        # The classifier is asked about continuations of the same length as the policy writes.
        cut = [text[len(p) :] for p, text in zip(rows["prompt"], _beginnings(run, evaluator, rows), strict=True)]
        scores = evaluator.reward(list(rows["prompt"]), cut).tolist()
        for name, wanted in (("positive texts", True), ("negative texts", False)):
            texts[name] = [s for s, label in zip(scores, rows["label"], strict=True) if bool(label) == wanted]
    else:
        for side in ("chosen", "rejected"):
            texts[f"{side} answers"] = evaluator.reward(list(rows["prompt"]), list(rows[side])).tolist()
    better, models = next(iter(texts.values())), {name: found.reward for name, found in answered.items()}
    if not better:
        # Few labelled texts may all be of one kind.
        return None
    top = float(np.quantile(better, 0.99))
    return {
        "quantiles": list(QUANTILES),
        "data": {name: np.quantile(values, QUANTILES).tolist() for name, values in texts.items() if values},
        "models": {name: np.quantile(values, QUANTILES).tolist() for name, values in models.items()},
        "above_data": {name: fmean(value > top for value in values) for name, values in models.items()},
    }


def agreement(answered: dict[str, Answered], before: str) -> dict | None:
    """Share of prompts on which reward and judge prefer the same of two models' answers, and Spearman's rank
    correlation of the two over all answers; ties of either are left out of the share."""
    if answered["ppo"].gold is None:
        return None
    after, start = answered["ppo"], answered[before]
    signs = [
        (np.sign(a - b), np.sign(c - d))
        for a, b, c, d in zip(after.reward, start.reward, after.gold, start.gold, strict=True)
    ]
    decided = [(x, y) for x, y in signs if x and y]
    same = proportion_interval(sum(x == y for x, y in decided), len(decided)) if decided else None
    table = pd.DataFrame(
        [(r, g) for found in answered.values() for r, g in zip(found.reward, found.gold, strict=True)],
        columns=["reward", "gold"],
    )
    rank = table.corr(method="spearman").loc["reward", "gold"]
    return {
        "same_preference": same.mean if same else None,
        "same_preference_ci95": same.as_list() if same else None,
        "prompts": len(decided),
        "spearman": float(rank) if np.isfinite(rank) else None,
    }


def _as_answers(found: Answered) -> Answers:
    return Answers(found.texts, [answer.ended for answer in found.answers], found.reward, found.gold, found.surprise)


def _beginnings(run: Run, evaluator: Evaluator, rows: Dataset) -> list[str]:
    most = run.recipe.data.prompt_tokens[1] + run.recipe.generation.max_new_tokens
    return beginnings(list(rows["text"]), evaluator.tokenizer, most)
