"""Stage `evaluation`: every model responds to the same held-out prompts and is measured in the same way."""

from __future__ import annotations

import csv
from dataclasses import asdict
from functools import partial
from statistics import fmean, median

import pandas as pd
from datasets import Dataset

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.assistant import score_assistants
from rlhf_utils.evaluation.evaluator import Answered, Evaluator
from rlhf_utils.evaluation.frontier import frontier
from rlhf_utils.evaluation.hacking import agreement, judge_gain, reward_range
from rlhf_utils.evaluation.judge import about_judge
from rlhf_utils.evaluation.judging import write_pairs
from rlhf_utils.evaluation.statistics import figures, paired_difference, win_rate
from rlhf_utils.evaluation.text import distinct_n
from rlhf_utils.models.loading import load_policy
from rlhf_utils.platforms.files import read_json, write_json, write_text
from rlhf_utils.runs.run import Run


def compared_models(run: Run) -> list[str]:
    """The models of this run that differ from one another: a policy that came tuned is only one model."""
    same = {"sft"} if run.recipe.tuned_policy and "base" in run.stages and not run.ready_model("sft") else set()
    return [name for name in LABELS if name in run.stages and name not in same]


def evaluate_models(run: Run) -> dict:
    """Compare base, SFT, QLoRA-SFT and PPO; leaves `evaluation/{samples.csv,summary.json,frontier.json}`."""
    if run.has("evaluation"):
        return read_json(run.evaluation / "summary.json")
    with run.stage("evaluation") as stage:
        evaluator, seed, answered, models = Evaluator(run), run.recipe.seed, {}, compared_models(run)
        split = PreparedData.load(run.folder("data")).first("evaluation", run.recipe.evaluation.prompts)

        def measured(name: str) -> dict:
            return asdict(evaluator.measure(load_policy(run.folder(name), evaluator.device), split))

        for i, name in enumerate(models):
            run.progress(f"evaluating {name}", i, len(models))
            answered[name] = Answered(**stage.once(f"responses-{name}", partial(measured, name)))
        write_text(run.evaluation / "samples.csv", samples_csv(split, answered))
        write_json(run.evaluation / "frontier.json", frontier(stage, evaluator))
        summary = summarise(run, split, answered)
        before = next((name for name in ("sft", "base") if name in answered), None)
        if "ppo" in answered and before:
            prompts, pair = list(split["prompt"]), (answered[before], answered["ppo"])
            texts = {name: answered[name].texts for name in ("ppo", before)}
            write_pairs(run.evaluation, prompts, texts, ("ppo", before), seed)
            labels = (LABELS[before], LABELS["ppo"])
            summary["hacking"] = judge_gain(prompts, *pair, evaluator.reward, evaluator.judge, labels, seed)
            summary["reward_range"] = reward_range(evaluator, answered)
            summary["agreement"] = agreement(answered, before)
        if run.recipe.evaluation.assistant:
            score_assistants(run, evaluator, models, summary)
        write_json(run.evaluation / "summary.json", summary)
        stage.results = {"prompts": len(split)}
        with stage.publish() as folder:
            write_json(folder / "summary.json", summary)
    return summary


def summarise(run: Run, split: Dataset, answered: dict[str, Answered]) -> dict:
    """The content of `summary.json`: every figure with its interval, null where the recipe has no meaning for it."""
    recipe, reward_model = run.recipe, read_json(run.evaluation / "reward_model.json")
    settings = {"samples": recipe.evaluation.bootstrap_samples, "seed": recipe.seed}
    kept = ("of", "accuracy", "accuracy_ci95", "untrained_accuracy", "length_baseline_accuracy")
    paired, wins = {}, {}
    for other in ("sft", "base"):
        if not {"ppo", other} <= answered.keys():
            continue
        a, b = (_scores(answered[name]) for name in ("ppo", other))
        found = {key: a[key] and b[key] and paired_difference(a[key], b[key], **settings) for key in a}
        paired[f"ppo_vs_{other}"] = {key: d and {"mean": d.mean, "ci95": d.as_list()} for key, d in found.items()}
        # Without a gold judge the reward decides, and says so: it is the very thing PPO optimised.
        judge = "gold" if a["gold"] is not None else "reward"
        wins[f"ppo_vs_{other}"] = {**win_rate(a[judge], b[judge]), "judged_by": judge}
    return {
        "recipe": recipe.name,
        "scale": recipe.scale,
        "seed": recipe.seed,
        "data": recipe.dataset,
        "prompts": len(split),
        "judge": about_judge(run),
        "decoding": recipe.generation.model_dump(mode="json", exclude={"batch_size"}),
        # Of `kl_to_sft` in `models`; the budget is about another KL.
        "kl_to_sft_temperature": recipe.generation.temperature,
        "kl_budget": kl_budget(run),
        "reward_model": {key: reward_model[key] for key in kept},
        "models": {name: of_model(found, settings) for name, found in answered.items()},
        "paired": paired,
        "win_rate": wins,
    }


def of_model(found: Answered, settings: dict) -> dict:
    """What `summary.json` says of one model; `settings` are those of `mean_interval`."""
    line = {**figures("reward", found.reward, **settings), **figures("gold", found.gold, **settings)}
    rouge = found.rouge or dict.fromkeys(("rouge1", "rouge2", "rougeL"))
    line |= {kind: values and sum(values) / len(values) for kind, values in rouge.items()}
    line["rougeL_ci95"] = figures("rougeL", rouge["rougeL"], **settings)["rougeL_ci95"]
    if found.positivity is not None:
        line |= {**figures("positivity", found.positivity, **settings), "positivity_median": median(found.positivity)}
    return line | {
        "eos_rate": fmean(found.ended),
        "distinct_2": distinct_n(found.texts, 2),
        "kl_to_sft": sum(found.kl) / len(found.kl),
        "mean_tokens": fmean(found.tokens),
    }


def kl_budget(run: Run) -> dict | None:
    """The budget in nats per response (None for no limit), the temperature of the distribution that it is about, the KL
    of the published policy as training measured it, and what the budget did; None where no PPO was trained."""
    if "ppo" not in run.stages or run.ready_model("ppo"):
        return None
    results, settings = run.results("ppo"), run.recipe.ppo
    budget = {"nats": settings.kl_budget, "temperature": settings.temperature}
    return {**budget, "published": results["published_kl"], "stopped": results["stopped"]}


def _scores(found: Answered) -> dict[str, list[float] | None]:
    """What models are compared by; None where it has no meaning."""
    rouge = found.rouge and found.rouge["rougeL"]
    return {"reward": found.reward, "gold": found.gold, "rougeL": rouge, "positivity": found.positivity}


def samples_csv(split: Dataset, answered: dict[str, Answered]) -> str:
    """One row per prompt: prompt, reference, and each model's response with its scores."""
    table = {"prompt": list(split["prompt"]), "reference": [text or "" for text in split["chosen"]]}
    for name, found in answered.items():
        columns = {"response": found.texts, **_scores(found), "tokens": found.tokens, "ended": found.ended}
        table |= {f"{name}_{key}": values for key, values in columns.items() if values is not None}
    # Texts always in quotes: otherwise a carriage return, which a model may well sample, would begin a new row.
    return pd.DataFrame(table).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
