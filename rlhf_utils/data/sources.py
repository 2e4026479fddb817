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
import zlib
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rlhf_utils.data.schemas import shown
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash
from rlhf_utils.platforms.hub import DATASET, dataset_snapshot, wanted
from rlhf_utils.platforms.names import EMBEDDED, is_hub_name, is_there, local_path
from rlhf_utils.settings.sections import DataSettings

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")

_COLUMN_NAME = re.compile(r"(?=.{1,60}$)[^\W\d][\w.-]*( [\w.-]+){0,2}")


@dataclass(frozen=True)
class Rows:
    """Rows as the dataset has them. test is None when there is no test split.

    fingerprint: sha256 of the content (embedded and local data), or id@commit (hub).
    """

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

        world, noise = WORLDS[settings.world], settings.label_noise
        train = world.rows("train", settings.embedded_rows, seed, noise)
        test = world.rows("test", settings.embedded_test_rows, seed, noise)
        content = json.dumps([train, test], sort_keys=True).encode()
        return Rows(train, test, EMBEDDED, hashlib.sha256(content).hexdigest())
    if not dataset:
        raise InputError("dataset is empty; give a file, a folder, a hub id, or embedded")
    if not is_local(dataset):
        asked = wanted(dataset, DATASET, settings.revision, settings.data_dir)
        folder = dataset_snapshot(asked)
        train, test = _rows_of_splits(folder, asked.subfolder, settings, f"hub dataset {dataset}")
        return Rows(train, test, dataset, f"{asked.name}@{folder.name}")
    path = local_path(dataset)
    where = path / settings.data_dir if settings.data_dir and path.is_dir() else path
    try:
        train, test = _read_folder(where, settings) if where.is_dir() else (_read_file(where), None)
        fingerprint = content_hash(where)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot read {where}: {reason}; check the path and its permissions") from error
    if not train:
        raise InputError(f"{where} is empty: it holds no rows; give a file with rows")
    return Rows(train, test, str(path), fingerprint)


def is_local(dataset: str) -> bool:
    """A path that is there, or a name that is no id of the hub, or one that ends like a file we read."""
    # An address is refused as a name of the hub.
    named_like_a_file = "://" not in dataset and _suffix_of(local_path(dataset)) is not None
    return dataset != EMBEDDED and (is_there(dataset) or named_like_a_file or not is_hub_name(dataset))


def _suffix_of(path: Path) -> str | None:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def _rows_of_splits(
    folder: Path, subfolder: str | None, settings: DataSettings, where: str, saved: bool = False
) -> tuple[list[dict], list[dict] | None]:
    """(train rows, test rows or None) of a folder that `datasets` reads: a hub's, or one of `save_to_disk`."""
    import datasets

    try:
        read = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder), data_dir=subfolder)
    except Exception as error:  # the library lets arrow, json, and file errors of many kinds through
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        help = "save it again" if saved else "check data.data_dir and data.revision, or use --set dataset=PATH"
        raise InputError(f"{where} cannot be read ({reason}); {help}") from error
    splits = {settings.split: read} if isinstance(read, datasets.Dataset) else read
    if settings.split not in splits:
        raise InputError(
            f"{where} has no split {settings.split!r}; it has {shown(splits)}: choose with --set data.split=NAME"
        )
    train, test = (splits[name].to_list() if name in splits else [] for name in (settings.split, settings.test_split))
    if not train:
        raise InputError(f"{where}: split {settings.split!r} is empty; choose with --set data.split=NAME")
    return train, test or None


def _read_folder(folder: Path, settings: DataSettings) -> tuple[list[dict], list[dict] | None]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _rows_of_splits(folder, None, settings, f"save_to_disk folder {folder}", saved=True)
    files = sorted(path for path in folder.iterdir() if path.is_file() and _suffix_of(path))
    if not files:
        raise InputError(f"folder {folder} holds no data files; put {', '.join(SUFFIXES)} files there, or name another")

    def named(split: str) -> list[Path]:  # train.jsonl, train-00000-of-00002.parquet, train_1.csv
        return [path for path in files if re.match(rf"{re.escape(split)}[-_.]", path.name, re.IGNORECASE)]

    test = named(settings.test_split)
    train = named(settings.split) or [path for path in files if path not in test]
    if not train:
        raise InputError(f"folder {folder} holds only files of the split {test[0].stem!r}; add {settings.split}.jsonl")
    rows, tested = ([row for path in paths for row in _read_file(path)] for paths in (train, test))
    return rows, tested or None


def _read_file(path: Path) -> list[dict]:
    suffix = _suffix_of(path)
    if not path.exists():
        raise InputError(f"no file {path}; check the path given as dataset")
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder; give a {', '.join(SUFFIXES)} file")
    if suffix is None:
        raise InputError(f"{path}: cannot read this kind of file; use one of {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        return _read_parquet(path)
    text = _text_of(path, zipped=suffix.endswith(".gz"))
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


def _text_of(path: Path, zipped: bool) -> str:
    """UTF-8 text without a byte order mark; an error names the line of the NUL or undecodable byte."""
    try:
        data = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or unfinished gzip file ({error}); fetch or compress it again") from error
    try:
        if (nul := data.find(b"\0")) >= 0:
            raise UnicodeDecodeError("utf-8", data, nul, nul + 1, "NUL")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        what = f"byte 0x{byte:02x} is not UTF-8" if byte else "NUL byte, so this is not UTF-8 text"
        raise InputError(f"{path}:{line}: {what}; save the file as UTF-8") from error


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, thousands of brackets
        line, reason = first_line, type(error).__name__
        if isinstance(error, json.JSONDecodeError):
            line, reason = first_line + error.lineno - 1, f"{error.msg}, column {error.colno}"
        raise InputError(f"{path}:{line}: broken JSON ({reason}); mend or remove it") from error


def _read_csv(text: str, path: Path) -> list[dict]:
    # The default limit of 128 KiB a cell is a safeguard of the module, not of the format.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        header = _checked_header([name.strip() for name in next(reader, [])], path)
        for cells in filter(None, reader):
            if len(cells) > len(header):
                found = f"{len(cells)} cells under {len(header)} columns"
                raise InputError(f"{path}:{reader.line_num}: {found}; quote cells that contain commas")
            # A short row is a row with empty cells, and is counted as such by the filters.
            rows.append(dict(zip_longest(header, cells)))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: broken CSV ({error}); mend the quotes there") from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _checked_header(header: list[str], path: Path) -> list[str]:
    if not header:
        raise InputError(f"{path} is empty: its first line has no column names; give a file with rows")
    # pandas writes its index as a first column without a name.
    named = header[1:] if header[0] == "" else header
    if not named or not all(map(_COLUMN_NAME.fullmatch, named)):
        raise InputError(
            f"{path}: the first line ({shown(header, 4)}) is not a header; "
            "begin the file with column names separated by commas, such as prompt,chosen,rejected"
        )
    if len(set(header)) < len(header):
        raise InputError(f"{path}: a column name occurs twice ({shown(header)}); rename one")
    return header


def _read_parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable parquet file ({reason}); write it again") from error
