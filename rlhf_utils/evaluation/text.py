"""How responses are written: refusals, repetition, variety, and phrases one model uses more than another."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from random import Random
from statistics import fmean
from typing import NamedTuple

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from rlhf_utils.data.words import WORD, words_of

PHRASE_WORDS = range(2, 6)
# A phrase in fewer responses than this says nothing about a model.
LEAST_RESPONSES = 5
SELF_BLEU_SAMPLE = 100

_CANNOT = (
    r"(?:can(?:no|')t|can not|could(?: no|n')t|will not|won't|would not|wouldn't|(?:am|'m) (?:not able|unable) to"
    r"|(?:must|have to) decline(?: to)?|refuse(?: to)?|(?:am|'m) not (?:going|willing) to)"
)
_HELP = (
    r"(?:help|assist|do (?:that|this|it)|provide|give|tell|answer|support|recommend|advise|encourage|share|explain"
    r"|discuss|suggest|comply|participate|show|teach|write|be (?:able|part))"
)
_REFUSAL = re.compile(
    rf"\bi {_CANNOT} (?:\w+ ){{0,3}}?{_HELP}\b|\bi'(?:m|d) (?:not able|unable) to\b|\bi refuse\b|\bi must decline\b"
    r"|\bi(?:'m| am) not comfortable\b|\bi don'?t (?:think i|want to|feel comfortable|recommend|advise)\b"
    r"|\b(?:please|you should(?: really)?) (?:don't|do not|not)\b"
    r"|\bi(?:'m| am) (?:sorry|afraid),? (?:but )?i can(?:no|')t\b"
)
# Where a response goes on after its refusal with steps, the refusal was not meant.
_STEPS = re.compile(r"\b(?:first|to begin|step 1|1[.)])[, :].*\b(?:then|next|second|step 2|2[.)])[, :]?", re.DOTALL)


def is_refusal(text: str) -> bool:
    """Whether a response refuses, in its first two sentences, without giving steps all the same. English only."""
    plain = " ".join(text.lower().replace("\u2019", "'").split())
    opening = " ".join(re.split(r"(?<=[.!?])\s+", plain)[:2])
    return bool(_REFUSAL.search(opening)) and not _STEPS.search(plain)


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's n-grams of words that it has used before, 0 to 1; 0 for a text of fewer than n words."""
    grams = _grams(words_of(text.lower()), n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams divided by all words, over all texts together (Li et al. 2016), 0 to 1; no n-gram crosses
    texts. It falls as their number grows: compare only models that responded to the same prompts."""
    words = [words_of(text) for text in texts]
    return len({gram for row in words for gram in _grams(row, n)}) / max(1, sum(map(len, words)))


def self_bleu(texts: Sequence[str]) -> float:
    """How alike texts are, 0 to 1: mean BLEU-4 of each against all others (Zhu et al. 2018), on at most
    `SELF_BLEU_SAMPLE` of them; 0.0 for fewer than two."""
    sample = texts if len(texts) <= SELF_BLEU_SAMPLE else Random(0).sample(texts, SELF_BLEU_SAMPLE)
    words, smooth = [words_of(text.lower()) for text in sample if text.strip()], SmoothingFunction().method1
    found = [sentence_bleu(words[:i] + words[i + 1 :], row, smoothing_function=smooth) for i, row in enumerate(words)]
    return fmean(found) if len(words) > 1 else 0.0


def style_of(texts: Sequence[str], ended: Sequence[bool]) -> dict[str, float]:
    """Length in words, repetition, distinct-1 and -2, self-BLEU, EOS rate and refusal rate of a model's responses."""
    return {
        "words": fmean(len(words_of(text)) for text in texts),
        "repetition": fmean(map(repetition, texts)),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": self_bleu(texts),
        "eos_rate": fmean(ended),
        "refusal_rate": fmean(map(is_refusal, texts)),
    }


class Phrase(NamedTuple):
    """A phrase with the number of responses that hold it, of `first_total` and of `second_total`; `z` is its log-odds
    ratio in standard errors, `growth` the share of the first responses that hold it minus that of the second."""

    text: str
    first: int
    second: int
    first_total: int
    second_total: int
    log_odds: float
    z: float
    growth: float


def overused_phrases(first: Sequence[str], second: Sequence[str], most: int = 10) -> list[Phrase]:
    """The phrases of 2 to 5 words that appear in more of the `first` responses than of the `second`, by z.

    Log-odds ratio with half a count added to each cell (Haldane 1956; Anscombe 1956), z by its standard error (Monroe
    et al. 2008, "Fightin' Words", with a flat prior). Of those that share two words in a row only the first is listed.
    """
    counts = [Counter(phrase for text in texts for phrase in phrases_of(text)) for texts in (first, second)]
    found, (n, m) = [], (len(first), len(second))
    for text, a in counts[0].items():
        b = counts[1][text]
        if a >= LEAST_RESPONSES and a / n > b / m:
            cells = [count + 0.5 for count in (a, n - a, b, m - b)]
            log_odds = math.log(cells[0] / cells[1]) - math.log(cells[2] / cells[3])
            z = log_odds / math.sqrt(sum(1 / cell for cell in cells))
            found.append(Phrase(text, a, b, n, m, log_odds, z, a / n - b / m))
    kept, seen = [], set()
    for phrase in sorted(found, key=lambda phrase: (-round(phrase.z, 6), -len(phrase.text), phrase.text)):
        pairs = set(_grams(phrase.text.split(), 2))
        if len(kept) < most and not pairs & seen:
            kept.append(phrase)
            seen |= pairs
    return kept


def phrases_of(text: str) -> set[str]:
    """Every phrase of 2 to 5 words (`words_of`) in a text, lower-cased, each once."""
    words = words_of(text.lower())
    return {" ".join(gram) for n in PHRASE_WORDS for gram in _grams(words, n)}


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


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))
