"""Names on the hub, against a hub on the loopback interface: what each cause of failure is told as, and what is found
again without one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub.client import ask, done, environment, start, start_asking
from hub.server import OTHER_TOKEN, TOKEN, closed_port, silent_server

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import hub_name, is_hub_name
from rlhf_utils.settings.recipes import load_recipe, parse_assignments

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    "source, kind, name, where",
    [
        ("owner/name", "model", "owner/name", {}),
        ("gpt2@607a30d", "model", "gpt2", {"revision": "607a30d"}),
        ("a/b:sub/dir-2@refs/pr/1", "model", "a/b", {"subfolder": "sub/dir-2", "revision": "refs/pr/1"}),
        ("a/b:part@v1.0", "dataset", "a/b", {"revision": "v1.0", "subfolder": "part"}),
        (f"{HUB}/gpt2/", "model", "gpt2", {}),
        ("https://hf.co/owner/name", "model", "owner/name", {}),
        (f"{HUB}/gpt2/tree/main", "model", "gpt2", {"revision": "main"}),
        (f"{HUB}/a/b/tree/v1/sub/dir", "model", "a/b", {"revision": "v1", "subfolder": "sub/dir"}),
        (f"{HUB}/a/b/tree/refs%2Fpr%2F1", "model", "a/b", {"revision": "refs/pr/1"}),
        (f"{HUB}/a/b/tree/refs/pr/1/sub", "model", "a/b", {"revision": "refs/pr/1", "subfolder": "sub"}),
        (f"{HUB}/datasets/a/b/tree/main/part", "dataset", "a/b", {"revision": "main", "subfolder": "part"}),
        ("hf://a/b@v1/sub", "model", "a/b", {"revision": "v1", "subfolder": "sub"}),
        ("hf://datasets/a/b@v1", "dataset", "a/b", {"revision": "v1"}),
    ],
)
def test_names_and_addresses_say_the_same(source, kind, name, where):
    assert hub_name(source, kind) == (name, where) and is_hub_name(source)


@pytest.mark.parametrize("source, name", [("./here:there", "here:there"), ("/tmp/run@home", "/tmp/run@home")])
def test_a_folder_is_its_path(source, name):
    assert hub_name(source) == (name, {}) and not is_hub_name(source)


@pytest.mark.parametrize(
    "source, kind, words",
    [
        (f"{HUB}/datasets/a/b", "model", "the address of a dataset, and a model is wanted"),
        (f"{HUB}/a/b", "dataset", "the address of a model, and a dataset is wanted"),
        ("hf://spaces/a/b", "model", "the address of a space"),
        (f"{HUB}/a/b/blob/main/model.safetensors", "model", "one file; give its repository: a/b"),
        ("https://example.com/a/b", "model", "not the address of a repository on the Hugging Face hub"),
        ("s3://bucket/a", "dataset", "not the address of a repository on the Hugging Face hub"),
        ("a/b:../../etc", "model", "leave out the dots"),
    ],
)
def test_addresses_of_something_else_are_explained(source, kind, words):
    with pytest.raises(InputError, match=re.escape(words)):
        hub_name(source, kind)


@pytest.mark.parametrize("value", ["null", "", None])
def test_nothing_unsets_a_name_except_what_every_run_has(value):
    assert load_recipe("imdb", "t4").models.reward_model
    for given in ({"models": {"reward_model": value}}, {"models.reward_model": value}):
        assert load_recipe("imdb", "t4", given).models.reward_model is None
    for key in ("data_dir", "revision"):
        assert getattr(load_recipe("eli5", "t4", {f"data.{key}": value}).data, key) is None
    for name in ("dataset", "policy"):
        with pytest.raises(InputError, match=name):
            load_recipe("instruct", "t4", parse_assignments([f"{name}={value or ''}"]))


# Causes

ANONYMOUS = {
    ("look up", "me/typo"): r"me/typo: it does not exist on the hub, or is private; check the name.*HF_TOKEN",
    ("look up", "private/gpt2"): r"private/gpt2: it does not exist on the hub, or is private; .*log in.*HF_TOKEN",
    ("look up", "gpt2@v9"): r"gpt2@v9: gpt2 has no revision 'v9'; its branches and tags: http\S+/gpt2/tree/main",
    ("look up", "nested/gpt2:tiny"): r"nested/gpt2:tiny: nested/gpt2 has no folder tiny; it has the folders small",
    (
        "look up",
        "gated/gpt2",
    ): r"gated/gpt2: it is gated: accept its licence at http\S+/gated/gpt2, then log in .*HF_TOKEN",
    ("look up", "only/readme"): "only/readme is no model: it has no config.json",
    ("look up", "only/config"): r"only/config has no weights that can be read .*tf_model.h5.*NAME@REVISION",
    ("look up", "adapters/lost"): r"me/typo: it does not exist on the hub, or is private",
    ("look up", "a/b/c"): r"a/b/c .*it is no id \(owner/name\), and there is no file or folder",
    ("look up", "a--b"): "a--b is no id of the Hugging Face hub",
    ("look up", "a" * 5000): "no id",
    ("look up data", "me/typo"): "dataset me/typo: it does not exist on the hub, or is private; check the name",
    ("look up data", "several/pairs", "v9"): r"several/pairs has no revision 'v9'; .*/datasets/",
    ("look up data", "gated/pairs"): r"it is gated: accept its licence at http\S+/datasets/gated/pairs,",
    ("look up data", "stanfordnlp/SHP", None, "explain"): r"no folder explain; it has the folders .*explainlikeimfive",
    ("look up data", "several/configurations"): r"several configurations \(one, two\); .*data.data_dir",
    ("look up data", "several/empty"): r"dataset several/empty has no data files",
    ("look up data", "several/pairs@v1", "main"): r"says v1, and data.revision main; leave one of them out",
}


def test_every_cause_has_a_line_of_its_own_before_anything_large_is_fetched(hub, tmp_path):
    hub.asked.clear()
    found, err = ask(list(ANONYMOUS), hub.url, tmp_path)
    assert not err
    for words, about in zip(ANONYMOUS.values(), found, strict=True):
        assert re.search(words, about["told"] or "") and "\n" not in about["told"] and about["seconds"] < 10, about
    assert not [path for path in hub.asked if re.search(r"GET .*(/model\.safetensors|bin|jsonl)$", path)]


REFUSED = r"the hub does not accept your token \(expired or revoked\?\); renew it at \S+, or unset HF_TOKEN"
TOKENS = {
    "hf_expired": {"gated/gpt2": REFUSED, "gpt2": REFUSED},
    OTHER_TOKEN: {
        "gated/gpt2": r"gated: accept its licence at \S+, with the account of your token, which has no access",
        "private/gpt2": r"does not exist on the hub, or is private; .*whether your token may read it",
        "gpt2": None,
    },
    TOKEN: {"gated/gpt2": None, "private/gpt2": None, "gpt2": None},
    "hf_ø": {"gpt2": "your token has characters that no token has; copy it again"},
}


def test_what_a_token_is_good_for(hub, tmp_path):
    wanted = {token: [["look up", name] for name in names] for token, names in TOKENS.items()}
    # Each with a cache of its own: what one may read is there for all.
    asking = {token: start_asking(names, hub.url, tmp_path / token, HF_TOKEN=token) for token, names in wanted.items()}
    asking["no home"] = start_asking([["look up", "gpt2"]], hub.url, Path("/dev/null"))
    for token, process in asking.items():
        out, err = done(process)
        expected = TOKENS.get(token, {"gpt2": "cannot read /dev/null/token: .*HF_HOME"})
        for words, about in zip(expected.values(), map(json.loads, out.splitlines()), strict=True):
            assert about["told"] is None if words is None else re.search(words, about["told"]), about
        assert not err


FAULTS = {
    "two-500": None,
    "one-429": None,
    "cut-off-once": None,
    "always-500": r"answers with an error of its own \(500\), also when asked again, and it is not in the cache",
    "always-429": r"limits the number of requests \(429\) and asks to wait for 120 s.*a token \(HF_TOKEN\)",
    "proxy": r"127.0.0.1 refuses \(403\), and not as the hub does, and it is not in the cache; check the proxy",
    "cut-off-for-good": r"broke off .*, and it is not in the cache; try again later",
}


def test_what_is_worth_repeating_is_repeated_within_a_bound(hub, tmp_path):
    """Every fault, of a model's weights and of all of a dataset, in a process each: most of it is waiting."""
    hub.failed.clear()
    wanted = {fault: [["model", f"faults/{fault}"], ["data", f"faults/{fault}"]] for fault in FAULTS}
    asking = {fault: start_asking(names, hub.url, tmp_path) for fault, names in wanted.items()}
    for fault, words in FAULTS.items():
        out, err = done(asking[fault])
        assert not err
        for found in map(json.loads, out.splitlines()):
            assert found["seconds"] < 40
            if words is None:
                assert found["told"] is None and {"model.safetensors", "train.jsonl"} & set(found["files"])
            else:
                assert re.search(words, found["told"]) and "\n" not in found["told"], found
                assert re.search(r"--set (policy=FOLDER|dataset=PATH)", found["told"])


