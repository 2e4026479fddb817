"""Names on the hub, against a hub on the loopback interface: what each cause of failure is told as, and what is found
again without one."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hub.client import ROOT, ask, done, environment, start, start_asking
from hub.server import OTHER_TOKEN, TOKEN, LoopbackHub, closed_port, silent_server

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import hub_name, is_hub_name
from rlhf_utils.settings.recipes import load_recipe, parse_assignments

EVERYWHERE = "https://huggingface.co"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A cache that the tests of this module share: they ask for different names."""
    return tmp_path_factory.mktemp("home")


def told_of(wanted: list, hub: LoopbackHub, home: Path, **more: str) -> str | None:
    ((found,), _) = ask([wanted], hub.url, home, **more)
    return found["told"]


# Names


@pytest.mark.parametrize(
    "source, kind, name, where",
    [
        (f"{EVERYWHERE}/gpt2", "model", "gpt2", {}),
        (f"{EVERYWHERE}/gpt2/", "model", "gpt2", {}),
        ("https://hf.co/owner/name", "model", "owner/name", {}),
        (f"{EVERYWHERE}/gpt2/tree/main", "model", "gpt2", {"revision": "main"}),
        (f"{EVERYWHERE}/a/b/tree/v1/sub/dir", "model", "a/b", {"revision": "v1", "subfolder": "sub/dir"}),
        (f"{EVERYWHERE}/a/b/tree/refs%2Fpr%2F1", "model", "a/b", {"revision": "refs/pr/1"}),
        (f"{EVERYWHERE}/a/b/tree/refs/pr/1/sub", "model", "a/b", {"revision": "refs/pr/1", "subfolder": "sub"}),
        (f"{EVERYWHERE}/datasets/a/b/tree/main/part", "dataset", "a/b", {"revision": "main", "subfolder": "part"}),
        ("hf://a/b", "model", "a/b", {}),
        ("hf://a/b@v1/sub", "model", "a/b", {"revision": "v1", "subfolder": "sub"}),
        ("hf://datasets/a/b@v1", "dataset", "a/b", {"revision": "v1"}),
        ("a/b@v1", "dataset", "a/b", {"revision": "v1"}),
        ("a/b:part@v1", "dataset", "a/b", {"revision": "v1", "subfolder": "part"}),
    ],
)
def test_addresses_say_what_names_say(source, kind, name, where):
    assert hub_name(source, kind) == (name, where) and is_hub_name(source)


@pytest.mark.parametrize(
    "source, kind, words",
    [
        (f"{EVERYWHERE}/datasets/a/b", "model", "the address of a dataset, and a model is wanted"),
        (f"{EVERYWHERE}/a/b", "dataset", "the address of a model, and a dataset is wanted"),
        ("hf://spaces/a/b", "model", "the address of a space"),
        (f"{EVERYWHERE}/a/b/blob/main/model.safetensors", "model", "one file; give its repository: a/b"),
        ("https://example.com/a/b", "model", "not an address of the Hugging Face hub"),
        ("s3://bucket/a", "dataset", "not an address of the Hugging Face hub"),
        (f"{EVERYWHERE}/", "model", "names no repository"),
        ("a/b:../../etc", "model", "leave out the dots"),
    ],
)
def test_addresses_of_something_else_are_explained(source, kind, words):
    with pytest.raises(InputError, match=re.escape(words)):
        hub_name(source, kind)


@pytest.mark.parametrize("value", ["null", "None", "", " ", None])
@pytest.mark.parametrize("nested", [True, False])
def test_nothing_unsets_a_name(value, nested):
    given = {"models": {"reward_model": value}} if nested else {"models.reward_model": value}
    assert (
        load_recipe("imdb", "t4").models.reward_model and load_recipe("imdb", "t4", given).models.reward_model is None
    )
    for key in ("data.data_dir", "data.revision"):
        assert getattr(load_recipe("eli5", "t4", {key: value}).data, key.removeprefix("data.")) is None


@pytest.mark.parametrize("name", ["dataset", "policy"])
@pytest.mark.parametrize("value", ["null", "", "None"])
def test_what_every_run_has_cannot_be_unset(name, value):
    with pytest.raises(InputError, match=name):
        load_recipe("instruct", "t4", parse_assignments([f"{name}={value}"]))


# Causes

