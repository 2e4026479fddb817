"""Text to pre-train a base model on, and the beginnings of texts."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_utils.data.filters import conversation_key
from rlhf_utils.data.schemas import read_rows
from rlhf_utils.data.sources import load_rows
from rlhf_utils.data.splits import shares_of, split_of
from rlhf_utils.data.tokens import continuations, start_tokens
from rlhf_utils.settings.sections import EMBEDDED, DataSettings
from rlhf_utils.settings.template import TEMPLATE

_HELD_OUT = ("development", "evaluation")


def pretraining_texts(dataset: str, settings: DataSettings, documents: int, seed: int) -> list[str]:
    """Documents to pre-train on: the embedded world's corpus, else the dataset's own text.

    Of a dataset, neither the test split nor prompts that a later stage holds out are in it. Pairs give their
    rejected answers, so that the better ones are new to supervised fine-tuning.
    """
    if dataset == EMBEDDED:
        from rlhf_utils.toyworld import WORLDS

        return WORLDS[settings.world].corpus(documents, seed)
    rows = load_rows(dataset, settings, seed)
    kind, examples, _ = read_rows(rows.train, rows.name)
    tested = {conversation_key(e.prompt) for e in read_rows(rows.test, rows.name)[1]} if rows.test else set()
    shares = shares_of(settings, rows.test is not None)
    return [
        e.prompt if kind == "labelled" else TEMPLATE.text(e.prompt, e.rejected or e.chosen or "").strip()
        for e in examples
        if conversation_key(e.prompt) not in tested and split_of(e.prompt, shares, seed) not in _HELD_OUT
    ]


def beginnings(texts: Sequence[str], tokenizer, most: int) -> list[str]:
    """The first `most` tokens of each text, as text."""
    rows = [row[:most] for row in start_tokens(tokenizer, texts)]
    return continuations(tokenizer, [[]] * len(rows), rows)