# Without the hub

KEPT = [
    ["model", "gpt2"],
    ["model", "lvwerra/gpt2-imdb"],
    ["model", "lvwerra/gpt2-imdb@refs/pr/1"],
    ["model", "sharded/gpt2"],
    ["model", "nested/gpt2:small"],
    ["model", "several/gpt2@v2"],
    ["model", "adapters/gpt2"],
    ["data", "stanfordnlp/SHP", None, "explainlikeimfive"],
    ["data", "stanfordnlp/imdb"],
    ["data", "several/pairs", "v1"],
]
# A pinned revision is that one or none.
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
    """On a machine with network, for one without."""
    whole = ("gpt2", "config.json", "tokenizer_config.json", "vocab.json", "merges.txt", "model.safetensors")
    cut_off = ("sharded/gpt2", "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    code = (
        "from huggingface_hub import hf_hub_download\n"
        f"for name, *files in {(whole, cut_off)}:\n    for file in files: hf_hub_download(name, file)"
    )
    done(start(code, hub.url, tmp_path))
    found, _ = ask([["model", "gpt2"], ["model", "sharded/gpt2"]], hub.url, tmp_path, HF_HUB_OFFLINE="1")
    assert [one["told"] is None for one in found] == [True, False], found


@pytest.mark.slow
def test_a_hub_that_never_answers_is_waited_for_half_a_minute(hub, kept, tmp_path):
    with silent_server() as silent:
        processes = [
            start_asking([["model", "gpt2"], ["data", "several/pairs", "v1"]], silent, kept[0]),
            start_asking([["look up", "gpt2"], ["look up data", "several/pairs"]], silent, tmp_path),
            start_asking([["model", "faults/hangs"]], hub.url, tmp_path),
        ]
        said = [done(process) for process in processes]
    answers = [[json.loads(line) for line in out.splitlines()] for out, _ in said]
    assert not any(found["told"] for found in answers[0]) and "is read from the cache" in said[0][1]
    for found in sum(answers[1:], []):
        assert re.search("accepts connections but has not answered for 24 s, and it is not in the cache", found["told"])
    assert all(sum(found["seconds"] for found in process) < 35 for process in answers)


