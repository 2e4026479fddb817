"""Names on the hub, against a hub on the loopback interface: what each cause of failure is told as, and what is found
again without one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub.client import ROOT, ask, done, environment, start, start_asking
from hub.server import OTHER_TOKEN, TOKEN, closed_port, silent_server

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import Wanted, is_hub_name
from rlhf_utils.platforms.names import wanted as asked
from rlhf_utils.settings.recipes import load_recipe, recipe_names


def test_a_subfolder_and_a_revision_stand_behind_the_name_and_what_is_no_id_is_told():
    assert asked("gpt2") == Wanted("gpt2", "model")
    assert asked("a/b:sub/dir-2@refs/pr/1", "dataset", "v1") == Wanted("a/b", "dataset", "refs/pr/1", "sub/dir-2")
    assert not any(map(is_hub_name, ("./here:there", "/tmp/run@home", "embedded", "smollm2")))
    for source in ("https://huggingface.co/a/b", "a/b:../../etc", "a" * 5000):
        with pytest.raises(InputError, match=r"it is no id \(owner/name, .* no address\)"):
            asked(source)


# Causes

GATED, PRIVATE = r"it is gated: accept its license at http\S+", "it does not exist on the hub, or is private"
ANONYMOUS = {
    ("look up", "me/typo"): rf"^me/typo: {PRIVATE}; check the name, or log in .*HF_TOKEN",
    ("look up", "gpt2@v9"): r"gpt2@v9: it has no revision 'v9'; its branches and tags: http\S+/gpt2/tree/main",
    ("look up", "nested/gpt2:tiny"): r"nested/gpt2:tiny: nested/gpt2 has no folder tiny; its folders: small",
    ("look up", "gated/gpt2"): rf"gated/gpt2: {GATED}/gated/gpt2, and log in .*HF_TOKEN",
    ("look up", "only/readme"): "only/readme is no model: it has no config.json",
    ("look up", "only/config"): r"only/config has no weights that can be read .*NAME@REVISION",
    ("look up", "adapters/lost"): f"me/typo: {PRIVATE}",
    ("look up data", "me/typo"): f"^dataset me/typo: {PRIVATE}",
    ("look up data", "stanfordnlp/SHP", None, "explain"): r"no folder explain; its folders: .*explainlikeimfive",
    ("look up data", "several/empty"): "dataset several/empty has no data files",
}
TOKENS = {
    "hf_expired": {"gated/gpt2": "did not serve it .*401", "gpt2": "did not serve it .*401.* HF_TOKEN"},
    OTHER_TOKEN: {"gated/gpt2": GATED, "private/gpt2": PRIVATE, "gpt2": None},
    TOKEN: {"gated/gpt2": None, "private/gpt2": None, "gpt2": None},
}
REFUSED = r"http\S+ did not serve it \(.*403 Forbidden.*, and it is not in the cache; check the network.*--set policy"


def told(process: subprocess.Popen) -> list[dict]:
    return [json.loads(line) for line in done(process)[0].splitlines()]


def test_every_cause_has_a_line_of_its_own_before_anything_large_is_fetched(hub, tmp_path):
    """Each process with a cache of its own: what one may read is there for all."""
    hub.asked.clear()
    asking = {"": start_asking(list(ANONYMOUS), hub.url, tmp_path / "anonymous")}
    for token, names in TOKENS.items():
        wanted = [["look up", name] for name in names]
        asking[token] = start_asking(wanted, hub.url, tmp_path / token, HF_TOKEN=token)
    asking["no home"] = start_asking([["look up", "gpt2"]], hub.url, Path("/dev/null"))
    for token, process in asking.items():
        expected = ANONYMOUS if not token else TOKENS.get(token, {"gpt2": "cannot use /dev/null/.*HF_HOME"})
        for words, about in zip(expected.values(), told(process), strict=True):
            assert about["told"] is None if words is None else re.search(words, about["told"] or ""), about
            assert "\n" not in str(about["told"]) and about["seconds"] < 10, about
    assert not [path for path in hub.asked if re.search(r"GET .*(/model\.safetensors|bin|jsonl)$", path)]


def test_a_download_that_a_proxy_refuses_is_told(hub, tmp_path):
    [refused] = told(start_asking([["model", "behind/proxy"]], hub.url, tmp_path))
    assert re.search(REFUSED, refused["told"])


# Without the hub

KEPT = [
    ["model", "gpt2"],
    ["model", "lvwerra/gpt2-imdb"],
    ["model", "lvwerra/gpt2-imdb@refs/pr/1"],
    ["model", "sharded/gpt2"],
    ["model", "nested/gpt2:small"],
    ["model", "adapters/gpt2"],
    ["data", "stanfordnlp/SHP", None, "explainlikeimfive"],
    ["data", "stanfordnlp/imdb"],
    ["data", "several/pairs", "v1"],
]
# A pinned revision is that one or none.
LACKING = [["model", "several/gpt2"], ["data", "several/pairs"], ["data", "several/pairs", "v9"]]


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
    assert {name.partition("/")[0] for name in files["stanfordnlp/SHP"]} == {"README.md", "explainlikeimfive"}


@pytest.mark.parametrize("way", ["offline", "refused", "error 500"])
def test_what_was_fetched_is_found_again_without_the_hub(hub, kept, way):
    endpoint, lacking = (hub.url, []) if way == "error 500" else (closed_port(), LACKING)
    hub.is_down = way == "error 500"
    try:
        found, err = ask([*KEPT, *lacking], endpoint, kept[0], HF_HUB_OFFLINE=str(int(way == "offline")))
    finally:
        hub.is_down = False
    for before, now in zip(kept[1], found, strict=False):
        assert now["told"] is None and now["folder"] == before["folder"] and now["files"] == before["files"]
    for now in found[len(KEPT) :]:
        assert re.search(r"could not be reached \(.*, and it is not in the cache; ", now["told"]), now["told"]
    assert sum(now["seconds"] for now in found) < 20
    assert err.count("is read from the cache") == len(err.splitlines()) == (way != "offline") * len(KEPT)


def test_what_other_programs_put_into_the_cache_is_found_where_it_is_whole(hub, kept, tmp_path):
    """On a machine with network, for one without; and what was cut off in the middle of a download."""
    whole = ("gpt2", "config.json", "tokenizer_config.json", "vocab.json", "merges.txt", "model.safetensors")
    cut_off = ("sharded/gpt2", "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    code = (
        "from huggingface_hub import hf_hub_download\n"
        f"for name, *files in {(whole, cut_off)}:\n    for file in files: hf_hub_download(name, file)"
    )
    done(start(code, hub.url, tmp_path))
    [rows] = (kept[0] / "hub" / "datasets--stanfordnlp--SHP").glob("snapshots/*/explainlikeimfive/train.json")
    rows.rename(rows.with_suffix(".away"))
    wanted = [["model", "gpt2"], ["model", "sharded/gpt2"]]
    found = told(start_asking(wanted, hub.url, tmp_path, HF_HUB_OFFLINE="1"))
    found += told(start_asking([KEPT[6]], hub.url, kept[0], HF_HUB_OFFLINE="1"))
    rows.with_suffix(".away").rename(rows)
    assert [one["told"] is None for one in found] == [True, False, False], found


def test_a_hub_that_never_answers_is_waited_for_once(kept, tmp_path):
    wanted = [["look up", "gpt2"], ["data", "several/pairs", "v1"]]
    with silent_server() as silent:
        processes = [start_asking(wanted, silent, home, HF_HUB_ETAG_TIMEOUT="2") for home in (kept[0], tmp_path)]
        found = [told(process) for process in processes]
    assert not any(about["told"] for about in found[0])
    assert all(re.search("could not be reached .*, and it is not in the cache", about["told"]) for about in found[1])
    assert all(about["seconds"] < 6 for process in found for about in process)


# What is read of them

LOADED = """
import json, torch
from rlhf_utils.models.loading import load_policy
from rlhf_utils.data.sources import load_rows
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.settings.sections import DataSettings
from rlhf_utils.platforms.names import commits

