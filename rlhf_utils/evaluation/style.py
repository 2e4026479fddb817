"""How responses are written: phrases one model uses more than another, repetition, variety, refusals, and edits."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from statistics import fmean

import numpy as np

from rlhf_utils.data.tokens import WORD, ngrams, words_of

LEAST = 5
"""In fewer responses than this a phrase is not listed."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
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
    grams = ngrams(words_of(text.lower()), n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams divided by all words, over all texts together (Li et al. 2016), 0 to 1; no n-gram crosses
    texts. It falls as their number grows: compare only models that responded to the same prompts."""
    words = [words_of(text) for text in texts]
    return len({gram for row in words for gram in ngrams(row, n)}) / max(1, sum(map(len, words)))


def style_of(texts: Sequence[str], ended: Sequence[bool]) -> dict[str, float]:
    """Length in words, repetition, distinct-1 and -2, EOS rate and refusal rate of a model's responses."""
    return {
        "words": fmean(len(words_of(text)) for text in texts),
        "repetition": fmean(map(repetition, texts)),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "eos_rate": fmean(ended),
        "refusal_rate": fmean(map(is_refusal, texts)),
    }


def overused_phrases(
    first: Sequence[str], second: Sequence[str], most: int = 10, longest: int = 5, shortest: int = 2
) -> list[dict]:
    """The phrases of `shortest` to `longest` words that appear in more of the `first` responses than of the `second`,
    by `z`: `text`, `first` of `first_total` and `second` of `second_total` responses, `log_odds`, `z`, and `growth` of
    the share.

    Log-odds ratio with half a count added to each cell (Haldane 1956; Anscombe 1956), z by its standard error (Monroe
    et al. 2008, "Fightin' Words", with a flat prior). Of those that share two words in a row only the first is listed.
    """
    of = partial(phrases_of, longest=longest, shortest=shortest)
    counts = [Counter(phrase for text in texts for phrase in of(text)) for texts in (first, second)]
    found, kept, seen, n, m = [], [], set(), len(first), len(second)
    for text, a in counts[0].items():
        b = counts[1][text]
        if a >= LEAST and a / n > b / m:
            cells = [count + 0.5 for count in (a, n - a, b, m - b)]
            odds = math.log(cells[0] / cells[1]) - math.log(cells[2] / cells[3])
            z = odds / math.sqrt(sum(1 / cell for cell in cells))
            phrase = {"text": text, "first": a, "second": b, "first_total": n, "second_total": m}
            found.append({**phrase, "log_odds": odds, "z": z, "growth": a / n - b / m})
    for phrase in sorted(found, key=lambda phrase: (-round(phrase["z"], 6), -len(phrase["text"]), phrase["text"])):
        pairs = set(ngrams(phrase["text"].split(), 2))
        if len(kept) < most and not pairs & seen:
            kept.append(phrase)
            seen |= pairs
    return kept


@lru_cache(maxsize=65_536)
def phrases_of(text: str, longest: int = 5, shortest: int = 2) -> frozenset[str]:
    """Every phrase of so many words (`words_of`) in a text, lower-cased, each once; none reaches over a sentence."""
    rows, lengths = [words_of(part) for part in sentences_of(text.lower())], range(shortest, longest + 1)
    return frozenset(" ".join(gram) for words in rows for n in lengths for gram in ngrams(words, n))


def without_phrase(text: str, phrase: str) -> str:
    """The text with every occurrence of a phrase taken out, whatever its case."""
    words, wanted, kept, skip = list(WORD.finditer(text)), phrase.split(), "", 0
    for i, word in enumerate(words):
        if not skip and [near[0].lower() for near in words[i : i + len(wanted)]] == wanted:
            skip = len(wanted)
        if skip:
            skip -= 1
        else:
            kept += " " * bool(kept and text[word.start() - 1].isspace()) + word[0]
    return kept


@lru_cache(maxsize=65_536)
def sentences_of(text: str) -> tuple[str, ...]:
    """The sentences and lines of a text, in their order; a text without punctuation is one."""
    return tuple(part.strip() for part in _SENTENCE.split(text) if part.strip())


def with_replaced(text: str, other: str, wanted: Callable[[str], bool]) -> str:
    """The text with its `wanted` sentences replaced by what stands there in `other`: where the first or the last one
    goes, that of `other` comes, unless it is wanted or there already. A text of which nothing is left becomes `other`.
    What stays is made of whole sentences, so no reward falls because of broken text."""
    said, spare = _spaced(text), [part for part in sentences_of(other) if not wanted(part)]
    kept = [(gap, part) for gap, part in said if not wanted(part)]
    if len(kept) == len(said):
        return text
    if spare and kept and wanted(said[0][1]) and spare[0] not in [part for _, part in kept]:
        kept = [("", spare[0]), (kept[0][0] or " ", kept[0][1]), *kept[1:]]
    if spare and kept and wanted(said[-1][1]) and spare[-1] not in [part for _, part in kept]:
        kept.append((said[-1][0] or " ", spare[-1]))
    return "".join(gap + part for gap, part in kept).strip() or " ".join(spare)


def without_repeats(text: str) -> str:
    """The text without sentences of which most pairs of words were said before in it, and without loops of words; its
    line breaks stay."""
    kept, seen = "", set()
    for gap, part in _spaced(text):
        words = words_of(part)
        keys = ngrams(words_of(part.lower()), 2) or [tuple(words_of(part.lower()))]
        if sum(key in seen for key in keys) <= len(keys) / 2:
            fresh = [True] + [key not in keys[:i] for i, key in enumerate(keys)]
            kept += gap
            kept += part if all(fresh) else " ".join(word for word, new in zip(words, fresh, strict=False) if new)
        seen |= set(keys)
    return kept.strip()


def _spaced(text: str) -> list[tuple[str, str]]:
    """Each sentence of a text after the space or line breaks that stand before it."""
    found, end = [], 0
    for part in sentences_of(text):
        start = text.index(part, end)
        found.append((text[end:start], part))
        end = start + len(part)
    return found


def is_copied(sentence: str, prompt: str, n: int = 3) -> bool:
    """Whether most runs of n words of a sentence stand in the prompt."""
    grams, known = ngrams(words_of(sentence.lower()), n), set(ngrams(words_of(prompt.lower()), n))
    return bool(grams) and sum(gram in known for gram in grams) > len(grams) / 2


def in_a_crowd(texts: Sequence[str], alike: float = 0.7, share: float = 0.1) -> list[float]:
    """1 for each text that is nearly the same as at least `share` of the other ones, else 0: nearly the same are two
    texts whose sets of word pairs have a Jaccard index (Jaccard 1901) of `alike` or more. Mode collapse shows here."""
    pairs = [set(ngrams(words_of(text.lower()), 2)) or {text.lower().strip()} for text in texts]
    column = {pair: i for i, pair in enumerate(dict.fromkeys(pair for row in pairs for pair in row))}
    holds = np.zeros((len(texts), len(column)), dtype=np.float32)
    for row, found in zip(holds, pairs, strict=True):
        row[[column[pair] for pair in found]] = 1.0
    common, sizes = holds @ holds.T, holds.sum(axis=1)
    twins = (common >= alike * (sizes[:, None] + sizes - common)).sum(axis=1) - 1
    return (twins >= max(1.0, share * (len(texts) - 1))).astype(float).tolist()
