"""From rows to the five splits: adapt, filter, and divide by prompt."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from rlhf_utils.data.filters import (
    IDENTICAL,
    READ,
    FilterReport,
    apply_filters,
    conversation_key,
    place,
    prompt_key,
)
from rlhf_utils.data.prepared import PreparedData, as_dataset, as_rows
from rlhf_utils.data.schemas import Example, Kind, read_rows
from rlhf_utils.data.sources import Rows
from rlhf_utils.data.splits import SPLITS, shares_of, split_of
from rlhf_utils.data.tokens import continuations, start_tokens
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.sections import DataSettings
from rlhf_utils.settings.template import TEMPLATE, Template

IN_TEST = "prompt also in the test split"
# The spread of a split's figures, and so their intervals, takes two rows.
LEAST_ROWS = 2


def prepare(rows: Rows, settings: DataSettings, tokenizer, seed: int, template: Template = TEMPLATE) -> PreparedData:
    """Adapt, filter and divide `rows`. Token counts are those of `tokenizer`, called on lists of text.

    Prompts, not rows, are divided (`split_of`), in proportion to `settings.shares` up to chance. The order of
    the rows changes nothing. A test split becomes `evaluation`, and no other split has a prompt of it.
    Dialogues that begin with the same human turn count as one prompt here (`conversation_key`). Of labelled texts the
    first tokens become the prompt, as many as `settings.prompt_tokens` allows, drawn for each text by its content.

    Raises `InputError` when the columns are unknown, when no row is left, or when a split with a share would
    be empty.
    """
    report = FilterReport()
    kind, train = _usable("train", rows, rows.train, settings, tokenizer, seed, report)
    shares = shares_of(settings, rows.test is not None)
    held_out: list[Example] = []
    if rows.test is not None:
        test_kind, held_out = _usable("test", rows, rows.test, settings, tokenizer, seed, report)
        if test_kind != kind:
            raise InputError(
                f"{rows.name}: the train split holds {kind} but the test split {test_kind}; "
                "give both the same columns, or name another with --set data.test_split=NAME"
            )
        train = _without(train, {conversation_key(example.prompt) for example in held_out}, rows, report)
        held_out = _capped("test", held_out, settings, report)
    train = _capped("train", train, settings, report)

    splits = {name: [] for name in SPLITS}
    for example in train:
        splits[split_of(example.prompt, shares, seed)].append(example)
    if rows.test is not None:
        splits["evaluation"] = held_out
    splits = {name: _at_most(name, split, settings, report) for name, split in splits.items()}
    needed = [name for name in SPLITS if shares[name] > 0]
    _check_sizes(rows.name, {name: len(split) for name, split in splits.items()}, needed, report.line("train"), least=1)
    if kind == "labelled":
        splits = {name: _cut_prompts(split, settings, tokenizer, seed) for name, split in splits.items()}
    datasets = {name: as_dataset(kind, as_rows(kind, splits[name])) for name in SPLITS}
    return PreparedData(kind, datasets, report, template.hash, rows.fingerprint)


def check_rows(rows: Rows, form: str) -> None:
    """Raise `InputError` unless `rows` are what a recipe of this form (`Recipe.form`) learns from.

    Says what can be said before there is a tokenizer: pairs that differ for a dialogue, labelled texts of more than one
    class for a continuation.
    """
    kind, examples, unread = read_rows(rows.train, f"{rows.name} (train)")
    if form == "continuation":
        if kind != "labelled":
            raise InputError(
                f"{rows.name}: this recipe learns from labelled texts, and these rows are {kind}; give rows with text "
                "and label"
            )
        if len(labels := {example.extra["label"] for example in examples}) < 2:
            raise InputError(
                f"{rows.name}: the texts have {'one label' if labels else 'no label'} only; give texts of both kinds"
            )
        return
    if kind != "pairs":
        raise InputError(
            f"{rows.name}: this recipe learns from pairs of answers, and these rows are {kind}; give rows with "
            "prompt, chosen and rejected"
        )
    if not any(example.chosen != example.rejected for example in examples):
        reasons = [f"{count} {reason}" for reason, count in unread.items()]
        reasons += [f"{len(examples)} {IDENTICAL}"] if examples else []
        raise InputError(
            f"{rows.name}: no row is left after the filters ({len(rows.train)} {READ}, {', '.join(reasons)}); "
            "mend the rows"
        )


def check_enough(rows: Rows, settings: DataSettings, seed: int, needed: Collection[str]) -> None:
    """Raise `InputError` where `rows` cannot give every split of `needed` `LEAST_ROWS` rows, however long they are."""
    kind, examples, _ = read_rows(rows.train, f"{rows.name} (train)")
    shares, prompts = shares_of(settings, rows.test is not None), {}
    for example in examples:
        if kind == "labelled" or example.chosen != example.rejected:
            prompts.setdefault(prompt_key(example.prompt), []).append(example.prompt)
    sizes = dict.fromkeys(SPLITS, 0)
    for same in prompts.values():
        sizes[split_of(same[0], shares, seed)] += min(len(same), settings.rows_per_prompt)
    sizes["evaluation"] += len(rows.test or [])
    _check_sizes(rows.name, sizes, needed, f"{len(rows.train)} {READ}, {len(prompts)} different prompts")


def _usable(
    split: str,
    rows: Rows,
    raw: list[dict],
    settings: DataSettings,
    tokenizer,
    seed: int,
    report: FilterReport,
) -> tuple[Kind, list[Example]]:
    kind, examples, unread = read_rows(raw, f"{rows.name} ({split})")
    examples = apply_filters(split, kind, examples, unread, settings, tokenizer, seed, report)
    _check_left(examples, split, rows, report)
    return kind, examples


def _check_left(examples: list[Example], split: str, rows: Rows, report: FilterReport) -> None:
    if not examples:
        raise InputError(
            f"{rows.name}: no {split} row is left after the filters ({report.line(split)}); "
            "mend the rows or raise data.max_prompt_tokens and data.max_response_tokens"
        )


def _without(train: list[Example], keys: set[str], rows: Rows, report: FilterReport) -> list[Example]:
    kept = [example for example in train if conversation_key(example.prompt) not in keys]
    report.add("train", IN_TEST, len(train) - len(kept), len(kept))
    _check_left(kept, "train", rows, report)
    return kept


def _capped(split: str, examples: list[Example], settings: DataSettings, report: FilterReport) -> list[Example]:
    if settings.max_rows is None:
        return examples
    kept = examples[: settings.max_rows]
    report.add(split, f"over max_rows {settings.max_rows}", len(examples) - len(kept), len(kept))
    return kept


def _at_most(name: str, examples: list[Example], settings: DataSettings, report: FilterReport) -> list[Example]:
    most = getattr(settings.split_rows, name)
    if most is None:
        return examples
    kept = examples[:most]
    report.add(name, f"over split_rows.{name} {most}", len(examples) - len(kept), len(kept))
    return kept


def _cut_prompts(examples: list[Example], settings: DataSettings, tokenizer, seed: int) -> list[Example]:
    """Labelled texts as prompts: the first tokens of each, with the whole text in `extra`."""
    if not examples:
        return []
    least, most = settings.prompt_tokens
    encoded = start_tokens(tokenizer, [example.prompt[: 40 * most] for example in examples])
    cut = []
    for example, tokens in zip(examples, encoded, strict=True):
        drawn = int.from_bytes(place(seed, "prompt length", example.prompt)[:8]) % (most - least + 1)
        (decoded,) = continuations(tokenizer, [[]], [tokens[: least + drawn]])
        # A cut inside a character of several bytes decodes to something that the text does not begin with.
        prompt = os.path.commonprefix([example.prompt, decoded]).strip() or example.prompt.split()[0]
        cut.append(Example(prompt, extra={**example.extra, "text": example.prompt}))
    return cut


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