# What is read of them

LOADED = """
import json, torch
from rlhf_utils.models.loading import load_config, load_policy, load_tokenizer
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
        "rows": [len(rows("several/pairs").train), len(rows("several/pairs@v1").train)],
        "imdb": [sorted(rows("stanfordnlp/imdb").train[0]), len(rows("stanfordnlp/imdb").test)],
        "votes": rows("stanfordnlp/SHP", data_dir="explainlikeimfive").train[0]["domain"],
        "fingerprint": rows("several/pairs", revision="v1").fingerprint,
    }))
print(json.dumps(commits))
"""


@pytest.mark.slow
def test_models_and_data_are_what_their_names_say_and_their_commits_are_known(hub, tmp_path):
    out, err = done(start(LOADED, hub.url, tmp_path))
    found, commits = map(json.loads, out.splitlines())
    assert all(found["same"]) and not any(found["other"])
    # A base is read at the revision that its adapter names.
    assert found["adapters"] == [False, True] and len(set(found["tokens"])) == 1
    assert found["rows"] == [700, 300]
    assert found["imdb"] == [["label", "text"], 90] and found["votes"] == "explainlikeimfive_train"
    models, data = (hub.repositories["model", "several/gpt2"], hub.repositories["dataset", "several/pairs"])
    assert commits["several/gpt2@v2"] == models.revisions["v2"]
    assert commits["dataset several/pairs@v1"] == data.revisions["v1"] != commits["dataset several/pairs"]
    assert found["fingerprint"] == f"several/pairs@{data.revisions['v1']}"


# Commands

WRONG = {
    "policy=me/typo": "policy: me/typo: it does not exist on the hub",
    "models.reward_model=me/typo": "models.reward_model: me/typo: it does not exist",
    "dataset=me/typo": "dataset me/typo: it does not exist",
    "policy=./nowhere": "policy: there is no folder ./nowhere; ",
    "policy=https://huggingface.co/datasets/a/b": "the address of a dataset",
}


def test_wrong_names_are_told_before_anything_large_is_fetched_or_trained(hub, tmp_path):
    hub.asked.clear()
    commands = {("run", setting): words for setting, words in WRONG.items()}
    commands["train", "01_02", "policy=me/typo"] = WRONG["policy=me/typo"]
    processes = {
        command: subprocess.Popen(
            [sys.executable, "-m", "rlhf_utils", *command[:-1], "--scale", "t4", "--set", command[-1]],
            cwd=tmp_path, env=environment(hub.url, tmp_path / "home"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    }  # fmt: skip
    for command, process in processes.items():
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2 and not out and err.count("\n") == 1, (command, err)
        assert err.startswith("error: ") and commands[command] in err, err
    assert not (tmp_path / "outputs").exists()
    assert not [path for path in hub.asked if re.search("GET .*(safetensors|parquet)", path)]


@pytest.mark.slow
def test_what_a_model_is_for_is_told_from_its_configuration(hub, tmp_path):
    hub.asked.clear()
    settings = ["models.sft=gpt2", "models.ppo=gpt2", "models.reward_model=gpt2"]
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_utils", "run", "--scale", "t4", *(p for s in settings for p in ("--set", s))],
        cwd=tmp_path, env=environment(hub.url, tmp_path / "home"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "models.reward_model gpt2 " in done.stderr and "head" in done.stderr, done.stderr
    assert not [path for path in hub.asked if re.search("GET .*safetensors", path)]


@pytest.mark.slow
def test_opening_a_notebook_looks_at_the_names_of_all_stages(hub, tmp_path):
    code = (
        "from rlhf_utils.series import open_run\n"
        "open_run('01_01', 'instruct', 't4', 'out', {'models.reward_model': 'me/typo'}, True)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(hub.url, tmp_path), capture_output=True, text=True
    )
    assert "InputError: models.reward_model: me/typo: it does not exist on the hub" in process.stderr
