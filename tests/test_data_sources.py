"""Where rows come from: every local format there and back, every bad file, the hub, the embedded world."""

import csv
import gzip
import io
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


GOOD = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
pandas.DataFrame(ROWS).to_parquet(PARQUET := io.BytesIO())
BAD = {
    "empty.jsonl": (b"", "is empty"),
    "blank.jsonl": (b"\n \n", "is empty"),
    "empty.jsonl.gz": (gzip.compress(b""), "is empty"),
    "empty.json": (b"[]", "is empty"),
    "empty.csv": (b"", "No columns"),
    "header_only.csv": (b"prompt,chosen,rejected\n", "is empty"),
    "broken.jsonl": (GOOD + b"\n" + b'{"prompt": "p", "chosen\n', r"broken\.jsonl:3: broken JSON"),
    "broken.jsonl.gz": (gzip.compress(GOOD + b"{'a': 1}"), r"broken\.jsonl\.gz:2: broken JSON"),
    "list.jsonl": (GOOD + b"[1, 2]\n", r"list\.jsonl: expected rows .* list"),
    "text.jsonl": (b'"just text"\n', r"text\.jsonl: expected rows .* str"),
    "deep.jsonl": (b"[" * 200_000 + b"\n", r"deep\.jsonl:1: broken JSON"),
    "digits.jsonl": (b'{"prompt": ' + b"9" * 5_000 + b"}\n", r"digits\.jsonl:1: broken JSON"),
    "nul.jsonl": (GOOD + b'{"prompt": "\0"}\n', r"nul\.jsonl:2: broken JSON"),
    "utf16.jsonl": ('{"prompt": "p"}\n'.encode("utf-16"), "UTF-8"),
    "latin.csv": ("prompt,response\np,r\np,é\n".encode("latin-1"), "byte 0xe9.*UTF-8"),
    "broken.json": (b'[\n{"prompt": "p"},\n{"prompt" "q"}\n]', r"broken\.json:3: broken JSON"),
    "numbers.json": (b"[{}, 5]", r"numbers\.json: expected rows .* int"),
    "ragged.csv": (b"prompt,response\np,r\np,well, no\n", r"ragged\.csv cannot be read .*line 3, saw 3"),
    "ragged_first.csv": (b"prompt,response\np,well, no\n", "ragged_first.csv cannot be read"),
    "quote.csv": (b'prompt,response\np,r\np,"never closed\n', r"quote\.csv cannot be read .*starting at row 2"),
    "bad.parquet": (b"PAR1 this is not one", "bad.parquet cannot be read"),
    "cut.parquet": (PARQUET.getvalue()[:-20], "cut.parquet cannot be read"),
    "cut.jsonl.gz": (gzip.compress(lines(ROWS * 50))[:-12], "cut.jsonl.gz cannot be read"),
    "plain.jsonl.gz": (GOOD, "plain.jsonl.gz cannot be read .*gzip"),
    "sheet.xlsx": (b"PK", "cannot read this kind of file; use one of .jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_named_in_one_line(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_rows(str(tmp_path / name), SETTINGS, 0)
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.jsonl.gz", "no/such/folder", "./x", " "])
def test_missing_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no file|dataset is empty"):
        load_rows(name, SETTINGS, 0)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("notes.bin", GOOD, "data files found"),
        ("test.jsonl", GOOD, "has no split 'train'.* it has test"),
        ("train.jsonl", GOOD + b"{'a': 1}", "JSON parse error"),
    ],
)
def test_folders_that_hold_no_data(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_rows(str(tmp_path), SETTINGS, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/pairs", "nobody/pairs@v1"])
def test_a_hub_dataset_without_network_is_one_line_that_says_what_to_do(name):
    with pytest.raises(InputError, match="could not be reached.*--set dataset=PATH.*--scale tiny") as caught:
        load_rows(name, SETTINGS, 0)
    assert "\n" not in str(caught.value) and "dataset nobody/pairs" in str(caught.value)


def test_the_embedded_world_gets_its_settings():
    settings = DataSettings(world="eli5", embedded_rows=5, embedded_test_rows=2)
    rows = load_rows("embedded", settings, 3)
    assert (len(rows.train), len(rows.test), rows.name) == (5, 2, "embedded") and "history" in rows.train[0]
    assert rows == load_rows("embedded", settings, 3) != load_rows("embedded", settings, 4)
