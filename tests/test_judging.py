"""Outside judges: pairs that give nothing away, verdicts read strictly, and an endpoint that misbehaves."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rlhf_utils.evaluation.judging import endpoint as module
from rlhf_utils.evaluation.judging.endpoint import Endpoint, cost, judge_pairs, read_reply
from rlhf_utils.evaluation.judging.pairs import read_key, read_pairs, write_pairs
from rlhf_utils.evaluation.judging.verdicts import add_verdict, agreement, majority, outcome, read_verdicts
from rlhf_utils.platforms.errors import InputError, TrainingError

PROMPTS = [f"Question {i}?" for i in range(60)]
ANSWERS = {"ppo": [f"good {i}" for i in range(60)], "sft": [f"plain {i}" for i in range(60)]}


@pytest.fixture
def folder(tmp_path) -> Path:
    write_pairs(tmp_path, PROMPTS, ANSWERS, ("ppo", "sft"), seed=0)
    return tmp_path


def right(folder: Path, pair, better: str = "ppo") -> str:
    """The verdict that prefers a model's answer."""
    return ("first", "second")[read_key(folder)["order"][pair.id].index(better)]


# Pairs


def test_pairs_are_blind_and_in_random_order(folder):
    pairs, key = read_pairs(folder), read_key(folder)
    text = (folder / "judge_pairs.jsonl").read_text()
    assert len(pairs) == 60 and "ppo" not in text and "sft" not in text
    firsts = [key["order"][pair.id][0] for pair in pairs]
    assert 15 < firsts.count("ppo") < 45
    for pair in pairs:
        i = PROMPTS.index(pair.prompt)
        assert [pair.first, pair.second] == [ANSWERS[model][i] for model in key["order"][pair.id]]
    assert write_pairs(folder, PROMPTS, ANSWERS, ("ppo", "sft"), seed=0) == pairs
    assert write_pairs(folder, PROMPTS, ANSWERS, ("ppo", "sft"), seed=1) != pairs


def test_equal_answers_are_left_out_and_counted(tmp_path):
    answers = {"ppo": ["same", "a"], "sft": ["same ", "b"]}
    assert len(write_pairs(tmp_path, ["p", "q"], answers, ("ppo", "sft"), 0)) == 1
    assert read_key(tmp_path)["equal_answers"] == 1


# Verdicts


def test_wins_are_those_of_the_model_asked_about(folder):
    for i, pair in enumerate(read_pairs(folder)):
        verdict = "tie" if i % 6 == 0 else right(folder, pair, "sft" if i % 6 == 1 else "ppo")
        add_verdict(folder, pair.id, verdict, "Ada")
    found = outcome(folder)["judges"]["people"]
    assert (found["wins"], found["losses"], found["ties"]) == (40, 10, 10) and found["judges"] == ["Ada"]
    assert found["rate"] == pytest.approx(0.75) and found["ci95"][0] > 0.5
    assert "agreement" not in outcome(folder)


def test_a_second_thought_replaces_the_first(folder):
    pair = read_pairs(folder)[0]
    add_verdict(folder, pair.id, "first", "Ada")
    add_verdict(folder, pair.id, "tie", "Ada")
    assert read_verdicts(folder / "human_verdicts.jsonl", folder) == {"Ada": {pair.id: "tie"}}


def test_the_majority_decides_and_its_tie_is_a_tie():
    votes = {"a": {"1": "first", "2": "first"}, "b": {"1": "first", "2": "second"}, "c": {"1": "tie"}}
    assert majority(votes) == {"1": "first", "2": "tie"}


