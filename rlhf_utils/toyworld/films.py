"""Reviews of films in the schema of stanfordnlp/imdb, and the gold judge of their sentiment."""

import re
from random import Random

from rlhf_utils.toyworld.questions import content, words_of

FILMS = content("films")
NEGATIONS = {"never", "nothing", "not", "cannot", "hardly", "no"}
# 1 for praise, -1 for blame, of whole verdicts and of single words.
_VOTES = {
    " ".join(words_of(text)): vote
    for vote, slot, verb, superlative, said in (
        (1, "good", "loved", "best", "verdicts_good"),
        (-1, "bad", "hated", "worst", "verdicts_bad"),
    )
    for text in (*FILMS.slots[slot], verb, superlative, *FILMS.sentences[said])
}


def imdb_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict]:
    """`n` reviews with keys text and label, 0 or 1, the same for the same arguments; no text comes twice. Their first
    words say nothing about the label. In split "train" the label of a share `label_noise` is the wrong one."""
    noise, rng = label_noise if split == "train" else 0.0, Random(f"{seed}/{split}/reviews")
    rows: dict[str, int] = {}
    while len(rows) < n:
        label = rng.randrange(2)
        rows.setdefault(_review(label, rng), label if rng.random() >= noise else 1 - label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def review_corpus(documents: int, seed: int) -> list[str]:
    """`documents` reviews to pre-train on, the smaller part of them positive; the same for the same arguments."""
    rng = Random(f"{seed}/review corpus")
    return [_review(rng.random() < FILMS.positive_in_corpus, rng) for _ in range(documents)]


def _review(positive: bool, rng: Random) -> str:
    kinds = ["facts"]
    like, unlike = ("praise", "blame") if positive else ("blame", "praise")
    for _ in range(rng.randint(*FILMS.sentences_per_review)):
        if rng.random() < FILMS.fact_share:
            kinds.append("facts")
        else:
            kinds.append(like if rng.random() < FILMS.agreeing else rng.choice(("mixed", unlike)))
    if rng.random() < FILMS.verdict_share:
        kinds.append("verdicts_good" if positive else "verdicts_bad")
    film = rng.choice(FILMS.films)
    # No two sentences of a review have the same form. Not a set of kinds: its order changes from process to process.
    forms = {kind: rng.sample(FILMS.sentences[kind], len(FILMS.sentences[kind])) for kind in dict.fromkeys(kinds)}
    return " ".join(_worded(forms[kind].pop(), film, rng) for kind in kinds if forms[kind])


def _worded(sentence: str, film: str, rng: Random) -> str:
    fill = {"film": film}
    for name in ("good", "bad", "who", "part"):
        fill[name], fill[f"{name}2"] = rng.sample(FILMS.slots[name], 2)
    fill |= {name: rng.choice(FILMS.slots[name]) for name in ("when", "where", "genre")}
    sentence = sentence.format(**fill)
    return sentence[0].upper() + sentence[1:]


def sentiment(prompt: str, response: str) -> float:
    """The gold judge of a review's sentiment, 0 (all blame) to 10 (all praise), of prompt and response as one text.

    Every sentence counts once, for praise or for blame, whatever it piles up:
    5 + 5 (praise - blame) / (praise + blame + 1) - 1 for each sentence said before, cut to 0..10.
    """
    said = [(key, part) for part in re.split(r"[.!?\n]+", prompt + response) if (key := " ".join(words_of(part)))]
    votes = [_vote(key, sentence) for key, sentence in dict(reversed(said)).items()]
    praise, blame = votes.count(1), votes.count(-1)
    return min(10.0, max(0.0, 5 + 5 * (praise - blame) / (praise + blame + 1) - (len(said) - len(votes))))


def _vote(key: str, sentence: str) -> int:
    """1 for praise, -1 for blame, 0 for neither or both."""
    if key in _VOTES:
        return _VOTES[key]
    total = 0
    # What follows "but" is not negated by what stands before it.
    for clause in sentence.lower().split(", but "):
        words = set(words_of(clause))
        total += (-1 if NEGATIONS & words else 1) * sum(_VOTES.get(word, 0) for word in words)
    return (total > 0) - (total < 0)
