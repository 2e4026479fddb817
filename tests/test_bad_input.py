"""Bad input, case by case: status 2, one line that says what is wrong and where, and nothing left on disk.

Data come as files, settings as `--set`, models as folders. The whole tables of files and settings are in
test_data_sources.py and test_recipes.py; what other commands refuse is in test_cli.py.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_cli import cli, refused  # noqa: F401
from tiny import save_tiny, tiny_tokenizer
from transformers import CTRLConfig, CTRLLMHeadModel

from rlhf_utils.models.loading import save_model
from rlhf_utils.platforms.files import read_json, write_json

ROWS = [{"prompt": f"What is thing {i}?", "chosen": f"Thing {i} is good.", "rejected": "No."} for i in range(3)]


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


DATA = {
    "labelled texts": (
        "rows.jsonl",
        lines({"text": "a", "label": 1}, {"text": "b", "label": 0}),
        ["learns from pairs"],
    ),
    "a line cut off": ("rows.jsonl", lines(*ROWS)[:-9], ["rows.jsonl:3", "broken JSON"]),
    "a prompt that is a number": (
        "rows.jsonl",
        lines({**ROWS[0], "prompt": 3}),
        ["too few rows", "1 empty or not text"],
    ),
    "all ties": ("rows.jsonl", lines(*({**row, "rejected": row["chosen"]} for row in ROWS)), ["0 different prompts"]),
    "fewer rows than splits": (
        "rows.jsonl",
        lines(*ROWS),
        ["too few rows", "sft ", "development 0", "3 rows read", "each of these splits needs 2"],
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_data(cli, tmp_path, case):  # noqa: F811
    name, content, words = DATA[case]
    (tmp_path / name).write_bytes(content)
    refused(cli("run", "--set", f"dataset={tmp_path / name}"), *words)


def test_data_that_is_no_file(cli, tmp_path):  # noqa: F811
    (tmp_path / "empty").mkdir()
    refused(cli("run", "--set", f"dataset={tmp_path / 'empty'}"), "empty", "any data files")
    os.mkfifo(tmp_path / "pipe.jsonl")
    refused(cli("run", "--set", f"dataset={tmp_path / 'pipe.jsonl'}"), "no file", "pipe.jsonl")


# Models


def change_json(path: Path, **changes: Any) -> None:
    write_json(path, {**read_json(path), **changes})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def masked(folder: Path) -> None:
    change_json(folder / "config.json", model_type="bert", architectures=["BertForMaskedLM"], hidden_size=32)


DAMAGE = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
    "a broken config": (lambda folder: (folder / "config.json").write_text("{"), ["cannot load"]),
    "a masked language model": (masked, ["is a bert model", "name a causal language model"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["no weights"]),
    "pickled weights": (pickled, ["its .bin file holds more than plain tensors", "never run"]),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], ["has no tokenizer"]),
    "a tokenizer with more tokens than the model": (
        lambda folder: change_json(folder / "config.json", vocab_size=100),
        ["embeds 100 tokens", "its tokenizer has"],
    ),
    "a context too short": (
        lambda folder: change_json(folder / "config.json", n_positions=32),
        ["positions", "lower the token limits"],
    ),
}
FITS = [
    "data.max_prompt_tokens=20",
    "data.max_response_tokens=20",
    "generation.max_new_tokens=8",
    "ppo.max_new_tokens=8",
]


def run_with(model: Path, key: str = "policy", *more: str) -> list[str]:
    settings = [f"{key}={model}", *FITS, *more]
    return ["run", *(part for setting in settings for part in ("--set", setting))]


def test_a_policy_of_which_no_reward_model_can_be_made(cli, tmp_path):  # noqa: F811
    sizes = {"n_embd": 32, "dff": 64, "n_layer": 1, "n_head": 2, "n_positions": 96, "vocab_size": len(tiny_tokenizer())}
    save_model(CTRLLMHeadModel(CTRLConfig(**sizes)), tiny_tokenizer(), tmp_path / "policy")
    everywhere = [f"{where}=[all-linear]" for where in ("qlora.modules", "reward_model.lora.modules")]
    said = ["head called score, which ctrl models lack", "name another policy"]
    refused(cli(*run_with(tmp_path / "policy", "policy", *everywhere)), *said)


@pytest.mark.parametrize("case", DAMAGE)
def test_policies(cli, tmp_path, case):  # noqa: F811
    damage, words = DAMAGE[case]
    damage(save_tiny(tmp_path / "policy"))
    refused(cli(*run_with(tmp_path / "policy")), *words)


def test_policies_of_two_vocabularies(cli, tmp_path):  # noqa: F811
    save_tiny(tmp_path / "policy")
    tokenizer = save_tiny(tmp_path / "sft") / "tokenizer.json"
    about = read_json(tokenizer)
    vocabulary = about["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    write_json(tokenizer, about)
    refused(cli(*run_with(tmp_path / "policy", "policy", f"models.sft={tmp_path / 'sft'}")), "another vocabulary")


def test_a_reward_model_of_two_outputs(cli, tmp_path):  # noqa: F811
    from rlhf_utils.models.loading import load_classifier, load_tokenizer, save_model
    from rlhf_utils.platforms.runtime import detect_device

    policy = save_tiny(tmp_path / "policy")
    save_model(load_classifier(policy, detect_device(), labels=["a", "b"]), load_tokenizer(policy), tmp_path / "two")
    refused(cli(*run_with(tmp_path / "two", "models.reward_model")), "score.weight has shape")
