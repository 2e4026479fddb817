"""Rows of the embedded world in the schema of stanfordnlp/imdb: reviews of films, label 0 (negative) or 1 (positive)."""

from __future__ import annotations

import re
from random import Random

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.toyworld import reviews
from rlhf_utils.toyworld.questions import words_of

# How often an opinion of a review agrees with its label; the rest is the other way round or mixed.
AGREEING = 0.8
SENTENCES = (6, 10)
FACT_SHARE = 0.3
VERDICT_SHARE = 0.6
# Of the reviews to pre-train on. The policy that people know, lvwerra/gpt2-imdb, starts on the negative side as well.
POSITIVE_IN_CORPUS = 0.3
OPINIONS = 5.0
REPEATED = 1.0
_NEGATIONS = {"never", "nothing", "not", "cannot", "hardly", "no"}


def imdb_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict]:
    """`n` reviews with keys text and label, the same for the same arguments; no text comes twice.

    Reviews begin with a fact, so that their first words say nothing about the label. In split "train" the label of a
    share `label_noise` is the wrong one.

    Raises InputError for another split and for an impossible label_noise.
    """
    if split not in ("train", "test"):
        raise InputError(f"the embedded data has no split {split!r}; choose train or test")
    if not 0 <= label_noise < 0.5:
        raise InputError(f"label_noise is {label_noise}; give a share of at least 0 and below 0.5")
    rng = Random(f"{seed}/{split}/reviews")
    noise = label_noise if split == "train" else 0.0
    rows: dict[str, int] = {}
    while len(rows) < n:
        label = rng.randrange(2)
        rows.setdefault(_review(label, rng), label if rng.random() >= noise else 1 - label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def review_corpus(documents: int, seed: int) -> list[str]:
    """`documents` reviews to pre-train on, the smaller part of them positive; the same for the same arguments."""
    rng = Random(f"{seed}/review corpus")
    return [_review(int(rng.random() < POSITIVE_IN_CORPUS), rng) for _ in range(documents)]


def sentiment(prompt: str, response: str) -> float:
    """The gold judge of a review's sentiment, 0 (all blame) to 10 (all praise), of prompt and response as one text.

    Every sentence counts once, for praise or for blame, whatever it piles up:
    5 + 5 (praise - blame) / (praise + blame + 1) - 1 for each sentence said before, cut to 0..10.
    """
    said: set[str] = set()
    votes, repeated = [], 0
    for sentence in re.split(r"[.!?\n]+", prompt + response):
        key = " ".join(words_of(sentence))
        if not key:
            continue
        repeated += key in said
        if key not in said:
            votes.append(_vote(sentence))
        said.add(key)
    praise, blame = votes.count(1), votes.count(-1)
    score = OPINIONS + OPINIONS * (praise - blame) / (praise + blame + 1) - REPEATED * repeated
    return min(2 * OPINIONS, max(0.0, score))


def _vote(sentence: str) -> int:
    """1 for praise, -1 for blame, 0 for neither or both."""
    if verdict := _VERDICTS.get(" ".join(words_of(sentence))):
        return verdict
    total = 0
    # What follows "but" is not negated by what stands before it.
    for clause in sentence.lower().split(", but "):
        words = words_of(clause)
        sign = -1 if _NEGATIONS & set(words) else 1
        total += sign * sum((word in _GOOD) - (word in _BAD) for word in set(words))
    return (total > 0) - (total < 0)


_GOOD = {*reviews.GOOD, "loved", "best"}
_BAD = {*reviews.BAD, "hated", "worst"}
_VERDICTS = {
    " ".join(words_of(verdict)): vote
    for vote, verdicts in ((1, reviews.VERDICTS_GOOD), (-1, reviews.VERDICTS_BAD))
    for verdict in verdicts
}


def _review(label: int, rng: Random) -> str:
    kinds = [reviews.FACTS]
    for _ in range(rng.randint(*SENTENCES)):
        draw = rng.random()
        if draw < FACT_SHARE:
            kinds.append(reviews.FACTS)
        elif rng.random() < AGREEING:
            kinds.append(reviews.PRAISE if label else reviews.BLAME)
        else:
            kinds.append(rng.choice((reviews.MIXED, reviews.BLAME if label else reviews.PRAISE)))
    if rng.random() < VERDICT_SHARE:
        kinds.append(reviews.VERDICTS_GOOD if label else reviews.VERDICTS_BAD)
    film = rng.choice(reviews.FILMS)
    # No two sentences of a review have the same form.
    forms = {kind: rng.sample(kind, len(kind)) for kind in set(kinds)}
    return " ".join(_worded(forms[kind].pop(), film, rng) for kind in kinds if forms[kind])


def _worded(template: str, film: str, rng: Random) -> str:
    good, good2 = rng.sample(reviews.GOOD, 2)
    bad, bad2 = rng.sample(reviews.BAD, 2)
    who, who2 = rng.sample(reviews.PEOPLE, 2)
    part, part2 = rng.sample(reviews.PARTS, 2)
    sentence = template.format(
        film=film, who=who, who2=who2, part=part, part2=part2, good=good, good2=good2, bad=bad, bad2=bad2,
        when=rng.choice(reviews.WATCHED), where=rng.choice(reviews.SETTINGS), genre=rng.choice(reviews.GENRES),
    )  # fmt: skip
    return sentence[0].upper() + sentence[1:]
