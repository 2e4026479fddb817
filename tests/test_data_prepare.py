"""Filters are counted, splits share no prompt, and what is saved comes back whole."""

import json
import os
import random
from collections import Counter

import pytest

from rlhf_utils.data.prepare import check_enough, prepare, prompt_key
from rlhf_utils.data.prepared import FilterReport, PreparedData
from rlhf_utils.data.sources import Rows
from rlhf_utils.platforms.errors import InputError
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


def assert_disjoint(data):
    times = Counter(prompt for split in prompts(data).values() for prompt in split)
    assert max(times.values()) == 1


def test_filters_are_counted_in_order():
    train = pairs(40)
    train += [
        {"prompt": "x1", "chosen": None, "rejected": "b"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
    ]
    train += [{"prompt": "x2", "chosen": "same  words", "rejected": " same words"}]
    train += [{"prompt": "very long prompt " * 4, "chosen": "a", "rejected": "b"}]
    train += [{"prompt": "x3", "chosen": "one two three four five six", "rejected": "b"}] * 3
    train += [{"prompt": " QUESTION \n 7", "chosen": "other", "rejected": "answer"}]
    report = made(train, max_prompt_tokens=10, max_response_tokens=6).report
    assert [tuple(step) for step in report] == [
        ("train", "rows read", 0, 48),
        ("train", "empty or not text", 2, 46),
        ("train", "chosen and rejected are the same tokens", 1, 45),
        ("train", "prompt over 10 tokens", 1, 44),
        ("train", "response over 6 tokens", 3, 41),
        ("train", "prompt seen before", 1, 40),
    ]
    assert FilterReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    table = str(report).splitlines()
    assert table[0].split() == ["split", "filter", "dropped", "left"] and len(table) == 7
    assert table[-1].split()[-2:] == ["1", "40"]


def test_limits_count_the_template_and_the_end_of_text():
    row = {"prompt": "a b c", "chosen": "d e f", "rejected": "g"}  # Human: a b c Assistant: | d e f <end>
    shares = Shares(reward=0, ppo=0, development=0, evaluation=0)
    kept = made([row], max_prompt_tokens=5, max_response_tokens=4, shares=shares)
    assert len(kept.splits["sft"]) == 1
    for limits in ({"max_prompt_tokens": 4}, {"max_response_tokens": 3}):
        with pytest.raises(InputError, match="no train row is left"):
            made([row], shares=shares, **limits)


def test_splits_follow_the_shares_and_share_no_prompt():
    data = made(pairs(2000), shares=Shares(sft=4, reward=3, ppo=1, development=0, evaluation=2))
    sizes = {name: len(split) for name, split in data.splits.items()}
    expected = {"sft": 800, "reward": 600, "ppo": 200, "development": 0, "evaluation": 400, "judge": 0}
    assert sum(sizes.values()) == 2000 and sizes == pytest.approx(expected, abs=60)
    assert sizes["development"] == 0
    assert_disjoint(data)
    assert all(split.column_names == ["prompt", "chosen", "rejected"] for split in data.splits.values())
    assert (data.kind, data.template_hash, data.fingerprint) == ("pairs", TEMPLATE.hash, "f00d")


def test_row_order_changes_nothing_and_the_seed_does():
    train = pairs(100) + [row | {"chosen": "another"} for row in pairs(100)]
    shuffled = random.Random(1).sample(train, len(train))
    first, second, other = made(train), made(shuffled), made(train, seed=1)
    assert {name: split.to_list() for name, split in first.splits.items()} == {
        name: split.to_list() for name, split in second.splits.items()
    }
    assert prompts(first)["sft"] != prompts(other)["sft"]


def test_several_rows_of_a_prompt_stay_together():
    train = [row | {"chosen": f"answer {i}"} for i in range(4) for row in pairs(50)]
    data = made(train, rows_per_prompt=3)
    assert sum(len(split) for split in data.splits.values()) == 150
    assert data.report.dropped("train")["prompt seen before"] == 50
    assert_disjoint(data)


def test_the_row_kept_for_a_prompt_is_a_usable_one():
    train = pairs(50) + [row | {"chosen": "far too long " * 9} for row in pairs(50)]
    data = made(train, max_response_tokens=10)
    assert sum(len(split) for split in data.splits.values()) == 50


def test_a_test_split_is_the_evaluation_and_its_prompts_are_nowhere_else():
    test = pairs(10, "held out") + [{"prompt": "Question  5", "chosen": "a", "rejected": "b"}]
    data = made(pairs(100), test)
    assert prompts(data)["evaluation"] == {prompt_key(row["prompt"]) for row in test}
    assert data.report.dropped("train")["prompt also in the test split"] == 1
    assert sum(len(split) for split in data.splits.values()) == 99 + 11
    assert_disjoint(data)
    assert list(data.report.to_dict()) == ["train", "test"]


def test_dialogues_that_begin_alike_share_a_split():
    turns = [f"Start {i}\n\nAssistant: Yes?\n\nHuman: Go on" for i in range(60)]
    train = [row | {"prompt": prompt} for row, prompt in zip(pairs(60), turns, strict=True)]
    data = made(train + [row | {"prompt": f"start {i}"} for i, row in enumerate(pairs(60))])
    for split in filter(len, data.splits.values()):
        asked = [prompt.casefold().split("\n")[0] for prompt in split["prompt"]]
        assert set(Counter(asked).values()) == {2}
    data = made(train + pairs(60), [{"prompt": "Start 3", "chosen": "a", "rejected": "b"}])
    assert data.report.dropped("train")["prompt also in the test split"] == 1


def test_max_rows_caps_what_the_filters_left():
    data = made(pairs(100) + [{"prompt": "", "chosen": "", "rejected": ""}] * 50, pairs(40, "test"), max_rows=30)
    assert sum(len(split) for split in data.splits.values()) == 30 + 30 and len(data.splits["evaluation"]) == 30
    assert data.report.dropped("train")["over max_rows 30"] == 70


def test_nothing_left_shows_the_counts():
    train = [{"prompt": "p", "chosen": None, "rejected": "b"}] * 3 + [{"prompt": "p", "chosen": "a", "rejected": "a"}]
    with pytest.raises(InputError) as caught:
        made(train)
    assert "4 rows read, 3 empty or not text, 1 chosen and rejected are the same tokens" in str(caught.value)
    with pytest.raises(InputError, match="no test row is left"):
        made(pairs(50), train)
    with pytest.raises(InputError, match="no train row is left .*also in the test split"):
        made(pairs(20), pairs(20))


def test_a_split_that_would_be_empty_is_named():
    with pytest.raises(InputError, match=r"too few rows for .* \(sft \d, reward \d, .*4 rows read"):
        made(pairs(4))
    with pytest.raises(InputError, match="shares are all zero"):
        made(pairs(4), pairs(4, "test"), shares=Shares(sft=0, reward=0, ppo=0, development=0, evaluation=1))


@pytest.mark.parametrize("rows", [pairs(1), pairs(2), pairs(5), pairs(20), pairs(100) * 3, pairs(1) * 100])
def test_small_data_are_enough_or_refused_with_every_count(rows):
    given = Rows(rows, None, "mine", "f")
    needed = ("sft", "reward", "ppo", "development", "evaluation")
    try:
        check_enough(given, DataSettings(), 0, needed)
    except InputError as error:
        assert len(rows) <= 100 and "\n" not in str(error)
        assert all(f"{name} " in str(error) for name in needed) and f"{len(rows)} rows read" in str(error)
        assert "each of these splits needs 2" in str(error)
    else:
        assert len(rows) == 300 and min(len(made(rows).splits[name]) for name in needed) >= 2


def test_test_rows_of_another_kind_are_refused():
    with pytest.raises(InputError, match="train split holds pairs but the test split demonstrations"):
        made(pairs(50), [{"prompt": "p", "response": "r"}])


def test_kinds_without_pairs():
    shown = made([{"prompt": f"p {i}", "response": "r"} for i in range(50)])
    assert shown.kind == "demonstrations" and set(shown.splits["sft"]["rejected"]) == {None}
    asked = made([{"prompt": f"p {i}"} for i in range(50)])
    assert asked.kind == "prompts" and set(asked.splits["ppo"]["chosen"]) == {None}
    rated = made([{"text": f"long {'word ' * 50}{i}", "label": i % 2} for i in range(50)], max_prompt_tokens=5)
    assert rated.kind == "labelled" and set(rated.splits["sft"]["label"]) == {0, 1}
    assert set(rated.splits["ppo"]["chosen"]) == {None} and max(map(len, rated.splits["ppo"]["text"])) > 250


ODD = "line\u2028separator \x0b\x0c\x85 <b> \x1b[0m 😀 \x00"


@pytest.mark.parametrize("kind", ["pairs", "demonstrations", "labelled"])
def test_save_and_load(tmp_path, kind):
    row = {
        "pairs": {"chosen": ODD, "rejected": "b"},
        "demonstrations": {"response": ODD},
        "labelled": {"label": 1},
    }[kind]
    text = "text" if kind == "labelled" else "prompt"
    data = made([row | {text: f"{ODD} {i}"} for i in range(50)], shares=Shares(ppo=0), min_text_characters=0)
    data.save(tmp_path / "data")
    data.save(tmp_path / "data")
    loaded = PreparedData.load(str(tmp_path / "data"))
    assert {name: split.to_list() for name, split in loaded.splits.items()} == {
        name: split.to_list() for name, split in data.splits.items()
    }
    assert loaded.splits["ppo"].features == data.splits["ppo"].features and len(loaded.splits["ppo"]) == 0
    assert loaded.report == data.report and (loaded.kind, loaded.fingerprint) == (kind, "f00d")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_load_refuses_what_is_missing_damaged_or_of_another_template(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(InputError, match="no prepared data"):
        PreparedData.load(folder)
    made(pairs(50)).save(folder)
    manifest, split = folder / "data.json", folder / "sft.jsonl"
    whole, text = json.loads(manifest.read_text()), split.read_text()

    split.write_text("".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="damaged .*sft.jsonl has 16 of 17 rows"):
        PreparedData.load(folder)
    split.write_text(text[:-10])
    with pytest.raises(InputError, match="damaged"):
        PreparedData.load(folder)
    split.unlink()
    with pytest.raises(InputError, match="damaged"):
        PreparedData.load(folder)
    split.write_text(text)

    manifest.write_text(json.dumps(whole | {"template_hash": "0123456789abcdef"}))
    with pytest.raises(InputError, match="prompt template 0123456789abcdef"):
        PreparedData.load(folder)
    for broken in ("{", "[]", "{}", "null"):
        manifest.write_text(broken)
        with pytest.raises(InputError, match="damaged"):
            PreparedData.load(folder)


def test_a_failed_save_leaves_the_earlier_one(tmp_path, monkeypatch):
    data = made(pairs(50))
    data.save(tmp_path / "data")
    before = (tmp_path / "data" / "sft.jsonl").read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot write .*disk is full"):
        made(pairs(60)).save(tmp_path / "data")
    assert (tmp_path / "data" / "sft.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
