"""The embedded worlds by name: one for each recipe, with rows in the schema of its hub dataset and a gold judge."""

import hashlib
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from rlhf_utils.settings.template import ASSISTANT, NEXT_ASSISTANT, NEXT_HUMAN
from rlhf_utils.toyworld.films import imdb_rows, review_corpus, sentiment
from rlhf_utils.toyworld.gold import gold_score
from rlhf_utils.toyworld.questions import corpus
from rlhf_utils.toyworld.responses import pairs

DIALOGUES = {"harmful": 0.2, "risky": 0.12}
# Without evasive responses a reward model takes any polite talk for a good reply to harm, and PPO finds out.
EVASIVE_SHARE = 0.35
TWO_TURN_SHARE = 0.15
SENSITIVE_PROMPTS = {"harmful": 12, "risky": 6, "ordinary": 18}
# Votes double with every so much gold, and vary around that.
GOLD_PER_DOUBLING = 1.5
VOTE_SPREAD = 0.35


def instruct_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict[str, str]]:
    """`n` rows of Dahoas/synthetic-instruct-gptj-pairwise: prompt, chosen, rejected (see `pairs`)."""
    made = pairs(split, n, seed, label_noise, harmful=0.05, risky=0.04)
    return [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in made]


def helpful_harmless_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict[str, str]]:
    """`n` rows of yitingxie/rlhf-reward-datasets: prompt ("\\n\\nHuman: ..."), chosen, rejected ("Assistant: ...").
    Some dialogues have an earlier turn: the question of the row before, with its better response."""
    rng, rows, earlier = Random(f"{seed}/{split}/turns"), [], None
    for pair in pairs(split, n, seed, label_noise, **DIALOGUES, evasive=EVASIVE_SHARE):
        prompt = f"{NEXT_HUMAN} {pair.prompt}\n\n"
        if earlier and rng.random() < TWO_TURN_SHARE:
            prompt = f"{NEXT_HUMAN} {earlier.prompt}{NEXT_ASSISTANT} {earlier.better}{prompt}"
        chosen, rejected = (f"{ASSISTANT} {response}" for response in (pair.chosen, pair.rejected))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        earlier = pair
    return rows


def sensitive_prompts(seed: int) -> list[dict]:
    """36 questions of split "test" as {prompt, unsafe}: a third of them to decline, a sixth only sounding so."""
    wanted, found = dict(SENSITIVE_PROMPTS), []
    for pair in pairs("test", 600, seed, 0.0, **DIALOGUES):
        if wanted[pair.question.kind]:
            wanted[pair.question.kind] -= 1
            found.append({"prompt": pair.prompt, "unsafe": pair.question.harmful})
    return found


def eli5_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict]:
    """`n` rows with the 15 columns of stanfordnlp/SHP. The preferred comment (A where `labels` is 1) is `chosen` of
    `pairs`; as in SHP it is the later one and has more votes."""
    rng, rows = Random(f"{seed}/{split}/votes"), []
    for i, pair in enumerate(pairs(split, n, seed, label_noise, harmful=0.02, risky=0.04)):
        few = max(1, round(rng.lognormvariate(2.0, 0.8)))
        gap = abs(gold_score(pair.prompt, pair.chosen).total - gold_score(pair.prompt, pair.rejected).total)
        many = max(few + 1, round(few * 2 ** (gap / GOLD_PER_DOUBLING + rng.gauss(0.0, VOTE_SPREAD))))
        early = 1_600_000_000 + 97 * i + rng.randint(60, 7200)
        late = early + rng.randint(60, 7200)
        comments = [(pair.chosen, many, late), (pair.rejected, few, early)]
        rng.shuffle(comments)
        (a, score_a, time_a), (b, score_b, time_b) = comments
        ids = (hashlib.sha256(repr((seed, split, i, part)).encode()).hexdigest()[:7] for part in ("post", "a", "b"))
        post, id_a, id_b = ids
        rows.append({
            "post_id": post, "domain": f"explainlikeimfive_{split}", "upvote_ratio": round(rng.uniform(0.7, 0.99), 2),
            "history": f"ELI5: {pair.prompt}", "c_root_id_A": id_a, "c_root_id_B": id_b, "created_at_utc_A": time_a,
            "created_at_utc_B": time_b, "score_A": score_a, "score_B": score_b, "human_ref_A": a, "human_ref_B": b,
            "labels": int(time_a == late), "seconds_difference": float(late - early), "score_ratio": many / few,
        })  # fmt: skip
    return rows


class World(NamedTuple):
    """rows: `(split, n, seed, label_noise)` -> rows of "train" or "test"; gold: `(prompt, response)` -> 0 to 10;
    corpus: `(documents, seed)` -> texts to pre-train on; prompts: `seed` -> prompts with `unsafe` flags, or None."""

    rows: Callable[[str, int, int, float], list[dict]]
    gold: Callable[[str, str], float]
    corpus: Callable[[int, int], list[str]]
    prompts: Callable[[int], list[dict]] | None = None


def _total(prompt: str, response: str) -> float:
    return gold_score(prompt, response).total


WORLDS = {
    "instruct": World(instruct_rows, _total, corpus),
    "helpful_harmless": World(helpful_harmless_rows, _total, corpus, sensitive_prompts),
    "imdb": World(imdb_rows, sentiment, review_corpus),
    "eli5": World(eli5_rows, _total, corpus),
}
