"""Where rows come from: every local format there and back, every bad file, the hub, the embedded world."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json

import pandas
import pytest

from rlhf_utils.data.sources import load_rows
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.sections import DataSettings

SETTINGS = DataSettings()
ROWS = [
    {"prompt": 'comma, "quote" and\nline', "chosen": "\u2028 emoji 😀", "rejected": "<br />"},
    {"prompt": "second", "chosen": "x" * 1_000_000, "rejected": "b"},
]


def lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_csv(path):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS = {
    "rows.jsonl": lambda path: path.write_bytes(lines()),
    "crlf.jsonl": lambda path: path.write_bytes(lines().replace(b"\n", b"\r\n") + b"\r\n \r\n"),
    "rows.JSONL.gz": lambda path: path.write_bytes(gzip.compress(lines())),
    "list.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "lines.json": lambda path: path.write_bytes(lines()),
    "rows.csv": write_csv,
    "rows.parquet": lambda path: pandas.DataFrame(ROWS).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_there_and_back(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    rows = load_rows(str(path), SETTINGS, 0)
    assert rows.train == ROWS and rows.test is None and rows.name == str(path)
    assert rows.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_csv_with_the_index_pandas_adds_and_a_row_cut_short(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",prompt, chosen,rejected\n0,p,a,b\n\n1,q\n")
    first, second = load_rows(str(path), SETTINGS, 0).train
    assert first["chosen"] == "a" and second["prompt"] == "q" and second["chosen"] == ""


def test_folder_with_files_named_for_splits(tmp_path):
    folder = tmp_path / "part"
    folder.mkdir()
    for name, rows in {"train-00000-of-00002": ROWS[:1], "train-00001-of-00002": ROWS[1:], "test": ROWS[1:]}.items():
        (folder / f"{name}.jsonl").write_bytes(lines(rows))
    (folder / "README.md").write_text("# read me")
    assert load_rows(str(folder), DataSettings(test_split="none"), 0).test is None
    rows = load_rows(str(tmp_path), DataSettings(data_dir="part"), 0)
    assert rows.train == ROWS and rows.test == ROWS[1:]
    (folder / "test.jsonl").write_bytes(lines(ROWS[:1]))
    assert load_rows(str(folder), SETTINGS, 0).fingerprint != rows.fingerprint


GOOD = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
BAD = {
    "empty.jsonl": (b"", "is empty"),
    "broken.jsonl": (GOOD + b"\n" + b'{"prompt": "p", "chosen\n', r"broken\.jsonl:3: broken JSON"),
    "list.jsonl": (GOOD + b"[1, 2]\n", r"list\.jsonl:2: expected an object .* list"),
    "deep.jsonl": (b"[" * 200_000 + b"\n", r"deep\.jsonl:1: broken JSON"),
    "utf16.jsonl": ('{"prompt": "p"}\n'.encode("utf-16"), "UTF-8"),
    "latin.csv": ("prompt,response\np,r\np,é\n".encode("latin-1"), "byte 0xe9.*UTF-8"),
    "broken.json": (b'[\n{"prompt": "p"},\n{"prompt" "q"}\n]', r"broken\.json:3: broken JSON"),
    "twice.csv": (b"prompt,chosen,chosen\np,a,b\n", "occurs twice"),
    "ragged.csv": (b"prompt,response\np,r\np,well, no\n", r"ragged\.csv:3: .*more cells"),
    "quote.csv": (b'prompt,response\np,r\np,"never closed\n', r"quote\.csv:\d: broken CSV"),
    "bad.parquet": (b"PAR1 this is not one", "bad.parquet cannot be read"),
    "cut.jsonl.gz": (gzip.compress(lines(ROWS * 50))[:-12], "cut.jsonl.gz cannot be read"),
    "sheet.xlsx": (b"PK", "cannot read this kind of file; use one of .jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_named_in_one_line(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_rows(str(tmp_path / name), SETTINGS, 0)
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name, why", [("state.json", "holds no data files;"), ("test.jsonl", "but those of the test split")]
)
def test_folders_that_hold_no_data(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_rows(str(tmp_path), SETTINGS, 0)
    with pytest.raises(InputError, match="no file"):
        load_rows(str(tmp_path / "missing.jsonl"), SETTINGS, 0)
