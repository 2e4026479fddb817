"""Where rows come from: every local format there and back, every bad file, the hub, the embedded world."""

import csv
import gzip
import hashlib
import io
import json
import sys
import types

import datasets
import pandas
import pytest

from rlhf_utils.data.sources import load_rows
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.sections import DataSettings

SETTINGS = DataSettings()
ROWS = [
    {"prompt": 'comma, "quote" and\nline', "chosen": "\u2028 emoji 😀", "rejected": "<br />"},
    {"prompt": "second", "chosen": "a", "rejected": "b"},
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
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_there_and_back(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    rows = load_rows(str(path), SETTINGS, 0)
    assert rows.train == ROWS and rows.test is None and rows.name == str(path)
    if path.is_file():
        assert rows.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_csv_with_the_index_pandas_adds_and_a_row_cut_short(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",prompt,chosen,rejected\n0,p,a,b\n1,q\n")
    first, second = load_rows(str(path), SETTINGS, 0).train
    assert first["rejected"] == "b" and second["chosen"] is None


def test_a_line_of_a_megabyte_is_read(tmp_path):
    long = {"prompt": "p", "chosen": "x" * 1_000_000, "rejected": "b"}
    (tmp_path / "rows.jsonl").write_bytes(lines([long]))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([long.keys(), long.values()])
    assert load_rows(str(tmp_path / "rows.jsonl"), SETTINGS, 0).train == [long]
    assert load_rows(str(tmp_path / "rows.csv"), SETTINGS, 0).train == [long]


def test_folder_with_files_named_for_splits(tmp_path):
    (tmp_path / "train-00000-of-00002.jsonl").write_bytes(lines(ROWS[:1]))
    (tmp_path / "train-00001-of-00002.jsonl").write_bytes(lines(ROWS[1:]))
    (tmp_path / "test.json").write_bytes(lines(ROWS[1:]))
    (tmp_path / "training_notes.json").write_text("not rows")
    (tmp_path / "README.md").write_text("# read me")
    rows = load_rows(str(tmp_path), SETTINGS, 0)
    assert rows.train == ROWS and rows.test == ROWS[1:]
    (tmp_path / "test.json").write_bytes(lines(ROWS[:1]))
    assert load_rows(str(tmp_path), SETTINGS, 0).fingerprint != rows.fingerprint


def test_folder_without_split_names_and_data_dir(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "mine.jsonl").write_bytes(lines())
    rows = load_rows(str(tmp_path), DataSettings(data_dir="part"), 0)
    assert rows.train == ROWS and rows.test is None


def test_saved_splits(tmp_path):
    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    rows = load_rows(str(tmp_path / "saved"), SETTINGS, 0)
    assert rows.train == ROWS and rows.test == ROWS[:1]
    with pytest.raises(InputError, match="no split 'valid'; it has train, test"):
        load_rows(str(tmp_path / "saved"), DataSettings(split="valid"), 0)


GOOD = lines(ROWS[1:])
pandas.DataFrame(ROWS).to_parquet(PARQUET := io.BytesIO())
BAD = {
    "empty.jsonl": (b"", "is empty"),
    "blank.jsonl": (b"\n \n", "is empty"),
    "empty.jsonl.gz": (gzip.compress(b""), "is empty"),
    "empty.json": (b"[]", "is empty"),
    "empty.csv": (b"", "is empty"),
    "header_only.csv": (b"prompt,chosen,rejected\n", "is empty"),
    "broken.jsonl": (GOOD + b"\n" + b'{"prompt": "p", "chosen\n', r"broken\.jsonl:3: broken JSON"),
    "broken.jsonl.gz": (gzip.compress(GOOD + b"{'a': 1}"), r"broken\.jsonl\.gz:2: broken JSON"),
    "list.jsonl": (GOOD + b"[1, 2]\n", r"list\.jsonl:2: expected an object .* list"),
    "text.jsonl": (b'"just text"\n', r"text\.jsonl:1: expected an object .* str"),
    "deep.jsonl": (b"[" * 200_000 + b"\n", r"deep\.jsonl:1: broken JSON"),
    "digits.jsonl": (b'{"prompt": ' + b"9" * 5_000 + b"}\n", r"digits\.jsonl:1: broken JSON"),
    "nul.jsonl": (GOOD + b'{"prompt": "\0"}\n', r"nul\.jsonl:2: NUL"),
    "utf16.jsonl": ("\n".join('{"prompt": "p"}').encode("utf-16"), r"utf16\.jsonl:1: NUL"),
    "latin.jsonl": (GOOD + GOOD + '{"prompt": "é"}\n'.encode("latin-1"), r"latin\.jsonl:3: byte 0xe9"),
    "latin.csv": ("prompt,response\np,r\np,é\n".encode("latin-1"), r"latin\.csv:3: byte 0xe9"),
    "broken.json": (b'[\n{"prompt": "p"},\n{"prompt" "q"}\n]', r"broken\.json:3: broken JSON"),
    "numbers.json": (b"[{}, 5]", r"numbers\.json, element 2: expected an object"),
    "no_header.csv": (b"What is this?,A thing.,Go away!\n", "is not a header"),
    "semicolons.csv": (b"prompt;chosen;rejected\np;a;b\n", "is not a header"),
    "twice.csv": (b"prompt,chosen,chosen\np,a,b\n", "occurs twice"),
    "ragged.csv": (b"prompt,response\np,r\np,well, no\n", r"ragged\.csv:3: 3 cells under 2 columns"),
    "quote.csv": (b'prompt,response\np,r\np,"never closed\n', r"quote\.csv:\d: broken CSV"),
    "bad.parquet": (b"PAR1 this is not one", "not a readable parquet"),
    "cut.parquet": (PARQUET.getvalue()[:-20], "not a readable parquet"),
    "empty.parquet": (b"", "not a readable parquet"),
    "cut.jsonl.gz": (gzip.compress(lines(ROWS * 50))[:-12], "damaged or unfinished gzip"),
    "plain.jsonl.gz": (GOOD, "damaged or unfinished gzip"),
    "flipped.jsonl.gz": (
        gzip.compress(GOOD)[:12] + b"\xff\xff\xff" + gzip.compress(GOOD)[15:],
        "damaged .* gzip",
    ),
    "sheet.xlsx": (b"PK", "cannot read this kind of file; use one of .jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_named_in_one_line(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_rows(str(tmp_path / name), SETTINGS, 0)
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.jsonl.gz", "missing.parquet", "no/such/folder", "./x"])
def test_missing_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no file"):
        load_rows(name, SETTINGS, 0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": "hello"}, "holds no data files"),
        ({"state.json": "{}"}, "save_to_disk folder .* cannot be read .*save it again"),
        ({"test.jsonl": GOOD.decode()}, "only files of the split 'test'; add train.jsonl"),
    ],
)
def test_folders_that_hold_no_data(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load_rows(str(tmp_path), SETTINGS, 0)


def test_empty_name():
    with pytest.raises(InputError, match="dataset is empty"):
        load_rows(" ", SETTINGS, 0)


@pytest.mark.parametrize("name", ["nobody/pairs", "nobody/pairs@v1"])
def test_a_hub_dataset_without_network_is_one_line_that_says_what_to_do(name):
    with pytest.raises(InputError, match="could not be reached.*--set dataset=PATH.*--scale tiny") as caught:
        load_rows(name, SETTINGS, 0)
    assert "\n" not in str(caught.value) and "dataset nobody/pairs" in str(caught.value)


def test_embedded_world_passes_its_settings_on(monkeypatch):
    def rows_of(split, n, seed, label_noise):
        return [{"prompt": f"{split} {i} {seed} {label_noise}", "chosen": "a", "rejected": "b"} for i in range(n)]

    worlds = {"eli5": types.SimpleNamespace(rows=rows_of)}
    monkeypatch.setitem(sys.modules, "rlhf_utils.toyworld", types.SimpleNamespace(WORLDS=worlds))
    settings = DataSettings(world="eli5", embedded_rows=5, embedded_test_rows=2, label_noise=0.25)
    rows = load_rows("embedded", settings, 3)
    assert [row["prompt"] for row in rows.test] == ["test 0 3 0.25", "test 1 3 0.25"] and len(rows.train) == 5
    assert rows.name == "embedded" and rows.fingerprint == load_rows("embedded", settings, 3).fingerprint
    assert rows.fingerprint != load_rows("embedded", settings, 4).fingerprint
