"""Reviews of films in the schema of stanfordnlp/imdb, and the gold judge of their sentiment."""

import re
from functools import cache
from random import Random

from rlhf_utils.toyworld.questions import content, words_of
from rlhf_utils.toyworld.responses import noise_share

NEGATIONS = {"never", "nothing", "not", "cannot", "hardly", "no"}


def imdb_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict]:
    """`n` reviews with keys text and label, 0 or 1, the same for the same arguments; no text comes twice.

    Reviews begin with a fact, so that their first words say nothing about the label. In split "train" the label of a
    share `label_noise` is the wrong one. Raises InputError for another split and for an impossible label_noise.
    """
    noise, rng = noise_share(split, label_noise), Random(f"{seed}/{split}/reviews")
    rows: dict[str, int] = {}
    while len(rows) < n:
        label = rng.randrange(2)
        rows.setdefault(_review(label, rng), label if rng.random() >= noise else 1 - label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def review_corpus(documents: int, seed: int) -> list[str]:
    """`documents` reviews to pre-train on, the smaller part of them positive; the same for the same arguments."""
    rng = Random(f"{seed}/review corpus")
    return [_review(rng.random() < content("films").positive_in_corpus, rng) for _ in range(documents)]


def _review(positive: bool, rng: Random) -> str:
    films, kinds = content("films"), ["facts"]
    like, unlike = ("praise", "blame") if positive else ("blame", "praise")
    for _ in range(rng.randint(*films.sentences_per_review)):
        if rng.random() < films.fact_share:
            kinds.append("facts")
        else:
            kinds.append(like if rng.random() < films.agreeing else rng.choice(("mixed", unlike)))
    if rng.random() < films.verdict_share:
        kinds.append("verdicts_good" if positive else "verdicts_bad")
    film = rng.choice(films.films)
    # No two sentences of a review have the same form. Not a set of kinds: its order changes from process to process.
    forms = {kind: rng.sample(films.sentences[kind], len(films.sentences[kind])) for kind in dict.fromkeys(kinds)}
    return " ".join(_worded(forms[kind].pop(), film, rng) for kind in kinds if forms[kind])


def _worded(sentence: str, film: str, rng: Random) -> str:
    slots = content("films").slots
    good, good2 = rng.sample(slots["good"], 2)
    bad, bad2 = rng.sample(slots["bad"], 2)
    who, who2 = rng.sample(slots["who"], 2)
    part, part2 = rng.sample(slots["part"], 2)
    sentence = sentence.format(
        film=film, who=who, who2=who2, part=part, part2=part2, good=good, good2=good2, bad=bad, bad2=bad2,
        when=rng.choice(slots["when"]), where=rng.choice(slots["where"]), genre=rng.choice(slots["genre"]),
    )  # fmt: skip
    return sentence[0].upper() + sentence[1:]


def sentiment(prompt: str, response: str) -> float:
    """The gold judge of a review's sentiment, 0 (all blame) to 10 (all praise), of prompt and response as one text.

    Every sentence counts once, for praise or for blame, whatever it piles up:
    5 + 5 (praise - blame) / (praise + blame + 1) - 1 for each sentence said before, cut to 0..10.
    """
    votes: dict[str, int] = {}
    repeated = 0
    for sentence in re.split(r"[.!?\n]+", prompt + response):
        key = " ".join(words_of(sentence))
        if key in votes:
            repeated += 1
        elif key:
            votes[key] = _vote(key, sentence)
    praise, blame = (list(votes.values()).count(vote) for vote in (1, -1))
    return min(10.0, max(0.0, 5 + 5 * (praise - blame) / (praise + blame + 1) - repeated))


@cache
def _votes() -> dict[str, int]:
    """1 for praise, -1 for blame, of whole verdicts and of single words."""
    slots, said = content("films").slots, content("films").sentences
    praise = [*slots["good"], "loved", "best", *said["verdicts_good"]]
    blame = [*slots["bad"], "hated", "worst", *said["verdicts_bad"]]
    return {" ".join(words_of(text)): vote for vote, texts in ((1, praise), (-1, blame)) for text in texts}


def _vote(key: str, sentence: str) -> int:
    """1 for praise, -1 for blame, 0 for neither or both."""
    votes, total = _votes(), 0
    if key in votes:
        return votes[key]
    # What follows "but" is not negated by what stands before it.
    for clause in sentence.lower().split(", but "):
        words = set(words_of(clause))
        total += (-1 if NEGATIONS & words else 1) * sum(votes.get(word, 0) for word in words)
    return (total > 0) - (total < 0)
