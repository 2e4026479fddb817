"""Answers of the embedded world: a plan of what an answer says, its wording, and what can go wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from rlhf_utils.toyworld import phrases
from rlhf_utils.toyworld.content import HARMFUL_TIPS, TOPICS
from rlhf_utils.toyworld.questions import Question

# What one can say first, by manner: (with the object's name, without).
OPENINGS = {
    "polite": (phrases.POLITE_OPENINGS, phrases.POLITE_OPENINGS_UNNAMED),
    "plain": (phrases.PLAIN_OPENINGS, phrases.PLAIN_OPENINGS_UNNAMED),
    "rude": (phrases.RUDE_OPENINGS, phrases.RUDE_OPENINGS_UNNAMED),
}


@dataclass(frozen=True)
class Answer:
    """An answer sentence by sentence; `text` words it. `tips` go through the connectors, `extra` come after them."""

    opening: str
    tips: tuple[str, ...]
    connectors: tuple[str, ...]
    extra: tuple[str, ...]
    closing: str
    cut: int = 0

    @property
    def text(self) -> str:
        """The wording; with `cut` its last `cut` words are missing and it ends without a full stop."""
        tips = [f"{start} {tip}." for start, tip in zip(self.connectors, self.tips, strict=False)]
        text = " ".join(part for part in (self.opening, *tips, *self.extra, self.closing) if part)
        if not self.cut:
            return text
        return " ".join(text.split()[: -self.cut]).rstrip(".!?,")


def answer_question(question: Question, care: float, rng: Random) -> Answer:
    """A random answer to an ordinary question; `care` in 0..1 is the chance that each part of it is done well."""

    def careful() -> bool:
        return rng.random() < care

    manner = "polite" if careful() else rng.choice(("plain", "plain", "rude"))
    named = rng.random() < 0.5 + 0.5 * care
    opening = rng.choice(OPENINGS[manner][0 if named else 1]).format(question.obj)
    count = 3 if careful() else rng.choice((1, 2, 2))
    answer = Answer(
        opening,
        _pick_tips(question.tips, count, rng),
        rng.choice(phrases.CONNECTORS),
        (),
        rng.choice(phrases.CLOSINGS),
    )
    if not careful():
        answer = replace(answer, closing=rng.choice(("", "", rng.choice(phrases.RUDE_CLOSINGS))))
    if not careful():
        answer = waffle(answer, question, rng) or answer
    return answer


def decline(care: float, rng: Random) -> Answer:
    """A random refusal; `care` as in `answer_question`."""

    def careful() -> bool:
        return rng.random() < care

    parts = [rng.choice(phrases.REASONS) if careful() else "", rng.choice(phrases.ALTERNATIVES) if careful() else ""]
    return Answer(
        rng.choice(phrases.REFUSALS if careful() else phrases.BLUNT_REFUSALS),
        (),
        (),
        tuple(part for part in parts if part),
        rng.choice(phrases.REFUSAL_CLOSINGS) if careful() else "",
    )


def go_along(rng: Random) -> Answer:
    """An answer that does what should have been declined."""
    return Answer(
        rng.choice(phrases.POLITE_OPENINGS_UNNAMED),
        _pick_tips(HARMFUL_TIPS, rng.choice((1, 2, 3)), rng),
        rng.choice(phrases.CONNECTORS),
        (),
        rng.choice(phrases.CLOSINGS),
    )


def _pick_tips(tips: tuple[str, ...], count: int, rng: Random) -> tuple[str, ...]:
    """`count` of the tips, in their natural order."""
    return tuple(tips[i] for i in sorted(rng.sample(range(len(tips)), count)))


# Defects: each returns the answer with one thing spoilt, or None where the answer has nothing of the kind to spoil.
Defect = Callable[[Answer, Question, Random], Answer | None]


def drop_closing(answer: Answer, question: Question, rng: Random) -> Answer | None:
    return replace(answer, closing="") if answer.closing else None


def rude_closing(answer: Answer, question: Question, rng: Random) -> Answer | None:
    return replace(answer, closing=rng.choice(phrases.RUDE_CLOSINGS))


def rude_opening(answer: Answer, question: Question, rng: Random) -> Answer | None:
    if question.harmful:
        return None
    return replace(answer, opening=rng.choice(phrases.RUDE_OPENINGS).format(question.obj))


def plain_opening(answer: Answer, question: Question, rng: Random) -> Answer | None:
    if question.harmful:
        return replace(answer, opening=rng.choice(phrases.BLUNT_REFUSALS))
    return replace(answer, opening=rng.choice(phrases.PLAIN_OPENINGS).format(question.obj))


def forget_object(answer: Answer, question: Question, rng: Random) -> Answer | None:
    for named, unnamed in OPENINGS.values():
        if answer.opening in (wording.format(question.obj) for wording in named):
            return replace(answer, opening=rng.choice(unnamed))
    return None


def wrong_object(answer: Answer, question: Question, rng: Random) -> Answer | None:
    if question.harmful or question.obj not in answer.opening:
        return None
    return replace(
        answer, opening=answer.opening.replace(question.obj, rng.choice(_other_topic(question, rng).objects))
    )


def drop_tip(answer: Answer, question: Question, rng: Random) -> Answer | None:
    if len(answer.tips) < 2:
        return None
    gone = rng.randrange(len(answer.tips))
    return replace(answer, tips=answer.tips[:gone] + answer.tips[gone + 1 :])


def repeat_tip(answer: Answer, question: Question, rng: Random) -> Answer | None:
    """A tip said again, after the others or in the place of one of them."""
    if not answer.tips:
        return None
    tips = list(answer.tips)
    again = rng.choice(tips)
    if len(tips) > 1 and rng.random() < 0.5:
        place = rng.choice([i for i, tip in enumerate(tips) if tip != again] or [0])
        tips[place] = again
    elif len(tips) < len(answer.connectors):
        tips.insert(rng.randrange(len(tips) + 1), again)
    return replace(answer, tips=tuple(tips))


def swap_tip(answer: Answer, question: Question, rng: Random) -> Answer | None:
    """A tip of another topic in the place of a tip."""
    if not answer.tips:
        return None
    tips = list(answer.tips)
    tips[rng.randrange(len(tips))] = _stray_tip(question, rng)
    return replace(answer, tips=tuple(tips))


def add_stray_tip(answer: Answer, question: Question, rng: Random) -> Answer | None:
    """A tip of another topic on top."""
    if not answer.tips or len(answer.tips) >= len(answer.connectors):
        return None
    tips = list(answer.tips)
    tips.insert(rng.randrange(len(tips) + 1), _stray_tip(question, rng))
    return replace(answer, tips=tuple(tips))


def waffle(answer: Answer, question: Question, rng: Random) -> Answer | None:
    """A sentence without content, before or after the tips."""
    sentence = rng.choice(phrases.WAFFLE)
    if rng.random() < 0.5:
        return replace(answer, opening=f"{answer.opening} {sentence}")
    return replace(answer, extra=(*answer.extra, sentence))


def only_waffle(answer: Answer, question: Question, rng: Random) -> Answer | None:
    if question.harmful:
        return None
    return replace(answer, tips=(), extra=tuple(rng.sample(phrases.WAFFLE, 3)))


def cut_short(answer: Answer, question: Question, rng: Random) -> Answer | None:
    words = len(answer.text.split())
    return replace(answer, cut=rng.randint(1, words // 2)) if words > 6 else None


def wrong_topic(answer: Answer, question: Question, rng: Random) -> Answer | None:
    """The tips of another topic under the same opening."""
    if question.harmful:
        return None
    tips = rng.choice(_other_topic(question, rng).tasks).tips
    return replace(answer, tips=_pick_tips(tips, max(1, min(3, len(answer.tips))), rng))


def wrong_response(answer: Answer, question: Question, rng: Random) -> Answer | None:
    """Declining what is harmless, going along with what is not."""
    return go_along(rng) if question.harmful else decline(0.7, rng)


def drop_advice(answer: Answer, question: Question, rng: Random) -> Answer | None:
    """A refusal without its reason or its alternative."""
    if not question.harmful or not answer.extra:
        return None
    gone = rng.randrange(len(answer.extra))
    return replace(answer, extra=answer.extra[:gone] + answer.extra[gone + 1 :])


def _other_topic(question: Question, rng: Random):
    return rng.choice([topic for topic in TOPICS if topic.name != question.topic])


def _stray_tip(question: Question, rng: Random) -> str:
    return rng.choice(rng.choice(_other_topic(question, rng).tasks).tips)
