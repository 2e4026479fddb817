"""A training that is asked to stop saves at its next safe point, and going on from there changes nothing."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from test_ppo_resume import UPDATES, policy, result, straight, trainer  # noqa: F401
from tiny import one_thread  # noqa: F401

from rlhf_utils.runs.locks import SERIES
from rlhf_utils.runs.stopping import Listener, Stopped, safe_points, stop_asked, terminable


@pytest.mark.parametrize(("number", "update"), [(signal.SIGINT, 0), (signal.SIGTERM, 2)])
def test_ppo_stops_after_the_update_and_goes_on_to_the_same_end(policy, straight, tmp_path, number, update):  # noqa: F811
    def ask(line):
        if line["update"] == update:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped) as stopped:
        trainer(policy, tmp_path, ask).train()
    assert stopped.value.number == number and not stop_asked()
    done = []
    finished = trainer(policy, tmp_path, lambda line: done.append(line["update"]))
    finished.train()
    assert done == list(range(update + 1, UPDATES)), "no update is done twice"
    assert result(tmp_path) == straight
    assert [folder.name for folder in finished.store.policies()] == [f"update-{n:06d}" for n in (2, 4, 6)]


def test_the_base_model_stops_after_the_step_and_goes_on_to_the_same_end(tmp_path):
    from test_pretraining import SETTINGS, same, weights

    from rlhf_utils.runs.pretraining import train_base

    texts = [f"The {thing} stands in the {place}." for thing in ("cup", "jar", "lamp") for place in range(90)]
    train_base(texts, SETTINGS, 0, tmp_path / "straight")

    def ask(text, step, steps):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train_base(texts, SETTINGS, 0, tmp_path / "asked", progress=ask)
    assert list((tmp_path / ".asked.work").glob("checkpoint-*/COMPLETE"))
    steps = []
    train_base(texts, SETTINGS, 0, tmp_path / "asked", progress=lambda text, step, total: steps.append(step))
    assert steps[0] > 1, "it began anew"
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "asked"))


def test_a_second_request_is_obeyed_at_once(monkeypatch):
    reached = []
    with pytest.raises(Stopped), safe_points():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(stop_asked())
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the second")
    assert reached == [True] and not stop_asked()
    # A series only repeats itself; it ends the kernel where it means at once.
    monkeypatch.setenv(SERIES, "some/run")
    with pytest.raises(Stopped), safe_points():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("repeated")
    assert reached[-1] == "repeated"


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with safe_points(), terminable():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(Stopped), terminable():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_listener_asks_first_and_ends_then(signals):
    heard, may_end = [], threading.Event()
    listener = Listener(lambda: heard.append("ask"), lambda: (heard.append("end"), may_end.set()))

    def work():
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(0.5)
        if signals == 1:
            may_end.set()
        may_end.wait(10)

    listener.run(work)
    assert listener.asked == signal.SIGTERM
    assert heard[0] == "ask" and ("end" in heard) == (signals == 2)


def test_a_listener_hands_on_what_the_work_raised():
    def work():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Listener(lambda: None, lambda: None).run(work)
