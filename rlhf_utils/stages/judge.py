"""Who judges beside the reward model: the gold preference, from which no model learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhf_utils.recipes import Recipe
from rlhf_utils.settings import EMBEDDED

Judge = Callable[[Sequence[str], Sequence[str]], list[float]]


def gold_judge(recipe: Recipe) -> Judge | None:
    """The judge that no model was trained on: the embedded world's written-down preference; None for other data."""
    if recipe.dataset != EMBEDDED:
        return None
    from rlhf_utils.toyworld import gold_score

    return lambda prompts, responses: [gold_score(p, r).total for p, r in zip(prompts, responses, strict=True)]
