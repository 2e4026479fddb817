"""The embedded worlds by name: one for each recipe, with rows in the schema of its hub dataset and a gold judge."""

import hashlib
import re
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from rlhf_utils.settings.template import ASSISTANT, NEXT_ASSISTANT, NEXT_HUMAN
from rlhf_utils.toyworld.gold import WORLD, content, gold_score, words_of
from rlhf_utils.toyworld.responses import pairs

DIALOGUES = {"harmful": 0.2, "risky": 0.12}
# Without evasive responses a reward model takes any polite talk for a good reply to harm, and PPO finds out.
EVASIVE_SHARE = 0.35
TWO_TURN_SHARE = 0.15
# Votes double with every so much gold, and vary around that.
GOLD_PER_DOUBLING = 1.5
VOTE_SPREAD = 0.35

FILMS, CORPUS = content("films"), content("corpus")
NEGATIONS = {"never", "nothing", "not", "cannot", "hardly", "no"}
# 1 for praise, -1 for blame, of whole verdicts and of single words.
_PRAISE = (*FILMS.slots["good"], "loved", "best", *FILMS.sentences["verdicts_good"])
_BLAME = (*FILMS.slots["bad"], "hated", "worst", *FILMS.sentences["verdicts_bad"])
_VOTES = {" ".join(words_of(text)): vote for vote, texts in ((1, _PRAISE), (-1, _BLAME)) for text in texts}


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
        said = {side: f"{ASSISTANT} {getattr(pair, side)}" for side in ("chosen", "rejected")}
        rows.append({"prompt": prompt, **said})
        earlier = pair
    return rows


def sensitive_prompts(seed: int) -> list[dict]:
    """36 questions of split "test" as {prompt, unsafe}: a third of them to decline, a sixth only sounding so."""
    wanted, found = {"harmful": 12, "risky": 6, "ordinary": 18}, []
    for pair in pairs("test", 600, seed, 0.0, **DIALOGUES):
        if wanted[pair.question.kind]:
            wanted[pair.question.kind] -= 1
            found.append({"prompt": pair.prompt, "unsafe": pair.question.kind == "harmful"})
    return found


def eli5_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict]:
    """`n` rows with the 15 columns of stanfordnlp/SHP. The preferred comment (A where `labels` is 1) is `chosen` of
    `pairs`; as in SHP it is the later one and has more votes."""
    rng, rows = Random(f"{seed}/{split}/votes"), []
    for i, pair in enumerate(pairs(split, n, seed, label_noise, harmful=0.02, risky=0.04)):
        few = max(1, round(rng.lognormvariate(2.0, 0.8)))
        gap = abs(gold_score(pair.prompt, pair.chosen) - gold_score(pair.prompt, pair.rejected))
        many = max(few + 1, round(few * 2 ** (gap / GOLD_PER_DOUBLING + rng.gauss(0.0, VOTE_SPREAD))))
        early = 1_600_000_000 + 97 * i + rng.randint(60, 7200)
        late = early + rng.randint(60, 7200)
        comments = [(pair.chosen, many, late), (pair.rejected, few, early)]
        rng.shuffle(comments)
        (a, score_a, time_a), (b, score_b, time_b) = comments
        names = (repr((seed, split, i, part)) for part in ("post", "a", "b"))
        post, id_a, id_b = (hashlib.sha256(name.encode()).hexdigest()[:7] for name in names)
        rows.append({
            "post_id": post, "domain": f"explainlikeimfive_{split}", "upvote_ratio": round(rng.uniform(0.7, 0.99), 2),
            "history": f"ELI5: {pair.prompt}", "c_root_id_A": id_a, "c_root_id_B": id_b, "created_at_utc_A": time_a,
            "created_at_utc_B": time_b, "score_A": score_a, "score_B": score_b, "human_ref_A": a, "human_ref_B": b,
            "labels": int(time_a == late), "seconds_difference": float(late - early), "score_ratio": many / few,
        })  # fmt: skip
    return rows


