"""Stage `evaluation`: every model answers the same held-out prompts with the same decoding, and is measured the
same way."""

from __future__ import annotations

import csv
from dataclasses import asdict
from functools import partial
from statistics import median

import pandas as pd
from datasets import Dataset

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.evaluation.assistant import score_assistants
from rlhf_utils.evaluation.evaluator import Answered, Evaluator
from rlhf_utils.evaluation.frontier import best_of_n, development_prompts, measure_policies
from rlhf_utils.evaluation.judge import about_judge
from rlhf_utils.evaluation.judging import write_pairs
from rlhf_utils.evaluation.metrics import Interval, distinct_n, mean_interval, paired_difference, win_rate
from rlhf_utils.evaluation.scrutiny import scrutinise
from rlhf_utils.models.loading import load_policy
from rlhf_utils.platforms.files import read_json, write_json, write_text
from rlhf_utils.runs.run import Run, Stage

MODELS = ("base", "sft", "sft_qlora", "ppo")
_COMPARED = (("ppo", "sft"), ("ppo", "base"))


def compared_models(run: Run) -> list[str]:
    """The models of this run that differ from one another: a policy that came tuned is only one model."""
    same = {"sft"} if run.recipe.tuned_policy and "base" in run.stages and not run.ready_model("sft") else set()
    return [name for name in MODELS if name in run.stages and name not in same]


def evaluate_models(run: Run) -> dict:
    """Compare base, SFT, QLoRA-SFT and PPO; leaves `evaluation/{samples.csv,summary.json,frontier.json}`."""
    if run.has("evaluation"):
        return read_json(run.evaluation / "summary.json")
    with run.stage("evaluation") as stage:
        evaluator = Evaluator(run)
        split = PreparedData.load(run.folder("data")).first("evaluation", run.recipe.evaluation.prompts)
        answered, models = {}, compared_models(run)
        for i, name in enumerate(models):
            run.progress(f"evaluating {name}", i, len(models))
            found = stage.once(f"answers-{name}", partial(_measured, run, evaluator, name, split))
            answered[name] = Answered.of(found)
        write_text(run.evaluation / "samples.csv", samples_csv(split, answered))
        if "ppo" in answered and (before := next((m for m in ("sft", "base") if m in answered), None)):
            texts = {name: answered[name].texts for name in ("ppo", before)}
            write_pairs(run.evaluation, list(split["prompt"]), texts, ("ppo", before), run.recipe.seed)
        write_json(run.evaluation / "frontier.json", frontier(stage, evaluator))
        summary = summarise(run, split, answered)
        if "ppo" in answered and {"sft", "base"} & answered.keys():
            summary |= scrutinise(run, evaluator, split, answered)
        if run.recipe.evaluation.assistant:
            score_assistants(run, evaluator, models).enter(summary)
        write_json(run.evaluation / "summary.json", summary)
        stage.results = {"prompts": len(split)}
        with stage.publish() as folder:
            write_json(folder / "summary.json", summary)
    return summary


def _measured(run: Run, evaluator: Evaluator, name: str, split: Dataset) -> dict:
    return asdict(evaluator.measure(load_policy(run.folder(name), evaluator.device), split))


def summarise(run: Run, split: Dataset, answered: dict[str, Answered]) -> dict:
    """The content of `summary.json`: every figure with its interval, null where the recipe has no meaning for it."""
    samples = run.recipe.evaluation.bootstrap_samples

    def interval(values: list[float] | None) -> Interval | None:
        return mean_interval(values, samples=samples, seed=run.recipe.seed) if values is not None else None

    models, paired, wins = {}, {}, {}
    for name, result in answered.items():
        reward, gold = interval(result.reward), interval(result.gold)
        models[name] = {
            "reward": reward.mean,
            "reward_ci95": reward.as_list(),
            "gold": gold.mean if gold else None,
            "gold_ci95": gold.as_list() if gold else None,
            **_rouge(result, interval),
            **_positivity(result, interval),
            "eos_rate": sum(answer.ended for answer in result.answers) / len(result.answers),
            "distinct_2": distinct_n(result.texts, 2),
            "kl_to_sft": sum(result.kl) / len(result.kl),
            "mean_tokens": sum(len(answer.tokens) for answer in result.answers) / len(result.answers),
        }
    for better, worse in _COMPARED:
        if not {better, worse} <= answered.keys():
            continue
        a, b = answered[better], answered[worse]
        pair = {
            "reward": (a.reward, b.reward),
            "gold": (a.gold, b.gold),
            "rougeL": tuple(found.rouge["rougeL"] if found.rouge else None for found in (a, b)),
            "positivity": (a.positivity, b.positivity),
        }
        paired[f"{better}_vs_{worse}"] = {
            name: _difference(first, second, samples, run.recipe.seed) for name, (first, second) in pair.items()
        }
        # Without a gold judge the reward decides, and says so: it is the very thing PPO optimised.
        judge = "gold" if a.gold is not None else "reward"
        outcome = win_rate(*pair[judge])
        wins[f"{better}_vs_{worse}"] = {**outcome, "judged_by": judge}
    reward_model = read_json(run.evaluation / "reward_model.json")
    return {
        "recipe": run.recipe.name,
        "scale": run.recipe.scale,
        "seed": run.recipe.seed,
        "data": run.recipe.dataset,
        "prompts": len(split),
        "judge": about_judge(run),
        "decoding": run.recipe.generation.model_dump(mode="json", exclude={"batch_size"}),
        # Of `kl_to_sft` in `models`; the budget is about another KL.
        "kl_to_sft_temperature": run.recipe.generation.temperature,
        "kl_budget": kl_budget(run),
        "reward_model": {
            key: reward_model[key]
            for key in ("of", "accuracy", "accuracy_ci95", "untrained_accuracy", "length_baseline_accuracy")
        },
        "models": models,
        "paired": paired,
        "win_rate": wins,
    }


