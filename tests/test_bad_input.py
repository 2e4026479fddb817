"""Bad input, case by case: status 2, one line that says what is wrong and where, and nothing left on disk.

Data come as files, settings as `--set`, models as folders. What other commands refuse is in test_cli.py.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from test_cli import PAIR, cli, refused  # noqa: F401
from tiny import save_tiny

from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.settings.recipes import Recipe

ROWS = [{"prompt": f"What is thing {i}?", "chosen": f"Thing {i} is good.", "rejected": "No."} for i in range(3)]


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def with_value(key: str, value: Any) -> bytes:
    return lines({**ROWS[0], key: value})


DATA = {
    "in UTF-16": ("rows.jsonl", lines(*ROWS).decode().encode("utf-16"), ["rows.jsonl", "UTF-8"]),
    "in Latin-1": ("rows.jsonl", '{"prompt": "caf\xe9"}\n'.encode("latin-1"), ["rows.jsonl", "UTF-8"]),
    "a csv in Latin-1": ("rows.csv", "prompt,chosen,rejected\ncaf\xe9,a,b\n".encode("latin-1"), ["rows.csv", "UTF-8"]),
    "only NUL bytes": ("rows.jsonl", b"\0" * 100, ["rows.jsonl"]),
    "no bytes": ("rows.csv", b"", ["rows.csv", "empty"]),
    "only a blank line": ("rows.jsonl", b"\n\n", ["rows.jsonl", "empty"]),
    "a line cut off": ("rows.jsonl", lines(*ROWS)[:-9], ["rows.jsonl:3", "broken JSON"]),
    "a list for a line": ("rows.jsonl", b"[1, 2]\n", ["rows.jsonl:1"]),
    "a number for a line": ("rows.jsonl", b"17\n", ["rows.jsonl:1"]),
    "JSON that is no list of rows": ("rows.json", b'{"a": 1}', ["rows.json"]),
    "a gzip cut off": ("rows.jsonl.gz", gzip.compress(lines(*ROWS) * 99)[:-20], ["rows.jsonl.gz"]),
    "no gzip at all": ("rows.jsonl.gz", lines(*ROWS), ["rows.jsonl.gz"]),
    "a parquet file that is none": ("rows.parquet", b"PAR1 and then nothing", ["rows.parquet"]),
    "a csv with ragged rows": ("rows.csv", b"prompt,chosen,rejected\na,b\nc,d,e,f\n", ["rows.csv"]),
    "an ending that nobody reads": ("rows.xlsx", b"PK", ["rows.xlsx"]),
    "a prompt that is a number": ("rows.jsonl", with_value("prompt", 3), ["no row is left", "not text"]),
    "an answer that is a list": ("rows.jsonl", with_value("chosen", ["a"]), ["no row is left"]),
    "all ties": ("rows.jsonl", lines(*({**row, "rejected": row["chosen"]} for row in ROWS)), ["no row is left"]),
    "every answer empty": ("rows.jsonl", lines(*({**row, "chosen": " "} for row in ROWS)), ["no row is left"]),
    "labels but no pairs": ("rows.jsonl", lines({"text": "fine", "label": 1}), ["pairs of answers"]),
    "columns nobody knows": ("rows.csv", b"a,b\n1,2\n", ["columns found: a, b"]),
    "dialogues without an answer": ("rows.jsonl", lines({"chosen": "hello", "rejected": "bye"}), ["rows"]),
    "fewer rows than splits": (
        "rows.jsonl",
        lines(*ROWS),
        ["too few rows", "sft ", "development 0", "3 rows read", "each of these splits needs 2"],
    ),
    "one prompt in all rows": (
        "rows.jsonl",
        lines(*({**row, "prompt": "p"} for row in ROWS * 99)),
        ["too few rows", "1 different prompts"],
    ),
    "message lists cut off": (
        "rows.csv",
        b"prompt,chosen,rejected\np,\"[{'role': 'user', 'content': 'x\",b\n",
        ["no row is left", "list in column chosen cannot be read"],
    ),
    "votes that are words": (
        "rows.jsonl",
        lines({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": "x", "score_A": "many", "score_B": 1}),
        ["no row is left", "no clear preference"],
    ),
}

# Everything a setting can be wrong in that its type does not say: two that do not go together.
TOGETHER = {
    "ppo.minibatch_size=60": ["not a multiple"],
    "ppo.microbatch_size=7": ["not a multiple"],
    "sft.micro_batch_size=5": ["not a multiple"],
    "base.heads=3": ["not a multiple"],
    "base.context=64": ["raise base.context"],
    "ppo.kl_controller=adaptive ppo.kl_horizon=5": ["kl_horizon"],
    "ppo.lora.dropout=0.1": ["dropout"],
    "data.prompt_tokens=[8,2]": ["prompt_tokens"],
    "ppo.report_to=[mlflow]": ["report_to"],
    "form=poem": ["form"],
    "name=other": ["cannot be overridden"],
    "ppo=3": ["ppo"],
    "ppo.learning_rate=fast": ["learning_rate"],
    "ppo.learning_rate=.nan": ["learning_rate"],
    "ppo.learning_rate=.inf": ["learning_rate"],
    "ppo.whiten_advantages=maybe": ["whiten_advantages"],
    "seed=1.5": ["seed"],
    "seed=true": ["seed"],
    "nothing.at.all=1": ["nothing"],
    "=3": ["key=value"],
}


def bounded(section: type[BaseModel], prefix: str = "") -> list[tuple[str, float]]:
    """Every number of the settings with a value just outside each end of its range."""
    found = []
    for name, field in section.model_fields.items():
        kinds = [kind for kind in _parts(field.annotation) if isinstance(kind, type)]
        for kind in kinds:
            if issubclass(kind, BaseModel):
                found += bounded(kind, f"{prefix}{name}.")
        if {int, float} & set(kinds) and not {list, tuple, dict} & set(kinds):
            limits = [*field.metadata, *_limits(field.annotation)]
            outside = [
                value
                for limit in limits
                for attribute, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0))
                if isinstance(limit, (Ge, Gt, Le, Lt)) and (end := getattr(limit, attribute, None)) is not None
                for value in [end + step]
            ]
            found += [(f"{prefix}{name}", value) for value in outside or [None]]
    return found


def _parts(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(part for each in inner for part in _parts(each))]


def _limits(annotation: Any) -> list[Any]:
    """Constraints anywhere inside an annotation such as `Annotated[int, Field(ge=1)] | None`."""
    return [
        limit
        for part in _parts(annotation)
        for field in getattr(part, "__metadata__", ())
        for limit in getattr(field, "metadata", ())
    ]


OUTSIDE = sorted(set(bounded(Recipe)), key=str)


def test_the_table_is_long_enough():
    assert len(DATA) + len(TOGETHER) + len(OUTSIDE) + len(DAMAGE) >= 100
    assert all(value is not None for _, value in OUTSIDE), "a number without any bound"


@pytest.mark.parametrize("case", DATA)
def test_data(cli, tmp_path, case):  # noqa: F811
    name, content, words = DATA[case]
    (tmp_path / name).write_bytes(content)
    refused(cli("run", "--set", f"dataset={tmp_path / name}"), *words)


def test_data_that_is_no_file(cli, tmp_path):  # noqa: F811
    (tmp_path / "empty").mkdir()
    refused(cli("run", "--set", f"dataset={tmp_path / 'empty'}"), "empty")
    os.mkfifo(tmp_path / "pipe.jsonl")
    refused(cli("run", "--set", f"dataset={tmp_path / 'pipe.jsonl'}"), "pipe.jsonl", "neither a file nor a folder")


@pytest.mark.parametrize("assignments", TOGETHER)
def test_settings_that_make_no_sense(cli, assignments):  # noqa: F811
    refused(cli("run", *(part for one in assignments.split(" ") for part in ("--set", one))), *TOGETHER[assignments])


@pytest.mark.parametrize(("key", "value"), OUTSIDE)
def test_every_number_has_a_range(cli, key, value):  # noqa: F811
    refused(cli("run", "--set", f"{key}={value}"), key.split(".")[-1])


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
    "an architecture nobody knows": (
        lambda folder: change_json(folder / "config.json", model_type="abacus"),
        ["cannot load"],
    ),
    "a masked language model": (masked, ["is a bert model", "left to right"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["no weights"]),
    "pickled weights": (pickled, ["its .bin file cannot be read as plain tensors", "never run"]),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        ["has no tokenizer"],
    ),
    "a tokenizer with more tokens than the model": (
        lambda folder: change_json(folder / "config.json", vocab_size=100),
        ["tokenizer has", "embeds 100"],
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


@pytest.mark.parametrize("case", DAMAGE)
def test_policies(cli, tmp_path, case):  # noqa: F811
    damage, words = DAMAGE[case]
    damage(save_tiny(tmp_path / "policy"))
    refused(cli(*run_with(tmp_path / "policy")), *words)


def test_a_policy_in_the_home_of_nobody(cli):  # noqa: F811
    refused(cli(*run_with(Path("~nobody-of-this-name/model"))), "~nobody-of-this-name", "there is no folder")


@pytest.mark.slow
def test_a_policy_that_the_series_finds_nowhere(cli):  # noqa: F811
    """Known only when the hub is asked; the name is too long to be a path, too."""
    refused(cli(*run_with(Path("a" * 5000))), "cannot load")


def test_policies_of_two_vocabularies(cli, tmp_path):  # noqa: F811
    save_tiny(tmp_path / "policy")
    tokenizer = save_tiny(tmp_path / "sft") / "tokenizer.json"
    about = read_json(tokenizer)
    vocabulary = about["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    write_json(tokenizer, about)
    refused(cli(*run_with(tmp_path / "policy", "policy", f"models.sft={tmp_path / 'sft'}")), "another vocabulary")


def test_a_classifier_without_the_label(cli, tmp_path):  # noqa: F811
    from rlhf_utils.models.loading import load_classifier, load_tokenizer, save_model
    from rlhf_utils.platforms.runtime import detect_device

    policy = save_tiny(tmp_path / "policy")
    classifier = load_classifier(policy, detect_device(), labels=["bad", "good"])
    save_model(classifier, load_tokenizer(policy), tmp_path / "classifier")
    asked = ["run", "--recipe", "imdb", "--set", f"models.reward_model={tmp_path / 'classifier'}"]
    refused(cli(*asked), "no label 'POSITIVE'", "bad, good")


@pytest.mark.parametrize("setting", ["qlora.modules=[q_proj]", "reward_model.lora.modules=[attention, c_nothing]"])
def test_a_lora_module_that_the_policy_does_not_have(cli, setting):  # noqa: F811
    refused(cli("run", "--set", setting), "lora.modules: a gpt2 model has no", "attn.c_attn")


def test_a_language_model_as_reward_model(cli, tmp_path):  # noqa: F811
    save_tiny(tmp_path / "policy")
    refused(cli(*run_with(tmp_path / "policy", "models.reward_model")), "is a GPT2LMHeadModel", "no trained head")


def test_a_reward_model_of_two_outputs(cli, tmp_path):  # noqa: F811
    from rlhf_utils.models.loading import load_classifier, load_tokenizer, save_model
    from rlhf_utils.platforms.runtime import detect_device

    policy = save_tiny(tmp_path / "policy")
    save_model(load_classifier(policy, detect_device(), labels=["a", "b"]), load_tokenizer(policy), tmp_path / "two")
    refused(cli(*run_with(tmp_path / "two", "models.reward_model")), "2 outputs")


# What is taken, and must not do harm


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "\x1b[31mred\x1b[0m", "a" * 1_000_000, "word " * 10_000, "\u202eright to left"],
)
def test_odd_texts_are_read(tmp_path, text):
    from rlhf_utils.data.prepared import check_rows
    from rlhf_utils.data.sources import load_rows
    from rlhf_utils.settings.recipes import load_recipe

    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(*ROWS, {**PAIR, "prompt": text}))
    recipe = load_recipe("instruct", "tiny", {"dataset": str(path)})
    check_rows(load_rows(recipe.dataset, recipe.data, recipe.seed), recipe.form)
