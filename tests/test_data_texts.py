"""The base model's text holds nothing that a later stage is judged on."""

import json

import pytest

from rlhf_utils.data.prepare import SPLITS, prepare, pretraining_texts, shares_of, split_of
from rlhf_utils.data.sources import load_rows
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.sections import DataSettings, Shares

SETTINGS = DataSettings()


class WordTokenizer:
    def __call__(self, texts, **options):
        return {"input_ids": [text.split() for text in texts]}


def write(path, numbers):
    rows = [{"prompt": f"question <{i}>", "chosen": f"good <{i}>", "rejected": f"bad <{i}>"} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("with_test", [False, True])
def test_no_held_out_prompt_is_in_the_text(tmp_path, with_test):
    write(tmp_path / "train.jsonl", range(400))
    if with_test:
        write(tmp_path / "test.jsonl", range(350, 420))
    data = prepare(load_rows(str(tmp_path), SETTINGS, 5), SETTINGS, WordTokenizer(), seed=5)
    texts = pretraining_texts(str(tmp_path), SETTINGS, documents=10, seed=5)
    found = {text.split("question ")[1].split()[0] for text in texts}
    held_out = {p.split()[1] for name in ("development", "evaluation") for p in data.splits[name]["prompt"]}
    learned = {p.split()[1] for name in ("sft", "reward", "ppo") for p in data.splits[name]["prompt"]}
    assert found == learned and not found & held_out
    assert all("bad <" in text and "good <" not in text for text in texts)


def test_split_follows_the_shares_and_ignores_case_and_blanks():
    shares = Shares(sft=3, reward=0, ppo=0, development=0, evaluation=1).model_dump()
    splits = [split_of(f"prompt {i}", shares, 0) for i in range(2000)]
    assert set(splits) == {"sft", "evaluation"} and abs(splits.count("sft") - 1500) < 60
    assert splits[7] == split_of(" PROMPT\n7 ", shares, 0)
    assert splits != [split_of(f"prompt {i}", shares, 1) for i in range(2000)]
    with pytest.raises(InputError, match="shares are all zero"):
        split_of("prompt", dict.fromkeys(SPLITS, 0.0), 0)


def test_a_test_split_replaces_the_evaluation_share():
    assert shares_of(SETTINGS, False) == SETTINGS.shares.model_dump()
    assert shares_of(SETTINGS, True) == SETTINGS.shares.model_dump() | {"evaluation": 0.0}