def said(name):
    with torch.no_grad():
        return load_policy(name, device)(torch.tensor([[7, 8, 9]])).logits

def rows(name, **settings):
    return load_rows(name, DataSettings(**settings), 0)

def alike(one, other):
    return bool(torch.allclose(said(one), said(other), atol=1e-5))

device = detect_device()
print(json.dumps({
    "same": [alike("gpt2", name) for name in ("sharded/gpt2", "nested/gpt2:small")],
    "other": [alike("gpt2", name) for name in ("several/gpt2@v2", "adapters/gpt2")],
    "rows": [len(rows("several/pairs").train), len(rows("several/pairs@v1").train)],
    "imdb": [sorted(rows("stanfordnlp/imdb").train[0]), len(rows("stanfordnlp/imdb").test)],
}))
print(json.dumps(commits))
"""


@pytest.mark.slow
def test_models_and_data_are_what_their_names_say_and_their_commits_are_known(hub, tmp_path):
    out, _ = done(start(LOADED, hub.url, tmp_path))
    found, commits = map(json.loads, out.splitlines())
    assert all(found["same"]) and not any(found["other"])
    assert found["rows"] == [700, 300]
    assert found["imdb"] == [["label", "text"], 90]
    models, data = (hub.repositories["model", "several/gpt2"], hub.repositories["dataset", "several/pairs"])
    assert commits["several/gpt2@v2"] == models.revisions["v2"]
    assert commits["dataset several/pairs@v1"] == data.revisions["v1"] != commits["dataset several/pairs"]


RECIPES = """
import json, sys
from made import make
from rlhf_utils.runs.stages import check_named_models, check_names
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import load_recipe, recipe_names
for name in recipe_names():
    run = Run(load_recipe(name, "t4", {"data.max_rows": 420}), "out")
    run.make_folders()
    check_named_models(run, check_names(run, run.stages))
    made = make(run, "base", "data", *(["reward_model"] if run.ready_model("reward_model") else []))
    print(json.dumps([name, {stage: about["hub"] for stage, about in made.record()["stages"].items() if about["hub"]}]))
