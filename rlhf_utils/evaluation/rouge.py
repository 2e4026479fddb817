"""ROUGE as an `evaluate.Metric` that needs no network; `evaluate.load("rouge")` fetches code from the hub."""

from collections.abc import Sequence

import datasets
import evaluate
from rouge_score import rouge_scorer

from rlhf_utils.data.tokens import RougeTokenizer
from rlhf_utils.platforms.errors import InputError

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")
_SCORER = rouge_scorer.RougeScorer(list(ROUGE_NAMES), tokenizer=RougeTokenizer())


class Rouge(evaluate.Metric):
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) against one reference each, stemmer on.

    `Rouge().compute(predictions=[...], references=[...])` gives plain means, `use_aggregator=False` a list of n in
    [0, 1] for each, as the hub's metric does. English is scored as by the `rouge_score` package; words of other scripts
    are those of `RougeTokenizer`. A text without a word scores 0. InputError unless both are lists of as many strings.
    """

    def __init__(self):
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        # evaluate would make a folder in the user's cache here, which may be read-only; in memory none is needed.
        return self._data_dir_root

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("string")))
        return evaluate.MetricInfo(description="ROUGE F1 without a download", citation="Lin 2004", features=features)

    def compute(self, *, predictions: Sequence[str] | None = None, references: Sequence[str] | None = None, **settings):
        """The scores of these texts, without arguments of those that `add_batch` collected."""
        if predictions is not None or references is not None:
            for name, texts in {"predictions": predictions, "references": references}.items():
                if isinstance(texts, str | None) or not len(texts):
                    raise InputError(f"{name} is empty or no list: pass a list of at least one text")
                if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
                    raise InputError(f"{name}[{wrong[0]}] is {type(texts[wrong[0]]).__name__}, not a string")
            # Half a surrogate pair, which JSON can spell, is no text in UTF-8.
            predictions, references = (
                [text.encode("utf-8", "replace").decode() for text in texts] for texts in (predictions, references)
            )
            if len(predictions) != len(references):
                counts = f"predictions has {len(predictions)} texts and references has {len(references)}"
                raise InputError(f"{counts}: give exactly one reference for each prediction")
        # evaluate copies this method at construction, which loses the cell that a bare super() needs.
        return evaluate.Metric.compute(self, predictions=predictions, references=references, **settings)

    def _compute(self, predictions, references, use_aggregator: bool = True) -> dict:
        scored = [_SCORER.score(wanted, said) for said, wanted in zip(predictions, references, strict=True)]
        found = {name: [float(scores[name].fmeasure) for scores in scored] for name in ROUGE_NAMES}
        return {name: sum(values) / len(values) for name, values in found.items()} if use_aggregator else found
