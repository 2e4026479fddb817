"""Which rows are used: every filter counts what it drops, so that nobody has to guess where the data went."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rlhf_utils.data.schemas import EMPTY, Example, Kind
from rlhf_utils.data.tokens import continued_tokens
from rlhf_utils.settings.sections import DataSettings
from rlhf_utils.settings.template import NEXT_ASSISTANT, TEMPLATE

READ = "rows read"
IDENTICAL = "chosen and rejected are the same tokens"
DUPLICATE = "prompt seen before"
NEAR_TIE = "votes too close"
CUT = "responses cut at a further turn"

_BATCH = 4096


class FilterStep(NamedTuple):
    """`dropped` rows of `split` went for `reason`, and `left` remained."""

    split: str
    reason: str
    dropped: int
    left: int


class FilterReport:
    """The filters in the order they ran, for every split. `str(report)` is a table."""

    def __init__(self, steps: list[FilterStep] | None = None):
        self.steps = list(steps or [])

    def __iter__(self) -> Iterator[FilterStep]:
        return iter(self.steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FilterReport) and self.steps == other.steps

    def add(self, split: str, reason: str, dropped: int, left: int) -> None:
        self.steps.append(FilterStep(split, reason, dropped, left))

    def dropped(self, split: str) -> dict[str, int]:
        """Rows dropped in one split, by reason."""
        return {step.reason: step.dropped for step in self.steps if step.split == split}

    def line(self, split: str) -> str:
        """One split in one line: what was read and what took rows away."""
        steps = [step for step in self.steps if step.split == split]
        read = next((f"{step.left} {READ}" for step in steps if step.reason == READ), f"0 {READ}")
        return ", ".join([read] + [f"{step.dropped} {step.reason}" for step in steps if step.dropped])

    def to_dict(self) -> dict[str, list[dict]]:
        """Split -> steps as {"reason", "dropped", "left"}; `from_dict` reads it back."""
        result: dict[str, list[dict]] = {}
        for step in self.steps:
            result.setdefault(step.split, []).append(
                {"reason": step.reason, "dropped": step.dropped, "left": step.left}
            )
        return result

    @classmethod
    def from_dict(cls, data: dict[str, list[dict]]) -> FilterReport:
        return cls([FilterStep(split, **step) for split, steps in data.items() for step in steps])

    def __str__(self) -> str:
        width = max([len(step.reason) for step in self.steps] + [len("filter")])
        lines = [f"{'split':<6}{'filter':<{width}}{'dropped':>9}{'left':>9}"]
        lines += [f"{step.split:<6}{step.reason:<{width}}{step.dropped:>9,}{step.left:>9,}" for step in self.steps]
        return "\n".join(lines)


def prompt_key(prompt: str) -> str:
    """Prompts with the same key are one prompt: letter case and runs of blanks do not count."""
    return " ".join(prompt.casefold().split())


def conversation_key(prompt: str) -> str:
    """Prompts with the same key begin with the same human turn, and belong into the same split.

    A dialogue often appears several times, cut off at different turns: of the helpful rows of hh-rlhf, 7 % of
    the held-out ones would otherwise begin like a conversation that another stage has trained on.
    """
    return prompt_key(prompt.partition(NEXT_ASSISTANT)[0])


def place(seed: int, *parts: str | None) -> bytes:
    """Place of a prompt or a row in the shuffled order: given by seed and content, not by its neighbours."""
    text = "\0".join([str(seed), *(part or "" for part in parts)])
    return hashlib.sha256(text.encode()).digest()


def apply_filters(
    split: str,
    kind: Kind,
    examples: list[Example],
    unread: Counter,
    settings: DataSettings,
    tokenizer,
    seed: int,
    report: FilterReport,
) -> list[Example]:
    """The usable examples of one split, in shuffled order (`place`); every filter is counted in `report`.

    unread: rows the schema dropped, by reason. Lengths are tokens of the whole text the model sees: a prompt
    with the template around it, a response with its leading blank and its end-of-text token. Texts of
    labelled data have no length limit, since prompts are cut out of them later. Duplicates go last, so that
    the row kept for a prompt is a usable one; which it is depends on its content and not on the order of the
    file.
    """
    left = len(examples) + sum(unread.values())
    report.add(split, READ, 0, left)
    for reason in [EMPTY] + sorted(set(unread) - {EMPTY}):
        left -= unread[reason]
        report.add(split, reason, unread[reason], left)
    if cut := sum(example.cut for example in examples):
        report.add(split, f"{CUT}: {cut}", 0, left)

    for reason, fits in _content_filters(kind, settings):
        kept = [example for example in examples if fits(example)]
        report.add(split, reason, len(examples) - len(kept), len(kept))
        examples = kept
    if kind != "labelled":
        sized = list(zip(examples, _measure(examples, tokenizer), strict=True))
        for reason, fits in _size_filters(settings):
            kept = [(example, size) for example, size in sized if fits(size)]
            report.add(split, reason, len(sized) - len(kept), len(kept))
            sized = kept
        examples = [example for example, _ in sized]

    keyed = sorted(((prompt_key(e.prompt), e) for e in examples), key=lambda pair: _row_place(seed, *pair))
    seen: Counter = Counter()
    kept = []
    for key, example in keyed:
        seen[key] += 1
        if seen[key] <= settings.rows_per_prompt:
            kept.append(example)
    report.add(split, DUPLICATE, len(keyed) - len(kept), len(kept))
    return kept


def _content_filters(kind: Kind, settings: DataSettings) -> list[tuple[str, Callable[[Example], bool]]]:
    """(reason, what stays) of the filters that need no tokenizer and are asked for."""
    filters: list[tuple[str, Callable[[Example], bool]]] = []
    if kind == "labelled":
        least = settings.min_text_characters
        filters.append((f"text under {least} characters", lambda example: len(example.prompt) >= least))
    if kind == "pairs" and settings.min_score_ratio > 1:
        filters.append((NEAR_TIE, lambda example: _score_ratio(example) >= settings.min_score_ratio))
    return filters


def _score_ratio(example: Example) -> float:
    """Votes of the better answer over those of the worse one; infinite where there are no votes to compare.

    Votes can be 0 or less, with which no ratio is formed: 1 is the least that counts.
    """
    better, worse = (example.extra.get(f"score_{name}") for name in ("chosen", "rejected"))
    if not isinstance(better, int | float) or not isinstance(worse, int | float):
        return math.inf
    return max(better, 1) / max(worse, 1)


def _row_place(seed: int, key: str, example: Example) -> tuple[bytes, bytes]:
    return place(seed, key), place(seed, example.prompt, example.chosen, example.rejected)


class _Size(NamedTuple):
    prompt: int
    response: int
    identical: bool


def _size_filters(settings: DataSettings) -> list[tuple[str, Callable[[_Size], bool]]]:
    """(reason, what stays) in the order the filters run."""
    return [
        (IDENTICAL, lambda size: not size.identical),
        (
            f"prompt over {settings.max_prompt_tokens} tokens",
            lambda size: size.prompt <= settings.max_prompt_tokens,
        ),
        (
            f"response over {settings.max_response_tokens} tokens",
            lambda size: size.response <= settings.max_response_tokens,
        ),
    ]


def _measure(examples: list[Example], tokenizer) -> list[_Size]:
    """Token counts of every example; the longer response counts, and 0 where there is none."""
    sizes = []
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        prompts = [TEMPLATE.format(example.prompt) for example in batch]
        chosen, rejected = (
            continued_tokens(tokenizer, prompts, [TEMPLATE.completion(text) if text else "" for text in texts])
            for texts in ([e.chosen for e in batch], [e.rejected for e in batch])
        )
        for (prompt, better), (_, worse) in zip(chosen, rejected, strict=True):
            longest = max(len(better), len(worse))
            sizes.append(_Size(len(prompt), longest + 1 if longest else 0, bool(worse) and better == worse))
    return sizes
