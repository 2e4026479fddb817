"""The embedded worlds by name: one for each recipe, with rows in the schema of its hub dataset and a gold judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlhf_utils.toyworld.corpus import corpus
from rlhf_utils.toyworld.eli5 import eli5_rows
from rlhf_utils.toyworld.gold import gold_score
from rlhf_utils.toyworld.helpful_harmless import helpful_harmless_rows, sensitive_prompts
from rlhf_utils.toyworld.imdb import imdb_rows, review_corpus, sentiment
from rlhf_utils.toyworld.instruct import instruct_rows


@dataclass(frozen=True)
class World:
    """rows: `(split, n, seed, label_noise)` -> rows of "train" or "test"; gold: `(prompt, response)` -> 0 to 10;
    corpus: `(documents, seed)` -> texts to pre-train on; prompts: `seed` -> prompts with `unsafe` flags, if it has some.
    """

    rows: Callable[[str, int, int, float], list[dict]]
    gold: Callable[[str, str], float]
    corpus: Callable[[int, int], list[str]]
    prompts: Callable[[int], list[dict]] | None = None


def _total(prompt: str, response: str) -> float:
    return gold_score(prompt, response).total


WORLDS = {
    "instruct": World(instruct_rows, _total, corpus),
    "helpful_harmless": World(helpful_harmless_rows, _total, corpus, sensitive_prompts),
    "imdb": World(imdb_rows, sentiment, review_corpus),
    "eli5": World(eli5_rows, _total, corpus),
}
