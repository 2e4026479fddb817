"""ROUGE as an `evaluate.Metric` that needs no network; `evaluate.load("rouge")` fetches code from the hub."""

from __future__ import annotations

import datasets
import evaluate

from rlhf_utils.evaluation.metrics.text import check_texts, rouge_scores

CITATION = "Chin-Yew Lin. ROUGE: A Package for Automatic Evaluation of Summaries. ACL Workshop, 2004."


class Rouge(evaluate.Metric):
    """ROUGE-1, ROUGE-2 and ROUGE-L against one reference each, as plain means of per-sample F1, stemmer on.

    `Rouge().compute(predictions=[...], references=[...])` returns `{"rouge1", "rouge2", "rougeL"}`, the same
    numbers as `rouge_scores`; batches can be collected with `add_batch` before.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE F1 over the rouge_score package, without a download.",
            citation=CITATION,
            inputs_description="predictions: list of str; references: list of str, one for each prediction.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def compute(self, *, predictions=None, references=None, **settings) -> dict[str, float]:
        """Mean F1 scores, without arguments over what `add_batch` collected; errors of `rouge_scores`."""
        if predictions is not None or references is not None:
            check_texts(predictions, references)
        # evaluate copies this method at construction, which loses the cell that a bare super() needs.
        return evaluate.Metric.compute(self, predictions=predictions, references=references, **settings)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return rouge_scores(predictions, references)
