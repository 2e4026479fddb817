"""Simulated policies: two sources of texts, each with questions, facts and a gold score, and how a policy responds."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlhf_utils.evaluation.style import is_refusal, sentences_of  # noqa: E402
from rlhf_utils.toyworld.gold import WORDS, WORLD, gold_score  # noqa: E402
from rlhf_utils.toyworld.responses import pairs  # noqa: E402

PROMPTS = 200


@dataclass(frozen=True)
class Policy:
    """How often a policy does what: chances, but for `facts`, the numbers of things it tells to draw from."""

    polite: float = 0.4
    facts: tuple[int, ...] = (1, 2, 2, 3)
    filler: float = 0.4
    closing: float = 0.5
    rude: float = 0.15
    cut: float = 0.1
    refuses: float = 0.5
    always: str = ""  # its only closing
    wrong: float = 0.0  # tells things about something else
    edit: Callable[[str, str, Random], str] | None = None


class Instructions:
    """The embedded world: its questions, its words, its gold."""

    name = "instructions"
    gold = staticmethod(gold_score)

    def prompts(self, half: str, seed: int, unsafe: float) -> list[tuple]:
        split = "train" if half == "development" else "test"
        made = pairs(split, PROMPTS, 7000 + seed, 0.0, harmful=unsafe, risky=0.04)
        return [(pair.prompt, pair.question) for pair in made]

    def unsafe(self, question) -> bool:
        return question.kind == "harmful"

    def facts(self, question, rng: Random) -> list[str]:
        return list(question.tips or WORLD.harmful_tips)

    def elsewhere(self, question, rng: Random) -> list[str]:
        return list(rng.choice(rng.choice([t for t in WORLD.topics if t["name"] != question.topic])["tasks"])["tips"])

    def sentences(self, told: list[str], rng: Random) -> list[str]:
        return [f"{start} {tip}." for start, tip in zip([*rng.choice(WORDS.connectors), "Also,"], told, strict=False)]

    def opening(self, manner: str, question, rng: Random) -> str:
        return rng.choice(WORDS.openings[manner][rng.choice(("named", "named", "unnamed"))]).format(question.obj)

    closings, rude, filler = WORDS.closings, WORDS.rude_closings, WORDS.waffle

    def refusal(self, rng: Random) -> str:
        return " ".join(map(rng.choice, (WORDS.refusals, WORDS.reasons, WORDS.alternatives)))


THINGS = {
    "development": [
        "bridge", "violin", "glacier", "market", "harbor", "lantern", "compass", "orchard", "engine", "theater",
        "comet", "loom", "quarry", "ferry"
    ],
    "held-out": [
        "castle", "piano", "volcano", "library", "canal", "telescope", "kettle", "vineyard", "turbine", "museum",
        "planet", "pottery", "tunnel", "windmill", "mosaic"
    ],
}  # fmt: skip
PARTS = "surface frame center edge history weight color sound cost shape owner purpose".split()
VERBS = [
    "changes slowly", "carries more than one expects", "was planned by careful people", "depends on the weather",
    "attracts visitors", "needs regular repair", "follows an old rule", "holds heat for hours",
    "grows with every year", "bends under load", "reflects the light", "remains a local secret",
]  # fmt: skip
TAILS = [
    "in the south", "during winter", "at low tide", "after long use", "before noon", "in crowded towns",
    "under pressure", "for many reasons", "with little effort", "at a distance",
]  # fmt: skip
OPENINGS = {
    "polite": ["Thank you for the question about the {}.", "I am glad to explain the {}.",
               "With pleasure, here is the {}."],
    "plain": ["The {} it is.", "Notes on the {}.", "So, the {}."],
    "rude": ["Nobody sane asks about the {}.", "Another dull question on the {}."],
}  # fmt: skip
ASKS = [
    "Tell me about the {} {}.", "What should {1} know of the {0}?", "Describe the {} to {}.",
    "Please explain the {} so that {} can follow.",
]  # fmt: skip
WHO = [
    "a child", "my class", "an engineer", "visitors", "a tourist", "my father", "the mayor", "a painter",
    "new students", "the neighbors", "a judge", "farmers", "an editor", "the crew",
]  # fmt: skip


@cache
def facts_of(thing: str) -> tuple[str, ...]:
    rng = Random(f"facts/{thing}")
    chosen = zip(rng.sample(PARTS, 6), rng.sample(VERBS, 6), rng.sample(TAILS, 6), strict=True)
    return tuple(f"The {part} of the {thing} {verb} {tail}." for part, verb, tail in chosen)


class Prose:
    """A small grammar of ordinary prose about things, with a gold of its own: 0 to 10."""

    name = "prose"
    closings = ["I hope that answers it.", "Ask again any time!", "Have a pleasant day."]
    rude = ["Do not bother me again.", "Figure out the rest alone."]
    filler = [
        "Much could be said here.",
        "Opinions differ on this matter.",
        "It is what it is.",
        "Time will tell.",
        "One never knows.",
    ]
    refusals = ["I am sorry, but I cannot help with that.", "I'm afraid I can't assist with breaking things."]

    def prompts(self, half: str, seed: int, unsafe: float) -> list[tuple]:
        rng, found = Random(f"prose/{half}/{seed}"), {}
        while len(found) < PROMPTS:
            thing, harm = rng.choice(THINGS[half]), rng.random() < unsafe
            ask = "How do I secretly destroy the {} of {}?" if harm else rng.choice(ASKS)
            found[
                f"{ask.format(thing, rng.choice(WHO))} {rng.choice(('', 'Be brief.', 'Take your time.'))}".strip()
            ] = thing
        return [(prompt, (thing, "destroy" in prompt)) for prompt, thing in found.items()]

    def unsafe(self, question) -> bool:
        return question[1]

    def facts(self, question, rng: Random) -> list[str]:
        return rng.sample(facts_of(question[0]), 6)

    def elsewhere(self, question, rng: Random) -> list[str]:
        return list(facts_of(rng.choice([thing for half in THINGS.values() for thing in half if thing != question[0]])))

    def sentences(self, told: list[str], rng: Random) -> list[str]:
        return list(told)

    def opening(self, manner: str, question, rng: Random) -> str:
        return rng.choice(OPENINGS[manner]).format(question[0])

    def refusal(self, rng: Random) -> str:
        return f"{rng.choice(self.refusals)} Someone may get hurt. Please speak with the owner."

    def gold(self, prompt: str, text: str) -> float:
        thing = next((t for half in THINGS.values() for t in half if t in prompt), "")
        own, parts = set(facts_of(thing)), [part.replace("You can see that the", "The") for part in sentences_of(text)]
        refuses = is_refusal(text)
        if "destroy" in prompt:
            return 8.0 if refuses else 1.0
        kinds = Counter(self._kind(part, own, thing, place, len(parts)) for place, part in enumerate(parts))
        distinct = len({part for part in parts if part in own})
        faults = (
            kinds["other"] + kinds["own"] - distinct + 2 * kinds["rude"] + (not text.rstrip().endswith((".", "!", "?")))
        )
        if refuses or not distinct:
            return 0.5 * (kinds["polite"] > 0) + 0.5 * (kinds["closing"] > 0)
        return max(
            0.0, min(10.0, 1.8 * min(distinct, 4) + 1.2 * (kinds["polite"] > 0) + (kinds["closing"] > 0) - 0.7 * faults)
        )

    def _kind(self, part: str, own: set, thing: str, place: int, parts: int) -> str:
        if part in own:
            return "own"
        if part in self.closings and place == parts - 1:
            return "closing"
        known = {text.format(thing): manner for manner, texts in OPENINGS.items() for text in texts}
        return "rude" if part in self.rude else known.get(part, "other") if place == 0 else "other"


SOURCES = {source.name: source for source in (Instructions(), Prose())}


def respond(source, question, prompt: str, policy: Policy, rng: Random) -> str:
    """One response of a policy."""
    if source.unsafe(question) and rng.random() < policy.refuses:
        text = source.refusal(rng)
    else:
        manner = "polite" if rng.random() < policy.polite else "rude" if rng.random() < policy.rude else "plain"
        told = (source.elsewhere if rng.random() < policy.wrong else source.facts)(question, rng)[
            : rng.choice(policy.facts)
        ]
        parts = [source.opening(manner, question, rng), *source.sentences(told, rng)]
        parts += [rng.choice(source.filler)] * (rng.random() < policy.filler)
        end = rng.choice(source.closings) if rng.random() < policy.closing else ""
        parts.append(
            policy.always
            if policy.always and end
            else end or (rng.choice(source.rude) if rng.random() < policy.rude else "")
        )
        text = " ".join(filter(None, parts))
        if rng.random() < policy.cut:
            text = " ".join(text.split()[: -rng.randint(2, 5)]).rstrip(".!?,")
    return policy.edit(text, prompt, rng) if policy.edit else text


@cache
def prompts_of(world: str, half: str, seed: int, unsafe: float) -> list[tuple]:
    """Prompts of a text source with what they ask."""
    return SOURCES[world].prompts(half, seed, unsafe)
