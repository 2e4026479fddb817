"""Filters are counted, splits share no prompt, saved data come back whole, and nothing held out is pretrained on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from rlhf_utils.data.prepared import (
    CUT,
    SPLITS,
    PreparedData,
    check_rows,
    conversation_key,
    prepare,
    pretraining_texts,
    prompt_key,
)
from rlhf_utils.data.sources import Rows, load_rows
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.runs.base import train_tokenizer
from rlhf_utils.settings.recipes import load_recipe
from rlhf_utils.settings.sections import DataSettings, Shares
from rlhf_utils.settings.template import TEMPLATE


class WordTokenizer:
    """One token a word, so that limits can be counted by eye; called as a fast tokenizer is, on lists."""

    def __call__(self, texts, **_):
        return {"input_ids": [text.split() for text in texts]}

    def batch_decode(self, rows, **_):
        return [" ".join(tokens) for tokens in rows]


def pairs(count, name="question"):
    return [{"prompt": f"{name} {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(count)]


def made(train, test=None, seed=0, **settings):
    return prepare(Rows(train, test, "mine", "f00d"), DataSettings(**settings), WordTokenizer(), seed)


def prompts(data):
    return {name: {prompt_key(prompt) for prompt in split["prompt"]} for name, split in data.splits.items()}


def size(data):
    return sum(len(split) for split in data.splits.values())


def dropped(data, split):
    return {step["reason"]: step["dropped"] for step in data.report[split]}


def assert_disjoint(data):
    times = Counter(prompt for split in prompts(data).values() for prompt in split)
    assert max(times.values()) == 1


def test_filters_are_counted_in_order():
    train = pairs(40)
    train += [{"prompt": "x1", "chosen": None, "rejected": "b"}, {"prompt": "", "chosen": "a", "rejected": "b"}]
    train += [{"prompt": "x2", "chosen": "same  words", "rejected": " same words"}]
    train += [{"prompt": "very long prompt " * 4, "chosen": "a", "rejected": "b"}]
    train += [{"prompt": "x3", "chosen": "one two three four five six", "rejected": "b"}] * 3
    train += [{"prompt": " QUESTION \n 7", "chosen": "other\n\nUser: x", "rejected": "answer"}]
    report = made(train, max_prompt_tokens=10, max_response_tokens=6).report
    assert [tuple(step.values()) for step in report["train"]] == [
        ("rows read", 0, 48),
        ("empty or not text", 2, 46),
        (f"{CUT}: 1", 0, 46),
        ("chosen and rejected are the same tokens", 1, 45),
        ("prompt over 10 tokens", 1, 44),
        ("response over 6 tokens", 3, 41),
        ("prompt seen before", 1, 40),
    ]
    table = str(report).splitlines()
    assert table[0].split() == ["split", "filter", "dropped", "left"] and len(table) == 8
    assert table[-1].split()[-2:] == ["1", "40"]


def test_limits_count_the_template_and_the_end_of_text():
    row = {"prompt": "a b c", "chosen": "d e f", "rejected": "g"}  # Human: a b c Assistant: | d e f <end>
    shares = Shares(reward=0, ppo=0, development=0, evaluation=0)
    kept = made([row], max_prompt_tokens=5, max_response_tokens=4, shares=shares)
    assert len(kept.splits["sft"]) == 1
    for limits in ({"max_prompt_tokens": 4}, {"max_response_tokens": 3}):
        with pytest.raises(InputError, match="too few rows for sft .*higher limits"):
            made([row], shares=shares, **limits)


def test_the_row_kept_of_a_prompt_is_a_usable_one():
    train = [row | {"chosen": f"answer {i}" + " too long" * 9 * (i == 0)} for i in range(5) for row in pairs(50)]
    data, other = (made(train, max_response_tokens=10, seed=seed) for seed in (0, 1))
    assert prompts(data)["sft"] != prompts(other)["sft"]
    assert size(data) == 50 and dropped(data, "train")["prompt seen before"] == 150
    assert_disjoint(data)


def test_a_test_split_is_the_evaluation_and_its_conversations_are_nowhere_else():
    test = pairs(10, "held out") + [{"prompt": "Question  5", "chosen": "a", "rejected": "b"}]
    turns = [row | {"prompt": f"Question {i}\n\nAssistant: Yes?\n\nHuman: Go on"} for i, row in enumerate(pairs(9))]
    data = made(pairs(100) + turns, test)
    assert prompts(data)["evaluation"] == {prompt_key(row["prompt"]) for row in test}
    assert dropped(data, "train")["prompt also in the test split"] == 2 and size(data) == 99 + 8 + 11
    assert_disjoint(data)


def test_max_rows_caps_what_the_filters_left():
    data = made(pairs(100) + [{"prompt": "", "chosen": "", "rejected": ""}] * 50, pairs(40, "test"), max_rows=30)
    assert size(data) == 30 + 30 and len(data.splits["evaluation"]) == 30
    assert dropped(data, "train")["over max_rows 30"] == 70


NO_ROWS = [{"prompt": "p", "chosen": None, "rejected": "b"}] * 3 + [{"prompt": "p", "chosen": "a", "rejected": "a"}]
NOTHING = dict.fromkeys(SPLITS, 0.0)


@pytest.mark.parametrize(
    ("train", "test", "settings", "message"),
    [
        (
            NO_ROWS,
            None,
            {},
            "train: 4 rows read, train: 3 empty or not text, train: 1 chosen and rejected are the same",
        ),
        (pairs(50), NO_ROWS, {}, "too few rows for evaluation"),
        (pairs(20), pairs(20), {}, "too few rows for sft.*train: 20 prompt also in the test split"),
        (pairs(4), None, {}, r"too few rows for .* \(sft \d, reward \d, .*train: 4 rows read"),
        (pairs(4), pairs(4, "test"), {"shares": NOTHING | {"evaluation": 1}}, "shares are all zero"),
        (pairs(50), [{"text": "p", "label": 1}] * 9, {}, "train split holds pairs but the test split labelled"),
    ],
)
def test_data_that_give_no_splits_are_refused_with_the_counts(train, test, settings, message):
    with pytest.raises(InputError, match=message):
        made(train, test, **settings)


@pytest.mark.parametrize("rows", [pairs(1), pairs(5), pairs(20), pairs(300), pairs(1) * 100])
def test_small_data_are_enough_or_refused_with_every_count(rows):
    needed = ("sft", "reward", "ppo", "development", "evaluation")
    recipe = load_recipe("instruct", "t4")
    try:
        check_rows(Rows(rows, None, "mine", "f"), recipe, needed)
    except InputError as error:
        assert len(rows) <= 100 and "\n" not in str(error)
        assert all(f"{name} " in str(error) for name in needed) and f"{len(rows)} rows read" in str(error)
        assert "each of these splits needs 2" in str(error)
    else:
        splits = prepare(Rows(rows, None, "mine", "f"), recipe.data, WordTokenizer(), recipe.seed).splits
        assert len(rows) == 300 and min(len(splits[name]) for name in needed) >= 2


ODD = "line\u2028separator \x0b\x0c\x85 <b> \x1b[0m 😀 \x00"


@pytest.mark.parametrize("kind, cells", [("pairs", {"chosen": ODD, "rejected": "b"}), ("labelled", {"label": 1})])
def test_both_kinds_come_back_as_they_were_saved(tmp_path, kind, cells):
    text = "text" if kind == "labelled" else "prompt"
    rows = [cells | {text: f"{ODD} {'word ' * 9}{i}"} for i in range(50)]
    data = made(rows, shares=Shares(ppo=0), min_text_characters=0, max_prompt_tokens=99)
    data.save(tmp_path / "data")
    data.save(tmp_path / "data")
    loaded = PreparedData.load(str(tmp_path / "data"))
    assert size(data) == 50 and loaded.report == data.report
    for name, split in data.splits.items():
        assert loaded.splits[name].to_list() == split.to_list() and loaded.splits[name].features == split.features
    assert (loaded.kind, loaded.fingerprint, loaded.template_hash) == (kind, "f00d", TEMPLATE.hash)
    assert len(loaded.splits["ppo"]) == 0 and [path.name for path in tmp_path.iterdir()] == ["data"]
    if kind == "labelled":
        assert set(loaded.splits["sft"]["label"]) == {1} and "word word word" in loaded.splits["sft"]["text"][0]


def test_load_refuses_what_is_missing_damaged_or_of_another_template(tmp_path):
    folder = tmp_path / "data"

    def assert_refused(reason):
        with pytest.raises(InputError, match=reason):
            PreparedData.load(folder)

    assert_refused("no prepared data")
    made(pairs(50)).save(folder)
    manifest, split = folder / "data.json", folder / "sft.jsonl"
    whole, text = json.loads(manifest.read_text()), split.read_text()
    for damaged, reason in (("".join(text.splitlines(keepends=True)[:-1]), "sft.jsonl has 16 of 17"), (text[:-10], "")):
        split.write_text(damaged)
        assert_refused(f"damaged .*{reason}")
    split.unlink()
    assert_refused("damaged")
    split.write_text(text)
    manifest.write_text(json.dumps(whole | {"template_hash": "0123456789abcdef"}))
    assert_refused("prompt template 0123456789abcdef")
    for broken in ("{", "[]", "{}", "null"):
        manifest.write_text(broken)
        assert_refused("damaged")


@pytest.mark.parametrize("with_test", [False, True])
def test_no_held_out_prompt_is_in_the_text_to_pretrain_on(tmp_path, with_test):
    def write(name, numbers):
        rows = [{"prompt": f"question <{i}>", "chosen": f"good <{i}>", "rejected": f"bad <{i}>"} for i in numbers]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("train.jsonl", range(400))
    if with_test:
        write("test.jsonl", range(350, 420))
    settings = DataSettings()
    data = prepare(load_rows(str(tmp_path), settings, 5), settings, WordTokenizer(), seed=5)
    texts = pretraining_texts(str(tmp_path), settings, documents=10, seed=5)
    found = {text.split("question ")[1].split()[0] for text in texts}
    learned = {p.split()[1] for name in ("sft", "reward", "ppo") for p in data.splits[name]["prompt"]}
    held_out = {p.split()[1] for name in ("development", "evaluation") for p in data.splits[name]["prompt"]}
    assert found == learned and not found & held_out
    assert all("bad <" in text and "good <" not in text for text in texts)


@pytest.mark.parametrize("name, kept, differ", [("hh_helpful.jsonl.gz", 0.61, 3), ("hh_harmless.jsonl.gz", 0.80, 1)])
def test_human_preferences(shared_data, name, kept, differ):
    rows = load_rows(str(shared_data / name), DataSettings(), 0)
    for row in rows.train:
        before, marker, _ = row["chosen"].rpartition("\n\nAssistant:")
        assert TEMPLATE.format(TEMPLATE.normal(before + marker)) == (before + marker).removeprefix("\n\n")
    rows = replace(rows, train=rows.train[::6])
    tokenizer = train_tokenizer([row["chosen"] for row in rows.train[:200]], 2000, 256)
    data = prepare(rows, DataSettings(), tokenizer, seed=0)
    assert data.kind == "pairs" and size(data) / len(rows.train) == pytest.approx(kept, abs=0.03)
    assert dropped(data, "train")["dialogues differ before the last answer"] == differ
    assert_disjoint(data)
    openings = [{conversation_key(p) for p in split["prompt"]} for split in data.splits.values()]
    assert sum(map(len, openings)) == len(set().union(*openings))
    assert not any("\n\nHuman:" in answer for answer in data.splits["reward"]["chosen"])


def test_reviews(shared_data):
    rows = load_rows(str(shared_data / "imdb_reviews.csv"), DataSettings(), 0)
    rows = replace(rows, train=rows.train[::4])
    tokenizer = train_tokenizer([str(row) for row in rows.train[:100]], 2000, 256)
    data = prepare(rows, DataSettings(), tokenizer, seed=0)
    kept = [row for split in data.splits.values() for row in split]
    assert data.kind == "labelled" and 620 < len(kept) <= 650
    assert 0.35 < sum(data.splits["sft"]["label"]) / len(data.splits["sft"]) < 0.65
    assert all(row["text"].startswith(row["prompt"]) and len(row["text"]) >= 200 for row in kept)
    lengths = [len(row) for row in tokenizer([row["prompt"] for row in kept])["input_ids"]]
    assert min(lengths) <= 2 and 7 <= max(lengths) <= 9
