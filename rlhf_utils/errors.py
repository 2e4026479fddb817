"""The two kinds of failure a user can meet, so that the command line can tell them apart."""

from __future__ import annotations


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
        super().__init__(" ".join(str(message).split()))


class TrainingError(_OneLine, RuntimeError):
    """Training cannot go on (NaN loss, exploding KL); the message names the step and the likely cause."""
