"""The two kinds of failure a user can meet, and text that is safe to print."""

import json
import unicodedata

# Control (cursor, titles), format (text direction), half surrogates, line and paragraph separators.
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str) -> str:
    """`text` of data or of a model, safe for a terminal: unsafe characters as JSON escapes (`\\u001b`); \\n stays."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _UNSAFE else json.dumps(char)[1:-1] for char in text
    )


class _OneLine(Exception):
    def __init__(self, message: str):
        super().__init__(visible(" ".join(str(message).split())))

    def _render_traceback_(self) -> list[str]:
        return [f"error: {self}"]  # IPython asks for it: a notebook shows the message alone


class InputError(_OneLine):
    """Something the user gave is wrong (exit status 2); the one-line message says what, where, and what to do."""


class TrainingError(_OneLine):
    """Training cannot go on (NaN loss, exploding KL); the message names the step and the likely cause."""
