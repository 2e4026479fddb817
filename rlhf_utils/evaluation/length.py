"""The judge that every reward model has to beat: one that sees only how long a text is."""

from __future__ import annotations

from datasets import Dataset

from rlhf_utils.evaluation.metrics import length_baseline, length_rule


def sides(split: Dataset) -> dict[str, list[str]]:
    """The better and the worse texts of a split: chosen and rejected answers, or texts of label 1 and of label 0."""
    if "label" not in split.column_names:
        return {"chosen": list(split["chosen"]), "rejected": list(split["rejected"])}
    rows = list(zip(split["text"], split["label"], strict=True))
    return {
        "positive": [text for text, label in rows if label],
        "negative": [text for text, label in rows if not label],
    }


def length_alone(train: Dataset, held_out: Dataset, tokenizer) -> float:
    """Held-out accuracy of a rule on length in tokens, whose direction is the one that does better on `train`."""

    def lengths(texts: list[str]) -> list[int]:
        return [len(row) for row in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    if "label" in held_out.column_names:
        seen, known = lengths(list(held_out["text"])), lengths(list(train["text"]))
        return length_rule(seen, list(held_out["label"]), known, list(train["label"]))
    return length_baseline(*(lengths(texts) for split in (held_out, train) for texts in sides(split).values()))
