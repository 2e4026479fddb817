"""Outside judges: pairs that give nothing away, verdicts read strictly, and an endpoint that misbehaves."""

import json
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from made import cells

from rlhf_utils.__main__ import main
from rlhf_utils.evaluation import judging
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import read_json, write_json, write_jsonl

PROMPTS = [f"Question {i}?" for i in range(60)]
ANSWERS = {"ppo": [f"good {i}" for i in range(60)], "sft": [f"plain {i}" for i in range(60)]}


def write_pairs(folder: Path, prompts=PROMPTS, answers=ANSWERS, seed=0) -> list[judging.Pair]:
    pairs, key = cells("04_01", "def blinded(").blinded(prompts, answers, seed)
    write_jsonl(folder / judging.PAIRS, pairs)
    write_json(folder / judging.KEY, key)
    return judging.read_pairs(folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_pairs(tmp_path)
    return tmp_path


def order(folder: Path) -> dict:
    return read_json(folder / "judge_key.json")["order"]


def right(folder: Path, pair, better: str = "ppo") -> str:
    """The verdict that prefers a model's response."""
    return ("first", "second")[order(folder)[pair.id].index(better)]


def test_pairs_are_blind_and_in_random_order_and_equal_ones_are_counted(folder):
    pairs, key = judging.read_pairs(folder), order(folder)
    text = (folder / "judge_pairs.jsonl").read_text()
    assert judging.cost(pairs).startswith("60 pairs, 120 requests, about ")
    assert len(pairs) == 60 and "ppo" not in text and "sft" not in text
    assert 15 < [key[pair.id][0] for pair in pairs].count("ppo") < 45
    for pair in pairs:
        i = PROMPTS.index(pair.prompt)
        assert [pair.first, pair.second] == [ANSWERS[model][i] for model in key[pair.id]]
    assert write_pairs(folder) == pairs != write_pairs(folder, seed=1)
    assert len(write_pairs(folder, ["p", "q"], {"ppo": ["same", "a"], "sft": ["same ", "b"]})) == 1
    assert read_json(folder / "judge_key.json")["equal_answers"] == 1


def test_wins_are_those_of_the_model_asked_about(folder):
    for i, pair in enumerate(judging.read_pairs(folder)):
        verdict = "tie" if i % 6 == 0 else right(folder, pair, "sft" if i % 6 == 1 else "ppo")
        judging.add_verdict(folder, pair.id, verdict, "Ada")
    found = judging.outcome(folder)["judges"]["people"]
    assert (found["wins"], found["losses"], found["ties"]) == (40, 10, 10) and found["judges"] == ["Ada"]
    assert found["rate"] == pytest.approx(0.75) and found["ci95"][0] > 0.5
    path = folder / "human_verdicts.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert judging.outcome(folder)["judges"]["people"] == found, "who was judged first changes the interval"
    assert judging.outcome(folder)["agreement"] == [] and "consistent" not in judging.outcome(folder)["each"][0]


def test_the_majority_decides_its_tie_is_a_tie_and_a_second_thought_replaces_the_first(folder):
    one, two = judging.read_pairs(folder)[:2]
    given = [("a", one, "sft"), ("a", one, "ppo"), ("a", two, "ppo"), ("b", one, "ppo"), ("b", two, "sft")]
    for judge, pair, better in given:
        judging.add_verdict(folder, pair.id, right(folder, pair, better), judge)
    judging.add_verdict(folder, one.id, "tie", "c")
    found = judging.outcome(folder)["judges"]["people"]
    assert (found["wins"], found["losses"], found["ties"], found["judges"]) == (1, 0, 1, ["a", "b", "c"])


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "as JSON lines: "),
        ('{"id": "ID", "verdict": "left"}', "line 1: verdict must be one of first, second, tie"),
        ('{"id": "nobody", "verdict": "tie"}', "line 1: there is no pair 'nobody'"),
        ('{"id": ["ID"], "verdict": "tie"}', r"line 1: there is no pair \['"),
    ],
)
def test_wrong_verdicts_are_named_by_their_line(folder, line, words):
    path = folder / "given.jsonl"
    path.write_text(line.replace("ID", judging.read_pairs(folder)[0].id))
    with pytest.raises(InputError, match=words):
        judging.read_verdicts(path, folder)


