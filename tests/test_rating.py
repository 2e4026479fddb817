"""A reward model's accuracy on any preference set, also from the command line."""

import json

import pytest
import torch
from tiny import CPU, one_thread, save_tiny  # noqa: F401

from rlhf_utils.__main__ import main
from rlhf_utils.evaluation.rating import rate
from rlhf_utils.evaluation.statistics import proportion_interval
from rlhf_utils.models.loading import load_reward_model, load_tokenizer, save_model
from rlhf_utils.rewards.reward_model import load_reward

ROWS = [
    {
        "prompt": f"Question {i}?",
        "chosen": f"a good answer {i}",
        "rejected": text,
        "subset": "long" if i % 3 else "alike",
    }
    for i in range(30)
    for text in [f"bad {i}" if i % 3 else f"a bad answer {i}"]
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rated")
    policy = save_tiny(folder / "policy")
    torch.manual_seed(0)
    save_model(load_reward_model(policy, CPU, fresh_head=True), load_tokenizer(policy), folder / "model")
    return folder / "model"


def test_of_all_pairs_of_those_alike_in_length_and_of_each_subset(model, tmp_path, capsys):
    path, odd = tmp_path / "pairs.jsonl", {"prompt": "x", "chosen": None, "rejected": "b", "subset": "long"}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, odd]))
    assert main(["rate", str(model), "--data", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    rated = {line.pop("pairs"): line for line in found["rated"]}
    assert [*rated] == ["all", "alike in length", "subset alike", "subset long"]
    assert [line["count"] for line in rated.values()] == [30, 10, 10, 20] and sum(found["dropped"].values()) == 1
    assert rated["subset long"]["length_accuracy"] == 1 and rated["alike in length"]["length_accuracy"] == 0.5
    scores = [
        load_reward(model, CPU).logits(*zip(*[(r["prompt"], r[side]) for r in ROWS], strict=True))
        for side in ("chosen", "rejected")
    ]
    assert rated["all"]["accuracy"] == pytest.approx((scores[0] > scores[1]).float().mean().item())
    low, high = rated["all"]["accuracy_ci95"]
    assert low < rated["all"]["accuracy"] < high


def test_a_subset_may_be_named_by_anything_and_by_nothing(model, tmp_path):
    path, names = tmp_path / "pairs.jsonl", [["tag"], 1, "", None]
    path.write_text("".join(json.dumps(row | {"subset": name}) + "\n" for row, name in zip(ROWS, names, strict=False)))
    assert [line["pairs"] for line in rate(str(model), str(path))["rated"]] == [
        "all", "alike in length", "subset 1", "subset ['tag']"
    ]  # fmt: skip


def test_pairs_of_one_prompt_are_one_cluster(model, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row | {"prompt": "Question?"}) + "\n" for row in ROWS))
    whole = rate(str(model), str(path))["rated"][0]
    assert whole["accuracy_ci95"] == proportion_interval(whole["accuracy"], 1).as_list()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "fine", "label": 1}, "holds labelled rows; give pairs"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "holds no pair that can be read"),
        ({"a": 1}, "columns found: a"),
    ],
)
def test_data_without_pairs_are_refused(model, tmp_path, capsys, row, words):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["rate", str(model), "--data", str(tmp_path / "rows.jsonl")]) == 2
    assert words in capsys.readouterr().err