def test_people_and_model_are_compared(folder):
    pairs = read_pairs(folder)[:10]
    for i, pair in enumerate(pairs):
        add_verdict(folder, pair.id, right(folder, pair), "Ada")
        add_verdict(folder, pair.id, right(folder, pair, "ppo" if i < 8 else "sft"), "m", "llm_verdicts.jsonl")
    assert outcome(folder)["agreement"]["same"] == 0.8 and outcome(folder)["agreement"]["pairs"] == 10
    half = {str(i): "first" if i % 2 else "second" for i in range(40)}
    other = {str(i): "first" if i % 4 < 2 else "second" for i in range(40)}
    assert agreement(half, other)["kappa"] == pytest.approx(0.0) and agreement(half, half)["kappa"] == 1.0
    assert agreement(half, {"x": "tie"}) is None


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 1: not valid JSON"),
        ('{"id": "ID", "verdict": "left"}', "line 1: verdict must be one of first, second, tie"),
        ('{"id": "nobody", "verdict": "tie"}', "line 1: there is no pair 'nobody'"),
        ("[]", "line 1: verdict must be one of"),
    ],
)
def test_wrong_verdicts_are_named_by_their_line(folder, line, words):
    path = folder / "given.jsonl"
    path.write_text(line.replace("ID", read_pairs(folder)[0].id))
    with pytest.raises(InputError, match=words):
        read_verdicts(path, folder)


def test_a_verdict_does_not_count_for_answers_that_have_replaced_the_judged_ones(folder):
    pairs = read_pairs(folder)
    for pair in pairs[:2]:
        add_verdict(folder, pair.id, "first", "Ada")
    changed = {**ANSWERS, "ppo": ["another answer", *ANSWERS["ppo"][1:]]}
    write_pairs(folder, PROMPTS, changed, ("ppo", "sft"), seed=0)
    assert outcome(folder)["judges"]["people"]["pairs"] == 1


# The endpoint