def test_a_verdict_does_not_count_for_responses_that_have_replaced_the_judged_ones(folder):
    for pair in judging.read_pairs(folder)[:2]:
        judging.add_verdict(folder, pair.id, "first", "Ada")
    write_pairs(folder, answers={**ANSWERS, "ppo": ["another", *ANSWERS["ppo"][1:]]})
    assert judging.outcome(folder)["judges"]["people"]["pairs"] == 1


@pytest.fixture
def serve(monkeypatch):
    """Let the `openai` client reach a service that replies as `reply(question, call)` says (text, or a status with a
    body), name it in the environment, and return the calls it gets."""
    openai, httpx = pytest.importorskip("openai"), pytest.importorskip("httpx")
    for name, value in zip(judging.ENVIRONMENT, ("http://judge/v1", "judge-1", "secret-of-a-test"), strict=True):
        monkeypatch.setenv(name, value)

    def start(reply) -> list[dict]:
        calls: list[dict] = []

        def handle(request):
            body = json.loads(request.content)
            calls.append({"body": body, "key": request.headers["Authorization"], "path": request.url.path})
            answer = reply(body["messages"][0]["content"], len(calls))
            if isinstance(answer, str):
                message = {"role": "assistant", "content": answer}
                answer = 200, json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
            headers = {"Content-Type": "application/json", "Retry-After": "0.01"}
            return httpx.Response(answer[0], content=answer[1], headers=headers)

        client = httpx.Client(transport=httpx.MockTransport(handle))
        monkeypatch.setattr(openai, "OpenAI", partial(openai.OpenAI, http_client=client))
        return calls

    return start


def likes_good(question: str, call: int) -> str:
    first = question.split("<answer_a>")[1].split("</answer_a>")[0]
    return json.dumps({"verdict": "A" if "good" in first else "B"})


def test_a_steady_judge_is_asked_both_ways_and_believed_and_resumes(folder, serve, monkeypatch):
    calls = serve(likes_good)
    told = {"judge-1": {"asked": 8, "consistent": 8, "unreadable": 0}}
    assert judging.judge_pairs(folder, judging.Endpoint(), most=8) == told
    assert judging.judge_pairs(folder, judging.Endpoint(), most=12)["judge-1"]["asked"] == 4 and len(calls) == 24
    found = judging.outcome(folder)["judges"]["language model"]
    assert (found["wins"], found["losses"], found["judges"]) == (12, 0, ["judge-1"])
    call = calls[0]
    assert call["path"] == "/v1/chat/completions" and call["key"] == "Bearer secret-of-a-test"
    assert call["body"]["model"] == "judge-1" and call["body"]["temperature"] == 0
    assert "secret-of-a-test" not in "".join(path.read_text() for path in folder.iterdir())
    monkeypatch.delenv("RLHF_JUDGE_KEY")  # a service may need none
    assert judging.judge_pairs(folder, judging.Endpoint(), most=13)["judge-1"]["consistent"] == 1 and len(calls) == 26


@pytest.mark.parametrize(("reply", "unreadable"), [('{"verdict": "A"}', 0), ("Both have merits.", 5), ("", 5)])
def test_a_judge_that_follows_the_order_or_cannot_be_read_gives_ties(folder, serve, reply, unreadable):
    serve(lambda question, call: reply)
    told = judging.judge_pairs(folder, judging.Endpoint(), most=5)
    assert told == {"judge-1": {"asked": 5, "consistent": 0, "unreadable": unreadable}}
    assert judging.outcome(folder)["judges"]["language model"]["ties"] == 5


@pytest.mark.parametrize(
    ("trouble", "words", "tries"),
    [
        ((503, b""), "HTTP 503", 5),
        ((401, b"your key secret-of-a-test is wrong"), "HTTP 401.*; check .*RLHF_JUDGE_KEY", 1),
        ((200, b'{"choices": []}'), "gives no reply", 1),
    ],
)
def test_lasting_trouble_ends_in_one_line_and_keeps_what_is_there(folder, serve, monkeypatch, trouble, words, tries):
    monkeypatch.setattr(judging, "AT_ONCE", 1)
    calls = serve(lambda question, call: likes_good(question, call) if call <= 4 else trouble)
    judging.judge_pairs(folder, judging.Endpoint(), most=2)
    with pytest.raises(TrainingError, match=words) as told:
        judging.judge_pairs(folder, judging.Endpoint(), most=3)
    assert "secret" not in str(told.value) and "\n" not in str(told.value)
    assert len(calls) == 4 + tries and judging.outcome(folder)["judges"]["language model"]["pairs"] == 2


