"""The command line as its users meet it: results on stdout, and for bad input status 2 with one line on stderr."""

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made import opened
from tiny import save_tiny

from rlhf_utils.__main__ import main
from rlhf_utils.models.loading import load_reward_model, load_tokenizer
from rlhf_utils.platforms.files import read_json
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stages import ROOT


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Call the command line in an empty folder; returns status, stdout and the lines of stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: object, stdin: bytes | None = None) -> SimpleNamespace:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err.splitlines())

    return call


def refused(done: SimpleNamespace, *words: str) -> None:
    """Exit 2, one line that says why, nothing on stdout, nothing left in the working folder."""
    assert done.status == 2 and done.out == ""
    assert len(done.err) == 1 and done.err[0].startswith("error: "), done.err
    missing = [word for word in words if word not in done.err[0]]
    assert not missing, f"{missing} not in {done.err[0]}"
    assert list(Path.cwd().iterdir()) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Run:
    """A run whose reward model is complete, with random weights."""
    folder = tmp_path_factory.mktemp("cli")
    policy = save_tiny(folder / "policy")
    run = opened("instruct", "tiny", folder / "out")
    for name in ("base", "data", "sft", "reward_model"):
        with run.training(name):
            torch.manual_seed(0)
            model = load_reward_model(policy, fresh_head=True) if name == "reward_model" else None
            run.publish(name, model, load_tokenizer(policy))
    return run


@pytest.mark.parametrize("arguments", [[], ["nope"], ["run", "--nope"], ["rank"]])
def test_a_command_line_that_makes_no_sense(cli, arguments):
    refused(cli(*arguments), "see `python -m rlhf_utils")


def test_recipes_are_listed_with_their_scales(cli):
    done = cli("recipes")
    assert done.status == 0 and not done.err
    assert "instruct: " in done.out
    assert all(f"--scale {scale}" in done.out for scale in ("tiny", "small", "t4", "full"))
    assert "policy embedded, data embedded" in done.out and "Dahoas/synthetic-instruct-gptj-pairwise" in done.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--recipe", "instrct"], ["unknown recipe 'instrct'", "there are: eli5"]),
        (["--scale", "tinny"], ["unknown scale 'tinny'", "there are: tiny"]),
        (["--set", "ppo.updats=3"], ["ppo: unknown key 'updats' (did you mean 'updates'?)"]),
        (["--set", "ppo.updates"], ["is not key=value"]),
        (["--set", "ppo.report_to=[trackio]"], ["ppo.report_to names trackio, which is not installed"]),
        (["--only", "7"], ["--only '7'", "01_01_data_and_baseline"]),
        (["--only", "03"], ["checkpoints/sft is missing", "make sft first"]),
        (["--only", "02_03"], ["--only 02_03 has nothing to make in recipe instruct", "there are: 01_01, 01_02"]),
        (["--seeds", "0"], ["--seeds 0: give the number of seeds, 1 or more"]),
        (["--seeds", "x"], ["argument --seeds: invalid int value: 'x'"]),
        (["--seeds", "2", "--only", "01"], ["--seeds compares whole runs; leave out --only"]),
        (["--seeds", "2", "--set", "seed=2147483647"], ["seed is 2147483648: Input should be less than"]),
        (["--output-dir", ""], ["output_dir is empty"]),
        (["--output-dir", "/dev/null"], ["cannot write /dev/null"]),
        (["--output-dir", "x" * 300], ["too long"]),
    ],
)
def test_bad_settings_of_a_run(cli, arguments, words):
    refused(cli("run", *arguments), *words)