ANONYMOUS = {
    ("look up", "me/typo"): r"me/typo does not exist on the hub, or is private; check the name.*HF_TOKEN",
    ("look up", "private/gpt2"): r"private/gpt2 does not exist on the hub, or is private; .*log in.*HF_TOKEN",
    ("look up", "gpt2@v9"): r"gpt2@v9: gpt2 has no revision 'v9'; its branches and tags: http\S+/gpt2/tree/main",
    ("look up", "nested/gpt2:tiny"): r"nested/gpt2:tiny: nested/gpt2 has no folder tiny; it has the folders small",
    ("look up", "gated/gpt2"): r"gated/gpt2 is gated: accept its licence at http\S+/gated/gpt2, then log in .*HF_TOKEN",
    ("look up", "only/readme"): "only/readme is no model: it has no config.json",
    ("look up", "only/config"): r"only/config has no weights that can be read .*tf_model.h5.*NAME@REVISION",
    ("look up", "adapters/lost"): r"me/typo does not exist on the hub, or is private",
    ("look up", "a/b/c"): r"a/b/c .*it is no id \(owner/name\), and there is no file or folder",
    ("look up", "a" * 5000): "no id",
    ("look up data", "me/typo"): "dataset me/typo does not exist on the hub, or is private; check the name",
    (
        "look up data",
        "several/pairs",
        "v9",
    ): r"dataset several/pairs@v9: several/pairs has no revision 'v9'; .*/datasets/",
    (
        "look up data",
        "gated/pairs",
    ): r"dataset gated/pairs is gated: accept its licence at http\S+/datasets/gated/pairs,",
    ("look up data", "private/pairs"): "dataset private/pairs does not exist on the hub, or is private",
    ("look up data", "stanfordnlp/SHP", None, "explain"): r"no folder explain; it has the folders .*explainlikeimfive",
    ("look up data", "several/configurations"): r"several configurations \(one, two\); .*data.data_dir",
    ("look up data", "several/empty"): r"dataset several/empty has no data files",
    ("look up data", "several/pairs@v1", "main"): r"says v1, and data.revision main; leave one of them out",
}


@pytest.fixture(scope="module")
def anonymous(hub, home) -> dict:
    hub.asked.clear()
    found, err = ask(list(ANONYMOUS), hub.url, home)
    assert not err
    assert not [path for path in hub.asked if path.startswith("GET") and re.search("safetensors|bin|jsonl$", path)]
    return dict(zip(ANONYMOUS, found, strict=True))


@pytest.mark.parametrize("wanted", ANONYMOUS, ids=lambda wanted: f"{wanted[0]} {wanted[1][:20]}")
def test_every_cause_has_a_line_of_its_own(anonymous, wanted):
    found = anonymous[wanted]
    assert re.search(ANONYMOUS[wanted], found["told"]), found["told"]
    assert "\n" not in found["told"] and found["seconds"] < 10


TOKENS = {
    "hf_expired": {
        "gated/gpt2": r"gated: accept its licence at \S+, .*does not accept yours \(expired or revoked",
        "private/gpt2": r"does not exist on the hub, or is private; .*does not accept yours",
        "gpt2": None,
    },
    OTHER_TOKEN: {
        "gated/gpt2": r"gated: accept its licence at \S+, with the account of your token, which has no access",
        "private/gpt2": r"does not exist on the hub, or is private; .*whether your token may read it",
        "gpt2": None,
    },
    TOKEN: {"gated/gpt2": None, "private/gpt2": None, "gpt2": None},
}


@pytest.mark.parametrize("token", TOKENS)
def test_what_a_token_is_good_for(hub, tmp_path, token):
    expected = TOKENS[token]
    found, err = ask([["look up", name] for name in expected], hub.url, tmp_path, HF_TOKEN=token)
    for words, about in zip(expected.values(), found, strict=True):
        assert about["told"] is None if words is None else re.search(words, about["told"]), about
    # What everybody may read is read, and it is said once that the token was left out.
    assert err.count("does not accept your token") == (token == "hf_expired")


def test_what_can_be_no_token_is_said_to_be_none(hub, tmp_path):
    found, err = ask([["look up", "gpt2"]], hub.url, tmp_path, HF_TOKEN="hf_\N{LATIN SMALL LETTER O WITH DIAERESIS}")
    assert "your token has characters that no token has; copy it again" in found[0]["told"] and not err


def test_a_home_that_cannot_be_read_is_named(hub):
    assert re.match("cannot read /dev/null/token: .*HF_HOME", told_of(["look up", "gpt2"], hub, "/dev/null"))


