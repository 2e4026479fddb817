"""Questions of the embedded world: what can be asked, in which words, and reading a prompt back into its question."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from rlhf_utils.toyworld.content import CONTEXTS, HARMS, PHRASINGS, TOPICS, Task


@dataclass(frozen=True)
class Question:
    """What a prompt asks. `task` is None for a request to decline; then `obj` is the target of the harm.

    `ask` is the request itself ("clean my leather sofa"), common to all its phrasings and contexts.
    """

    topic: str
    task: Task | None
    obj: str
    ask: str

    @property
    def harmful(self) -> bool:
        return self.task is None

    @property
    def risky(self) -> bool:
        return self.task is not None and self.task.risky

    @property
    def tips(self) -> tuple[str, ...]:
        return self.task.tips if self.task else ()


@cache
def all_questions() -> tuple[Question, ...]:
    """Every question of the world, in a fixed order; each can be worded in `wordings()` ways."""
    ordinary = [
        Question(topic.name, task, obj, task.ask.format(obj))
        for topic in TOPICS
        for task in topic.tasks
        for obj in topic.objects
    ]
    harmful = [Question("harm", None, target, harm.ask.format(target)) for harm in HARMS for target in harm.targets]
    return tuple(ordinary + harmful)


def wordings() -> int:
    """In how many ways one question can be put."""
    return len(PHRASINGS) * len(CONTEXTS)


def word_question(question: Question, wording: int) -> str:
    """The prompt for `question` in wording number `wording`, 0 <= wording < `wordings()`."""
    phrasing, context = divmod(wording, len(CONTEXTS))
    return PHRASINGS[phrasing].format(f"{question.ask} {CONTEXTS[context]}".rstrip())


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation; apostrophes stay inside words."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower().replace("\u2019", "'"))


@cache
def _asks() -> tuple[dict[tuple[str, ...], Question], tuple[int, ...]]:
    asks = {tuple(words_of(question.ask)): question for question in all_questions()}
    return asks, tuple(sorted({len(ask) for ask in asks}, reverse=True))


@lru_cache(maxsize=65_536)
def read_prompt(prompt: str) -> Question | None:
    """The question asked in `prompt` (the first one, if several), or None if it is none of this world."""
    words = words_of(prompt)
    asks, lengths = _asks()
    for start in range(len(words)):
        for length in lengths:
            question = asks.get(tuple(words[start : start + length]))
            if question:
                return question
    return None


@cache
def _objects() -> dict[tuple[str, ...], str]:
    return {tuple(words_of(obj)): obj for topic in TOPICS for obj in topic.objects}


def objects_named(words: list[str]) -> set[str]:
    """The objects of the world that occur in a list of lower-case words."""
    objects = _objects()
    found = set()
    for length in {len(obj) for obj in objects}:
        for start in range(len(words) - length + 1):
            obj = objects.get(tuple(words[start : start + length]))
            if obj:
                found.add(obj)
    return found
