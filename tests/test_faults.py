"""A judge endpoint that fails in every way at once, and runs that are killed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
from loopback import Endpoint, completion
from test_panel import honest, items

from lib.evaluation import endpoint, kept
from lib.judge import judges, panel, verdicts

QUESTIONS, ORDERS = 40, 2
RUNNER = """
import json, sys
from lib.evaluation import endpoint, kept
from lib.judge import judges, panel, verdicts
sys.path.insert(0, sys.argv[4])
from test_panel import items
endpoint.PAUSE_S = (0.01, 0.05)
store = verdicts.Store(sys.argv[2])
work = panel.tasks(items(int(sys.argv[3])), 2)
rows, coverage = panel.run(judges.Judge("m", sys.argv[1], slots=4), work, store, timeout_s=8.0, max_usd=9.0)
print(json.dumps([rows, coverage]))
"""
FAULTS = {  # one in ten calls each has no answer; the others answer with what is no verdict
    "429": lambda body: (429, {"Retry-After": "0"}, '{"error": {"message": "slow down"}}', 0),
    "500": lambda body: (500, {}, "oops", 0),
    "wait": lambda body: (429, {"Retry-After": "600"}, "{}", 0),
    "hang": lambda body: (200, {}, completion(honest(body)), 5.0),  # more than an attempt may take
    "cut": lambda body: (200, {}, completion(honest(body)[:-25]), 0),
    "schema": lambda body: (200, {}, completion('{"verdict": "the second"}'), 0),
    "prose": lambda body: (200, {}, completion("I like the second best."), 0),
}


def faulty(body, number):
    """30 % of calls fail, by a draw that depends on the call's own text and number."""
    draw = int(hashlib.sha256(f"{number} {body['messages'][-1]['content'][-200:]}".encode()).hexdigest(), 16) % 1000
    if draw >= 300:
        return 200, {}, completion(honest(body)), 0.02
    names = list(FAULTS)
    # what takes long comes in one or two of a hundred calls
    name = "wait" if draw < 10 else "hang" if draw < 25 else [n for n in names if n not in ("wait", "hang")][draw % 5]
    return FAULTS[name](body)


def start(url, store, count=QUESTIONS):
    here = os.path.dirname(__file__)
    return subprocess.Popen([sys.executable, "-c", RUNNER, url, str(store), str(count), here], stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The verdicts of a run without faults: {(question, order): {model: score}}."""
    store = verdicts.Store(tmp_path_factory.mktemp("clean") / "v.jsonl")
    with Endpoint(lambda body, n: (200, {}, completion(honest(body)), 0)) as server:
        rows, _ = panel.run(judges.Judge("m", server.url), panel.tasks(items(QUESTIONS), ORDERS), store,
                            timeout_s=20, max_usd=9.0)  # fmt: skip
    return scores(rows)


def scores(rows):
    found = {}
    for row in rows:
        found.setdefault((row["question"], row["order"]), {})[row["model"]] = (row["score"], row["rank"])
    return found


@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_faults_and_kills_change_no_verdict(expected, tmp_path, kills):
    path, calls_left, amid = tmp_path / "v.jsonl", [], threading.Event()

    def reply(body, number):
        if calls_left and number >= calls_left[0]:  # the runner is in the middle of its calls
            amid.set()
        return faulty(body, number)

    with Endpoint(reply) as server:
        for _ in range(kills):
            amid.clear()
            calls_left[:] = [len(server.bodies) + 6]
            runner = start(server.url, path)
            while not amid.wait(0.1):
                assert runner.poll() is None, "the runner ended before its calls"
            runner.send_signal(signal.SIGKILL)
            runner.wait()
        rows, coverage = json.loads(start(server.url, path).communicate()[0])
        calls = len(server.bodies)
    minimum = QUESTIONS * ORDERS
    assert coverage["asked"] == minimum and coverage["judged"] + sum(coverage["invalid"].values()) == minimum
    found = scores(rows)
    assert len(rows) == 4 * coverage["judged"] and all(expected[key] == value for key, value in found.items())
    stored = [row for row in kept.entries(path) if row[1] == "verdict"]
    assert len({tuple(row[2:7]) for row in stored}) == len(stored) == coverage["judged"]
    asked = Counter(re.search(r"Question \d+", body["messages"][1]["content"])[0] for body in server.bodies)
    assert len(asked) == QUESTIONS
    assert calls <= 1.8 * minimum, f"{calls} calls for {minimum} verdicts"


class Clock(threading.local):
    """A clock for each thread, which only its sleep moves."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_no_transport_fault_becomes_invalid_before_its_deadline(store, monkeypatch):
    monkeypatch.setattr(endpoint, "time", Clock())
    monkeypatch.setattr(endpoint, "SHORTEST_S", 10.0)  # real seconds for a reply, however busy this machine is
    faults, given_up = [(500, {}, "oops", 0), (429, {"Retry-After": "600"}, "{}", 0)], threading.Event()

    def reply(body, number):
        if "Question 3?" in body["messages"][1]["content"]:
            given_up.wait(60)  # its first request is answered when three calls have failed in a row
        return faults[number % 2]

    with Endpoint(reply) as server:
        limits = {"timeout_s": 300, "max_usd": 9.0, "progress": lambda done, total: done == 3 and given_up.set()}
        rows, coverage = panel.run(judges.Judge("m", server.url), panel.tasks(items(4), 1), store, **limits)
        asked = Counter(re.search(r"Question \d+", body["messages"][1]["content"])[0] for body in server.bodies)
    assert rows == [] and sum(coverage["invalid"].values()) == 4 and coverage["incomplete"] and coverage["fault"]
    assert all(cause.startswith("transport") for cause in coverage["invalid"])
    assert coverage["calls"] == len(server.bodies) and len(asked) == 4
    assert min(asked.values()) > 5  # until the deadline: test_endpoint.py
