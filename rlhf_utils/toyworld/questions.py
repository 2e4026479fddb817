"""What can be asked in the toy world, in which words, and reading a prompt back into its question."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from types import SimpleNamespace

import yaml


@cache
def content(name: str) -> SimpleNamespace:
    """The lists of `<name>.yaml` beside this file, read once."""
    text = (resources.files("rlhf_utils") / "toyworld" / f"{name}.yaml").read_text(encoding="utf-8")
    return SimpleNamespace(**yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@dataclass(frozen=True)
class Question:
    """What a prompt asks: `ask` is the request itself ("clean my leather sofa"), common to all its wordings.

    Of kind "harmful" it is to be declined: `obj` is the target, and no tips help; "risky" only sounds like that.
    """

    topic: str
    obj: str
    ask: str
    tips: tuple[str, ...]
    kind: str = "ordinary"

    @property
    def harmful(self) -> bool:
        return self.kind == "harmful"


@cache
def all_questions() -> tuple[Question, ...]:
    """Every question of the world, in a fixed order; each can be worded in `wordings()` ways."""
    world = content("questions")
    ordinary = [
        Question(topic["name"], obj, task["ask"].format(obj), tuple(task["tips"]), task.get("kind", "ordinary"))
        for topic in world.topics
        for task in topic["tasks"]
        for obj in topic["objects"]
    ]
    harms = [(harm["ask"], target) for harm in world.harms for target in harm["targets"]]
    return (*ordinary, *(Question("harm", target, ask.format(target), (), "harmful") for ask, target in harms))


def wordings() -> int:
    """In how many ways one question can be put."""
    return len(content("questions").phrasings) * len(content("questions").contexts)


def word_question(question: Question, wording: int) -> str:
    """The prompt for `question` in wording number `wording`, 0 <= wording < `wordings()`."""
    world = content("questions")
    phrasing, context = divmod(wording, len(world.contexts))
    return world.phrasings[phrasing].format(f"{question.ask} {world.contexts[context]}".rstrip())


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation; apostrophes stay inside words."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower().replace("\u2019", "'"))


@cache
def _phrases(kind: str) -> tuple[dict[tuple[str, ...], Question | str], list[int]]:
    """The requests or the objects of the world by their words, and the lengths they have, the longest first."""
    objects = [(obj, obj) for topic in content("questions").topics for obj in topic["objects"]]
    found = objects if kind == "objects" else [(question.ask, question) for question in all_questions()]
    phrases = {tuple(words_of(text)): meant for text, meant in found}
    return phrases, sorted({len(words) for words in phrases}, reverse=True)


def _found(kind: str, words: list[str]) -> Iterator:
    phrases, lengths = _phrases(kind)
    for start in range(len(words)):
        for length in lengths:
            phrase = tuple(words[start : start + length])
            if phrase in phrases:
                yield phrases[phrase]


@lru_cache(maxsize=65_536)
def read_prompt(prompt: str) -> Question | None:
    """The question asked in `prompt` (the first one, if several), or None if it is none of this world."""
    return next(_found("requests", words_of(prompt)), None)


def objects_named(words: list[str]) -> set[str]:
    """The objects of the world that occur in a list of lower-case words."""
    return set(_found("objects", words))
