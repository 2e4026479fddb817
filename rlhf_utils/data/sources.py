"""Where rows come from: the embedded world, a file or folder on this machine, or the Hugging Face hub.

What is wrong with a file is said with its name and, where there is one, its line.
"""

import gzip
import hashlib
import json
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
from rlhf_utils.platforms.names import DATASET, EMBEDDED, is_hub_name, is_there, local_path, snapshot, wanted
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
        train, test = _folder_rows(folder, asked.subfolder, settings, f"hub dataset {dataset}")
        return Rows(train, test, dataset, f"{asked.name}@{folder.name}")
    path, test = local_path(dataset), None
    if path.is_dir():
        train, test = _folder_rows(path, settings.data_dir, settings, f"folder {path}")
    else:
        train = _file_rows(path)
    if not train:
        raise InputError(f"{path} is empty: it holds no rows; give a file with rows")
    return Rows(train, test, str(path), content_hash(path / (settings.data_dir or "") if path.is_dir() else path))


@contextmanager
def _readable(where: object, help: str):
    """InputError, in one line, for what libraries raise of files that they cannot read."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}"[:200].split())
        raise InputError(f"{where} cannot be read ({reason}); {help}") from error


def is_local(dataset: str) -> bool:
    """A path that is there, or a name that is no id of the hub, or one that ends like a file we read."""
    # An address is refused as a name of the hub.
    named_like_a_file = "://" not in dataset and dataset.lower().endswith(SUFFIXES)
    return dataset != EMBEDDED and (is_there(dataset) or named_like_a_file or not is_hub_name(dataset))


def _folder_rows(folder: Path, data_dir: str | None, settings: DataSettings, where: str) -> tuple:
    """(train rows, test rows or None) of a folder laid out like a dataset of the hub: `train.jsonl`, `test.jsonl`."""
    import datasets

    with _readable(where, "check data.data_dir and data.revision, or give a file with --set dataset=PATH"):
        splits = datasets.load_dataset(str(folder), data_dir=data_dir)
    train, test = (splits[name].to_list() if name in splits else [] for name in (settings.split, settings.test_split))
    if not train:
        raise InputError(
            f"{where} has no split {settings.split!r}, or an empty one; it has {shown(splits)}: choose with "
            "--set data.split=NAME"
        )
    return train, test or None


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
            with warnings.catch_warnings():
                warnings.simplefilter("error", pandas.errors.ParserWarning)  # a first row with more cells than names
                table = pandas.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
            return table.rename(columns=str.strip).to_dict("records")
        with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            text = file.read()
    if name.endswith(".json") and text.lstrip().startswith("["):
        rows = _parse(text, path, 1)
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [_parse(line, path, number) for number, line in lines if line.strip()]
    if odd := {type(row).__name__ for row in rows} - {"dict"}:
        raise InputError(f'{path}: expected rows such as {{"prompt": …}}, not {", ".join(odd)}; mend them')
    return rows


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, thousands of brackets
        line, reason = first_line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", type(error).__name__)
        raise InputError(f"{path}:{line}: broken JSON ({reason}); mend or remove it, and save it as UTF-8") from error
