"""The two kinds of failure a user can meet, so that the command line can tell them apart, and text that is safe to
print."""

from __future__ import annotations

import json
import unicodedata

# Control characters, which move cursors and set titles; format characters, which turn text around or hide it; half
# surrogates; line and paragraph separators.
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str) -> str:
    """`text` of data or of a model as a terminal may print it: what is not to be seen stands as its escape in JSON,
    such as `\\u001b`; line feeds stay."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _UNSAFE else json.dumps(char)[1:-1] for char in text
    )


class _OneLine:
    """In a notebook the message alone is shown: where in the package it was raised helps nobody.

    IPython asks an exception for this method. Name and message of the error still reach papermill and its like.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"error: {self}"]


class InputError(_OneLine, Exception):
    """Something the user gave is wrong; the command line prints the message alone and exits with status 2.

    The message is one line and says what is wrong, where, and what to do about it.
    """

    def __init__(self, message: str):
        super().__init__(visible(" ".join(str(message).split())))


class TrainingError(_OneLine, RuntimeError):
    """Training cannot go on (NaN loss, exploding KL); the message names the step and the likely cause."""

    def __init__(self, message: str):
        super().__init__(visible(str(message)))