def test_a_published_run_is_shown_by_its_name_and_any_other_by_its_folder(cli, tmp_path):
    published, done = ROOT / "docs" / "example_run" / "instruct-tiny", cli("show", "instruct-tiny")
    found = read_json(published / "evaluation" / "summary.json")["models"]["ppo"]["gold"]
    assert done.status == 0 and f"{found:.2f}" in done.out and "Seeds 0, 1, 2" in done.out
    assert f"file://{published}/report.html" in done.out
    shutil.copytree(published, tmp_path / "mine")
    (tmp_path / "mine/evaluation/seeds.json").unlink()
    mine = cli("show", tmp_path / "mine")
    assert mine.status == 0 and "Seeds" not in mine.out and f"{tmp_path}/mine/report.html" in mine.out
    refused(cli("show", "imdb-tinny"), "imdb-tinny is no run", "published: ", "instruct-tiny")


def test_rouge(cli, tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"predictions": ["the cat", "no"], "references": ["the cat sat", "no"]}))
    done = cli("rouge", path)
    assert done.status == 0 and not done.err
    assert json.loads(done.out) == pytest.approx({"rouge1": 0.9, "rouge2": 1 / 3, "rougeL": 0.9})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert cli("rouge", path).out == done.out, "with a byte order mark"
    path.write_text('{"predictions": ["\\ud800 a"], "references": ["a"]}')
    assert json.loads(cli("rouge", path).out)["rouge1"] == 1, "half a surrogate pair is no word"


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["cannot read", "No such file"]),
        (b"", [":1: broken JSON"]),
        (b'{"predictions": [],\n "references": }', [":2: broken JSON"]),
        (b"[" * 200_000, [":1: broken JSON (RecursionError)"]),
        (b'{"predictions": [' + b"9" * 5_000 + b"]}", [":1: broken JSON"]),
        (b'{"predictions": ["a"]}', ["the lists predictions and references"]),
        (b'{"predictions": ["a"], "references": ["a", "b"]}', ["predictions has 1 texts and references has 2"]),
        (b'{"predictions": [], "references": []}', ["is empty"]),
        (b'{"predictions": [1], "references": ["a"]}', ["predictions[0] is int"]),
        (b"\xff\xfe{", ["not UTF-8"]),
    ],
)
def test_bad_files_for_rouge(cli, tmp_path, content, words):
    path = tmp_path / "texts.json"
    if content is not None:
        path.write_bytes(content)
    refused(cli("rouge", path), *words)
    refused(cli("rouge", tmp_path), "Is a directory")


def test_rank_from_a_file_and_from_standard_input(cli, tmp_path, made):
    path = tmp_path / "answers.txt"
    path.write_text("One answer.\n\n  Another  \r\nthe third é\n", encoding="utf-8")
    done = cli("rank", "--run", made.root, "--prompt", "What is tea?", "--responses", path)
    assert done.status == 0 and not done.err
    result = json.loads(done.out)
    assert result["prompt"] == "What is tea?"
    assert [entry["rank"] for entry in result["ranking"]] == [1, 2, 3]
    assert {entry["response"] for entry in result["ranking"]} == {"One answer.", "Another", "the third é"}
    rewards = [entry["reward"] for entry in result["ranking"]]
    assert rewards == sorted(rewards, reverse=True) and len(set(rewards)) == 3
    again = cli("rank", "--run", made.root, "--prompt", "What is tea?", "--responses", "-", stdin=path.read_bytes())
    assert again.out == done.out
    long = cli("rank", "--run", made.root, "--prompt", "What is tea?", "--responses", "-", stdin=b"x" * 500)
    assert long.status == 0 and "1 of 1 texts are longer than the 96 tokens" in " ".join(long.err)


@pytest.mark.parametrize(
    "prompt, responses, words",
    [
        ("p", None, ["cannot read"]),
        ("p", b"\n \n", ["has no response"]),
        (" ", b"a\n", ["--prompt is empty"]),
    ],
)
def test_bad_input_for_rank(cli, tmp_path, made, prompt, responses, words):
    path = tmp_path / "answers.txt"
    if responses is not None:
        path.write_bytes(responses)
        refused(cli("rank", "--run", made.root, "--prompt", prompt, "--responses", "-", stdin=responses), *words)
    refused(cli("rank", "--run", made.root, "--prompt", prompt, "--responses", path), *words)
