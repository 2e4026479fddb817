"""How a set of answers is written: phrases one model uses more than another, and how alike the answers are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from random import Random
from statistics import fmean
from typing import NamedTuple

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from rlhf_utils.data.words import WORD, words_of
from rlhf_utils.evaluation.metrics.assistant import is_refusal, repetition
from rlhf_utils.evaluation.metrics.text import check_list, distinct_n

PHRASE_WORDS = (2, 5)
# A phrase in fewer answers than this says nothing about a model.
LEAST_ANSWERS = 5
SELF_BLEU_SAMPLE = 100


class Phrase(NamedTuple):
    """A phrase with the number of answers that hold it, of `first_total` and `second_total`; `z` is its log-odds
    ratio in standard errors."""

    text: str
    first: int
    second: int
    first_total: int
    second_total: int
    log_odds: float
    z: float

    @property
    def growth(self) -> float:
        """Share of the first answers that hold it less that of the second, -1 to 1."""
        return self.first / self.first_total - self.second / self.second_total


def overused_phrases(first: Sequence[str], second: Sequence[str], most: int = 10) -> list[Phrase]:
    """The phrases of 2 to 5 words that stand in more of the `first` answers than of the `second`, by z.

    Counted once an answer, lower-cased. Log-odds ratio with half a count added to each cell (Haldane 1956; Anscombe
    1956), z by its standard error (Monroe et al. 2008, "Fightin' Words", with a flat prior). Of phrases that share two
    words in a row only the first by z is listed.
    """
    check_list(first, "first")
    check_list(second, "second")
    counts = [Counter(phrase for text in texts for phrase in phrases_of(text)) for texts in (first, second)]
    found = []
    for text, a in counts[0].items():
        b = counts[1][text]
        if a < LEAST_ANSWERS or a / len(first) <= b / len(second):
            continue
        cells = [n + 0.5 for n in (a, len(first) - a, b, len(second) - b)]
        log_odds = math.log(cells[0] / cells[1]) - math.log(cells[2] / cells[3])
        z = log_odds / math.sqrt(sum(1 / cell for cell in cells))
        found.append(Phrase(text, a, b, len(first), len(second), log_odds, z))
    found.sort(key=lambda phrase: (-round(phrase.z, 6), -len(phrase.text), phrase.text))
    kept: list[Phrase] = []
    for phrase in found:
        if not any(_overlap(phrase.text, other.text) for other in kept):
            kept.append(phrase)
        if len(kept) == most:
            break
    return kept


def phrases_of(text: str) -> set[str]:
    """Every phrase of 2 to 5 words (`words_of`) in a text, lower-cased, each once."""
    words = words_of(text.lower())
    low, high = PHRASE_WORDS
    return {" ".join(words[i : i + n]) for n in range(low, high + 1) for i in range(len(words) - n + 1)}


def without_phrase(text: str, phrase: str) -> str:
    """The text with every occurrence of a phrase taken out, whatever its case."""
    words, wanted = list(WORD.finditer(text)), phrase.split()
    kept, i = "", 0
    while i < len(words):
        if [word[0].lower() for word in words[i : i + len(wanted)]] == wanted:
            i += len(wanted)
        else:
            spaced = kept and text[words[i].start() - 1].isspace()
            kept += f" {words[i][0]}" if spaced else words[i][0]
            i += 1
    return kept


def self_bleu(texts: Sequence[str], seed: int = 0) -> float:
    """How alike the answers are, 0 to 1: mean BLEU-4 of each against all others (Zhu et al. 2018), on at most
    `SELF_BLEU_SAMPLE` of them; 0.0 for fewer than two."""
    check_list(texts, "texts")
    sample = list(texts) if len(texts) <= SELF_BLEU_SAMPLE else Random(seed).sample(list(texts), SELF_BLEU_SAMPLE)
    words = [words_of(text.lower()) for text in sample if text.strip()]
    if len(words) < 2:
        return 0.0
    smooth = SmoothingFunction().method1
    return fmean(
        sentence_bleu(words[:i] + words[i + 1 :], row, smoothing_function=smooth) for i, row in enumerate(words)
    )


def style_of(texts: Sequence[str], ended: Sequence[bool]) -> dict[str, float]:
    """Length in words, repetition, distinct-1 and -2, self-BLEU, share that ends by itself, share that declines."""
    return {
        "words": fmean(len(words_of(text)) for text in texts),
        "repetition": fmean(repetition(text) for text in texts),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": self_bleu(texts),
        "eos_rate": fmean(ended),
        "refusal_rate": fmean(is_refusal(text) for text in texts),
    }


def _overlap(one: str, other: str) -> bool:
    """Whether two phrases share two words in a row, and so are mostly one phrase counted twice."""
    pairs = [set(zip(words, words[1:], strict=False)) for words in (one.split(), other.split())]
    return bool(pairs[0] & pairs[1])