def kl_budget(run: Run) -> dict | None:
    """The budget in nats per response (None for no limit), the temperature of the distribution that it is about, the KL
    of the published policy as training measured it, and what the budget did; None where no PPO was trained."""
    if "ppo" not in run.stages or run.ready_model("ppo"):
        return None
    results, settings = run.results("ppo"), run.recipe.ppo
    return {
        "nats": settings.kl_budget,
        "temperature": settings.temperature,
        "published": results["published_kl"],
        "stopped": results["stopped"],
    }


def _rouge(result: Answered, interval) -> dict:
    if result.rouge is None:
        return {"rouge1": None, "rouge2": None, "rougeL": None, "rougeL_ci95": None}
    means = {kind: sum(values) / len(values) for kind, values in result.rouge.items()}
    return {**means, "rougeL_ci95": interval(result.rouge["rougeL"]).as_list()}


def _positivity(result: Answered, interval) -> dict:
    if result.positivity is None:
        return {}
    found = interval(result.positivity)
    return {
        "positivity": found.mean,
        "positivity_ci95": found.as_list(),
        "positivity_median": median(result.positivity),
    }


def _difference(first: list[float] | None, second: list[float] | None, samples: int, seed: int) -> dict | None:
    if first is None or second is None:
        return None
    interval = paired_difference(first, second, samples=samples, seed=seed)
    return {"mean": interval.mean, "ci95": interval.as_list()}


def samples_csv(split: Dataset, answered: dict[str, Answered]) -> str:
    """One row per prompt: prompt, reference, and each model's response with its scores."""
    table = {"prompt": list(split["prompt"]), "reference": [text or "" for text in split["chosen"]]}
    for name, result in answered.items():
        table |= {f"{name}_response": result.texts, f"{name}_reward": result.reward}
        if result.gold is not None:
            table[f"{name}_gold"] = result.gold
        if result.rouge is not None:
            table[f"{name}_rougeL"] = result.rouge["rougeL"]
        if result.positivity is not None:
            table[f"{name}_positivity"] = result.positivity
        table |= {
            f"{name}_tokens": [len(answer.tokens) for answer in result.answers],
            f"{name}_ended": [answer.ended for answer in result.answers],
        }
    # Texts always in quotes: otherwise a carriage return, which a model may well sample, would begin a new row.
    return pd.DataFrame(table).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def frontier(stage: Stage, evaluator: Evaluator) -> dict:
    """Reward and gold against KL: the policies saved along the way as the PPO stage measured them, the one it chose,
    and best-of-n of the SFT model."""
    run = stage.run
    about = {
        "prompts": len(development_prompts(run)),
        "kl_temperature": None if run.ready_model("ppo") else run.recipe.ppo.temperature,
        "kl_to_sft_temperature": run.recipe.generation.temperature,
        "best_of_n": stage.once("best-of-n", partial(best_of_n, run, evaluator)),
    }
    if run.ready_model("ppo"):
        # What training measured of a ready policy nobody here knows.
        policies = {update: (run.folder(name), None) for update, name in enumerate(("sft", "ppo"))}
        points = measure_policies(stage, evaluator, policies)
        return {"points": points, "chosen_update": None, "rule": None, **about}
    return {**read_json(run.folder("ppo") / "frontier.json"), **about}
