"""Who judges beside the reward model: the gold preference, a second reward model, a lexicon of sentiment, and a rule
that sees only length."""

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from rlhf_utils.data.prepared import PreparedData, cluster_key
from rlhf_utils.evaluation import GOLD_KIND, GOLD_SCALE
from rlhf_utils.evaluation.statistics import Clusters, Interval, accuracy_of, agreement
from rlhf_utils.models.loading import load_tokenizer
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.names import EMBEDDED
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.rewards import load_reward
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import Recipe

AGREEMENT = ("pairs", "agreement", "agreement_ci95", "kappa", "kappa_ci95")
Judge = Callable[[Sequence[str], Sequence[str]], list[float]]


def gold_judge(recipe: Recipe) -> Judge | None:
    """The judge that no model was trained on: the known preference of the synthetic data; None for other data."""
    if recipe.dataset != EMBEDDED:
        return None
    from rlhf_utils.toyworld import WORLDS

    gold = WORLDS[recipe.data.world].gold
    return lambda prompts, responses: [gold(p, r) for p, r in zip(prompts, responses, strict=True)]


def lexicon_judge(recipe: Recipe) -> Judge | None:
    """The compound score of VADER (Hutto and Gilbert 2014), -1 to 1, of prompt and continuation: a lexicon of words
    with rules, which learned from nothing that the classifier did. None where no label of sentiment is paid."""
    if recipe.form != "continuation" or recipe.reward_model.label.upper() not in ("POSITIVE", "NEGATIVE"):
        return None
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    score, joint = SentimentIntensityAnalyzer().polarity_scores, recipe.template.joint
    return lambda prompts, responses: [
        score(prompt + joint + response)["compound"] for prompt, response in zip(prompts, responses, strict=True)
    ]


def judge_of(run: Run) -> Judge | None:
    """Who judges the policies of `run`: the reward model that `models.judge` names, else the second one that was
    trained here, else the gold preference, else, of continuations, the lexicon; None where there is none of them. Where
    negative texts are paid for, they are better."""
    if stage := run.judging_stage:
        model = load_reward(run.folder(stage), detect_device())
        return lambda prompts, responses: model(prompts, responses).tolist()
    recipe, gold = run.recipe, gold_judge(run.recipe)
    judge, both_ends = gold or lexicon_judge(recipe), sum(GOLD_SCALE) if gold else 0.0
    if judge and recipe.form == "continuation" and recipe.reward_model.label.upper() == "NEGATIVE":
        return lambda prompts, responses: [both_ends - score for score in judge(prompts, responses)]
    return judge


def about_judge(run: Run) -> dict | None:
    """What `summary.json` says of the judge: its kind, and as far as they are known its accuracy on held-out pairs or
    texts (the gold preference has none) and its agreement with the reward model on pairs."""
    if stage := run.judging_stage:
        kind = {"judge": "ready reward model", "judge_model": "second reward model"}[stage]
        kept = ("source", "trained_on", "accuracy", "accuracy_ci95", *AGREEMENT)
        return {"kind": kind, **{key: found for key, found in run.results(stage).items() if key in kept}}
    if not (gold := gold_judge(run.recipe)):
        lexicon = lexicon_judge(run.recipe)
        return lexicon and {"kind": "lexicon (VADER)", **_accuracy_on_texts(run, lexicon)}
    measured, about = read_json(run.evaluation / "reward_model.json"), {"kind": GOLD_KIND}
    if measured["of"] != "pairs":
        return about
    pairs = PreparedData.load(run.folder("data")).first("evaluation", measured["pairs"])
    better, worse = (np.array(gold(pairs["prompt"], pairs[side])) for side in ("chosen", "rejected"))
    clusters = list(map(cluster_key, pairs["prompt"]))
    return about | agreement(better - worse, measured["margins"], clusters, seed=run.recipe.seed)


def is_informed(about: dict | None) -> bool:
    """Whether the judge that `about_judge` tells of is the gold preference, or a model or lexicon whose held-out
    accuracy is shown to be above chance; False without a judge."""
    if not about:
        return False
    ends = about.get("accuracy_ci95")
    return about["kind"] == GOLD_KIND or (ends is not None and ends[0] > 0.5)


def _accuracy_on_texts(run: Run, judge: Judge) -> dict:
    """How often the sign of a judge's score of a held-out text, cut to the length it judges, is the text's label, 0
    or 1, with its 95% CI."""
    held_out, recipe = PreparedData.load(run.folder("data")), run.recipe
    held_out = held_out.first("evaluation", recipe.evaluation.reward_pairs)
    if not {*held_out["label"]} <= {0, 1}:
        return {}
    most = max(recipe.data.prompt_tokens) + recipe.generation.max_new_tokens
    tokenizer = load_tokenizer(run.folder("base"))
    rows = tokenizer(list(held_out["text"]), truncation=True, max_length=most)["input_ids"]
    cut = tokenizer.batch_decode(rows, skip_special_tokens=True)
    margins = np.array(judge([""] * len(cut), cut)) * (2 * np.array(held_out["label"]) - 1)
    return accuracy_of(margins).named("accuracy")


def label_noise(judge: Judge, split: Dataset) -> float:
    """Share of a split's labels that the judge disagrees with: turned pairs, or texts past the middle of its scale."""
    if "label" in split.column_names:
        high = np.array(judge([""] * len(split), split["text"])) > sum(GOLD_SCALE) / 2
        return 1.0 - float(np.mean(high == np.array(split["label"], dtype=bool)))
    better, worse = (np.array(judge(split["prompt"], split[side])) for side in ("chosen", "rejected"))
    return float(np.mean(better < worse))


def sides(split: Dataset) -> dict[str, list[str]]:
    """The better and the worse texts of a split: chosen and rejected responses, or texts of label 1 and of label 0."""
    if "label" not in split.column_names:
        return {side: list(split[side]) for side in ("chosen", "rejected")}
    rows, names = list(zip(split["text"], split["label"], strict=True)), {"positive": True, "negative": False}
    return {name: [text for text, label in rows if bool(label) == wanted] for name, wanted in names.items()}


def length_alone(train: Dataset, held_out: Dataset, tokenizer, clusters: Clusters = None) -> Interval:
    """Held-out accuracy, with its interval by `clusters`, of a rule that sees only lengths in tokens: the longer
    response of a pair is better (ties half), or a text over `train`'s median has label 1; reversed if better there."""

    def lengths(split: Dataset, column: str) -> np.ndarray:
        rows = tokenizer(list(split[column]), add_special_tokens=False, verbose=False).input_ids
        return np.array([len(row) for row in rows])

    def margins(split: Dataset) -> np.ndarray:
        if "label" in split.column_names:
            longer = lengths(split, "text") > np.median(lengths(train, "text"))
            return np.where(longer == np.array(split["label"]), 1, -1)
        return lengths(split, "chosen") - lengths(split, "rejected")

    side = 1 if accuracy_of(margins(train)).mean >= 0.5 else -1
    return accuracy_of(side * margins(held_out), clusters=clusters)
