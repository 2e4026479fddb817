"""Data ready for the stages: five splits that share no prompt, saved whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_utils.data.filters import FilterReport
from rlhf_utils.data.schemas import Example, Kind
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import whole_folder, write_json, write_jsonl
from rlhf_utils.settings.template import TEMPLATES, check_template

if TYPE_CHECKING:
    from datasets import Dataset

MANIFEST = "data.json"


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
        """Write JSON lines per split and a manifest; what was in `folder` is replaced, whole or not at all.

        Raises `InputError` when the place cannot be written.
        """
        with whole_folder(Path(folder)) as fresh:
            for name, split in self.splits.items():
                write_jsonl(fresh / f"{name}.jsonl", split)
            write_json(fresh / MANIFEST, self._manifest())

    def _manifest(self) -> dict:
        return {
            "kind": self.kind,
            "template_hash": self.template_hash,
            "fingerprint": self.fingerprint,
            "rows": {name: len(split) for name, split in self.splits.items()},
            "report": self.report.to_dict(),
        }

    @classmethod
    def load(cls, folder: Path | str) -> PreparedData:
        """Read what `save` wrote. `InputError` when it is missing, damaged, or made with another prompt
        template.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"no prepared data in {folder}; run the data stage (01) first") from error
        except (OSError, ValueError) as error:
            raise InputError(_damaged(folder, error)) from error
        try:
            check_template(manifest["template_hash"], f"the data in {folder}", *TEMPLATES.values())
            splits = {}
            for name, count in manifest["rows"].items():
                with (folder / f"{name}.jsonl").open(encoding="utf-8", newline="\n") as file:
                    rows = [json.loads(line) for line in file]
                if len(rows) != count:
                    raise ValueError(f"{name}.jsonl has {len(rows)} of {count} rows")
                splits[name] = as_dataset(manifest["kind"], rows)
            report = FilterReport.from_dict(manifest["report"])
            return cls(manifest["kind"], splits, report, manifest["template_hash"], manifest["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(_damaged(folder, error)) from error


def _damaged(folder: Path, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    return f"the prepared data in {folder} are damaged ({reason}); run the data stage (01) with --fresh"


def as_rows(kind: Kind, examples: list[Example]) -> list[dict]:
    """Examples as rows of `PreparedData`."""
    rows = [{"prompt": e.prompt, "chosen": e.chosen, "rejected": e.rejected} for e in examples]
    if kind == "labelled":
        for row, example in zip(rows, examples, strict=True):
            row |= {"text": example.extra["text"], "label": example.extra["label"]}
    return rows


def as_dataset(kind: Kind, rows: list[dict]) -> Dataset:
    """Rows as a Dataset held in memory, with the same columns also when there are no rows."""
    from datasets import Dataset, Features, Value

    columns = {"prompt": Value("string"), "chosen": Value("string"), "rejected": Value("string")}
    if kind == "labelled":
        columns |= {"text": Value("string"), "label": Value("int64")}
    return Dataset.from_dict({name: [row[name] for row in rows] for name in columns}, features=Features(columns))
