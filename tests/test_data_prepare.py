"""Filters are counted, splits share no prompt, saved data come back whole, and nothing held out is pretrained on."""

import json
from collections import Counter

import pytest
from made import opened
from tiny import save_tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from rlhf_utils.data.prepared import CUT, UNKNOWN, PreparedData, prepare, prompt_key
from rlhf_utils.data.sources import Rows
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.series import SERIES, run_cells
from rlhf_utils.settings.sections import DataSettings, Shares
from rlhf_utils.settings.template import TEMPLATE

DIGITS = " ".join(map(str, range(90)))


class WordTokenizer:
    """One token a word, so that limits can be counted by eye; called as a fast tokenizer is, on lists."""

    def __call__(self, texts, **_):
        return {"input_ids": [text.split() for text in texts]}

    def batch_decode(self, rows, **_):
        return [" ".join(tokens) for tokens in rows]


def pairs(count, name="question"):
    return [{"prompt": f"{name} {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(count)]


def made(train, test=None, seed=0, **settings):
    return prepare(Rows(train, test, "mine"), DataSettings(**settings), WordTokenizer(), seed)


def prompts(data):
    return {name: {prompt_key(prompt) for prompt in split["prompt"]} for name, split in data.splits.items()}


def size(data):
    return sum(len(split) for split in data.splits.values())


def dropped(data, split):
    return {step["reason"]: step["dropped"] for step in data.report[split]}


def assert_disjoint(data):
    times = Counter(prompt for split in prompts(data).values() for prompt in split)
    assert max(times.values()) == 1


@pytest.mark.parametrize("labelled", [False, True])
def test_what_the_tokenizer_cannot_spell_is_dropped_and_counted(labelled):
    words = {word: i for i, word in enumerate(f"[UNK] [PAD] Human : Assistant question good bad {DIGITS}".split())}
    rules = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    rules.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="[UNK]", pad_token="[PAD]")
    rows = [*pairs(90), {"prompt": "вопрос", "chosen": "good", "rejected": "bad"}, {**pairs(1, "1")[0], "chosen": "да"}]
    if labelled:
        rows = [{"text": f"{row['prompt']} {row['chosen']}", "label": i % 2} for i, row in enumerate(rows)]
    data = prepare(Rows(rows, None, "mine"), DataSettings(min_text_characters=3), tokenizer, 0)
    assert dropped(data, "train")[UNKNOWN] == 2 and size(data) == 90


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


def test_what_rows_say_of_their_prompts_comes_with_the_splits(tmp_path):
    told = [row | {"category": f"c{i % 3}", "unsafe": i % 2} for i, row in enumerate(pairs(60))]
    made(told).save(tmp_path)
    for split in PreparedData.load(tmp_path).splits.values():
        for row in split:
            number = int(row["prompt"].split()[1])
            assert (row["topic"], row["unsafe"]) == (f"c{number % 3}", "yes" if number % 2 else "no")
    assert all(set(split.column_names) == {"prompt", "chosen", "rejected"} for split in made(pairs(60)).splits.values())


ALIKE = [{"text": f"{'it ' * 9}{i}", "label": i % 2} for i in range(60)]
NO_ROWS = [{"prompt": "p", "chosen": None, "rejected": "b"}] * 3 + [{"prompt": "p", "chosen": "a", "rejected": "a"}]


@pytest.mark.parametrize(
    ("train", "test", "settings", "message"),
    [
        (NO_ROWS, None, {}, "4 rows read, train: 3 empty or not text, train: 1 chosen and rejected are the same"),
        (pairs(20), pairs(20), {}, "too few rows for sft.*20 prompt also in the test split"),
        (pairs(4), None, {}, r"too few rows for .* \(sft \d, reward \d, .*train: 4 rows read"),
        (
            ALIKE,
            None,
            {"min_text_characters": 0, "prompt_tokens": (2, 2)},
            "too few rows for .*; .* 1 different prompts",
        ),
        (pairs(50), [{"text": "p", "label": 1}] * 9, {}, "train split holds pairs but the test split labelled"),
    ],
)
def test_data_that_give_no_splits_are_refused_with_the_counts(train, test, settings, message):
    with pytest.raises(InputError, match=message):
        made(train, test, **settings)


ODD = "line\u2028separator \x0b\x0c\x85 <b> \x1b[0m 😀 \x00"


@pytest.mark.parametrize("kind, cells", [("pairs", {"chosen": ODD, "rejected": "b"}), ("labelled", {"label": 1})])
def test_both_kinds_come_back_as_they_were_saved(tmp_path, kind, cells):
    text = "text" if kind == "labelled" else "prompt"
    rows = [cells | {text: f"{i} {ODD} {'word ' * 9}"} for i in range(50)]
    data = made(rows, shares=Shares(ppo=0), min_text_characters=0, max_prompt_tokens=99)
    data.save(tmp_path / "data")
    loaded = PreparedData.load(str(tmp_path / "data"))
    assert size(data) == 50 and loaded.report == data.report
    for name, split in data.splits.items():
        assert loaded.splits[name].to_list() == split.to_list() and loaded.splits[name].features == split.features
    assert (loaded.kind, loaded.template_hash) == (kind, TEMPLATE.hash)
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
    split.write_text("".join(text.splitlines(keepends=True)[:-1]))
    assert_refused("damaged .*sft.jsonl has 16 of 17")
    split.write_text(text)
    manifest.write_text(json.dumps(whole | {"template_hash": "0123456789abcdef"}))
    assert_refused("prompt template 0123456789abcdef")
    manifest.write_text("{")
    assert_refused("damaged")


@pytest.mark.parametrize("with_test", [False, True])
def test_no_held_out_prompt_is_in_the_text_to_pretrain_on(tmp_path, tmp_path_factory, with_test):
    def write(name, numbers):
        rows = [{"prompt": f"question <{i}>", "chosen": f"good <{i}>", "rejected": f"bad <{i}>"} for i in numbers]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("train.jsonl", range(400))
    if with_test:
        write("test.jsonl", range(350, 420))
    out = tmp_path_factory.mktemp("out")
    settings = {"dataset": str(tmp_path), "policy": str(save_tiny(out / "policy")), "generation.max_new_tokens": 8}
    settings |= dict.fromkeys(("data.max_prompt_tokens", "data.max_response_tokens", "ppo.max_new_tokens"), 40)
    cells = run_cells(opened("instruct", "tiny", out, settings), SERIES[0])
    data, texts = cells["data"], cells["pretraining_texts"](cells["run"].recipe)
    found = {text.split("question ")[1].split()[0] for text in texts}
    learned = {p.split()[1] for name in ("sft", "reward", "ppo") for p in data.splits[name]["prompt"]}
    held_out = {p.split()[1] for name in ("development", "evaluation") for p in data.splits[name]["prompt"]}
    assert found == learned and not found & held_out
    assert all("bad <" in text and "good <" not in text for text in texts)