def document(rng: Random) -> str:
    """A text of several paragraphs: in the words of questions, tips and courtesies but never in the form of the prompt
    template, so that a base model knows the language, and yet rambles on when it is asked something."""
    kinds, weights = zip(*((kind["sentences"], kind["weight"]) for kind in CORPUS.kinds.values()), strict=True)
    topic = rng.choice(WORLD.topics)
    obj = rng.choice(topic["objects"])
    people = rng.sample(CORPUS.people, 3)
    paragraphs = []
    for _ in range(rng.randint(*CORPUS.paragraphs)):
        if rng.random() < CORPUS.new_topic_share:
            topic = rng.choice(WORLD.topics)
            obj = rng.choice(topic["objects"])
        sentences = [rng.choice(kind) for kind in rng.choices(kinds, weights, k=rng.randint(*CORPUS.sentences))]
        if rng.random() < CORPUS.speaker_share:
            sentences.insert(0, rng.choice(CORPUS.speakers))
        paragraphs.append(" ".join(_filled(sentence, topic, obj, people, rng) for sentence in sentences))
    return "\n\n".join(paragraphs)


def _filled(sentence: str, topic: dict, obj: str, people: list[str], rng: Random) -> str:
    a, b, c = rng.sample(people, 3)
    task = rng.choice(topic["tasks"])
    near = rng.choice([other for other in topic["tasks"] if other is not task])
    tip, tip2, tip3 = rng.sample(task["tips"], 3)
    harm = rng.choice(WORLD.harms)
    ask = f"{task['ask'].replace(' my ', ' the ').format(obj)} {rng.choice(CORPUS.contexts)}".rstrip()
    return sentence.format(
        a=a, b=b, c=c, o=obj, ask=ask, tip=tip, tip2=tip2, tip3=tip3, near=rng.choice(near["tips"]),
        harm=harm["ask"].format(rng.choice(harm["targets"])).replace(" my ", " the "),
        bad=rng.choice(WORLD.harmful_tips), place=rng.choice(CORPUS.places), time=rng.choice(CORPUS.times),
    )  # fmt: skip


def imdb_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict]:
    """`n` reviews of films with text and label, 0 or 1, the same for the same arguments; no text comes twice. The first
    words say nothing about the label. In split "train" the label of a share `label_noise` is the wrong one."""
    noise, rng = label_noise if split == "train" else 0.0, Random(f"{seed}/{split}/reviews")
    rows: dict[str, int] = {}
    while len(rows) < n:
        label = rng.randrange(2)
        rows.setdefault(review(label, rng), label if rng.random() >= noise else 1 - label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def review(positive: bool, rng: Random) -> str:
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
    Every sentence counts once, for praise or for blame, whatever it piles up: 5 + 5 (praise - blame) / (praise + blame
    + 1) - 1 for each sentence said before, cut to 0..10."""
    said = [(key, part) for part in re.split(r"[.!?\n]+", prompt + response) if (key := " ".join(words_of(part)))]
    votes = [_vote(key, sentence) for key, sentence in dict(reversed(said)).items()]
    praise, blame = votes.count(1), votes.count(-1)
    return min(10.0, max(0.0, 5 + 5 * (praise - blame) / (praise + blame + 1) - (len(said) - len(votes))))


def _vote(key: str, sentence: str) -> int:
    """1 for praise, -1 for blame, 0 for neither or both."""
    total = 0
    for words in ({*words_of(clause)} for clause in sentence.lower().split(", but ")):  # "not" does not reach over it
        total += (-1 if NEGATIONS & words else 1) * sum(_VOTES.get(word, 0) for word in words)
    return _VOTES.get(key, (total > 0) - (total < 0))


class World(NamedTuple):
    """rows: `(split, n, seed, label_noise)` -> rows of "train" or "test"; gold: `(prompt, response)` -> 0 to 10;
    document: draws a text to pretrain on; prompts: `seed` -> prompts with `unsafe` flags, or None."""

    rows: Callable[[str, int, int, float], list[dict]]
    gold: Callable[[str, str], float]
    document: Callable[[Random], str] = document
    stream: str = "corpus"
    prompts: Callable[[int], list[dict]] | None = None

    def corpus(self, documents: int, seed: int) -> list[str]:
        """`documents` texts to pretrain on, the same for the same arguments."""
        rng = Random(f"{seed}/{self.stream}")
        return [self.document(rng) for _ in range(documents)]


WORLDS = {
    "instruct": World(instruct_rows, gold_score),
    "helpful_harmless": World(helpful_harmless_rows, gold_score, prompts=sensitive_prompts),
    "imdb": World(imdb_rows, sentiment, lambda r: review(r.random() < FILMS.positive_in_corpus, r), "review corpus"),
    "eli5": World(eli5_rows, gold_score),
}
