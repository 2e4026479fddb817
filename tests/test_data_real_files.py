"""Real human preferences (every sixth row) and reviews, when they lie beside the repository."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_utils.data.prepared import conversation_key, prepare, prompt_key
from rlhf_utils.data.sources import load_rows
from rlhf_utils.settings.sections import DataSettings
from rlhf_utils.settings.template import TEMPLATE

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"


@cache
def rows_of(name):
    if not (FOLDER / name).exists():
        pytest.skip(f"{name} is not here")
    return load_rows(str(FOLDER / name), DataSettings(), 0)


def small_tokenizer(texts):
    """A byte-level BPE of 2,000 tokens."""
    tokenizer, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    ("name", "count", "kept", "differ"),
    [("hh_helpful.jsonl.gz", 5103, 0.61, 3), ("hh_harmless.jsonl.gz", 1700, 0.80, 1)],
)
def test_human_preferences(name, count, kept, differ):
    rows = rows_of(name)
    assert len(rows.train) == count
    for row in rows.train:
        before, marker, _ = row["chosen"].rpartition("\n\nAssistant:")
        assert TEMPLATE.format(TEMPLATE.normal(before + marker)) == (before + marker).removeprefix("\n\n")

    rows = replace(rows, train=rows.train[::6])
    data = prepare(rows, DataSettings(), small_tokenizer(row["chosen"] for row in rows.train[:200]), seed=0)
    left = sum(len(split) for split in data.splits.values())
    assert data.kind == "pairs" and left / len(rows.train) == pytest.approx(kept, abs=0.03)
    assert data.report.dropped("train")["dialogues differ before the last answer"] == differ

    seen = [prompt_key(prompt) for split in data.splits.values() for prompt in split["prompt"]]
    assert len(seen) == len(set(seen))
    openings = [{conversation_key(p) for p in split["prompt"]} for split in data.splits.values()]
    assert sum(map(len, openings)) == len(set().union(*openings))
    assert not any("\n\nHuman:" in answer for answer in data.splits["reward"]["chosen"])


def test_reviews():
    rows = rows_of("imdb_reviews.csv")
    assert len(rows.train) == 2600
    tokenizer = small_tokenizer(next(v for v in row.values() if len(str(v)) > 50) for row in rows.train[:100])
    data = prepare(replace(rows, train=rows.train[::2]), DataSettings(), tokenizer, seed=0)
    kept = [row for split in data.splits.values() for row in split]
    assert data.kind == "labelled" and 1250 < len(kept) <= 1300
    assert 0.4 < sum(data.splits["sft"]["label"]) / len(data.splits["sft"]) < 0.6
    assert all(row["text"].startswith(row["prompt"]) and len(row["text"]) >= 200 for row in kept)
    lengths = [len(row) for row in tokenizer([row["prompt"] for row in kept])["input_ids"]]
    assert min(lengths) <= 2 and 7 <= max(lengths) <= 9
