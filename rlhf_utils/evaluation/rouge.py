"""ROUGE as an `evaluate.Metric` that needs no network; `evaluate.load("rouge")` fetches code from the hub."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from rouge_score import rouge_scorer

from rlhf_utils.data.tokens import RougeTokenizer
from rlhf_utils.platforms.errors import InputError

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")
SCORER = rouge_scorer.RougeScorer(list(ROUGE_NAMES), tokenizer=RougeTokenizer())


class Rouge(evaluate.Metric):
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) against one reference each, stemmer on.

    `Rouge().compute(predictions=[...], references=[...])` gives plain means, `use_aggregator=False` a list of n in
    [0, 1] for each, as the hub's metric does. English is scored as by the `rouge_score` package; words of other scripts
    are those of `RougeTokenizer`. A text without a word scores 0. Raises InputError unless both are non-empty lists of
    strings of one length.
    """

    def __init__(self):
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        # evaluate would make a folder in the user's cache here, which may be read-only; in memory none is needed.
        return self._data_dir_root

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="ROUGE F1 over the rouge_score package, without a download.",
            citation="Chin-Yew Lin. ROUGE: A Package for Automatic Evaluation of Summaries. ACL Workshop, 2004.",
            inputs_description="predictions: list of str; references: list of str, one for each prediction.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def compute(self, *, predictions: Sequence[str] | None = None, references: Sequence[str] | None = None, **settings):
        """The scores of these texts, without arguments of those that `add_batch` collected."""
        if predictions is not None or references is not None:
            check_texts(predictions, "predictions")
            check_texts(references, "references")
            if len(predictions) != len(references):
                raise InputError(
                    f"predictions has {len(predictions)} texts and references has {len(references)}: "
                    "give exactly one reference for each prediction"
                )
        # evaluate copies this method at construction, which loses the cell that a bare super() needs.
        return evaluate.Metric.compute(self, predictions=predictions, references=references, **settings)

    def _compute(self, predictions, references, use_aggregator: bool = True) -> dict:
        scored = [SCORER.score(wanted, said) for said, wanted in zip(predictions, references, strict=True)]
        found = {name: [float(scores[name].fmeasure) for scores in scored] for name in ROUGE_NAMES}
        return {name: sum(values) / len(values) for name, values in found.items()} if use_aggregator else found


def check_texts(texts: Sequence[str], name: str) -> None:
    """Raise InputError unless `texts` is a non-empty list (not one string) of strings."""
    if isinstance(texts, str) or not hasattr(texts, "__len__"):
        raise InputError(f"{name} is {type(texts).__name__}, not a list: pass a list of strings")
    if len(texts) == 0:
        raise InputError(f"{name} is empty: pass at least one text")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{name}[{position}] is {type(text).__name__}, not a string: pass a list of strings")
