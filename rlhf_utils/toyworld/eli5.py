"""Rows of the embedded world in the schema of stanfordnlp/SHP: two comments under one question, with their votes."""

from __future__ import annotations

import hashlib
from random import Random

from rlhf_utils.toyworld.gold import gold_score
from rlhf_utils.toyworld.pairs import pairs, swaps

HARMFUL_SHARE = 0.02
RISKY_SHARE = 0.04
# Votes double with every so much gold, and vary around that.
GOLD_PER_DOUBLING = 1.5
VOTE_SPREAD = 0.35
FIRST_POST = 1_600_000_000


def eli5_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict]:
    """`n` rows with the 15 columns of SHP. `labels` is 1 where comment A is preferred, 0 where B is.

    The preferred comment is the better one by gold (see `pairs`), but in split "train" for a share `label_noise`, whose
    votes went to the worse one. As in SHP the preferred comment is the later one and has more votes.
    """
    rng = Random(f"{seed}/{split}/votes")
    rows = []
    made = pairs(split, n, seed, HARMFUL_SHARE, RISKY_SHARE)
    for i, (pair, swapped) in enumerate(zip(made, swaps(split, seed, label_noise), strict=False)):
        history = f"ELI5: {pair.prompt}"
        preferred, other = (pair.worse, pair.better) if swapped else (pair.better, pair.worse)
        few = max(1, round(rng.lognormvariate(2.0, 0.8)))
        gap = abs(gold_score(pair.prompt, pair.better).total - gold_score(pair.prompt, pair.worse).total)
        many = max(few + 1, round(few * 2 ** (gap / GOLD_PER_DOUBLING + rng.gauss(0.0, VOTE_SPREAD))))
        asked = FIRST_POST + 97 * i
        early = asked + rng.randint(60, 7200)
        late = early + rng.randint(60, 7200)
        comments = [("preferred", preferred, many, late), ("other", other, few, early)]
        rng.shuffle(comments)
        (kind, a, score_a, time_a), (_, b, score_b, time_b) = comments
        rows.append(
            {
                "post_id": _id(seed, split, i, "post"),
                "domain": f"explainlikeimfive_{split}",
                "upvote_ratio": round(rng.uniform(0.7, 0.99), 2),
                "history": history,
                "c_root_id_A": _id(seed, split, i, "a"),
                "c_root_id_B": _id(seed, split, i, "b"),
                "created_at_utc_A": time_a,
                "created_at_utc_B": time_b,
                "score_A": score_a,
                "score_B": score_b,
                "human_ref_A": a,
                "human_ref_B": b,
                "labels": int(kind == "preferred"),
                "seconds_difference": float(late - early),
                "score_ratio": many / few,
            }
        )
    return rows


def _id(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:7]
