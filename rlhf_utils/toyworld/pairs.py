"""Pairs of answers for the embedded world: a question, a better answer and a worse one, by the gold preference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.toyworld import answers
from rlhf_utils.toyworld.answers import Answer
from rlhf_utils.toyworld.gold import gold_score
from rlhf_utils.toyworld.questions import Question, all_questions, word_question, wordings

# The chosen answer beats the rejected one by at least this much gold; about what one defect costs.
MIN_GOLD_GAP = 1.0
MINIMAL_SHARE = 0.5
TEST_SHARE = 0.12
# How well the answers are made on average: the chosen one of an independent pair, the rejected one.
CARE = (0.4, 0.2)

# Defects of minimal pairs with how often each is tried; the shares keep the length of an answer uninformative.
DEFECTS: tuple[tuple[answers.Defect, float], ...] = (
    (answers.drop_closing, 0.8),
    (answers.rude_closing, 0.3),
    (answers.rude_opening, 0.5),
    (answers.plain_opening, 0.5),
    (answers.forget_object, 0.5),
    (answers.drop_tip, 1.0),
    (answers.waffle, 1.6),
    (answers.only_waffle, 0.3),
    (answers.cut_short, 0.6),
    (answers.wrong_response, 0.3),
    (answers.drop_advice, 1.0),
    # Whether a tip fits the question, or has been given already, is more than a model of a million parameters learns from
    # these pairs. It is rare here so that the reward model is good, and there so that it is not perfect.
    (answers.repeat_tip, 0.3),
    (answers.wrong_object, 0.05),
    (answers.swap_tip, 0.05),
    (answers.add_stray_tip, 0.05),
    (answers.wrong_topic, 0.1),
)


@dataclass(frozen=True)
class Pair:
    """A question in one of its wordings, and two answers to it."""

    question: Question
    prompt: str
    better: str
    worse: str


def pairs(split: str, n: int, seed: int, harmful: float, risky: float, evasive: float = 0.0) -> Iterator[Pair]:
    """`n` pairs, the same for the same arguments; `harmful` and `risky` are the shares of such questions, 0 to 1.

    Of the harmful ones a share `evasive` has an answer that neither declines nor goes along, but talks of other things.

    No prompt comes twice, and none of split "train" is in split "test" of the same seed, whatever `n`. `better` is
    better than `worse` by `MIN_GOLD_GAP`, but of mixed quality: learning from it alone leaves room.

    Raises InputError for another split, and where the world has fewer prompts than asked for.
    """
    if split not in ("train", "test"):
        raise InputError(f"the embedded data has no split {split!r}; choose train or test")
    rng = Random(f"{seed}/{split}/rows")
    for question, prompt in list(_prompts(split, n, seed, harmful, risky)):
        yield Pair(question, prompt, *_pair(question, prompt, rng, evasive))


def swaps(split: str, seed: int, label_noise: float) -> Iterator[bool]:
    """For each row whether its two answers change places: a share `label_noise` of split "train", none of "test"."""
    if not 0 <= label_noise < 0.5:
        raise InputError(f"label_noise is {label_noise}; give a share of at least 0 and below 0.5")
    rng, noise = Random(f"{seed}/{split}/flips"), label_noise if split == "train" else 0.0
    while True:
        yield rng.random() < noise


def _prompts(split: str, n: int, seed: int, harmful: float, risky: float) -> Iterator[tuple[Question, str]]:
    """`n` distinct prompts of a split with their questions, the kinds of question mixed by their shares."""
    rng = Random(f"{seed}/{split}/prompts")
    pools: dict[str, list[tuple[Question, int]]] = {"harmful": [], "risky": [], "ordinary": []}
    for question in all_questions():
        kind = "harmful" if question.harmful else "risky" if question.risky else "ordinary"
        pools[kind].extend((question, wording) for wording in range(wordings()))
    for kind, pool in pools.items():
        Random(f"{seed}/{kind}").shuffle(pool)
        cut = round(TEST_SHARE * len(pool))
        pools[kind] = pool[:cut] if split == "test" else pool[cut:]
    left = {kind: iter(pool) for kind, pool in pools.items()}
    for made in range(n):
        draw = rng.random()
        kind = "harmful" if draw < harmful else "risky" if draw < harmful + risky else "ordinary"
        item = next(left[kind], None)
        if item is None:
            raise InputError(
                f"the embedded data has {made:,} distinct prompts in split {split}, fewer than the {n:,} asked for; lower the number of rows"
            )
        question, wording = item
        yield question, word_question(question, wording)


def _pair(question: Question, prompt: str, rng: Random, evasive: float) -> tuple[str, str]:
    """Two answers, the better one first, at least `MIN_GOLD_GAP` apart."""
    while True:
        first = _draft(question, CARE[0], rng)
        if evasive and question.harmful and rng.random() < evasive:
            second = _evade(rng)
        elif rng.random() < MINIMAL_SHARE:
            second = _spoil(first, question, rng)
        else:
            second = _draft(question, CARE[1], rng)
        pair = first.text, second.text
        scores = [gold_score(prompt, text).total for text in pair]
        if scores[0] - scores[1] >= MIN_GOLD_GAP:
            return pair
        if scores[1] - scores[0] >= MIN_GOLD_GAP:
            return pair[1], pair[0]


def _spoil(answer: Answer, question: Question, rng: Random) -> Answer:
    """The answer with one of the defects."""
    spoilt = None
    while spoilt is None:
        defect = rng.choices([defect for defect, _ in DEFECTS], [weight for _, weight in DEFECTS])[0]
        spoilt = defect(answer, question, rng)
    return spoilt


def _evade(rng: Random) -> Answer:
    """A good answer to some other, harmless question."""
    other = rng.choice([question for question in all_questions() if not question.harmful])
    return answers.answer_question(other, CARE[0], rng)


def _draft(question: Question, care: float, rng: Random) -> Answer:
    if question.harmful:
        return answers.decline(care, rng) if rng.random() < 0.4 + care else answers.go_along(rng)
    if rng.random() < 0.03:
        return answers.decline(care, rng)
    return answers.answer_question(question, care, rng)
