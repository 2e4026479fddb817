"""From rows to the splits: read, filter, and divide by prompt. Every filter counts what it drops."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import groupby, islice
from typing import NamedTuple, get_args

from rlhf_utils.data.prepared import READ, FilterReport, FilterStep, PreparedData, as_dataset
from rlhf_utils.data.schemas import EMPTY, Example, Kind, read_rows
from rlhf_utils.data.sources import Rows, load_rows
from rlhf_utils.data.tokens import continuations, continued_tokens, start_tokens
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import EMBEDDED
from rlhf_utils.settings.sections import DataSettings, Split
from rlhf_utils.settings.template import NEXT_ASSISTANT, TEMPLATE, Template

SPLITS = get_args(Split)
HELD_OUT = ("development", "evaluation")
LEAST_ROWS = 2  # the spread of a split's figures, and so their intervals, takes two rows

IDENTICAL = "chosen and rejected are the same tokens"
DUPLICATE = "prompt seen before"
NEAR_TIE = "votes too close"
CUT = "responses cut at a further turn"
IN_TEST = "prompt also in the test split"

_BATCH = 4096


def prompt_key(prompt: str) -> str:
    """Prompts with the same key are one prompt: letter case and runs of spaces do not count."""
    return " ".join(prompt.casefold().split())


def conversation_key(prompt: str) -> str:
    """Prompts with the same key begin with the same human turn, and belong into the same split.

    A dialogue often appears several times, cut off at different turns: of the helpful rows of hh-rlhf, 7 % of
    the held-out ones would otherwise begin like a conversation that another stage has trained on.
    """
    return prompt_key(prompt.partition(NEXT_ASSISTANT)[0])


def place(seed: int, *parts: str | None) -> bytes:
    """Place of a prompt or a row in the shuffled order: given by seed and content, not by its neighbors."""
    return hashlib.sha256("\0".join([str(seed), *(part or "" for part in parts)]).encode()).digest()


def shares_of(settings: DataSettings, has_test: bool) -> dict[str, float]:
    """Shares of `SPLITS` in the train rows: a test split takes the place of the evaluation share."""
    return settings.shares.model_dump() | ({"evaluation": 0.0} if has_test else {})


def split_of(prompt: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of `prompt`: its hash, a number in [0, 1), falls into one of the intervals that `shares` cut.

    Depends on nothing but the prompt's first turn, seed, and shares. Raises InputError when all shares are zero.
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


def prepare(rows: Rows, settings: DataSettings, tokenizer, seed: int, template: Template = TEMPLATE) -> PreparedData:
    """Read, filter, and divide `rows`. Token counts are those of `tokenizer`, called on lists of text.

    Prompts, not rows, are divided (`split_of`), in proportion to `settings.shares` up to chance, and a conversation is
    in one split. The order of the rows changes nothing. A test split becomes `evaluation`, and no other split has a
    prompt of it. Of labelled texts the first tokens become the prompt, as many as `settings.prompt_tokens` allows,
    drawn for each text by its content.

    Raises `InputError` when columns are unknown, no row is left, or a split with a share would be empty.
    """
    report, most = FilterReport(), settings.max_rows
    shares = shares_of(settings, rows.test is not None)
    kind, train = _usable("train", rows, rows.train, settings, tokenizer, seed, report)
    held_out: list[Example] = []
    if rows.test is not None:
        test_kind, held_out = _usable("test", rows, rows.test, settings, tokenizer, seed, report)
        if test_kind != kind:
            raise InputError(
                f"{rows.name}: the train split holds {kind} but the test split {test_kind}; "
                "give both the same columns, or name another with --set data.test_split=NAME"
            )
        tested = {conversation_key(e.prompt) for e in held_out}
        train = report.kept("train", IN_TEST, train, [e for e in train if conversation_key(e.prompt) not in tested])
        _check_left(train, "train", rows, report)
        held_out = _at_most("test", f"max_rows {most}", held_out, most, report)
    train = _at_most("train", f"max_rows {most}", train, most, report)

    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in train:
        splits[split_of(example.prompt, shares, seed)].append(example)
    splits["evaluation"] += held_out
    for name, split in splits.items():
        most = settings.split_rows.get(name)
        splits[name] = _at_most(name, f"split_rows.{name} {most}", split, most, report)
    needed = [name for name in SPLITS if shares[name] > 0]
    _check_sizes(rows.name, {name: len(split) for name, split in splits.items()}, needed, report.line("train"), least=1)
    if kind == "labelled":
        splits = {name: _cut_prompts(split, settings, tokenizer, seed) for name, split in splits.items()}
    datasets = {name: as_dataset(kind, split) for name, split in splits.items()}
    return PreparedData(kind, datasets, report, template.hash, rows.fingerprint)


def check_rows(rows: Rows, form: str) -> None:
    """Raise `InputError` unless `rows` are what a recipe of this form (`Recipe.form`) learns from.

    Says what can be said before there is a tokenizer: pairs that differ for a dialogue, labelled texts of more than one
    class for a continuation.
    """
    kind, examples, unread = read_rows(rows.train, f"{rows.name} (train)")
    wanted, texts, columns = {
        "dialogue": ("pairs", "pairs of answers", "prompt, chosen and rejected"),
        "continuation": ("labelled", "labelled texts", "text and label"),
    }[form]
    if kind != wanted:
        raise InputError(
            f"{rows.name}: this recipe learns from {texts}, and these rows are {kind}; give rows with {columns}"
        )
    if kind == "labelled" and len(labels := {example.extra["label"] for example in examples}) < 2:
        found = "one label" if labels else "no label"
        raise InputError(f"{rows.name}: the texts have {found} only; give texts of both kinds")
    if kind == "pairs" and all(example.chosen == example.rejected for example in examples):
        unread += Counter({IDENTICAL: len(examples)})
        reasons = ", ".join(f"{count} {reason}" for reason, count in unread.items())
        raise InputError(
            f"{rows.name}: no row is left after the filters ({len(rows.train)} {READ}, {reasons}); mend the rows"
        )


def check_enough(rows: Rows, settings: DataSettings, seed: int, needed: Collection[str]) -> None:
    """Raise `InputError` where `rows` cannot give every split of `needed` `LEAST_ROWS` rows, however long they are."""
    kind, examples, _ = read_rows(rows.train, f"{rows.name} (train)")
    shares, prompts = shares_of(settings, rows.test is not None), {}
    for example in examples:
        if kind == "labelled" or example.chosen != example.rejected:
            prompts.setdefault(prompt_key(example.prompt), []).append(example.prompt)
    sizes = Counter(evaluation=len(rows.test or []))
    for same in prompts.values():
        sizes[split_of(same[0], shares, seed)] += min(len(same), settings.rows_per_prompt)
    _check_sizes(rows.name, sizes, needed, f"{len(rows.train)} {READ}, {len(prompts)} different prompts")


def pretraining_texts(dataset: str, settings: DataSettings, documents: int, seed: int) -> list[str]:
    """Documents to pre-train on: the embedded world's corpus, else the dataset's own text.

    Of a dataset, neither the test split nor prompts that a later stage holds out are in it. Pairs give their
    rejected responses, so that the better ones are new to supervised fine-tuning.
    """
    if dataset == EMBEDDED:
        from rlhf_utils.toyworld import WORLDS

        return WORLDS[settings.world].corpus(documents, seed)
    rows = load_rows(dataset, settings, seed)
    kind, examples, _ = read_rows(rows.train, rows.name)
    tested = {conversation_key(e.prompt) for e in read_rows(rows.test, rows.name)[1]} if rows.test else set()
    shares = shares_of(settings, rows.test is not None)
    return [
        e.prompt if kind == "labelled" else TEMPLATE.text(e.prompt, e.rejected or e.chosen or "").strip()
        for e in examples
        if conversation_key(e.prompt) not in tested and split_of(e.prompt, shares, seed) not in HELD_OUT
    ]


def _usable(
    split: str, rows: Rows, raw: list[dict], settings: DataSettings, tokenizer, seed: int, report: FilterReport
) -> tuple[Kind, list[Example]]:
    """The usable examples of one split, in shuffled order (`place`); every filter is counted in `report`.

    Lengths are tokens of the whole text the model sees: a prompt with the template around it, a response with its
    leading space and its EOS. Labelled texts have no length limit, since prompts are cut out of them later. Duplicates
    go last, so that the row kept for a prompt is a usable one; which it is depends on its content alone.
    """
    kind, examples, unread = read_rows(raw, f"{rows.name} ({split})")
    left = len(raw)
    report.append(FilterStep(split, READ, 0, left))
    for reason in [EMPTY, *sorted(unread.keys() - {EMPTY})]:
        left -= unread[reason]
        report.append(FilterStep(split, reason, unread[reason], left))
    if cut := sum(example.cut for example in examples):
        report.append(FilterStep(split, f"{CUT}: {cut}", 0, left))

    if kind == "labelled":
        least = settings.min_text_characters
        long = [e for e in examples if len(e.prompt) >= least]
        examples = report.kept(split, f"text under {least} characters", examples, long)
    else:
        if kind == "pairs" and settings.min_score_ratio > 1:
            clear = [e for e in examples if _score_ratio(e) >= settings.min_score_ratio]
            examples = report.kept(split, NEAR_TIE, examples, clear)
        sized = list(zip(examples, _measure(examples, tokenizer), strict=True))
        most = settings.max_prompt_tokens, settings.max_response_tokens
        sized = report.kept(split, IDENTICAL, sized, [pair for pair in sized if not pair[1].identical])
        fits = [pair for pair in sized if pair[1].prompt <= most[0]]
        sized = report.kept(split, f"prompt over {most[0]} tokens", sized, fits)
        fits = [pair for pair in sized if pair[1].response <= most[1]]
        sized = report.kept(split, f"response over {most[1]} tokens", sized, fits)
        examples = [example for example, _ in sized]

    examples.sort(key=lambda e: (place(seed, prompt_key(e.prompt)), place(seed, e.prompt, e.chosen, e.rejected)))
    prompts = groupby(examples, key=lambda e: prompt_key(e.prompt))
    fewer = [example for _, same in prompts for example in islice(same, settings.rows_per_prompt)]
    examples = report.kept(split, DUPLICATE, examples, fewer)
    _check_left(examples, split, rows, report)
    return kind, examples


class _Size(NamedTuple):
    prompt: int
    response: int
    identical: bool


def _measure(examples: list[Example], tokenizer) -> Iterator[_Size]:
    """Token counts of every example; the longer response counts, and 0 where there is none."""
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        prompts = [TEMPLATE.format(example.prompt) for example in batch]
        chosen, rejected = (
            continued_tokens(tokenizer, prompts, [TEMPLATE.completion(text) if text else "" for text in texts])
            for texts in ([e.chosen for e in batch], [e.rejected for e in batch])
        )
        for (prompt, better), (_, worse) in zip(chosen, rejected, strict=True):
            longest = max(len(better), len(worse))
            yield _Size(len(prompt), longest + 1 if longest else 0, bool(worse) and better == worse)


def _score_ratio(example: Example) -> float:
    """Votes of the better response over those of the worse one, of which 1 is the least that counts; infinite where
    there are none to compare."""
    better, worse = (example.extra.get(f"score_{name}") for name in ("chosen", "rejected"))
    if not isinstance(better, int | float) or not isinstance(worse, int | float):
        return math.inf
    return max(better, 1) / max(worse, 1)


def _at_most(name: str, setting: str, rows: list[Example], most: int | None, report: FilterReport) -> list[Example]:
    return rows if most is None else report.kept(name, f"over {setting}", rows, rows[:most])


def _cut_prompts(examples: list[Example], settings: DataSettings, tokenizer, seed: int) -> list[Example]:
    """Labelled texts as prompts: the first tokens of each, with the whole text in `extra`."""
    if not examples:
        return []
    least, most = settings.prompt_tokens
    encoded, cut = start_tokens(tokenizer, [example.prompt[: 40 * most] for example in examples]), []
    for example, tokens in zip(examples, encoded, strict=True):
        drawn = int.from_bytes(place(seed, "prompt length", example.prompt)[:8]) % (most - least + 1)
        (decoded,) = continuations(tokenizer, [[]], [tokens[: least + drawn]])
        # A cut inside a character of several bytes decodes to something that the text does not begin with.
        prompt = os.path.commonprefix([example.prompt, decoded]).strip() or example.prompt.split()[0]
        cut.append(Example(prompt, extra={**example.extra, "text": example.prompt}))
    return cut


def _check_left(examples: list[Example], split: str, rows: Rows, report: FilterReport) -> None:
    if not examples:
        raise InputError(
            f"{rows.name}: no {split} row is left after the filters ({report.line(split)}); "
            "mend the rows or raise data.max_prompt_tokens and data.max_response_tokens"
        )


def _check_sizes(
    name: str, sizes: Mapping[str, int], needed: Collection[str], found: str, least: int = LEAST_ROWS
) -> None:
    """Raise `InputError` where a split of `needed` has fewer than `least` rows; `found` says what was read."""
    if short := [split for split in needed if sizes[split] < least]:
        raise InputError(
            f"{name}: too few rows for {', '.join(short)} "
            f"({', '.join(f'{split} {sizes[split]}' for split in needed)}; {found}); each of these splits needs "
            f"{LEAST_ROWS}: give more rows or a larger share (--set data.shares.NAME=...)"
        )
