"""Where rows come from: the embedded world, a file or folder on this machine, or the Hugging Face hub.

What is wrong with a file is said with its name and, where there is one, its line.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from pyarrow import parquet

from rlhf_utils.data.schemas import shown
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash
from rlhf_utils.platforms.hub import DATASET, dataset_snapshot, wanted
from rlhf_utils.platforms.names import EMBEDDED, is_hub_name, is_there, local_path
from rlhf_utils.settings.sections import DataSettings

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Rows:
    """Rows as the dataset has them; `test` is None when there is no test split. `fingerprint` is the sha256 of the
    content (embedded and local data), or id@commit (hub)."""

    train: list[dict]
    test: list[dict] | None
    name: str
    fingerprint: str


def load_rows(dataset: str, settings: DataSettings, seed: int) -> Rows:
    """Rows of `dataset`: "embedded", a path, or a hub id. `seed` only matters to the embedded world.

    Raises `InputError` when the data cannot be found or read.
    """
    dataset = dataset.strip()
    if dataset == EMBEDDED:
        from rlhf_utils.toyworld import WORLDS

        sizes = {"train": settings.embedded_rows, "test": settings.embedded_test_rows}
        both = [WORLDS[settings.world].rows(split, n, seed, settings.label_noise) for split, n in sizes.items()]
        return Rows(*both, EMBEDDED, hashlib.sha256(json.dumps(both, sort_keys=True).encode()).hexdigest())
    if not dataset:
        raise InputError("dataset is empty; give a file, a folder, a hub id, or embedded")
    if not is_local(dataset):
        asked = wanted(dataset, DATASET, settings.revision, settings.data_dir)
        folder = dataset_snapshot(asked)
        train, test = _hub_rows(folder, asked.subfolder, settings, f"hub dataset {dataset}")
        return Rows(train, test, dataset, f"{asked.name}@{folder.name}")
    path = local_path(dataset)
    where = path / settings.data_dir if settings.data_dir and path.is_dir() else path
    with _readable(where, "check the path and its permissions"):
        train, test = _folder_rows(where, settings) if where.is_dir() else (_file_rows(where), None)
        fingerprint = content_hash(where)
    if not train:
        raise InputError(f"{where} is empty: it holds no rows; give a file with rows")
    return Rows(train, test, str(path), fingerprint)


@contextmanager
def _readable(where: object, help: str):
    """InputError, in one line, for what libraries raise of files that they cannot read."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}"[:200].split())
        raise InputError(f"{where} cannot be read ({reason}); {help}") from error


def is_local(dataset: str) -> bool:
    """A path that is there, or a name that is no id of the hub, or one that ends like a file we read."""
    # An address is refused as a name of the hub.
    named_like_a_file = "://" not in dataset and dataset.lower().endswith(SUFFIXES)
    return dataset != EMBEDDED and (is_there(dataset) or named_like_a_file or not is_hub_name(dataset))


def _hub_rows(folder: Path, subfolder: str | None, settings: DataSettings, where: str) -> tuple:
    """(train rows, test rows or None) of a folder as the hub lays them out."""
    import datasets

    with _readable(where, "check data.data_dir and data.revision, or use --set dataset=PATH"):
        splits = datasets.load_dataset(str(folder), data_dir=subfolder)
    train, test = (splits[name].to_list() if name in splits else [] for name in (settings.split, settings.test_split))
    if not train:
        raise InputError(
            f"{where} has no split {settings.split!r}, or an empty one; it has {shown(splits)}: choose with "
            "--set data.split=NAME"
        )
    return train, test or None


def _folder_rows(folder: Path, settings: DataSettings) -> tuple:
    """(train rows, test rows or None) of the files in a folder: `train.jsonl`, `test-00000-of-00002.parquet`."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(SUFFIXES))
    train, test = (
        [name for name in names if re.match(rf"{re.escape(split)}[-_.]", name, re.IGNORECASE)]
        for split in (settings.split, settings.test_split)
    )
    train = train or [name for name in names if name not in test]
    if not train:
        raise InputError(
            f"folder {folder} holds no data files, or only a test split; put {settings.split}.jsonl there (or "
            f"{', '.join(SUFFIXES[1:])}), or name another"
        )
    rows, tested = ([row for name in names for row in _file_rows(folder / name)] for names in (train, test))
    return rows, tested or None


def _file_rows(path: Path) -> list[dict]:
    if not path.is_file():
        raise InputError(f"no file {path}; check the path given as dataset")
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise InputError(f"{path}: cannot read this kind of file; use one of {', '.join(SUFFIXES)}")
    with _readable(path, "save text as UTF-8, and all else whole and in the format that its name says"):
        if name.endswith(".parquet"):
            return parquet.ParquetFile(path).read().to_pylist()
        if name.endswith(".csv"):
            return _csv_rows(path)
        with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            text = file.read()
    if name.endswith(".json") and text.lstrip().startswith("["):
        numbered = enumerate(_parse(text, path, 1), start=1)
    else:
        lines = enumerate(text.split("\n"), start=1)
        numbered = ((number, _parse(line, path, number)) for number, line in lines if line.strip())
    rows = []
    for number, row in numbered:
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise InputError(f'{path}, row {number}: expected an object such as {{"prompt": …}}, not {kind}; mend it')
        rows.append(row)
    return rows


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, thousands of brackets
        line, reason = first_line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", type(error).__name__)
        raise InputError(f"{path}:{line}: broken JSON ({reason}); mend or remove it, and save it as UTF-8") from error


def _csv_rows(path: Path) -> list[dict]:
    """Every cell is text; a short row has empty cells, which the filters count."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # a first row with more cells than names
        try:
            table = pandas.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
        except pandas.errors.EmptyDataError:
            return []
    return table.rename(columns=str.strip).to_dict("records")
