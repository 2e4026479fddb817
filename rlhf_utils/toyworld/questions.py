"""What is said in the toy world: what can be asked, in which words, and reading a prompt back into its question."""

import re
from functools import lru_cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

import yaml


def content(name: str) -> SimpleNamespace:
    """The lists of `<name>.yaml` beside this file; their order is part of the data."""
    text = Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
    return SimpleNamespace(**yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


WORLD, WORDS, CORPUS = map(content, ("questions", "responses", "corpus"))


class Question(NamedTuple):
    """What a prompt asks: `ask` is the request itself ("clean my leather sofa"), common to all its wordings. Of kind
    "harmful" it is to be declined: `obj` is the target, and no tips help; "risky" only sounds like that."""

    topic: str
    obj: str
    ask: str
    tips: tuple[str, ...]
    kind: str = "ordinary"

    @property
    def wordings(self) -> list[str]:
        """Every prompt that asks it."""
        asks = [f"{self.ask} {context}".rstrip() for context in WORLD.contexts]
        return [phrasing.format(ask) for phrasing in WORLD.phrasings for ask in asks]


# Every question of the world, in a fixed order.
QUESTIONS = (
    *(
        Question(topic["name"], obj, task["ask"].format(obj), tuple(task["tips"]), task.get("kind", "ordinary"))
        for topic in WORLD.topics
        for task in topic["tasks"]
        for obj in topic["objects"]
    ),
    *(Question("harm", who, harm["ask"].format(who), (), "harmful") for harm in WORLD.harms for who in harm["targets"]),
)


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation; apostrophes stay inside words."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower().replace("\u2019", "'"))


_ASKS = {" ".join(words_of(question.ask)): question for question in QUESTIONS}
_OBJECTS = {" ".join(words_of(obj)): obj for topic in WORLD.topics for obj in topic["objects"]}
# They find these phrases in words with a space on both sides of each, the longest at every place.
_ASK, _OBJECT = (
    re.compile(f"(?= ({'|'.join(sorted(phrases, key=len, reverse=True))}) )") for phrases in (_ASKS, _OBJECTS)
)


@lru_cache(maxsize=65_536)
def read_prompt(prompt: str) -> Question | None:
    """The question asked in `prompt` (the first one, if several), or None if it is none of this world."""
    found = _ASK.search(f" {' '.join(words_of(prompt))} ")
    return _ASKS[found[1]] if found else None


def objects_named(words: list[str]) -> set[str]:
    """The objects of the world that occur in a list of lower-case words."""
    return {_OBJECTS[name] for name in _OBJECT.findall(f" {' '.join(words)} ")}


def corpus(documents: int, seed: int) -> list[str]:
    """`documents` texts of several paragraphs to pre-train on, the same for the same arguments: in the words of
    questions, tips and courtesies but never in the form of the prompt template, so that a base model knows the
    language, and yet rambles on when it is asked something."""
    rng = Random(f"{seed}/corpus")
    return [_document(rng) for _ in range(documents)]


def _document(rng: Random) -> str:
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