def test_several_threads_say_once_that_a_token_is_not_accepted(hub, tmp_path):
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from rlhf_utils.platforms.hub import look_up, wanted_model\n"
        "names = ['gpt2', 'gpt2-medium', 'several/gpt2', 'several/gpt2@v2']\n"
        "with ThreadPoolExecutor(4) as threads: list(threads.map(look_up, map(wanted_model, names)))"
    )
    _, err = done(start(code, hub.url, tmp_path, HF_TOKEN="hf_expired"))
    assert err.count("does not accept your token") == err.count("\n") == 1


FAULTS = {
    "one-500": None,
    "two-500": None,
    "one-429": None,
    "slow": None,
    "cut-off-once": None,
    "always-500": r"answers with an error of its own \(500\), 4 times in a row, and it is not in the cache; try again",
    "always-503": r"error of its own \(503\)",
    "always-429": r"limits the number of requests \(429\) and asks to wait for 120 s.*a token \(HF_TOKEN\)",
    "proxy": r"127.0.0.1 refuses \(403\), and not as the hub does, and it is not in the cache; check the proxy",
    "cut-off-for-good": r"broke off .*, and it is not in the cache; try again later",
}


@pytest.fixture(scope="module")
def faulty(hub, tmp_path_factory) -> dict:
    """Every fault, of a model's weights and of a dataset, in a process each: most of it is waiting."""
    hub.failed.clear()
    home = tmp_path_factory.mktemp("faulty")
    processes = {
        fault: start_asking([["model", f"faults/{fault}"], ["data", f"faults/{fault}-everywhere"]], hub.url, home)
        for fault in FAULTS
    }
    return {fault: done(process) for fault, process in processes.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_worth_repeating_is_repeated_within_a_bound(faulty, fault):
    out, err = faulty[fault]
    assert not err
    for found in map(json.loads, out.splitlines()):
        if FAULTS[fault] is None:
            assert found["told"] is None and {"model.safetensors", "train.jsonl"} & set(found["files"])
        else:
            assert re.search(FAULTS[fault], found["told"]), found["told"]
            assert re.search(r"--set (policy=FOLDER|dataset=PATH)", found["told"]) and "\n" not in found["told"]
        assert found["seconds"] < 45


# Without the hub

KEPT = [
    ["model", "gpt2"],
    ["model", "lvwerra/gpt2-imdb"],
    ["model", "lvwerra/gpt2-imdb@refs/pr/1"],
    ["model", "lvwerra/distilbert-imdb"],
    ["model", "sharded/gpt2"],
    ["model", "nested/gpt2:small"],
    ["model", "several/gpt2@v2"],
    ["model", "adapters/gpt2"],
    ["data", "stanfordnlp/SHP", None, "explainlikeimfive"],
    ["data", "stanfordnlp/imdb"],
    ["data", "several/pairs", "v1"],
]
LACKING = [["model", "several/gpt2"], ["data", "several/pairs"], ["data", "several/pairs", "v9"], ["model", "me/typo"]]


@pytest.fixture(scope="module")
def kept(hub, tmp_path_factory) -> tuple[Path, list[dict]]:
    home = tmp_path_factory.mktemp("kept")
    found, err = ask(KEPT, hub.url, home)
    assert not err and not any(one["told"] for one in found), found
    return home, found


def test_only_what_a_model_needs_is_fetched(kept):
    files = {name[1]: set(one["files"]) for name, one in zip(KEPT, kept[1], strict=True)}
    assert files["gpt2"] == {
        "config.json", "generation_config.json", "tokenizer_config.json", "vocab.json", "merges.txt",
        "model.safetensors",
    }  # fmt: skip
    assert "pytorch_model.bin" in files["lvwerra/gpt2-imdb"] and "training_args.bin" not in files["lvwerra/gpt2-imdb"]
    pinned = files["lvwerra/gpt2-imdb@refs/pr/1"]
    assert "model.safetensors" in pinned and "pytorch_model.bin" not in pinned
    assert len([name for name in files["sharded/gpt2"] if name.endswith(".safetensors")]) == 2
    assert all(name.startswith(("train", "validation", "test")) for name in files["stanfordnlp/SHP"])


@pytest.mark.parametrize("way", ["offline", "refused", "no such host"])
def test_what_was_fetched_is_found_again_without_the_hub(kept, way):
    endpoint = "http://no-such-host.invalid" if way == "no such host" else closed_port()
    found, err = ask([*KEPT, *LACKING], endpoint, kept[0], HF_HUB_OFFLINE=str(int(way == "offline")))
    for before, now in zip(kept[1], found, strict=False):
        assert now["told"] is None and now["folder"] == before["folder"] and now["files"] == before["files"]
    for now in found[len(KEPT) :]:
        # A pinned revision is that one or none.
        assert re.search(r"could not be reached \(.*, and it is not in the cache; ", now["told"]), now["told"]
    assert sum(now["seconds"] for now in found) < 20
    assert len(err.splitlines()) == (way != "offline")


def test_an_error_of_the_hub_leaves_the_cache(hub, kept):
    gpt2, pairs = hub.repositories["model", "gpt2"], hub.repositories["dataset", "several/pairs"]
    gpt2.fault = pairs.fault = "always 500"
    try:
        found, err = ask([["model", "gpt2"], ["data", "several/pairs", "v1"]], hub.url, kept[0])
    finally:
        gpt2.fault = pairs.fault = None
    assert not any(one["told"] for one in found) and err.count("error of its own (500)") == 1


def test_what_other_programs_put_into_the_cache_is_found(hub, tmp_path):
    """`hf download`, or transformers itself, on a machine with network, for one without."""
    code = (
        "from huggingface_hub import snapshot_download\n"
        "snapshot_download('gpt2'); snapshot_download('several/pairs', repo_type='dataset', revision='v1')\n"
        "snapshot_download('sharded/gpt2', ignore_patterns=['*2-of-00002.safetensors'])"
    )
    done(start(code, hub.url, tmp_path))
    asked = [["model", "gpt2"], ["data", "several/pairs", "v1"], ["data", "several/pairs"], ["model", "sharded/gpt2"]]
    found, _ = ask(asked, hub.url, tmp_path, HF_HUB_OFFLINE="1")
    assert [one["told"] is None for one in found] == [True, True, False, False], found


@pytest.mark.slow
def test_a_hub_that_never_answers_is_waited_for_half_a_minute(hub, kept, tmp_path):
    with silent_server() as silent:
        processes = [
            start_asking([["model", "gpt2"], ["data", "several/pairs", "v1"]], silent, kept[0]),
            start_asking([["look up", "gpt2"], ["look up data", "several/pairs"]], silent, tmp_path),
            start_asking([["model", "faults/hangs"]], hub.url, tmp_path),
            start_asking([["data", "faults/hangs-everywhere"]], hub.url, tmp_path),
        ]
        said = [done(process) for process in processes]
    answers = [[json.loads(line) for line in out.splitlines()] for out, _ in said]
    assert not any(found["told"] for found in answers[0]) and "is read from the cache" in said[0][1]
    for found in sum(answers[1:], []):
        assert re.search("accepts connections but has not answered for 30 s, and it is not in the cache", found["told"])
    assert all(sum(found["seconds"] for found in process) < 45 for process in answers)


# What is read of them

LOADED = """
import json, torch
from rlhf_utils.models.loading import load_config, load_policy, load_reward_model, load_tokenizer
from rlhf_utils.data.sources import load_rows
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.settings.sections import DataSettings
from rlhf_utils.platforms.hub import recording

def said(name):
    with torch.no_grad():
        return load_policy(name, device)(torch.tensor([[7, 8, 9]])).logits

def rows(name, **settings):
    return load_rows(name, DataSettings(**settings), 0)

def alike(one, other):
    return bool(torch.allclose(said(one), said(other), atol=1e-5))

device, commits = detect_device(), {}
with recording(commits):
    print(json.dumps({
        "same": [alike("gpt2", name) for name in ("https://huggingface.co/gpt2", "hf://gpt2@main", "sharded/gpt2",
                                                  "nested/gpt2:small")],
        "other": [alike("gpt2", name) for name in ("several/gpt2@v2", "adapters/gpt2")],
        "adapters": [alike("adapters/gpt2", "adapters/pinned"), alike("several/gpt2", "gpt2")],
        "tokens": [len(load_tokenizer(name)) for name in ("gpt2", "lvwerra/gpt2-imdb", "adapters/gpt2")],
        "layers": load_config("gpt2-medium").n_layer,
        "rows": {name: len(rows(name).train) for name in ("several/pairs", "several/pairs@v1")},
        "pinned": len(rows("several/pairs", revision="v1").train),
        "imdb": [sorted(rows("stanfordnlp/imdb").train[0]), len(rows("stanfordnlp/imdb").test)],
        "pairs": [sorted(rows("Dahoas/synthetic-instruct-gptj-pairwise").train[0]),
                  rows("Dahoas/synthetic-instruct-gptj-pairwise").test],
        "votes": rows("stanfordnlp/SHP", data_dir="explainlikeimfive").train[0]["domain"],
        "fingerprint": rows("several/pairs@v1").fingerprint,
    }))
print(json.dumps(commits))
"""


@pytest.mark.slow
def test_models_and_data_are_what_their_names_say_and_their_commits_are_known(hub, tmp_path):
    out, err = done(start(LOADED, hub.url, tmp_path))
    found, commits = map(json.loads, out.splitlines())
    assert all(found["same"]) and not any(found["other"])
    # A base is read at the revision that its adapter names.
    assert found["adapters"] == [False, True]
    assert len(set(found["tokens"])) == 1 and found["layers"] == 2
    assert found["rows"] == {"several/pairs": 700, "several/pairs@v1": 300} and found["pinned"] == 300
    assert found["imdb"] == [["label", "text"], 90]
    assert found["pairs"] == [["chosen", "prompt", "rejected"], None]
    assert found["votes"] == "explainlikeimfive_train"
    models, data = (hub.repositories["model", "several/gpt2"], hub.repositories["dataset", "several/pairs"])
    assert commits["several/gpt2@v2"] == models.revisions["v2"]
    assert commits["dataset several/pairs@v1"] == data.revisions["v1"] != commits["dataset several/pairs"]
    assert found["fingerprint"] == f"several/pairs@{data.revisions['v1']}"


# Commands

WRONG = {
    "policy=me/typo": "policy: me/typo does not exist on the hub",
    "models.reward_model=me/typo": "models.reward_model: me/typo does not exist",
    "dataset=me/typo": "dataset me/typo does not exist",
    "data.revision=v9": "has no revision 'v9'",
    "policy=./nowhere": "policy: there is no folder ./nowhere; ",
    "policy=https://huggingface.co/datasets/a/b": "the address of a dataset",
}


@pytest.mark.parametrize("command", [["run"], ["train", "sft"]], ids=" ".join)
def test_wrong_names_are_told_before_anything_is_fetched_or_trained(hub, tmp_path, command):
    hub.asked.clear()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wrong = {s: words for s, words in WRONG.items() if command == ["run"] or "reward_model" not in s}
    processes = {
        setting: subprocess.Popen(
            [sys.executable, "-m", "rlhf_utils", *command, "--scale", "t4", "--set", setting],
            cwd=tmp_path,
            env=environment(hub.url, tmp_path / "home"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for setting in wrong
    }
    for setting, process in processes.items():
        out, err = process.communicate(timeout=60)
        assert process.returncode == 2 and not out and err.count("\n") == 1, (setting, err)
        assert err.startswith("error: ") and wrong[setting] in err, err
    # In seconds of a processor, for the machine may be busy.
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 5 * len(wrong)
    assert not (tmp_path / "outputs").exists()
    assert not [path for path in hub.asked if path.startswith("GET") and re.search("safetensors|parquet|vocab", path)]


@pytest.mark.slow
def test_what_a_model_is_for_is_told_from_its_configuration(hub, tmp_path):
    hub.asked.clear()
    settings = ["models.sft=gpt2", "models.ppo=gpt2", "models.reward_model=gpt2"]
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_utils", "run", "--scale", "t4", *(p for s in settings for p in ("--set", s))],
        cwd=tmp_path,
        env=environment(hub.url, tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "models.reward_model gpt2 " in done.stderr and "head" in done.stderr, done.stderr
    assert not [path for path in hub.asked if re.search("GET .*safetensors", path)]


@pytest.mark.slow
def test_opening_a_notebook_looks_at_the_names_of_all_stages(hub, tmp_path):
    code = (
        "from rlhf_utils.report.notebook import start\n"
        "start('instruct', 't4', 'out', {'models.reward_model': 'me/typo'}, True, '01_data_and_baseline')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(hub.url, tmp_path), capture_output=True, text=True
    )
    assert "InputError: models.reward_model: me/typo does not exist on the hub" in process.stderr


@pytest.mark.slow
def test_the_hub_for_people_starts_with_one_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "hub"), "0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    try:
        first = process.stdout.readline()
        endpoint = re.match(r"export HF_ENDPOINT=(http://127\.0\.0\.1:\d+) HF_HOME=", first)[1]
        ((found,), _) = ask([["look up", "gpt2"]], endpoint, tmp_path)
        assert found["told"] is None
    finally:
        process.terminate()
        process.wait(10)
