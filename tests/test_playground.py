"""The playground: every model side by side, on this machine only, and nothing said there is ever more than text."""

from __future__ import annotations

import http.client
import json
import re
import threading
from contextlib import contextmanager

import pytest
import torch
from tiny import one_thread, save_tiny  # noqa: F401

from rlhf_utils.__main__ import main
from rlhf_utils.evaluation.playground import Playground
from rlhf_utils.evaluation.playground_page import HOST, PlaygroundServer
from rlhf_utils.models.loading import copy_model, load_reward_model, load_tokenizer, save_model
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_json
from rlhf_utils.runs.run import Run

HOSTILE = '<script>alert(1)</script> & "quoted" </textarea>'


def finished(folder, recipe: str, stages: tuple[str, ...]) -> Run:
    """A run in which these stages are complete, with random weights."""
    policy = save_tiny(folder / "policy", eos_nats=2.0)
    run = Run.open(recipe, "tiny", folder / "out", {"generation.max_new_tokens": 8})
    for name in run.stages:
        if name not in stages:
            continue
        with run.stage(name) as stage, stage.publish() as target:
            if name == "reward_model":
                torch.manual_seed(0)
                save_model(load_reward_model(policy, fresh_head=True), load_tokenizer(policy), target)
                write_json(run.evaluation / "reward_model.json", {})
            elif name != "data":
                copy_model(policy, target)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return finished(
        tmp_path_factory.mktemp("playground"), "instruct", ("base", "data", "sft", "sft_qlora", "reward_model", "ppo")
    )


@pytest.fixture(scope="module")
def playground(run) -> Playground:
    found = Playground(run)
    found.examples = lambda most=6: ["How do I store a bike?", HOSTILE]
    return found


@contextmanager
def served(playground):
    server = PlaygroundServer(playground)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def server(playground):
    with served(playground) as found:
        yield found


def request(server, method: str, path: str, body: bytes | None = None, **headers):
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=60)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    content = reply.read().decode()
    connection.close()
    return reply, content


def ask(server, asked, **headers):
    headers = {"X-Token": server.token, **headers}
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    reply, content = request(server, "POST", "/ask", body, **headers)
    return reply.status, json.loads(content)


# Asking


def test_every_model_answers_and_is_scored(playground):
    rows = playground.ask("How do I store a bike?")
    assert [row["model"] for row in rows] == ["base", "SFT", "SFT (QLoRA)", "PPO"]
    for row in rows:
        assert isinstance(row["response"], str) and 1 <= row["tokens"] <= 8
        assert isinstance(row["reward"], float) and 0 <= row["gold"] <= 10
    # The same weights and the same random numbers.
    assert len({row["response"] for row in rows}) == 1
    assert playground.ask("How do I store a bike?") == rows
    assert playground.ask("How do I store a bike?", seed=1, temperature=2.0) != rows


def test_earlier_turns_are_part_of_what_a_model_reads(playground, monkeypatch):
    seen = []
    monkeypatch.setattr(playground, "judge", lambda prompts, responses: seen.append(prompts[0]) or [0.0])
    playground.ask("And then?", turns={"ppo": [("Hi", "Hello")]})
    assert seen[0] == "And then?" and seen[-1] == "Hi\n\nAssistant: Hello\n\nHuman: And then?"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "x" * 300}, "more than the .* that base reads"),
        ({"prompt": "x", "temperature": 0}, "temperature: .*greater than 0"),
        ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens: "),
        ({"prompt": "x", "seed": -1}, "seed -1 is out of range"),
        ({"prompt": "x", "seed": 2**80}, "out of range"),
    ],
)
def test_what_cannot_be_asked(playground, server, asked, words):
    with pytest.raises(InputError, match=words):
        playground.ask(**asked)
    status, reply = ask(server, asked)
    assert status == 400 and re.search(words, reply["error"]) and "\n" not in reply["error"]


def test_a_run_with_one_policy_only(tmp_path):
    found = Playground(finished(tmp_path, "instruct", ("base",)))
    (row,) = found.ask("What now?")
    assert row["model"] == "base" and row["reward"] is None
    assert found.examples() == []


def test_a_recipe_of_continuations_has_no_turns(tmp_path):
    found = Playground(finished(tmp_path, "imdb", ("base",)))
    assert [row["model"] for row in found.ask("This film")] == ["base"]
    with pytest.raises(InputError, match="no dialogues"):
        found.ask("This film", turns={"base": [("a", "b")]})


def test_a_run_without_any_model(tmp_path, capsys):
    run = Run.open("instruct", "tiny", tmp_path)
    with run.stage("base"):
        pass
    assert main(["playground", "--run", str(run.root)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["playground", "--run", str(tmp_path / "nothing")]) == 2


# The page


def test_the_page_shows_every_model_and_hostile_text_as_text(server):
    reply, page = request(server, "GET", "/", Host=f"localhost:{server.server_port}")
    assert reply.status == 200
    for name in ("base", "SFT", "SFT (QLoRA)", "PPO"):
        assert f"<h2>{name}</h2>" in page
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", reply.headers["Content-Security-Policy"])[1]
    assert re.findall(r"<(?:script|style)[^>]*>", page) == [f'<style nonce="{nonce}">', f'<script nonce="{nonce}">']
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert not re.search(r"(?:src|href)=", page), "everything is on the page"
    # With a step a browser takes only values that are whole steps above `min`, and says nothing when it refuses to ask.
    assert 'id="temperature" type="number" step="any"' in page


def test_the_page_asks_every_model(server):
    status, reply = ask(server, {"prompt": HOSTILE, "max_new_tokens": 3, "temperature": 1, "seed": 2, "turns": {}})
    assert status == 200 and [row["model"] for row in reply["answers"]] == ["base", "SFT", "SFT (QLoRA)", "PPO"]
    assert all(row["tokens"] <= 3 for row in reply["answers"])


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "", "localhost"])
def test_a_page_under_another_name_is_refused(server, host):
    for method, path in (("GET", "/"), ("POST", "/ask")):
        reply, content = request(server, method, path, b"{}", Host=host, **{"X-Token": server.token})
        assert reply.status == 403 and server.token not in content


@pytest.mark.parametrize("token", ["", "wrong", "\xe9"])
def test_a_request_that_does_not_come_from_the_page_is_refused(server, token):
    assert ask(server, {"prompt": "x"}, **{"X-Token": token})[0] == 403


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 60_000, 400, "not JSON"),
        (b"[]", 400, "send an object"),
        (b"{}", 400, "send an object"),
        (b'{"prompt": 1}', 400, "prompt has the wrong type, int"),
        (b'{"prompt": "x", "seed": true}', 400, "seed has the wrong type, bool"),
        (b'{"prompt": "x", "model": "ppo"}', 400, "unknown field 'model'"),
        (b'{"prompt": "x", "turns": {"ppo": [["a"]]}}', 400, "turns of ppo must be a list"),
        (b" " * 300_000, 413, "bytes at most"),
    ],
)
def test_requests_that_make_no_sense(server, body, status, words):
    found, reply = ask(server, body)
    assert found == status and words in reply["error"] and "\n" not in reply["error"]


def test_there_is_only_one_page(server):
    for path in ("/../../etc/passwd", "/run.json", "//evil.example/"):
        assert request(server, "GET", path)[0].status == 404


def test_a_port_that_is_taken(playground, server):
    for port in (server.server_port, 700_000):
        with pytest.raises(InputError, match="cannot be used"):
            PlaygroundServer(playground, port)
