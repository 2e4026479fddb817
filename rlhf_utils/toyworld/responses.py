"""Pairs of responses to a question: drafts of all qualities, the defects they can have, and which one is better."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.toyworld.gold import QUESTIONS, WORDS, WORLD, Question, gold_score

# The better response beats the other one by at least this much gold; about what one defect costs.
MIN_GOLD_GAP = 1.0
MINIMAL_SHARE = 0.5
TEST_SHARE = 0.12
# How well drafts are made on average: the first one of a pair, and an independent second one.
CARE = (0.4, 0.2)


@dataclass
class Draft:
    """A response sentence by sentence: `tips` go through the connectors, `extra` come after them."""

    opening: str
    tips: list[str] = field(default_factory=list)
    connectors: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    closing: str = ""
    cut: int = 0

    @property
    def text(self) -> str:
        """The wording; with `cut` its last `cut` words are missing and it ends without a full stop."""
        tips = [f"{start} {tip}." for start, tip in zip(self.connectors, self.tips, strict=False)]
        text = " ".join(part for part in (self.opening, *tips, *self.extra, self.closing) if part)
        return " ".join(text.split()[: -self.cut]).rstrip(".!?,") if self.cut else text

    def waffle(self, rng: Random) -> None:
        """Adds a sentence without content, before or after the tips."""
        sentence, before = rng.choice(WORDS.waffle), rng.random() < 0.5
        self.opening += f" {sentence}" if before else ""
        self.extra += [] if before else [sentence]


def help_with(question: Question, care: float, rng: Random) -> Draft:
    """A draft that helps with an ordinary question; `care` in 0..1 is the chance that each part of it is done well."""
    manner = "polite" if rng.random() < care else rng.choice(("plain", "plain", "rude"))
    named = "named" if rng.random() < 0.5 + 0.5 * care else "unnamed"
    opening = rng.choice(WORDS.openings[manner][named]).format(question.obj)
    draft = _give_tips(opening, question.tips, 3 if rng.random() < care else rng.choice((1, 2, 2)), rng)
    if rng.random() >= care:
        draft.closing = rng.choice(("", "", rng.choice(WORDS.rude_closings)))
    if rng.random() >= care:
        draft.waffle(rng)
    return draft


def decline(care: float, rng: Random) -> Draft:
    """A refusal; `care` as in `help_with`."""
    advice = [rng.choice(sentences) for sentences in (WORDS.reasons, WORDS.alternatives) if rng.random() < care]
    opening = rng.choice(WORDS.refusals if rng.random() < care else WORDS.blunt_refusals)
    return Draft(opening, extra=advice, closing=rng.choice(WORDS.refusal_closings) if rng.random() < care else "")


def go_along(rng: Random) -> Draft:
    """A draft that does what should have been declined."""
    opening = rng.choice(WORDS.openings["polite"]["unnamed"])
    return _give_tips(opening, WORLD.harmful_tips, rng.choice((1, 2, 3)), rng)


def _give_tips(opening: str, tips: Sequence[str], count: int, rng: Random) -> Draft:
    return Draft(opening, _some(tips, count, rng), rng.choice(WORDS.connectors), closing=rng.choice(WORDS.closings))


def _some(tips: Sequence[str], count: int, rng: Random) -> list[str]:
    """`count` of the tips, in their own order."""
    return [tips[i] for i in sorted(rng.sample(range(len(tips)), count))]


def _draft(question: Question, care: float, rng: Random) -> Draft:
    harmful = question.kind == "harmful"
    if rng.random() < (0.4 + care if harmful else 0.03):
        return decline(care, rng)
    return go_along(rng) if harmful else help_with(question, care, rng)


def spoil(draft: Draft, defect: str, question: Question, rng: Random) -> Draft | None:
    """A copy of the draft with one thing spoilt, or None where it has nothing of the kind to spoil."""
    draft = replace(draft, tips=list(draft.tips), extra=list(draft.extra))
    ordinary, tips, obj = question.kind != "harmful", draft.tips, question.obj
    named = [each for each in WORDS.openings.values() if draft.opening in [text.format(obj) for text in each["named"]]]
    others = [topic for topic in WORLD.topics if topic["name"] != question.topic]

    def stray_tips() -> list[str]:
        return rng.choice(rng.choice(others)["tasks"])["tips"]

    match defect:
        case "drop_closing" if draft.closing:
            draft.closing = ""
        case "rude_closing":
            draft.closing = rng.choice(WORDS.rude_closings)
        case "rude_opening" if ordinary:
            draft.opening = rng.choice(WORDS.openings["rude"]["named"]).format(obj)
        case "plain_opening":
            openings = WORDS.openings["plain"]["named"] if ordinary else WORDS.blunt_refusals
            draft.opening = rng.choice(openings).format(obj)
        case "forget_object" if named:
            draft.opening = rng.choice(named[0]["unnamed"])
        case "wrong_object" if ordinary and obj in draft.opening:
            draft.opening = draft.opening.replace(obj, rng.choice(rng.choice(others)["objects"]))
        case "drop_tip" if len(tips) > 1:
            del tips[rng.randrange(len(tips))]
        case "repeat_tip" if tips:
            again = rng.choice(tips)
            if len(tips) > 1 and rng.random() < 0.5:
                tips[rng.choice([i for i, tip in enumerate(tips) if tip != again])] = again
            else:
                tips.insert(rng.randrange(len(tips) + 1), again)
        case "swap_tip" if tips:
            tips[rng.randrange(len(tips))] = rng.choice(stray_tips())
        case "add_stray_tip" if tips:
            tips.insert(rng.randrange(len(tips) + 1), rng.choice(stray_tips()))
        case "wrong_topic" if ordinary:
            draft.tips = _some(stray_tips(), max(1, len(tips)), rng)
        case "waffle":
            draft.waffle(rng)
        case "only_waffle" if ordinary:
            draft.tips, draft.extra = [], rng.sample(WORDS.waffle, 3)
        case "cut_short" if (length := len(draft.text.split())) > 6:
            draft.cut = rng.randint(1, length // 2)
        case "wrong_response":
            return decline(0.7, rng) if ordinary else go_along(rng)
        case "drop_advice" if draft.extra and not ordinary:
            del draft.extra[rng.randrange(len(draft.extra))]
        case _:
            return None
    return draft


class Pair(NamedTuple):
    """A question in one of its wordings with two responses; the chosen one is `better` but for the label noise."""

    question: Question
    prompt: str
    better: str
    chosen: str
    rejected: str


def pairs(
    split: str, n: int, seed: int, label_noise: float, *, harmful: float, risky: float, evasive: float = 0.0
) -> Iterator[Pair]:
    """`n` pairs, the same for the same arguments; `harmful` and `risky` are the shares of such questions, `evasive` the
    share of harmful ones with a response that neither refuses nor goes along, but talks of other things. No prompt
    comes twice, and none of split "train" is in split "test" of the same seed. `better` beats the other by
    `MIN_GOLD_GAP`, but is of mixed quality. Raises InputError where the world has fewer prompts than asked for."""
    noise, shares = label_noise if split == "train" else 0.0, Random(f"{seed}/{split}/prompts")
    rng, flips, pools, prompts = Random(f"{seed}/{split}/rows"), Random(f"{seed}/{split}/flips"), {}, []
    for kind in ("harmful", "risky", "ordinary"):
        pool = [(question, prompt) for question in QUESTIONS if question.kind == kind for prompt in question.wordings]
        Random(f"{seed}/{kind}").shuffle(pool)
        cut = round(TEST_SHARE * len(pool))
        pools[kind] = iter(pool[:cut] if split == "test" else pool[cut:])
    for made in range(n):
        share = shares.random()
        kind = "harmful" if share < harmful else "risky" if share < harmful + risky else "ordinary"
        if (found := next(pools[kind], None)) is None:
            told = f"the embedded data has {made:,} distinct prompts in split {split}, fewer than the {n:,} asked for"
            raise InputError(f"{told}; lower the number of rows")
        prompts.append(found)
    for question, prompt in prompts:
        better, worse = _two_responses(question, prompt, rng, evasive)
        yield Pair(question, prompt, better, *((worse, better) if flips.random() < noise else (better, worse)))


def _two_responses(question: Question, prompt: str, rng: Random, evasive: float) -> tuple[str, str]:
    """Two responses, the better one first, at least `MIN_GOLD_GAP` apart."""
    defects, weights = zip(*WORDS.defects.items(), strict=True)
    while True:
        first, second = _draft(question, CARE[0], rng), None
        if evasive and question.kind == "harmful" and rng.random() < evasive:
            second = help_with(rng.choice([other for other in QUESTIONS if other.kind != "harmful"]), CARE[0], rng)
        elif rng.random() >= MINIMAL_SHARE:
            second = _draft(question, CARE[1], rng)
        while second is None:
            second = spoil(first, rng.choices(defects, weights)[0], question, rng)
        gap = gold_score(prompt, first.text) - gold_score(prompt, second.text)
        if abs(gap) >= MIN_GOLD_GAP:
            return (first.text, second.text) if gap > 0 else (second.text, first.text)
