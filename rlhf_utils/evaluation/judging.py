"""Outside judges, people and language models: verdicts on blinded pairs, wins with intervals, and agreement."""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import multimode
from typing import NamedTuple

from rlhf_utils.data.prepared import cluster_key
from rlhf_utils.evaluation.statistics import agreement, rate_interval, win_rate
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import append_text, read_json, read_jsonl

PAIRS, KEY = "judge_pairs.jsonl", "judge_key.json"
PEOPLE, MODEL = "human_verdicts.jsonl", "llm_verdicts.jsonl"
CHOICES = {"first": 1, "second": -1, "tie": 0}  # what each says of the response that stands first

ENVIRONMENT = ("RLHF_JUDGE_URL", "RLHF_JUDGE_MODEL", "RLHF_JUDGE_KEY")
TIMEOUT_SECONDS, RETRIES, AT_ONCE, REPLY_TOKENS = 60.0, 4, 8, 20
QUESTION = (Path(__file__).parent / "prompts" / "judge.txt").read_text(encoding="utf-8").strip()


class Pair(NamedTuple):
    """What a judge sees; which model wrote which response stands in the key file alone."""

    id: str
    prompt: str
    first: str
    second: str


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs in `folder`; InputError where there are none."""
    if not (folder / PAIRS).is_file():
        raise InputError(f"{folder / PAIRS} is missing: run notebook 01_compare_models first")
    return [Pair(**line) for line in read_jsonl(folder / PAIRS)]


def read_verdicts(
    path: Path, folder: Path, strict: bool = True, field: str = "verdict"
) -> dict[str, dict[str, str | bool | None]]:
    """Judge -> pair -> its last verdict, from JSON lines `{"id", "verdict", "judge"}` (`judge` may be left out), or
    another `field` of these lines, None where one lacks it. InputError names the line that is wrong. Unless `strict`, a
    missing file holds none, and verdicts on pairs that are no longer those of `folder` do not count."""
    known, found = {pair.id for pair in read_pairs(folder)}, {}
    try:
        rows = read_jsonl(path) if strict or path.is_file() else []
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as JSON lines: {error}") from None
    for place, row in enumerate(rows, 1):
        if not isinstance(row, dict) or str(row.get("verdict")) not in CHOICES:
            raise InputError(f"{path}, line {place}: verdict must be one of {', '.join(CHOICES)}")
        if isinstance(row.get("id"), str) and row["id"] in known:
            found.setdefault(str(row.get("judge") or "unnamed"), {})[row["id"]] = row.get(field)
        elif strict:
            raise InputError(f"{path}, line {place}: there is no pair {row.get('id')!r} in {folder}")
    return found


def add_verdict(folder: Path, pair: str, verdict: str, judge: str, file: str = PEOPLE, **more: bool) -> None:
    """Append one verdict; a later one of the same judge on the same pair replaces it when they are read."""
    line = json.dumps({"id": pair, "verdict": verdict, "judge": judge, **more}, ensure_ascii=False)
    append_text(folder / file, line + "\n")


def outcome(folder: Path) -> dict:
    """What the verdicts in `folder` say of the first of its `models`.

    `judges`: per kind of judge the wins by the majority of its judges (a tie among them is a tie). `each`: the wins by
    each judge alone and, of a language model, the share of pairs on which it said the same in both orders
    (`consistent`; where its lines tell). `agreement`: `between` every two judges, and last the two majorities, on the
    pairs that both judged (`statistics.agreement`). Intervals are of conversations.
    """
    if not (folder / KEY).is_file():
        raise InputError(f"{folder / KEY} is missing: it says which model wrote which response of a pair; restore it")
    key, pairs, judges, each, named, majorities = read_json(folder / KEY), read_pairs(folder), {}, [], [], []
    clusters = {pair.id: cluster_key(pair.prompt) for pair in pairs}
    turn = {pair: 1 if order == key["models"] else -1 for pair, order in key["order"].items()}

    def wins(said: dict[str, str]) -> dict:
        turns = [turn[pair] * CHOICES[verdict] for pair, verdict in said.items()]
        return {**win_rate(turns, [0] * len(turns), clusters=[clusters[pair] for pair in said]), "pairs": len(said)}

    for kind, file in (("people", PEOPLE), ("language model", MODEL)):
        given, steady = (read_verdicts(folder / file, folder, False, field) for field in ("verdict", "consistent"))
        if not given:
            continue
        # In the order of the pairs, which says nothing of who was quick: the interval is drawn from them in turn.
        given = {name: {p.id: said[p.id] for p in pairs if p.id in said} for name, said in sorted(given.items())}
        for name, said in given.items():
            known = [pair for pair in said if isinstance(steady[name][pair], bool)]
            same = known and rate_interval([steady[name][pair] for pair in known], [clusters[pair] for pair in known])
            each.append({"judge": name, "kind": kind, **wins(said), **(same.named("consistent") if same else {})})
        votes = {p.id: multimode(said[p.id] for said in given.values() if p.id in said) for p in pairs}
        majority = {pair: most[0] if len(most) == 1 else "tie" for pair, most in votes.items() if most}
        judges[kind] = {**wins(majority), "judges": [*given]}
        named += given.items()
        majorities.append((f"majority: {kind}", majority))
    alike = []
    for (one, first), (other, second) in [*combinations(named, 2), *combinations(majorities, 2)]:
        if both := [pair for pair in first if pair in second]:
            marks = ([CHOICES[said[pair]] for pair in both] for said in (first, second))
            alike.append({"between": [one, other], **agreement(*marks, [clusters[pair] for pair in both])})
    return {"models": key["models"], "judges": judges, "each": each, "agreement": alike}


class Endpoint:
    """Language models as judges, by the `openai` client: those of one service that the environment names."""

    def __init__(self) -> None:
        self.url, named, key = (os.environ.get(name, "").strip() for name in ENVIRONMENT)
        self.models = [*dict.fromkeys(filter(None, map(str.strip, named.split(","))))]
        if not (self.url.startswith(("http://", "https://")) and self.models):
            needs = "the address of an OpenAI-compatible service (https://.../v1), names of models, and its key if any"
            raise InputError(f"a language model as judge needs {', '.join(ENVIRONMENT)}: {needs}")
        try:
            from openai import OpenAI
        except ImportError:
            raise InputError("a language model as judge needs `pip install 'openai>=2,<4'`") from None
        # A server of one's own asks for no key, the client does.
        self.client = OpenAI(base_url=self.url, api_key=key or "none", timeout=TIMEOUT_SECONDS, max_retries=RETRIES)

    def ask(self, model: str, pair: Pair) -> str | None:
        """`first`, `second` or `tie`; None where the reply says none of them. The client tries again what may pass (and
        waits as long as it is told to); TrainingError where that does not help."""
        from openai import OpenAIError

        messages = [{"role": "user", "content": QUESTION.format(**pair._asdict())}]
        asked = {"model": model, "messages": messages, "temperature": 0, "max_tokens": REPLY_TOKENS}
        try:
            return read_reply(self.client.chat.completions.create(**asked).choices[0].message.content or "")
        except (OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:
            # Not in the service's own words, which may hold the key.
            why = f"HTTP {error.status_code}" if hasattr(error, "status_code") else type(error).__name__
            text = f"the judge {model} at {self.url} gives no reply ({why}); check {', '.join(ENVIRONMENT)}"
            raise TrainingError(text) from None


def judge_pairs(folder: Path, endpoint: Endpoint, most: int | None = None) -> dict[str, dict[str, int]]:
    """Ask every model of `endpoint` about every pair in both orders and add the verdicts to `llm_verdicts.jsonl`, a tie
    where it changes its mind with the order (not `consistent`) or cannot be read; those there are kept. Returns for
    each model how many were `asked`, `consistent` and `unreadable`."""
    known, told = read_verdicts(folder / MODEL, folder, strict=False), {}
    turned = {"first": "second", "second": "first"}

    def both(model: str, pair: Pair) -> tuple[str | None, str | None]:
        one, other = (endpoint.ask(model, p) for p in (pair, pair._replace(first=pair.second, second=pair.first)))
        return one, turned.get(other, other)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for model in endpoint.models:
            todo = [pair for pair in read_pairs(folder)[:most] if pair.id not in known.get(model, {})]
            told[model] = {"asked": len(todo), "consistent": 0, "unreadable": 0}
            for pair, (one, other) in zip(todo, pool.map(partial(both, model), todo), strict=True):
                same = one is not None and one == other
                told[model]["consistent"] += same
                told[model]["unreadable"] += None in (one, other)
                add_verdict(folder, pair.id, one if same else "tie", model, MODEL, consistent=same)
    return told


def read_reply(text: str) -> str | None:
    """`first`, `second` or `tie` from a reply; None where it says neither."""
    found = re.search(r'"verdict"\s*:\s*"(a|b|tie)"', text, re.I) or re.fullmatch(r"\W*(a|b|tie)\W*", text, re.I)
    return {"a": "first", "b": "second", "tie": "tie"}[found[1].lower()] if found else None


def cost(pairs: Sequence[Pair], judges: int = 1) -> str:
    """What asking so many judges about these pairs takes, in words: each is asked about in both orders."""
    requests, characters = 2 * judges, sum(len(QUESTION) + sum(map(len, texts)) for _, *texts in pairs)
    # A token is about four characters of English.
    read = requests * characters // 4
    return f"{len(pairs)} pairs, {requests * len(pairs)} requests, about {read:,} tokens read"
