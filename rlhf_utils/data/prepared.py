"""From rows to the splits: filter, divide by prompt, write to disk. Every filter counts what it drops."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, get_args

from rlhf_utils.data.sources import ABOUT, EMPTY, Example, Kind, Rows, read_rows
from rlhf_utils.data.tokens import continuations, continued_tokens, start_tokens
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_jsonl, write_json, write_jsonl
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.settings.sections import DataSettings, Split
from rlhf_utils.settings.template import NEXT_ASSISTANT, TEMPLATE, TEMPLATES, Template, check_template
from rlhf_utils.toyworld.gold import read_prompt

SPLITS = get_args(Split)
# Of texts, the splits that are asked their beginnings: no prompt is in two of them.
PROMPTED = ("ppo", "development", "evaluation")
LEAST_ROWS = 2  # the spread of a split's figures, and so their intervals, takes two rows
MANIFEST = "data.json"
# What recipes of either form learn from, and its columns.
_LEARNED = {"dialogue": ("pairs", "prompt, chosen and rejected"), "continuation": ("labelled", "text and label")}
READ = "rows read"
CUT = "responses cut at a further turn"
UNKNOWN = "characters that the tokenizer does not know"


@dataclass(frozen=True)
class PreparedData:
    """What `prepare` made. splits: name of `SPLITS` -> Dataset with string columns prompt (normal form, without the
    template), chosen, rejected. For labelled data these two are null, the prompt is the beginning of a text, and `text`
    and the integer `label` stand beside it; where rows say them, `topic` and `unsafe` (yes or no) follow. report: the
    filters of each split in the order they ran, as {reason, dropped, left}."""

    kind: Kind
    splits: dict[str, Any]
    report: dict[str, list[dict]]
    template_hash: str

    def first(self, name: str, most: int) -> Any:
        """The first `most` rows of a split, or all it has; the order is drawn by content, so they are a random part."""
        split = self.splits[name]
        return split.select(range(min(most, len(split))))

    def save(self, folder: Path) -> None:
        """Write JSON lines per split and, last, a manifest; `InputError` where that cannot be."""
        about = {key: getattr(self, key) for key in ("kind", "template_hash", "report")}
        for name, split in self.splits.items():
            write_jsonl(folder / f"{name}.jsonl", split)
        write_json(folder / MANIFEST, {**about, "rows": {name: len(split) for name, split in self.splits.items()}})

    @classmethod
    def load(cls, folder: Path | str) -> "PreparedData":
        """Read what `save` wrote; `InputError` when it is missing, damaged, or made with another prompt template."""
        splits, folder = {}, Path(folder)
        try:
            about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            check_template(about["template_hash"], f"the data in {folder}", *TEMPLATES.values())
            for name, count in about["rows"].items():
                rows = read_jsonl(folder / f"{name}.jsonl")
                if len(rows) != count:
                    raise ValueError(f"{name}.jsonl has {len(rows)} of {count} rows")
                splits[name] = _dataset(about["kind"], rows)
            return cls(about["kind"], splits, about["report"], about["template_hash"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"no prepared data in {folder}, or damaged ({error!r}); run 01 with --fresh") from error


def prepare(
    rows: Rows,
    settings: DataSettings,
    tokenizer: Callable[..., Any],
    seed: int,
    template: Template = TEMPLATE,
    needed: Iterable[str] = (),
) -> PreparedData:
    """Read, filter, and divide `rows`, by prompts (`split_of`); their order changes nothing. Token counts are those of
    `tokenizer`, called on lists of text. A test split becomes `evaluation`, and no other split has a prompt of it. Of
    labelled texts the first tokens become the prompt; no text is in two splits, and no prompt in two of `PROMPTED`.
    Raises `InputError` when columns are unknown, or a split with a share or one of `needed` would be empty."""
    report, shares = {}, _shares(rows, settings)
    kind, train = _usable("train", rows.name, rows.train, settings, tokenizer, seed, report)
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}

    def at_most(name: str, setting: str, examples: list[Example], most: int | None) -> list[Example]:
        if most is not None:
            _count(report, name, {f"over {setting} {most}": max(0, len(examples) - most)}, len(examples))
        return examples[:most]

    if rows.test is not None:
        test_kind, held_out = _usable("test", rows.name, rows.test, settings, tokenizer, seed, report)
        if test_kind != kind:
            raise InputError(f"{rows.name}: the train split holds {kind} but the test split {test_kind}")
        tested = {conversation_key(e.prompt) for e in held_out}
        every, train = train, [e for e in train if conversation_key(e.prompt) not in tested]
        _count(report, "train", {"prompt also in the test split": len(every) - len(train)}, len(every))
        splits["evaluation"] = at_most("test", "max_rows", held_out, settings.max_rows)
    train = at_most("train", "max_rows", train, settings.max_rows)
    if kind == "pairs":
        for example in train:
            splits[split_of(example.prompt, shares, seed)].append(example)
    else:
        splits["evaluation"] = cut_prompts(splits["evaluation"], settings, tokenizer, seed)
        kept = splits["evaluation"][: settings.split_rows.get("evaluation")]
        asked = {conversation_key(example.prompt) for example in kept}
        for example in cut_prompts(train, settings, tokenizer, seed):
            splits[split_of(example.extra["text"], shares, seed, example.prompt)].append(example)
        for name in ("ppo", "development") if rows.test else ():
            every, splits[name] = splits[name], [e for e in splits[name] if conversation_key(e.prompt) not in asked]
            _count(report, name, {"prompt also in the test split": len(every) - len(splits[name])}, len(every))
    for name, split in splits.items():
        splits[name] = at_most(name, f"split_rows.{name}", split, settings.split_rows.get(name))
    needed = {*needed, *(name for name in SPLITS if shares[name] > 0)} | ({"evaluation"} if rows.test else set())
    steps = [(split, *step.values()) for split, steps in report.items() for step in steps]
    told = [f"{split}: {dropped or left} {why}" for split, why, dropped, left in steps if dropped or why == READ]
    if kind == "labelled":
        different = {conversation_key(example.prompt) for name in PROMPTED for example in splits[name]}
        told.append(f"{len(different)} different prompts cut from the texts of {', '.join(PROMPTED)}")
    sizes = {name: len(split) for name, split in splits.items()}
    _check_sizes(rows.name, sizes, [name for name in SPLITS if name in needed], ", ".join(told), least=1)
    datasets = {name: _dataset(kind, [e._asdict() | e.extra for e in split]) for name, split in splits.items()}
    return PreparedData(kind, datasets, report, template.hash)


def prompt_key(prompt: str) -> str:
    """Prompts with the same key are one prompt: letter case and runs of spaces do not count."""
    return " ".join(prompt.casefold().split())


def conversation_key(prompt: str) -> str:
    """Prompts with the same key begin with the same human turn, and belong into the same split: of the helpful rows of
    hh-rlhf, 7 % of the held-out ones would otherwise begin like a conversation that another stage has trained on."""
    return prompt_key(prompt.partition(NEXT_ASSISTANT)[0])


def cluster_key(prompt: str) -> str:
    """Prompts with the same key are not independent, and intervals are over such clusters: they begin with the same
    human turn, or it makes the same request of the synthetic dataset in other words."""
    first = prompt.partition(NEXT_ASSISTANT)[0]
    request = read_prompt(first)
    return request.ask if request else prompt_key(first)


def split_of(text: str, shares: Mapping[str, float], seed: int, prompt: str | None = None) -> str:
    """The split of `text`, a prompt or one that a `prompt` is cut from: the hash of its first turn, a number in [0, 1),
    falls into one of the intervals that `shares` cut. Where that is one of `PROMPTED`, a cut `prompt` decides in the
    same way among these. Raises InputError when all shares are zero."""
    if not any(shares[name] > 0 for name in SPLITS):
        raise InputError("data.shares are all zero; give at least one split a share")
    name = _interval(_draw(seed, "split", conversation_key(text)), {name: shares[name] for name in SPLITS})
    if name not in PROMPTED or prompt is None:
        return name
    return _interval(_draw(seed, "prompt", conversation_key(prompt)), {name: shares[name] for name in PROMPTED})


def _interval(drawn: int, shares: Mapping[str, float]) -> str:
    """The one of `shares`, not all zero, in whose interval the random number `drawn` falls."""
    some = [name for name, share in shares.items() if share > 0]
    number, total = drawn / 2**64, sum(shares[name] for name in some)
    edges = accumulate(shares[name] / total for name in some)
    return next((name for name, edge in zip(some, edges, strict=True) if number < edge), some[-1])


def check_rows(rows: Rows, recipe: Recipe, needed: Iterable[str] = ()) -> tuple[Kind, list[Example]]:
    """The kind and the examples of the train rows. Raises `InputError` unless they are what the recipe learns from,
    with two rows for every split of `needed`: all that can be said before there is a tokenizer."""
    kind, examples, unread = read_rows(rows.train, f"{rows.name} (train)")
    wanted, columns = _LEARNED[recipe.form]
    if kind != wanted:
        raise InputError(f"{rows.name}: this recipe learns from {wanted} rows, and these are {kind}; give {columns}")
    if kind == "labelled" and len({e.extra["label"] for e in examples}) < 2:
        raise InputError(f"{rows.name}: give texts of two different labels")
    prompts = {prompt_key(e.prompt): e.prompt for e in examples if kind == "labelled" or e.chosen != e.rejected}
    shares = _shares(rows, recipe.data)
    sizes = Counter(split_of(prompt, shares, recipe.seed) for prompt in prompts.values())
    if kind == "labelled":
        # How they are divided among these depends on prompts that a tokenizer cuts: at most they all go to one.
        sizes |= dict.fromkeys(PROMPTED, sum(sizes[name] for name in PROMPTED))
    sizes["evaluation"] += len(rows.test or [])
    found = {READ: len(rows.train), **unread, "different prompts of usable rows": len(prompts)}
    _check_sizes(rows.name, sizes, needed, ", ".join(f"{count} {what}" for what, count in found.items()))
    return kind, examples


def learned_from(rows: Rows, settings: DataSettings, seed: int, kind: Kind) -> Callable[[str], bool]:
    """Tells of a prompt of the train rows whether a stage trains on it: no held-out one begins with the same turn. Of
    texts none of `PROMPTED` is learned from: which of them are held out a tokenizer decides, and there is none yet."""
    tested = {conversation_key(e.prompt) for e in read_rows(rows.test, rows.name)[1]} if rows.test else set()
    shares, held_out = _shares(rows, settings), PROMPTED if kind == "labelled" else ("development", "evaluation")
    return lambda prompt: conversation_key(prompt) not in tested and split_of(prompt, shares, seed) not in held_out


def cut_prompts(examples: list[Example], settings: DataSettings, tokenizer, seed: int) -> list[Example]:
    """Labelled texts as prompts: the first tokens of each, with the whole text in `extra`."""
    if not examples:
        return []
    least, most = sorted(settings.prompt_tokens)
    encoded, cut = start_tokens(tokenizer, [example.prompt[: 40 * most] for example in examples]), []
    for example, tokens in zip(examples, encoded, strict=True):
        drawn = least + _draw(seed, "prompt length", example.prompt) % (most - least + 1)
        (decoded,) = continuations(tokenizer, [[]], [tokens[:drawn]])
        # A cut inside a character of several bytes decodes to something that the text does not begin with.
        prompt = os.path.commonprefix([example.prompt, decoded]).strip() or example.prompt.split()[0]
        cut.append(Example(prompt, extra={**example.extra, "text": example.prompt}))
    return cut


def _draw(seed: int, *parts: str | None) -> int:
    """A random number below 2**64 for a prompt or a row, given by seed and content, not by its neighbors."""
    return int.from_bytes(hashlib.sha256("\0".join([str(seed), *(part or "" for part in parts)]).encode()).digest()[:8])


def _shares(rows: Rows, settings: DataSettings) -> dict[str, float]:
    """Shares of `SPLITS` in the train rows: a test split takes the place of the evaluation share."""
    return settings.shares.model_dump() | ({} if rows.test is None else {"evaluation": 0.0})


def _usable(split: str, name: str, rows: list, settings, tokenizer, seed: int, report) -> tuple[Kind, list[Example]]:
    """The usable examples of one split, in shuffled order (`_draw`). Lengths are tokens of a prompt with the template
    around it, and of a response with its EOS. Duplicates go last: the row kept for a prompt is a usable one."""
    kind, examples, unread = read_rows(rows, f"{name} ({split})")
    reasons, faults = _faults(kind, examples, settings, tokenizer)
    counts = {READ: 0, EMPTY: unread.pop(EMPTY, 0), **dict(sorted(unread.items()))}
    if cut := sum(example.cut for example in examples):
        counts[f"{CUT}: {cut}"] = 0
    counts |= {reason: faults.count(reason) for reason in reasons}
    examples = [example for example, fault in zip(examples, faults, strict=True) if fault is None]
    examples.sort(key=lambda e: (_draw(seed, prompt_key(e.prompt)), _draw(seed, e.prompt, e.chosen, e.rejected)))
    kept = [next(same) for _, same in groupby(examples, key=lambda e: prompt_key(e.prompt))]
    _count(report, split, counts | {"prompt seen before": len(examples) - len(kept)}, len(rows))
    return kind, kept


def _count(report: dict, split: str, dropped: Mapping[str, int], left: int) -> None:
    """Add to `report` the filters of a split, each with what it `dropped` of the `left` rows before it."""
    for reason, count in dropped.items():
        left -= count
        report.setdefault(split, []).append({"reason": reason, "dropped": count, "left": left})


def _faults(kind: Kind, examples: list[Example], settings: DataSettings, tokenizer) -> tuple[list[str], list]:
    """The reasons to drop examples of this kind, and for each example the first that holds, or None."""
    least, most, longest = settings.min_text_characters, settings.max_prompt_tokens, settings.max_response_tokens
    # Of tokenizers that spell everything by its bytes, as GPT-2's, the unknown token is EOS, or there is none.
    unknown = {getattr(tokenizer, "unk_token_id", None)} - {None, getattr(tokenizer, "eos_token_id", None)}
    if kind == "labelled":
        short, texts = f"text under {least} characters", [example.prompt for example in examples]
        ids = tokenizer(texts, verbose=False)["input_ids"] if unknown else texts  # nothing is unknown then
        strange = [not unknown.isdisjoint(row) for row in ids]
        faults = [short if len(t) < least else UNKNOWN if odd else None for t, odd in zip(texts, strange, strict=True)]
        return [short, UNKNOWN][: 1 + len(unknown)], faults
    reasons, found, ratio = ["votes too close", "chosen and rejected are the same tokens"], [], settings.min_score_ratio
    reasons += [f"prompt over {most} tokens", f"response over {longest} tokens", UNKNOWN]
    for start in range(0, len(examples), 4096):
        batch = examples[start : start + 4096]
        prompts = [TEMPLATE.format(e.prompt) for e in batch]
        chosen = continued_tokens(tokenizer, prompts, [TEMPLATE.completion(e.chosen) for e in batch])
        rejected = continued_tokens(tokenizer, prompts, [TEMPLATE.completion(e.rejected) for e in batch])
        for example, (prompt, better), (_, worse) in zip(batch, chosen, rejected, strict=True):
            length = max(len(better), len(worse)) + 1  # with EOS
            strange = not unknown.isdisjoint([*prompt, *better, *worse])
            holds = (_votes_close(example, ratio), better == worse, len(prompt) > most, length > longest, strange)
            found.append(next((reason for reason, fault in zip(reasons, holds, strict=True) if fault), None))
    never = {"votes too close": ratio <= 1, UNKNOWN: not unknown}
    return [reason for reason in reasons if not never.get(reason)], found


def _votes_close(example: Example, ratio: float) -> bool:
    """Whether the responses have votes that are not so far apart; the least that counts is 1."""
    better, worse = example.extra.get("score_chosen"), example.extra.get("score_rejected")
    numbers = isinstance(better, int | float) and isinstance(worse, int | float)
    return numbers and ratio > 1 and max(better, 1) / max(worse, 1) < ratio


def _check_sizes(name: str, sizes: Mapping[str, int], needed: Iterable[str], found: str, least: int = LEAST_ROWS):
    """Raise `InputError` where a split of `needed` has fewer than `least` rows; `found` says what was read."""
    if short := ", ".join(split for split in needed if sizes[split] < least):
        counts = ", ".join(f"{split} {sizes[split]}" for split in needed)
        told = f"{name}: too few rows for {short} ({counts}; {found}); each of these splits needs {LEAST_ROWS}"
        higher = "higher limits (data.max_prompt_tokens, data.max_response_tokens), or a larger share (data.shares)"
        raise InputError(f"{told}: give more rows, {higher}")


def _dataset(kind: Kind, rows: list[dict]):
    """Rows as a Dataset in memory, with the same columns also when there are none."""
    from datasets import Dataset, Features, Value

    columns = ["prompt", "chosen", "rejected", *(("text", "label") if kind == "labelled" else ())]
    columns += [name for name in ABOUT if any(row.get(name) for row in rows)]
    features = Features({name: Value("int64" if name == "label" else "string") for name in columns})
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns}, features=features)
