"""Where rows come from: the embedded world, a file or folder on this machine, or the Hugging Face hub.

What is wrong with a file is said with its name and, where there is one, its line.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_utils.data.schemas import shown
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash
from rlhf_utils.platforms.hub import DATASET, snapshot, wanted
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
        folder = snapshot(asked)
        train, test = _hub_rows(folder, asked.subfolder, settings, f"hub dataset {dataset}")
        return Rows(train, test, dataset, f"{asked.name}@{folder.name}")
    path = local_path(dataset)
    where = path / settings.data_dir if settings.data_dir and path.is_dir() else path
    with _readable(where, only=OSError):
        train, test = _read_folder(where, settings) if where.is_dir() else (_read_file(where), None)
        fingerprint = content_hash(where)
    if not train:
        raise InputError(
            f"{where} is empty: it holds no rows; give a file with rows (a csv has a line of names before)"
        )
    return Rows(train, test, str(path), fingerprint)


@contextmanager
def _readable(where: object, help: str = "check the path and its permissions", only: type[Exception] = Exception):
    """InputError, in one line, for what libraries raise of files that they cannot read: errors of many kinds."""
    try:
        yield
    except InputError:
        raise
    except only as error:
        raise InputError(f"{where} cannot be read ({type(error).__name__}: {str(error)[:160]}); {help}") from error


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


def _read_folder(folder: Path, settings: DataSettings) -> tuple[list[dict], list[dict] | None]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(SUFFIXES))
    files = [path for path in files if path.name not in ("state.json", "dataset_info.json", "dataset_dict.json")]
    # train.jsonl, train-00000-of-00002.parquet, train_1.csv
    train, test = (
        [path for path in files if re.match(rf"{re.escape(split)}[-_.]", path.name, re.IGNORECASE)]
        for split in (settings.split, settings.test_split)
    )
    train = train or [path for path in files if path not in test]
    if not train:
        raise InputError(
            f"folder {folder} holds no data files{' but those of the test split' if test else ''}; put "
            f"{settings.split}.jsonl there (or {', '.join(SUFFIXES[1:])}), or name another"
        )
    rows, tested = ([row for path in paths for row in _read_file(path)] for paths in (train, test))
    return rows, tested or None


def _read_file(path: Path) -> list[dict]:
    if not path.is_file():
        what = f"{path} is neither a file nor a folder" if path.exists() else f"no file {path}"
        raise InputError(f"{what}; check the path given as dataset")
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"{path}: cannot read this kind of file; use one of {', '.join(SUFFIXES)}")
    with _readable(path, "save text as UTF-8, and all else whole and in the format that its name says"):
        if suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.ParquetFile(path).read().to_pylist()
        data = gzip.decompress(path.read_bytes()) if suffix.endswith(".gz") else path.read_bytes()
        text = data.decode("utf-8-sig")
    if suffix == ".csv":
        return _read_csv(text, path)
    if suffix == ".json" and text.lstrip().startswith("["):
        values = [(f"{path}, element {number}", value) for number, value in enumerate(_parse(text, path, 1), start=1)]
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        values = [(f"{path}:{number}", _parse(line, path, number)) for number, line in lines]
    for where, value in values:
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise InputError(f'{where}: expected an object such as {{"prompt": …}}, not {kind}; mend it')
    return [value for _, value in values]


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, thousands of brackets
        line, reason = first_line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", type(error).__name__)
        raise InputError(f"{path}:{line}: broken JSON ({reason}); mend or remove it, and save it as UTF-8") from error


def _read_csv(text: str, path: Path) -> list[dict]:
    # The default limit of 128 KiB a cell is a safeguard of the module, not of the format.
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader, rows = csv.DictReader(io.StringIO(text, newline=""), strict=True), []
    try:
        names = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: a column name occurs twice ({shown(names)}); rename one")
        # A short row is a row with empty cells, and is counted as such by the filters.
        for row in reader:
            if None in row:
                raise csv.Error("more cells than column names")
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: broken CSV ({error}); mend the quotes there") from error
    return rows
