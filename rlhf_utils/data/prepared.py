"""Data ready for the stages: splits that share no prompt, and which filters took how many rows away."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlhf_utils.data.schemas import Example, Kind
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import whole_folder, write_json, write_jsonl
from rlhf_utils.settings.template import TEMPLATES, check_template

if TYPE_CHECKING:
    from datasets import Dataset

MANIFEST = "data.json"
READ = "rows read"


class FilterStep(NamedTuple):
    """`dropped` rows of `split` went for `reason`, and `left` remained."""

    split: str
    reason: str
    dropped: int
    left: int


class FilterReport(list[FilterStep]):
    """The filters in the order they ran, for every split. `str(report)` is a table."""

    def kept(self, split: str, reason: str, before: Sized, after: list) -> list:
        """`after`, which a filter left of `before`; both are counted."""
        self.append(FilterStep(split, reason, len(before) - len(after), len(after)))
        return after

    def dropped(self, split: str) -> dict[str, int]:
        """Rows dropped in one split, by reason."""
        return {step.reason: step.dropped for step in self if step.split == split}

    def line(self, split: str) -> str:
        """One split in one line: what was read and what took rows away."""
        read = sum(step.left for step in self if (step.split, step.reason) == (split, READ))
        return ", ".join([f"{read} {READ}"] + [f"{n} {reason}" for reason, n in self.dropped(split).items() if n])

    def to_dict(self) -> dict[str, list[dict]]:
        """Split -> steps as {"reason", "dropped", "left"}; `from_dict` reads it back."""
        steps = [(step.split, {k: v for k, v in step._asdict().items() if k != "split"}) for step in self]
        return {split: [step for name, step in steps if name == split] for split, _ in steps}

    @classmethod
    def from_dict(cls, data: dict[str, list[dict]]) -> FilterReport:
        return cls(FilterStep(split, **step) for split, steps in data.items() for step in steps)

    def __str__(self) -> str:
        width = max(len(reason) for reason in ["filter", *(step.reason for step in self)])
        lines = [f"{'split':<6}{'filter':<{width}}{'dropped':>9}{'left':>9}"]
        lines += [f"{step.split:<6}{step.reason:<{width}}{step.dropped:>9,}{step.left:>9,}" for step in self]
        return "\n".join(lines)


@dataclass(frozen=True)
class PreparedData:
    """What `prepare` made. splits: name of `SPLITS` -> Dataset with string columns prompt (normal form,
    without the template), chosen, rejected (null where the kind has none). For labelled data the prompt is the
    beginning of a text, and `text` and the integer `label` stand beside it.
    """

    kind: Kind
    splits: dict[str, Dataset]
    report: FilterReport
    template_hash: str
    fingerprint: str

    def first(self, name: str, most: int) -> Dataset:
        """The first `most` rows of a split, or all it has; the order is drawn by content, so they are a random part."""
        split = self.splits[name]
        return split.select(range(min(most, len(split))))

    def save(self, folder: Path | str) -> None:
        """Write JSON lines per split and a manifest; `folder` is replaced whole or not at all, else `InputError`."""
        manifest = {
            "kind": self.kind,
            "template_hash": self.template_hash,
            "fingerprint": self.fingerprint,
            "rows": {name: len(split) for name, split in self.splits.items()},
            "report": self.report.to_dict(),
        }
        with whole_folder(Path(folder)) as fresh:
            for name, split in self.splits.items():
                write_jsonl(fresh / f"{name}.jsonl", split)
            write_json(fresh / MANIFEST, manifest)

    @classmethod
    def load(cls, folder: Path | str) -> PreparedData:
        """Read what `save` wrote; `InputError` when it is missing, damaged, or made with another prompt template."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            kind, template_hash = manifest["kind"], manifest["template_hash"]
            check_template(template_hash, f"the data in {folder}", *TEMPLATES.values())
            splits = {}
            for name, count in manifest["rows"].items():
                with (folder / f"{name}.jsonl").open(encoding="utf-8", newline="\n") as file:
                    rows = [json.loads(line) for line in file]
                if len(rows) != count:
                    raise ValueError(f"{name}.jsonl has {len(rows)} of {count} rows")
                splits[name] = as_dataset(kind, rows)
            return cls(kind, splits, FilterReport.from_dict(manifest["report"]), template_hash, manifest["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not (folder / MANIFEST).exists():
                raise InputError(f"no prepared data in {folder}; run the data stage (01) first") from error
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"the prepared data in {folder} are damaged ({reason}); run the data stage (01) with --fresh"
            ) from error


def as_dataset(kind: Kind, rows: Iterable[Example | dict]) -> Dataset:
    """Examples, or rows of `PreparedData`, as a Dataset in memory, with the same columns also when there are none."""
    from datasets import Dataset, Features, Value

    columns = {"prompt": Value("string"), "chosen": Value("string"), "rejected": Value("string")}
    if kind == "labelled":
        columns |= {"text": Value("string"), "label": Value("int64")}
    rows = [
        row if isinstance(row, dict) else {name: getattr(row, name, None) for name in columns} | row.extra
        for row in rows
    ]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in columns}, features=Features(columns))
