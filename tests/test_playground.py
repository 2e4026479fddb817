"""The playground: every model side by side, votes that are preference rows, and a chat page on this machine only."""

from functools import partial

import pytest
import torch
from made import opened
from tiny import one_thread, save_tiny  # noqa: F401

from rlhf_utils.data.sources import load_rows
from rlhf_utils.evaluation.playground import Playground, serve
from rlhf_utils.models.loading import copy_model, load_reward_model, load_tokenizer
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_jsonl, write_json
from rlhf_utils.runs.run import Run

HOSTILE = '<script>alert(1)</script> & "quoted" </textarea>'
NAMES = ["base", "SFT", "SFT (QLoRA)", "PPO"]


def finished(folder, recipe: str, stages: tuple[str, ...]) -> Run:
    """A run in which these stages are complete, with random weights; those of PPO are others."""
    run = opened(recipe, "tiny", folder / "out", {"generation.max_new_tokens": 8})
    policies = {name: save_tiny(folder / f"policy-{name}", eos_nats=2.0, seed=name == "ppo") for name in stages}
    for name in (name for name in run.stages if name in stages):
        with run.training(name):
            if name == "reward_model":
                torch.manual_seed(0)
                tokenizer = load_tokenizer(policies["base"])
                run.publish(name, load_reward_model(policies["base"], fresh_head=True), tokenizer)
                write_json(run.evaluation / "reward_model.json", {})
            else:
                run.publish(name, fill=partial(copy_model, policies[name]) if name != "data" else None)
    return run


@pytest.fixture(scope="module")
def playground(tmp_path_factory) -> Playground:
    stages = ("base", "data", "sft", "sft_qlora", "reward_model", "ppo")
    found = Playground(finished(tmp_path_factory.mktemp("playground"), "instruct", stages))
    found.examples = lambda most=6: ["How do I store a bike?", HOSTILE]
    return found


def test_every_model_responds_and_is_scored(playground):
    rows = playground.ask("How do I store a bike?")
    assert [row["model"] for row in rows] == NAMES
    for row in rows:
        assert isinstance(row["response"], str) and 1 <= row["tokens"] <= 8
        assert isinstance(row["reward"], float) and 0 <= row["gold"] <= 10
    # The same weights and the same random numbers.
    assert len({row["response"] for row in rows[:3]}) == 1 and rows[3]["response"] != rows[0]["response"]
    assert playground.ask("How do I store a bike?") == rows
    assert playground.ask("How do I store a bike?", seed=1, temperature=2.0) != rows
    last = list(playground.models)[-1]
    assert playground.ask("How do I store a bike?", models=[last]) == rows[-1:]


def test_earlier_turns_are_part_of_what_a_model_reads(playground, monkeypatch):
    seen = []
    monkeypatch.setattr(playground, "judge", lambda prompts, responses: seen.append(prompts[0]) or [0.0])
    playground.ask("And then?", turns=[("Hi", "Hello")])
    assert seen[0] == seen[-1] == "Hi\n\nAssistant: Hello\n\nHuman: And then?"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "x" * 300}, "more than the .* that base reads"),
        ({"prompt": "x", "temperature": 0}, "temperature: .*greater than 0"),
    ],
)
def test_what_cannot_be_asked(playground, asked, words):
    with pytest.raises(InputError, match=words):
        playground.ask(**asked)


def test_votes_are_preference_rows_of_one_prompt_that_a_run_can_learn_from(playground):
    path = playground.run.evaluation / "votes.jsonl"
    path.unlink(missing_ok=True)
    assert playground.vote("Why?", "b", ["a", "b", "b ", "c"]) == 2 and playground.vote("Why?", "a", ["a", "a"]) == 0
    assert playground.vote("Why?", "c", [HOSTILE, "c"], [("Hi", "x")]) == 1
    rows = read_jsonl(path)
    assert rows[:2] == [{"prompt": "Why?", "chosen": "b", "rejected": rejected} for rejected in "ac"]
    assert rows[2]["prompt"] == "Hi\n\nAssistant: x\n\nHuman: Why?" and rows[2]["rejected"] == HOSTILE
    recipe = playground.run.recipe
    assert len(load_rows(str(path), recipe.data, recipe.seed).test or load_rows(str(path), recipe.data, 0).train) >= 1


# The page


@pytest.fixture(scope="module")
def served(playground):
    pytest.importorskip("gradio")
    page, url = serve(playground)
    yield page, url
    page.close(verbose=False)


def texts(chat: list[dict]) -> list[str]:
    """What was said, which version 6 of gradio wraps once more than version 5."""
    return [m["content"] if isinstance(m["content"], str) else m["content"][0]["text"] for m in chat]


@pytest.fixture
def client(served):
    from gradio_client import Client

    return Client(served[1], verbose=False)


def test_the_page_asks_every_model_remembers_and_takes_votes(playground, client):
    path = playground.run.evaluation / "votes.jsonl"
    path.unlink(missing_ok=True)
    rows = playground.ask("<b>Hi</b>", temperature=0.7)
    said = client.predict("<b>Hi</b>", 0.7, api_name="/ask")
    assert list(said[:4]) == [row["response"] for row in rows]
    assert said[4].startswith(f"base: reward {rows[0]['reward']:.2f}, gold ") and " | SFT: reward" in said[4]
    chat, *others, told = client.predict(*said[:4], api_name="/vote_ppo")
    assert texts(chat) == ["<b>Hi</b>", rows[3]["response"]] and not any(others) and "1 preference rows" in told
    (row,) = read_jsonl(path)
    assert row == {"prompt": "<b>Hi</b>", "chosen": rows[3]["response"], "rejected": rows[0]["response"]}
    again = playground.ask("And?", [("<b>Hi</b>", rows[3]["response"])], temperature=0.7)
    assert client.predict("And?", 0.7, api_name="/ask")[0] == again[0]["response"]
    assert client.predict(api_name="/new") == []


def test_bad_input_is_one_line_on_the_page(client):
    with pytest.raises(Exception, match="the prompt is empty"):
        client.predict("  ", 0.7, api_name="/ask")
    with pytest.raises(Exception, match="nothing to compare"):
        client.predict("", "", "", "", api_name="/vote_ppo")


def test_it_listens_on_this_machine_only_and_says_when_a_port_is_taken(playground, served):
    page, url = served
    assert url.startswith("http://127.0.0.1:") and page.server_name == "127.0.0.1"
    for port in (page.server_port, 700_000):
        with pytest.raises(InputError, match="cannot be used"):
            serve(playground, port)
