"""Verdicts on blinded pairs: reading and adding them, and what they say about the two models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rlhf_utils.evaluation.judging.pairs import read_key, read_pairs
from rlhf_utils.evaluation.metrics import proportion_interval, win_rate
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import append_text

CHOICES = ("first", "second", "tie")
PEOPLE, MODEL = "human_verdicts.jsonl", "llm_verdicts.jsonl"


def own_verdicts(folder: Path, file: str) -> dict[str, dict[str, str]]:
    """What was added to `file` in `folder`, judge -> pair -> verdict; those on answers that have been replaced since do
    not count."""
    path = folder / file
    return read_verdicts(path, folder, strict=False) if path.is_file() else {}


def read_verdicts(path: Path, folder: Path, strict: bool = True) -> dict[str, dict[str, str]]:
    """Judge -> pair -> verdict, from JSON lines `{"id", "verdict", "judge"}` (`judge` may be left out).

    The last verdict of a judge on a pair counts. InputError names the line that is wrong: no JSON, a verdict other than
    first, second or tie, or (if `strict`, else it is passed over) a pair that is not one of `folder`.
    """
    known = {pair.id for pair in read_pairs(folder)}
    found: dict[str, dict[str, str]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {place}: not valid JSON ({error.msg})") from None
        if not isinstance(row, dict) or row.get("verdict") not in CHOICES:
            raise InputError(f"{path}, line {place}: verdict must be one of {', '.join(CHOICES)}")
        if row.get("id") not in known:
            if not strict:
                continue
            raise InputError(f"{path}, line {place}: there is no pair {row.get('id')!r} in {folder}")
        found.setdefault(str(row.get("judge") or "unnamed"), {})[row["id"]] = row["verdict"]
    return found


def add_verdict(folder: Path, pair: str, verdict: str, judge: str, file: str = PEOPLE) -> None:
    """Append one verdict; a later one of the same judge on the same pair replaces it when they are read."""
    if verdict not in CHOICES:
        raise InputError(f"verdict {verdict!r}: give one of {', '.join(CHOICES)}")
    line = json.dumps({"id": pair, "verdict": verdict, "judge": judge}, ensure_ascii=False)
    append_text(folder / file, line + "\n")


def majority(verdicts: dict[str, dict[str, str]]) -> dict[str, str]:
    """Pair -> what most judges said; a tie among them is a tie."""
    votes: dict[str, Counter] = {}
    for given in verdicts.values():
        for pair, verdict in given.items():
            votes.setdefault(pair, Counter())[verdict] += 1
    decided = {}
    for pair, counts in votes.items():
        (top, most), *rest = counts.most_common()
        decided[pair] = "tie" if rest and rest[0][1] == most else top
    return decided


def wins_of(verdicts: dict[str, str], key: dict) -> dict:
    """Wins, losses and ties of the model the comparison is about, with the rate and its interval
    (`metrics.win_rate`)."""
    about = key["models"][0]
    scores = []
    for pair, verdict in verdicts.items():
        winner = None if verdict == "tie" else key["order"][pair][CHOICES.index(verdict)]
        scores.append(0.0 if winner is None else 1.0 if winner == about else -1.0)
    return win_rate(scores, [0.0] * len(scores))


def outcome(folder: Path) -> dict:
    """What the verdict files in `folder` say: per kind of judge the wins, and where both exist how far they agree.

    Agreement is the share of pairs judged alike and Cohen's kappa (1960), which takes out what chance would give.
    """
    key, found = read_key(folder), {}
    decided = {}
    for kind, file in (("people", PEOPLE), ("language model", MODEL)):
        verdicts = own_verdicts(folder, file)
        if not verdicts:
            continue
        decided[kind] = majority(verdicts)
        found[kind] = {**wins_of(decided[kind], key), "judges": sorted(verdicts), "pairs": len(decided[kind])}
    result = {"models": key["models"], "judges": found}
    if len(decided) == 2:
        result["agreement"] = agreement(*decided.values())
    return result


def agreement(one: dict[str, str], other: dict[str, str]) -> dict | None:
    """How far two judges agree on the pairs both saw; None where there are none."""
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    same = sum(one[pair] == other[pair] for pair in shared)
    share = proportion_interval(same, len(shared))
    first, second = Counter(one[p] for p in shared), Counter(other[p] for p in shared)
    chance = sum(first[choice] * second[choice] for choice in CHOICES) / len(shared) ** 2
    return {
        "pairs": len(shared),
        "same": share.mean,
        "same_ci95": share.as_list(),
        "kappa": (share.mean - chance) / (1 - chance) if chance < 1 else None,
    }
