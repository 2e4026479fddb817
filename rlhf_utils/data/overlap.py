"""Near-duplicates between training and evaluation prompts: word n-grams in common, counted exactly."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_utils.data.prepared import PreparedData, prompt_key
from rlhf_utils.data.tokens import ngrams, words_of

WORDS = 5  # of an n-gram; a shorter prompt is one n-gram
NEAR = 0.5  # the share of a prompt's n-grams from which on another prompt is its near-duplicate
LEARNED = ("sft", "reward", "ppo")


class Closest(NamedTuple):
    """The prompt of another list that shares most n-grams with `prompt`: its text (None where none shares any), and the
    share of the n-grams of `prompt` that occur in it, 0 to 1."""

    prompt: str
    other: str | None
    share: float


def closest(prompts: Sequence[str], others: Sequence[str]) -> list[Closest]:
    """For each of `prompts` the closest one of `others`, the first of equals; letter case does not count."""
    wanted, grams = defaultdict(list), [_grams(prompt) for prompt in prompts]
    for place, found in enumerate(grams):
        for gram in found:
            wanted[gram].append(place)
    sizes, best = {len(gram) for gram in wanted}, [Closest(prompt, None, 0.0) for prompt in prompts]
    for other in others:
        known = {gram for size in sizes for gram in _grams(other, size)}
        for place, count in Counter(place for gram in known for place in wanted.get(gram, ())).items():
            if (share := count / len(grams[place])) > best[place].share:
                best[place] = Closest(prompts[place], other, share)
    return best


def near_duplicates(data: PreparedData, prompts: Sequence[str]) -> dict[str, dict]:
    """For each split that a stage learns from, how many of the evaluation `prompts` have a near-duplicate in it."""
    counts = {}
    for name in LEARNED:
        count = sum(found.share >= NEAR for found in closest(prompts, data.splits[name]["prompt"]))
        counts[name] = {"prompts": count, "share": count / len(prompts)}
    return counts


def _grams(prompt: str, size: int | None = None) -> set[tuple[str, ...]]:
    """The n-grams of `size` words, by default `WORDS`, or all of them where there are fewer."""
    words = words_of(prompt_key(prompt))
    return {*ngrams(words, size or min(WORDS, len(words)))}
