"""How text is split into words, in any script."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from rouge_score import tokenizers

# Thai, Lao, Myanmar, Khmer, Japanese kana and Han: written without spaces, so that each character stands for a word.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
# Their vowels and tones above and below, which belong to the character before.
_MARKS = "".join(
    char
    for char in map(chr, (*range(0xE00, 0xF00), *range(0x1000, 0x10A0), *range(0x1780, 0x1800), 0x3099, 0x309A))
    if unicodedata.category(char).startswith("M")
)
WORD = re.compile(rf"[{_SPACELESS}][{_MARKS}]*|[^\s{_SPACELESS}]+")
# Between the letters of a word in Persian and in scripts of India.
_JOINERS = "\u200c\u200d"


def words_of(text: str) -> list[str]:
    """What stands between spaces, and each character of scripts without them (Han, kana, Thai, Lao, Khmer, Burmese)."""
    return WORD.findall(text)


class RougeTokenizer(tokenizers.Tokenizer):
    """Words for ROUGE: English ones as in `rouge_score` itself with its stemmer on, and those of every other script.

    Lower case; a word is a run of letters, their marks and digits; each character of a script without spaces is one.
    Words of a-z and 0-9 are stemmed (Porter 1980). Each word is remembered: stemming is most of the cost of ROUGE.
    """

    def __init__(self):
        self._english = tokenizers.DefaultTokenizer(use_stemmer=True)
        self._words = lru_cache(maxsize=200_000)(self._split)

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`, in their order."""
        return [word for chunk in words_of(text) for word in self._words(chunk)]

    def _split(self, chunk: str) -> list[str]:
        if chunk.isascii():
            return self._english.tokenize(chunk)
        words = "".join(map(_letter, unicodedata.normalize("NFC", chunk.lower()))).split()
        return [
            word
            for found in words
            for word in (self._english.tokenize(found) if found.isascii() else [found])
            if any(map(str.isalnum, word))
        ]


def _letter(char: str) -> str:
    """`char` where it is part of a word, nothing where it joins two parts of one, else a space."""
    kind = unicodedata.category(char)
    return char if kind[0] in "LM" or kind == "Nd" else "" if char in _JOINERS else " "