"""


@pytest.mark.slow
def test_every_recipe_reads_its_models_and_data_and_records_the_commits(hub, tmp_path):
    """At scale t4; in one process, for most of it is imports."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = start(RECIPES, hub.url, tmp_path / "home", cwd=tmp_path, PYTHONPATH=path)
    found = dict(map(json.loads, filter(lambda line: line[0] == "[", done(process)[0].splitlines())))
    assert sorted(found) == recipe_names()
    for name, commits in found.items():
        recipe = load_recipe(name, "t4")
        data = asked(recipe.dataset, "dataset", recipe.data.revision, recipe.data.data_dir)
        wanted = {"base": asked(recipe.policy), "data": data}
        if reward_model := recipe.models.reward_model:
            wanted["reward_model"] = asked(reward_model)
        assert commits == {
            stage: {str(one): hub.repositories[one.kind, one.name].revisions[one.revision or "main"]}
            for stage, one in wanted.items()
        }


# Commands

COMMANDS = {
    ("run", "dataset=me/typo"): "error: dataset me/typo: it does not exist",
    ("run", "models.sft=me/typo"): "error: models.sft: me/typo: it does not exist",
    ("run", "models.judge=me/typo"): "error: models.judge: me/typo: it does not exist",
    ("train", "01_02", "policy=me/typo"): "error: policy: me/typo: it does not exist on the hub",
}


def test_wrong_names_are_told_before_anything_large_is_fetched_or_trained(hub, tmp_path):
    hub.asked.clear()
    for command, words in COMMANDS.items():
        process = subprocess.run(
            [sys.executable, "-m", "rlhf_utils", *command[:-1], "--scale", "t4", "--set", command[-1]], cwd=tmp_path,
            env=environment(hub.url, tmp_path / "home"), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert process.returncode == 2 and not process.stdout and process.stderr.count("\n") == 1, process.stderr
        assert process.stderr.startswith(words), process.stderr
    assert not (tmp_path / "outputs").exists()
    assert not [path for path in hub.asked if re.search("GET .*(safetensors|parquet)", path)]
