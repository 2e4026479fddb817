"""How text is split into words, in any script."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex
from rouge_score import tokenizers

# Written without spaces, so each character, with its vowels and tones above and below, stands for a word.
_SPACELESS = r"\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}\p{Hiragana}\p{Katakana}\p{Han}ー\uff70"
WORD = regex.compile(rf"[{_SPACELESS}]\p{{M}}*|[^\s{_SPACELESS}]+")
_LETTERS = regex.compile(r"\p{M}*[\p{L}\p{Nd}][\p{L}\p{M}\p{Nd}]*")
_JOINERS = dict.fromkeys(map(ord, "\u200c\u200d"))  # between the letters of a word in Persian and scripts of India


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
        found = _LETTERS.findall(unicodedata.normalize("NFC", chunk.lower().translate(_JOINERS)))
        return [part for word in found for part in (self._english.tokenize(word) if word.isascii() else [word])]
