"""Judging blinded pairs by hand, in a notebook."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

from rlhf_utils.evaluation.judging import add_verdict, outcome, read_pairs
from rlhf_utils.evaluation.judging.verdicts import PEOPLE, own_verdicts
from rlhf_utils.platforms.runtime import HEADLESS


def label_pairs(folder: Path, judge: str = "me") -> Any:
    """A form with one blinded pair at a time and three buttons; each click appends to `human_verdicts.jsonl`.

    Goes on where the same judge stopped. Without somebody there to click, and without ipywidgets, it says where the
    pairs are and how verdicts on them are read.
    """
    given = own_verdicts(folder, PEOPLE).get(judge, {})
    waiting = [pair for pair in read_pairs(folder) if pair.id not in given]
    try:
        if os.environ.get(HEADLESS):
            raise ImportError
        import ipywidgets as widgets
    except ImportError:
        print(
            f"{len(waiting)} blinded pairs wait in judge_pairs.jsonl. Run this cell in a notebook to judge them, or "
            'write lines {"id": ..., "verdict": "first"|"second"|"tie", "judge": ...} and read them with '
            "`python -m rlhf_utils judge --run RUN --verdicts FILE`."
        )
        return None

    shown, buttons = widgets.HTML(), [widgets.Button(description=name) for name in ("first", "tie", "second")]

    def show() -> None:
        if waiting:
            shown.value = _page(waiting[0], len(waiting))
            return
        for button in buttons:
            button.disabled = True
        shown.value = _result(folder)

    def clicked(button) -> None:
        add_verdict(folder, waiting.pop(0).id, button.description, judge)
        show()

    for button in buttons:
        button.on_click(clicked)
    show()
    return widgets.VBox([shown, widgets.HBox(buttons)])


def _page(pair, left: int) -> str:
    """The pair as HTML; texts of data and models are escaped."""
    cell = '<td style="width: 50%; vertical-align: top; white-space: pre-wrap; padding: .5em; border: 1px solid #ccc">'
    answers = "".join(f"{cell}{html.escape(text)}</td>" for text in (pair.first, pair.second))
    return (
        f"<p>{left} to go. Which answer is better?</p>"
        f'<p style="white-space: pre-wrap"><b>{html.escape(pair.prompt)}</b></p>'
        f'<table style="width: 100%"><tr>{answers}</tr></table>'
    )


def _result(folder: Path) -> str:
    found = outcome(folder)
    people = found["judges"].get("people")
    if not people:
        return "<p>There are no pairs to judge.</p>"
    one, other = found["models"]
    low, high = people["ci95"]
    return (
        f"<p>Done. {one} against {other}: {people['wins']} won, {people['losses']} lost, {people['ties']} tied; "
        f"rate {people['rate']:.2f} [{low:.2f}, {high:.2f}].</p>"
    )
