"""The two kinds of failure a user can meet, so that the command line can tell them apart."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave is wrong; the command line prints the message alone and exits with status 2.

    The message is one line and says what is wrong, where, and what to do about it.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


class TrainingError(RuntimeError):
    """Training cannot go on (NaN loss, exploding KL); the message names the step and the likely cause."""