class Service:
    """A chat-completions server on loopback that answers as `reply(question, call)` says: text, a status, or a body."""

    def __init__(self, reply):
        service = self
        self.calls: list[dict] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.calls.append({"body": body, "key": self.headers.get("Authorization"), "path": self.path})
                answer = reply(body["messages"][0]["content"], len(service.calls))
                status, text = answer if isinstance(answer, tuple) else (200, answer)
                if status == 200 and not isinstance(text, bytes):
                    text = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text or b"")

            def log_message(self, *_):
                """Nothing on stderr."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.server.server_port}/v1", "judge-1", "secret-of-a-test")


@pytest.fixture
def serve(monkeypatch):
    started = []

    def start(reply) -> Service:
        started.append(Service(reply))
        return started[-1]

    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    yield start
    for service in started:
        service.server.shutdown()


def likes_good(question: str, call: int) -> str:
    first = question.split("<answer_a>")[1].split("</answer_a>")[0]
    return json.dumps({"verdict": "A" if "good" in first else "B"})


def test_a_steady_judge_is_asked_both_ways_and_believed(folder, serve):
    service = serve(likes_good)
    told = judge_pairs(folder, service.endpoint(), most=12)
    assert told == {"asked": 12, "consistent": 12, "unreadable": 0} and len(service.calls) == 24
    found = outcome(folder)["judges"]["language model"]
    assert (found["wins"], found["losses"], found["judges"]) == (12, 0, ["judge-1"])
    call = service.calls[0]
    assert call["path"] == "/v1/chat/completions" and call["key"] == "Bearer secret-of-a-test"
    assert call["body"]["model"] == "judge-1" and call["body"]["temperature"] == 0
    assert "secret-of-a-test" not in "".join(path.read_text() for path in folder.iterdir())


def test_a_judge_that_follows_the_order_gives_ties(folder, serve):
    told = judge_pairs(folder, serve(lambda question, call: '{"verdict": "A"}').endpoint(), most=5)
    assert told["consistent"] == 0 and outcome(folder)["judges"]["language model"]["ties"] == 5


def test_an_interrupted_judging_goes_on(folder, serve):
    service = serve(likes_good)
    judge_pairs(folder, service.endpoint(), most=3)
    assert judge_pairs(folder, service.endpoint(), most=5)["asked"] == 2 and len(service.calls) == 10


@pytest.mark.parametrize(
    "trouble", [(429, b""), (500, b"oops"), (200, b"<html>"), (200, b'{"choices": []}'), (200, b'{"choices": null}')]
)
def test_passing_trouble_is_tried_again(folder, serve, trouble):
    service = serve(lambda question, call: trouble if call % 3 else likes_good(question, call))
    assert judge_pairs(folder, service.endpoint(), most=2)["consistent"] == 2


def test_lasting_trouble_ends_in_one_line_and_keeps_what_is_there(folder, serve):
    service = serve(lambda question, call: likes_good(question, call) if call <= 4 else (503, b""))
    with pytest.raises(TrainingError, match="did not answer after 5 attempts: HTTP 503") as told:
        judge_pairs(folder, service.endpoint())
    assert "secret" not in str(told.value)
    assert outcome(folder)["judges"]["language model"]["pairs"] == 2


def test_a_refusal_is_not_repeated(folder, serve):
    service = serve(lambda question, call: (401, b""))
    with pytest.raises(TrainingError, match="refused: HTTP 401.*RLHF_JUDGE_KEY"):
        judge_pairs(folder, service.endpoint())
    assert len(service.calls) == 1


def test_replies_that_cannot_be_read_are_ties_and_counted(folder, serve):
    told = judge_pairs(folder, serve(lambda question, call: "Both have merits.").endpoint(), most=2)
    assert told["unreadable"] == 2 and outcome(folder)["judges"]["language model"]["ties"] == 2


@pytest.mark.parametrize(
    "text, verdict",
    [
        ('{"verdict": "A"}', "first"),
        ('Sure: {"verdict":"b"}', "second"),
        ("tie.", "tie"),
        (" B ", "second"),
        ("A is better", None),
        ("", None),
    ],
)
def test_replies(text, verdict):
    assert read_reply(text) == verdict


def test_without_its_variables_the_judge_is_off(monkeypatch):
    for name in ("RLHF_JUDGE_URL", "RLHF_JUDGE_MODEL", "RLHF_JUDGE_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="needs RLHF_JUDGE_URL and RLHF_JUDGE_MODEL"):
        Endpoint.from_environment()
    monkeypatch.setenv("RLHF_JUDGE_URL", "ftp://x")
    monkeypatch.setenv("RLHF_JUDGE_MODEL", "m")
    with pytest.raises(InputError, match="must begin with http"):
        Endpoint.from_environment()


def test_the_cost_is_told_before(folder):
    assert cost(read_pairs(folder)).startswith("60 pairs, 120 requests, about ")


# By hand, in a notebook


def test_a_form_shows_one_pair_after_the_other_and_goes_on_where_it_stopped(folder, monkeypatch):
    from rlhf_utils.evaluation.labelling import label_pairs

    monkeypatch.delenv("RLHF_HEADLESS", raising=False)
    pairs = read_pairs(folder)
    form = label_pairs(folder)
    shown, buttons = form.children[0], form.children[1].children
    assert pairs[0].prompt in shown.value and pairs[0].first in shown.value
    buttons[0].click(), buttons[1].click()
    assert pairs[2].prompt in shown.value
    given = read_verdicts(folder / "human_verdicts.jsonl", folder)
    assert given == {"me": {pairs[0].id: "first", pairs[1].id: "tie"}}
    again = label_pairs(folder)
    assert "58 to go" in again.children[0].value
    for _ in range(58):
        again.children[1].children[2].click()
    assert "Done. ppo against sft" in again.children[0].value and again.children[1].children[0].disabled


def test_texts_in_the_form_are_escaped(tmp_path, monkeypatch):
    from rlhf_utils.evaluation.labelling import label_pairs

    monkeypatch.delenv("RLHF_HEADLESS", raising=False)
    write_pairs(tmp_path, ["<b>p"], {"ppo": ["<script>x</script>"], "sft": ["y"]}, ("ppo", "sft"), 0)
    page = label_pairs(tmp_path).children[0].value
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;p" in page


def test_with_nobody_there_it_says_where_the_pairs_are(folder, monkeypatch, capsys):
    from rlhf_utils.evaluation.labelling import label_pairs

    monkeypatch.setenv("RLHF_HEADLESS", "1")
    assert label_pairs(folder) is None
    assert "60 blinded pairs wait in judge_pairs.jsonl" in capsys.readouterr().out
