"""Numbers read from texts alone: ROUGE and distinct-n. No download, no model."""

from __future__ import annotations

from collections.abc import Sequence

from rouge_score import rouge_scorer

from rlhf_utils.data.words import RougeTokenizer, words_of
from rlhf_utils.platforms.errors import InputError

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")


SCORER = rouge_scorer.RougeScorer(list(ROUGE_NAMES), tokenizer=RougeTokenizer())


def rouge_per_sample(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) of each prediction against its one reference.

    Returns `{"rouge1": [...], "rouge2": [...], "rougeL": [...]}`, each of length n, in [0, 1]. For English, words,
    stems and F1 are those of the `rouge_score` package with its stemmer on, which knows words of a-z and 0-9 only; the
    words of other scripts are split as `RougeTokenizer` says. A text without a word scores 0. Raises InputError for
    empty lists, different lengths, or an entry that is not a string.
    """
    check_texts(predictions, references)
    scored = [SCORER.score(wanted, said) for said, wanted in zip(predictions, references, strict=True)]
    return {name: [float(scores[name].fmeasure) for scores in scored] for name in ROUGE_NAMES}


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Plain means over samples of `rouge_per_sample`: `{"rouge1", "rouge2", "rougeL"}`, each in [0, 1]."""
    per_sample = rouge_per_sample(predictions, references)
    return {name: sum(values) / len(values) for name, values in per_sample.items()}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams divided by all words, over all texts together (Li et al. 2016), on the words of
    `words_of`: what stands between spaces, or characters of scripts that have none.

    No n-gram crosses from one text to the next. In [0, 1]; 0.0 when the texts hold no word. It falls as the
    number of texts grows, so compare only models that answered the same prompts. Raises InputError for an
    empty list, an entry that is not a string, or n < 1.
    """
    if n < 1:
        raise InputError(f"n is {n}: distinct-n needs n-grams of at least one word")
    check_list(texts, "texts")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = words_of(text)
        total += len(words)
        seen.update(zip(*(words[i:] for i in range(n)), strict=False))
    return len(seen) / total if total else 0.0


def check_texts(predictions: Sequence[str], references: Sequence[str]) -> None:
    """Raise InputError unless both are non-empty lists of strings of the same length."""
    check_list(predictions, "predictions")
    check_list(references, "references")
    if len(predictions) != len(references):
        raise InputError(
            f"predictions has {len(predictions)} texts and references has {len(references)}: "
            "give exactly one reference for each prediction"
        )


def check_list(texts: Sequence[str], name: str) -> None:
    """Raise InputError unless `texts` is a non-empty list (not one string) of strings."""
    if isinstance(texts, str) or not hasattr(texts, "__len__"):
        raise InputError(f"{name} is {type(texts).__name__}, not a list: pass a list of strings")
    if len(texts) == 0:
        raise InputError(f"{name} is empty: pass at least one text")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"{name}[{position}] is {kind}, not a string: pass a list of strings")
