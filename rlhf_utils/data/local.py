"""Rows from files on this machine: jsonl, jsonl.gz, json, csv, parquet, folders of these, `save_to_disk`
folders.

What is wrong with a file is said with its name and, where there is one, its line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from pathlib import Path

from rlhf_utils.data.schemas import shown
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")

_COLUMN_NAME = re.compile(r"[^\W\d][\w.-]*( [\w.-]+){0,2}")


def read_local(path: Path, split: str, test_split: str) -> tuple[list[dict], list[dict] | None, str]:
    """(train rows, test rows or None, sha256 of the content) of a file or folder, else `InputError`."""
    try:
        if path.is_dir():
            train, test, fingerprint = _read_folder(path, split, test_split)
        else:
            train, test, fingerprint = _read_file(path), None, content_hash(path)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; check the path and its permissions"
        ) from error
    if not train:
        raise InputError(f"{path} is empty: it holds no rows; give a file with rows")
    return train, test, fingerprint


def suffix_of(path: Path) -> str | None:
    """The supported suffix of a file name, in lower case, or None."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def _read_folder(folder: Path, split: str, test_split: str) -> tuple[list[dict], list[dict] | None, str]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _read_saved(folder, split, test_split)
    files = sorted(path for path in folder.iterdir() if path.is_file() and suffix_of(path))
    if not files:
        raise InputError(f"folder {folder} holds no data files; put {', '.join(SUFFIXES)} files there, or name another")
    test = [path for path in files if _belongs(path, test_split)]
    train = [path for path in files if _belongs(path, split)] or [path for path in files if path not in test]
    if not train:
        raise InputError(f"folder {folder} holds only files of the split {test_split!r}; add {split}.jsonl")
    rows = [row for path in train for row in _read_file(path)]
    return rows, [row for path in test for row in _read_file(path)] or None, content_hash(folder)


def _belongs(path: Path, split: str) -> bool:
    """Whether a file is named for a split: train.jsonl, train-00000-of-00002.parquet, train_1.csv."""
    return re.fullmatch(rf"{re.escape(split)}([-_.].*)?", path.name[: -len(suffix_of(path))], re.IGNORECASE) is not None


def _read_saved(folder: Path, split: str, test_split: str) -> tuple[list[dict], list[dict] | None, str]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library lets arrow, json and file errors of many kinds through
        raise InputError(
            f"{folder} is not a readable save_to_disk folder ({type(error).__name__}); save it again"
        ) from error
    if isinstance(saved, datasets.Dataset):
        train, test = saved.to_list(), None
    else:
        train, test = rows_of_splits(saved, split, test_split, str(folder))
    return train, test, content_hash(folder)


def rows_of_splits(splits, split: str, test_split: str, where: str) -> tuple[list[dict], list[dict] | None]:
    """(train rows, test rows or None) of a `datasets.DatasetDict`, which must have the train split."""
    if split not in splits:
        raise InputError(f"{where} has no split {split!r}; it has {shown(splits)}: choose with --set data.split=NAME")
    return splits[split].to_list(), splits[test_split].to_list() if test_split in splits else None


def _read_file(path: Path) -> list[dict]:
    if not path.exists():
        raise InputError(f"no file {path}; check the path given as dataset")
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder; give a {', '.join(SUFFIXES)} file")
    suffix = suffix_of(path)
    if suffix is None:
        raise InputError(f"{path}: cannot read this kind of file; use one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; give a file with rows")
    if suffix == ".parquet":
        rows = _read_parquet(path)
    else:
        data = _unzip(path) if suffix == ".jsonl.gz" else path.read_bytes()
        text = _decode(data, path)
        if suffix == ".csv":
            rows = _read_csv(text, path)
        elif suffix == ".json" and text.lstrip().startswith("["):
            rows = _read_json_list(text, path)
        else:
            rows = _read_json_lines(text, path)
    return rows


def _unzip(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or unfinished gzip file ({error}); fetch or compress it again") from error


def _decode(data: bytes, path: Path) -> str:
    """UTF-8 text without a byte order mark; an error names the line of the NUL or undecodable byte."""
    nul = data.find(b"\0")
    if nul >= 0:
        raise InputError(f"{path}:{_line(data, nul)}: NUL byte, so this is not UTF-8 text; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line(error.object, error.start)
        raise InputError(
            f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _read_json_lines(text: str, path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        rows.append(_object(_parse(line, path, number), f"{path}:{number}"))
    return rows


def _read_json_list(text: str, path: Path) -> list[dict]:
    values = _parse(text, path, 1)
    return [_object(value, f"{path}, element {number}") for number, value in enumerate(values, start=1)]


def _parse(text: str, path: Path, first_line: int):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{path}:{line}: broken JSON ({error.msg}, column {error.colno}); mend or remove it"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{path}:{first_line}: broken JSON ({type(error).__name__}); mend or remove it") from error


def _object(value, where: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f'{where}: expected an object such as {{"prompt": …}}, not {type(value).__name__}; mend it')
    return value


def _read_csv(text: str, path: Path) -> list[dict]:
    # The default limit of 128 KiB a cell is a safeguard of the module, not of the format.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, path)
        rows = []
        for cells in reader:
            if len(cells) > len(header):
                raise InputError(
                    f"{path}:{reader.line_num}: {len(cells)} cells under {len(header)} columns; "
                    "quote cells that contain commas"
                )
            if cells:
                # A short row is a row with empty cells, and is counted as such by the filters.
                rows.append(dict(zip(header, cells + [None] * (len(header) - len(cells)), strict=True)))
        return rows
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: broken CSV ({error}); mend the quotes there") from error
    finally:
        csv.field_size_limit(limit)


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise InputError(f"{path} is empty: its first line has no column names; give a file with rows")
    # pandas writes its index as a first column without a name.
    named = header[1:] if header[0] == "" else header
    if not named or not all(len(name) <= 60 and _COLUMN_NAME.fullmatch(name) for name in named):
        raise InputError(
            f"{path}: the first line ({shown(header, 4)}) is not a header; "
            "begin the file with column names separated by commas, such as prompt,chosen,rejected"
        )
    if len(set(header)) < len(header):
        raise InputError(f"{path}: a column name occurs twice ({shown(header)}); rename one")


def _read_parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error
