"""Text as token ids (of a tokenizer of transformers) and as words: every stage sees the same tokens of the same text.

Two things differ between tokenizers. Some put a token first (Llama, OPT) or around a text (BERT); SFT, reward model,
PPO, and evaluation have to agree on it. And a text that continues another one is not tokenized as it is alone:
SentencePiece reads " answer" alone as two spaces, and decodes a first token without its space.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import regex

from rlhf_utils.platforms.errors import InputError

Tokens = list[int]

# Written without spaces, so each character, with its vowels and tones above and below, stands for a word.
_SPACELESS = r"\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}\p{Hiragana}\p{Katakana}\p{Han}ー\uff70"
WORD = regex.compile(rf"[{_SPACELESS}]\p{{M}}*|[^\s{_SPACELESS}]+")
_LETTERS = regex.compile(r"\p{M}*[\p{L}\p{Nd}][\p{L}\p{M}\p{Nd}]*")
_JOINERS = dict.fromkeys(map(ord, "\u200c\u200d"))  # between the letters of a word in Persian and scripts of India


def special_tokens(tokenizer) -> tuple[Tokens, Tokens]:
    """What `tokenizer` puts before and after a text: nothing for GPT-2, BOS for Llama, CLS and SEP for BERT."""
    (bare,), (whole,) = _bare(tokenizer, ["a"]), _bare(tokenizer, ["a"], special=True)
    first = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)
    return whole[:first], whole[first + len(bare) :]


def start_tokens(tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Token ids of texts that a language model continues: the tokenizer's BOS first, once, and no EOS."""
    return _begun(tokenizer, _bare(tokenizer, texts))


def continued_tokens(tokenizer, starts: Sequence[str], ends: Sequence[str]) -> list[tuple[Tokens, Tokens]]:
    """Token ids of each start, as in `start_tokens`, and those of the end that continues it. The boundary is one of
    tokens, since a model that samples has seen the start alone."""
    heads = _bare(tokenizer, starts)
    wholes = _bare(tokenizer, [start + end for start, end in zip(starts, ends, strict=True)])
    return [
        (begun, whole[len(head) :] if whole[: len(head)] == head else _apart(tokenizer, end))
        for begun, head, whole, end in zip(_begun(tokenizer, heads), heads, wholes, ends, strict=True)
    ]


def first_tokens(tokenizer, start: str, words: Sequence[str]) -> Tokens:
    """The first token of each of `words` where it continues `start`. InputError where two of them begin alike."""
    first = [end[0] for _, end in continued_tokens(tokenizer, [start] * len(words), words)]
    if len(set(first)) < len(first):
        raise InputError(f"{', '.join(map(repr, words))} begin with the same token after {start!r}; name other words")
    return first


def read_tokens(tokenizer, starts: Sequence[str], ends: Sequence[str]) -> list[Tokens]:
    """Token ids of start and end as a reward model reads them: with all that the tokenizer puts around a text."""
    _, after = special_tokens(tokenizer)
    return [start + end + after for start, end in continued_tokens(tokenizer, starts, ends)]


def cut_tokens(tokenizer, rows: Sequence[Tokens], most: int) -> list[Tokens]:
    """`rows` of at most `most` tokens: what is too long loses its beginning, but not what the tokenizer puts first."""
    keep = len(special_tokens(tokenizer)[0])
    return [row if len(row) <= most else row[:keep] + row[len(row) - most + keep :] for row in rows]


def continuations(tokenizer, starts: Sequence[Tokens], ends: Sequence[Tokens]) -> list[str]:
    """The text of each end as it continues its start, without special tokens; a space at its beginning stays."""
    wholes = [[*start, *end] for start, end in zip(starts, ends, strict=True)]
    texts = (
        tokenizer.batch_decode(list(rows), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for rows in (starts, wholes, ends)
    )
    return [whole[len(head) :] if whole.startswith(head) else alone for head, whole, alone in zip(*texts, strict=True)]


def _bare(tokenizer, texts: Sequence[str], special: bool = False) -> list[Tokens]:
    return tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]


def _begun(tokenizer, rows: Sequence[Tokens]) -> list[Tokens]:
    before, _ = special_tokens(tokenizer)
    return [row if row[: len(before)] == before else before + row for row in rows]


def _apart(tokenizer, end: str) -> Tokens:
    """An end that would merge into a token of its start, as it is after a line break, which merges with nothing."""
    line, both = _bare(tokenizer, ["\n", "\n" + end])
    return both[len(line) :] if both[: len(line)] == line else _bare(tokenizer, [end])[0]


def words_of(text: str) -> list[str]:
    """What stands between spaces, and each character of scripts without them (Han, kana, Thai, Lao, Khmer, Burmese)."""
    return WORD.findall(text)


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` of these words, in their order; none where there are fewer."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))


class RougeTokenizer:
    """Words for ROUGE: English ones as in `rouge_score` itself with its stemmer on (Porter 1980), and those of every
    other script: a word is a run of letters, their marks and digits, in lower case; each character of a script without
    spaces is one. Each word is remembered: stemming is most of the cost of ROUGE."""

    def __init__(self):
        from rouge_score.tokenizers import DefaultTokenizer

        self._english = DefaultTokenizer(use_stemmer=True)
        self._words = lru_cache(maxsize=200_000)(self._split)

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`, in their order."""
        return [word for chunk in words_of(text) for word in self._words(chunk)]

    def _split(self, chunk: str) -> list[str]:
        if chunk.isascii():
            return self._english.tokenize(chunk)
        found = _LETTERS.findall(unicodedata.normalize("NFC", chunk.lower().translate(_JOINERS)))
        return [part for word in found for part in (self._english.tokenize(word) if word.isascii() else [word])]