def right_by_half(question: str, call: int) -> str:
    """Of every other question the opposite of `likes_good`, of every third always the first."""
    number = int(question.split("Question ")[1].split("?")[0])
    found = likes_good(question, call)
    if number % 3 == 0:
        return '{"verdict": "A"}'
    return found if number % 2 else {'{"verdict": "A"}': '{"verdict": "B"}'}.get(found, '{"verdict": "A"}')


@pytest.fixture
def loopback():
    """A server on this machine that speaks the protocol, with two models; yields its address and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["model"])
            reply = {"steady": likes_good, "wavering": right_by_half}[body["model"]]
            message = {"role": "assistant", "content": reply(body["messages"][0]["content"], 0)}
            found = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *_):
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def test_several_models_judge_alone_and_their_agreement_is_known(tmp_path, loopback, monkeypatch, capsys):
    pytest.importorskip("openai")
    folder, (url, asked) = tmp_path / "evaluation", loopback
    folder.mkdir()
    pairs = write_pairs(folder)
    for name, value in zip(judging.ENVIRONMENT, (url, "steady, wavering,steady", ""), strict=True):
        monkeypatch.setenv(name, value)
    for pair in pairs[:30]:
        judging.add_verdict(folder, pair.id, right(folder, pair), "Ada")
    assert main(["judge", "--run", str(tmp_path), "--llm"]) == 2
    assert "60 pairs, 240 requests" in capsys.readouterr().err and not asked
    assert main(["judge", "--run", str(tmp_path), "--llm", "--yes"]) == 0
    told = capsys.readouterr()
    assert "steady: asked about 60 pairs: 60 judged" in told.err and "wavering: asked about 60 pairs: 40" in told.err
    assert asked.count("steady") == asked.count("wavering") == 120
    found = json.loads(told.out)
    each = {one["judge"]: one for one in found["each"]}
    assert [each[name]["wins"] for name in ("Ada", "steady", "wavering")] == [30, 60, 20]
    assert (each["wavering"]["losses"], each["wavering"]["ties"]) == (20, 20)
    assert each["steady"]["consistent"] == 1.0 > each["steady"]["consistent_ci95"][0] > 0.9
    low, high = each["wavering"]["consistent_ci95"]
    assert (
        each["wavering"]["consistent"] == pytest.approx(2 / 3)
        and low < 2 / 3 < high
        and "consistent" not in each["Ada"]
    )
    alike = {tuple(one["between"]): one for one in found["agreement"]}
    assert [*alike] == [
        ("Ada", "steady"),
        ("Ada", "wavering"),
        ("steady", "wavering"),
        ("majority: people", "majority: language model"),
    ]
    assert alike["Ada", "steady"]["kappa"] == 1.0 and alike["Ada", "steady"]["pairs"] == 30
    both = alike["steady", "wavering"]
    assert both["agreement"] == pytest.approx(1 / 3) and both["kappa_ci95"][0] < both["kappa"] < both["kappa_ci95"][1]
    # In both orders: the steady one says first and second by halves, the other a third each.
    assert both["kappa"] == pytest.approx((1 / 3 - 1 / 3) / (1 - 1 / 3))


def test_intervals_are_of_conversations(folder):
    """Forty pairs of one conversation say no more than one."""
    prompts = [f"Question {max(i, 40)}?\n\nAssistant: Yes.\n\nHuman: And {i}?" for i in range(60)]
    for i, pair in enumerate(write_pairs(folder, prompts)):
        judging.add_verdict(folder, pair.id, right(folder, pair, "sft" if i >= 40 and i % 2 else "ppo"), "Ada")
    low, high = judging.outcome(folder)["each"][0]["ci95"]
    assert high - low > 0.3


@pytest.mark.parametrize(
    ("text", "verdict"), [('Sure: {"verdict":"b"}', "second"), ("tie.", "tie"), (" A ", "first"), ("A is better", None)]
)
def test_replies(text, verdict):
    assert judging.read_reply(text) == verdict


def test_what_the_judge_lacks_is_named_in_one_line(monkeypatch):
    for name in judging.ENVIRONMENT:
        monkeypatch.setenv(name, "ftp://x")
    with pytest.raises(InputError, match="needs RLHF_JUDGE_URL, RLHF_JUDGE_MODEL, RLHF_JUDGE_KEY"):
        judging.Endpoint()
    monkeypatch.setenv("RLHF_JUDGE_URL", "http://x")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match="pip install 'openai"):
        judging.Endpoint()
