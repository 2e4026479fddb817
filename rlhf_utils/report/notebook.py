"""What the notebooks need to show things: tables, pictures, texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import Image, Markdown

from rlhf_utils.report.findings import NotMeasured
from rlhf_utils.report.plots import draw
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.template import Template


def parts(row: Mapping[str, Any], template: Template) -> tuple[str, str]:
    """A row's text as a model sees it: the prompt up to where a response begins, and the response."""
    prompt = template.format(row["prompt"])
    return prompt, template.completion(row["chosen"]) if row["chosen"] is not None else row["text"][len(prompt) :]


def candidates(row: Mapping[str, Any], template: Template) -> list[str]:
    """Responses to a row's prompt to be ranked: its own, and made-up ones."""
    if row["chosen"] is not None:
        return [row["chosen"], row["rejected"], "I don't know.", "Good luck! " * 8]
    # The beginning of the text: the whole may be longer than the classifier reads.
    beginning = " " + " ".join(parts(row, template)[1].split()[:30])
    return [beginning, " wonderful from start to finish.", " boring from start to finish.", " good" * 12]


def table(rows: Mapping[str, Sequence] | Sequence[Mapping]) -> Any:
    """Rows as a table with whole texts and without row numbers; text from data or models is escaped."""
    frame = pd.DataFrame(rows).reset_index(drop=True)
    left = {"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top"}
    return frame.style.format(precision=3, escape="html", na_rep="-").hide(axis="index").set_properties(**left)


def picture(run: Run, name: str) -> Image | Markdown:
    """Draw the plot `name` from the files of the run, and show it, or say why there is none."""
    try:
        return Image(filename=str(draw(run.root, name)), width=900)
    except NotMeasured as reason:
        return Markdown(f"*{reason}*")
