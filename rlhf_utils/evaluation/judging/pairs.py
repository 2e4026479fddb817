"""Blinded pairs: two answers to a prompt in random order, with the names kept in another file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, read_jsonl, write_json, write_jsonl

PAIRS, KEY = "judge_pairs.jsonl", "judge_key.json"


class Pair(NamedTuple):
    """What a judge sees; which model wrote which answer stands in the key file alone."""

    id: str
    prompt: str
    first: str
    second: str


def write_pairs(
    folder: Path, prompts: Sequence[str], answers: dict[str, Sequence[str]], models: tuple[str, str], seed: int
) -> list[Pair]:
    """Write `judge_pairs.jsonl` and `judge_key.json` for two models' answers to the same prompts.

    Which answer comes first is drawn for each prompt by its content and the seed. A pair's id changes with its answers,
    so that a verdict never counts for others. Pairs of equal answers are left out: there is nothing to judge.
    """
    pairs, key = [], {}
    for place, (prompt, one, other) in enumerate(zip(prompts, answers[models[0]], answers[models[1]], strict=True)):
        if one.strip() == other.strip():
            continue
        digest = hashlib.sha256(f"{seed}\0{place}\0{prompt}\0{one}\0{other}".encode()).hexdigest()
        swapped = int(digest[8], 16) % 2 == 1
        first, second = (other, one) if swapped else (one, other)
        pairs.append(Pair(digest[:8], prompt, first, second))
        key[digest[:8]] = list(reversed(models)) if swapped else list(models)
    write_jsonl(folder / PAIRS, [pair._asdict() for pair in pairs])
    write_json(folder / KEY, {"models": list(models), "equal_answers": len(prompts) - len(pairs), "order": key})
    return pairs


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs in `folder`; InputError where there are none."""
    path = folder / PAIRS
    if not path.is_file():
        raise InputError(f"{path} is missing: run notebook 01_compare_models first")
    try:
        return [Pair(**line) for line in read_jsonl(path)]
    except TypeError:
        raise InputError(f"{path} does not hold pairs of this version: run notebook 01_compare_models again") from None


def read_key(folder: Path) -> dict:
    """Which model wrote what: `models` (the one asked about first), and `order`, id -> [first, second]."""
    return read_json(folder / KEY)
