"""Filters are counted, splits share no prompt, saved data come back whole, and nothing held out is pretrained on."""

import json
from collections import Counter

import pytest

from rlhf_utils.data.prepared import CUT, SPLITS, check_enough, prepare, pretraining_texts, prompt_key
from rlhf_utils.data.prepared import FilterReport, PreparedData
from rlhf_utils.data.sources import Rows, load_rows
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


def lists(data):
    return {name: split.to_list() for name, split in data.splits.items()}


def size(data):
    return sum(len(split) for split in data.splits.values())


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
    assert [tuple(step) for step in report] == [
        ("train", "rows read", 0, 48),
        ("train", "empty or not text", 2, 46),
        ("train", f"{CUT}: 1", 0, 46),
        ("train", "chosen and rejected are the same tokens", 1, 45),
        ("train", "prompt over 10 tokens", 1, 44),
        ("train", "response over 6 tokens", 3, 41),
        ("train", "prompt seen before", 1, 40),
    ]
    assert FilterReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    table = str(report).splitlines()
    assert table[0].split() == ["split", "filter", "dropped", "left"] and len(table) == 8
    assert table[-1].split()[-2:] == ["1", "40"]


def test_limits_count_the_template_and_the_end_of_text():
    row = {"prompt": "a b c", "chosen": "d e f", "rejected": "g"}  # Human: a b c Assistant: | d e f <end>
    shares = Shares(reward=0, ppo=0, development=0, evaluation=0)
    kept = made([row], max_prompt_tokens=5, max_response_tokens=4, shares=shares)
    assert len(kept.splits["sft"]) == 1
    for limits in ({"max_prompt_tokens": 4}, {"max_response_tokens": 3}):
        with pytest.raises(InputError, match="no train row is left"):
            made([row], shares=shares, **limits)


def test_splits_share_no_prompt_and_the_seed_draws_them():
    data, other = made(pairs(300)), made(pairs(300), seed=1)
    assert size(data) == 300 and prompts(data)["sft"] != prompts(other)["sft"]
    assert_disjoint(data)
    assert all(split.column_names == ["prompt", "chosen", "rejected"] for split in data.splits.values())
    assert (data.kind, data.template_hash, data.fingerprint) == ("pairs", TEMPLATE.hash, "f00d")


def test_rows_of_a_prompt_stay_together_and_those_kept_are_usable():
    train = [row | {"chosen": f"answer {i}" + " too long" * 9 * (i == 0)} for i in range(5) for row in pairs(50)]
    data = made(train, rows_per_prompt=3, max_response_tokens=10)
    assert size(data) == 150 and data.report.dropped("train")["prompt seen before"] == 50
    assert_disjoint(data)


def test_a_test_split_is_the_evaluation_and_its_prompts_are_nowhere_else():
    test = pairs(10, "held out") + [{"prompt": "Question  5", "chosen": "a", "rejected": "b"}]
    data = made(pairs(100), test)
    assert prompts(data)["evaluation"] == {prompt_key(row["prompt"]) for row in test}
    assert data.report.dropped("train")["prompt also in the test split"] == 1
    assert size(data) == 99 + 11 and list(data.report.to_dict()) == ["train", "test"]
    assert_disjoint(data)


def test_a_dialogue_that_begins_like_one_of_the_test_split_is_left_out():
    turns = [row | {"prompt": f"Start {i}\n\nAssistant: Yes?\n\nHuman: Go on"} for i, row in enumerate(pairs(60))]
    data = made(turns + pairs(60), [{"prompt": "start 3", "chosen": "a", "rejected": "b"}])
    assert data.report.dropped("train")["prompt also in the test split"] == 1


def test_max_rows_caps_what_the_filters_left():
    data = made(pairs(100) + [{"prompt": "", "chosen": "", "rejected": ""}] * 50, pairs(40, "test"), max_rows=30)
    assert size(data) == 30 + 30 and len(data.splits["evaluation"]) == 30
    assert data.report.dropped("train")["over max_rows 30"] == 70


EMPTY_ROWS = [{"prompt": "p", "chosen": None, "rejected": "b"}] * 3 + [{"prompt": "p", "chosen": "a", "rejected": "a"}]


@pytest.mark.parametrize(
    ("train", "test", "settings", "message"),
    [
        (EMPTY_ROWS, None, {}, "4 rows read, 3 empty or not text, 1 chosen and rejected are the same tokens"),
        (pairs(50), EMPTY_ROWS, {}, "no test row is left"),
        (pairs(20), pairs(20), {}, "no train row is left .*also in the test split"),
        (pairs(4), None, {}, r"too few rows for .* \(sft \d, reward \d, .*4 rows read"),
        (pairs(4), pairs(4, "test"), {"shares": dict.fromkeys(SPLITS, 0.0) | {"evaluation": 1}}, "shares are all zero"),
        (pairs(50), [{"prompt": "p", "response": "r"}], {}, "train split holds pairs but the test split demonstr"),
    ],
)
def test_data_that_give_no_splits_are_refused_with_the_counts(train, test, settings, message):
    with pytest.raises(InputError, match=message):
        made(train, test, **settings)


@pytest.mark.parametrize("rows", [pairs(1), pairs(5), pairs(20), pairs(100) * 3, pairs(1) * 100])
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


ODD = "line\u2028separator \x0b\x0c\x85 <b> \x1b[0m 😀 \x00"


KINDS = {
    "pairs": {"chosen": ODD, "rejected": "b"},
    "demonstrations": {"response": ODD},
    "prompts": {},
    "labelled": {"label": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_as_it_was_saved(tmp_path, kind):
    text = "text" if kind == "labelled" else "prompt"
    rows = [KINDS[kind] | {text: f"{ODD} {'word ' * 9}{i}"} for i in range(50)]
    data = made(rows, shares=Shares(ppo=0), min_text_characters=0, max_prompt_tokens=9 + (kind != "labelled") * 99)
    data.save(tmp_path / "data")
    data.save(tmp_path / "data")
    loaded = PreparedData.load(str(tmp_path / "data"))
    assert size(data) == 50 and lists(loaded) == lists(data) and loaded.report == data.report
    assert (loaded.kind, loaded.fingerprint, loaded.template_hash) == (kind, "f00d", TEMPLATE.hash)
    assert loaded.splits["ppo"].features == data.splits["ppo"].features and len(loaded.splits["ppo"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    if kind != "pairs":
        assert set(loaded.splits["sft"]["rejected"]) == {None}
    if kind == "labelled":
        assert set(loaded.splits["sft"]["label"]) == {1} and "word word word" in loaded.splits["sft"]["text"][0]


def test_load_refuses_what_is_missing_damaged_or_of_another_template(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(InputError, match="no prepared data"):
        PreparedData.load(folder)
    made(pairs(50)).save(folder)
    manifest, split = folder / "data.json", folder / "sft.jsonl"
    whole, text = json.loads(manifest.read_text()), split.read_text()

    for damaged, reason in (("".join(text.splitlines(keepends=True)[:-1]), "sft.jsonl has 16 of 17"), (text[:-10], "")):
        split.write_text(damaged)
        with pytest.raises(InputError, match=f"damaged .*{reason}"):
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
