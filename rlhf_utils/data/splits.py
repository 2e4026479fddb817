"""Which split a prompt belongs to: a function of the prompt alone, so that every stage agrees."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_utils.data.filters import conversation_key, place
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.sections import DataSettings

SPLITS = ("sft", "reward", "ppo", "development", "evaluation", "judge")


def shares_of(settings: DataSettings, has_test: bool) -> dict[str, float]:
    """Shares of `SPLITS` in the train rows: a test split takes the place of the evaluation share."""
    shares = settings.shares.model_dump()
    return shares | {"evaluation": 0.0} if has_test else shares


def split_of(prompt: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of `prompt`: its hash, a number in [0, 1), falls into one of the intervals that `shares` cut.

    Depends on nothing but the prompt's first turn (case and blanks ignored), seed and shares: neither on the
    order of rows nor on what else is in the data. Raises InputError when all shares are zero.
    """
    total = sum(shares[name] for name in SPLITS)
    if total <= 0:
        raise InputError("data.shares are all zero; give at least one split a share")
    number = int.from_bytes(place(seed, "split", conversation_key(prompt))[:8]) / 2**64
    edge = 0.0
    for name in SPLITS:
        edge += shares[name] / total
        if number < edge:
            return name
    return next(name for name in reversed(SPLITS) if shares[name] > 0)
