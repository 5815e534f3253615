"""A judge endpoint that fails in every way at once, and runs that are killed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from loopback import Endpoint, completion
from test_panel import honest, items

from lib.judge import judges, panel, verdicts

QUESTIONS, ORDERS, DEADLINE_S = 40, 2, 20.0
RUNNER = """
import json, sys
from lib.evaluation import endpoint
from lib.judge import judges, panel, verdicts
sys.path.insert(0, sys.argv[4])
from test_panel import items
endpoint.PAUSE_S = (0.01, 0.05)
store = verdicts.Store(sys.argv[2])
work = panel.tasks(items(int(sys.argv[3])), 2)
rows, coverage = panel.run(judges.Judge("m", sys.argv[1], slots=4), work, store, timeout_s=20.0, max_usd=9.0)
store.close()
print(json.dumps([rows, coverage]))
"""
FAULTS = {  # one in ten calls each has no answer; the others answer with what is no verdict
    "429": lambda body: (429, {"Retry-After": "0"}, '{"error": {"message": "slow down"}}', 0),
    "500": lambda body: (500, {}, "oops", 0),
    "wait": lambda body: (429, {"Retry-After": "600"}, "{}", 0),
    "hang": lambda body: (200, {}, completion(honest(body)), 12.0),  # more than an attempt may take
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
    # waits of Retry-After last 30 s each, more than the deadline: two in a hundred calls, so that the test ends
    name = "wait" if draw < 10 else "hang" if draw < 25 else [n for n in names if n not in ("wait", "hang")][draw % 5]
    return FAULTS[name](body)


def start(url, store, count=QUESTIONS):
    here = os.path.dirname(__file__)
    return subprocess.Popen([sys.executable, "-c", RUNNER, url, str(store), str(count), here], stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The verdicts of a run without faults: {(question, order): {model: score}}."""
    store = verdicts.Store(tmp_path_factory.mktemp("clean") / "v.sqlite")
    with Endpoint(lambda body, n: (200, {}, completion(honest(body)), 0)) as server:
        rows, _ = panel.run(judges.Judge("m", server.url), panel.tasks(items(QUESTIONS), ORDERS), store,
                            timeout_s=20, max_usd=9.0)  # fmt: skip
    return scores(rows)


def scores(rows):
    found = {}
    for row in rows:
        found.setdefault((row["question"], row["order"]), {})[row["model"]] = (row["score"], row["rank"])
    return found


def test_faults_and_kills_change_no_verdict(expected, tmp_path):
    path = tmp_path / "v.sqlite"
    with Endpoint(faulty) as server:
        for _ in range(5):
            runner = start(server.url, path)
            before = len(server.bodies)
            until = time.monotonic() + 60
            while len(server.bodies) < before + 6 and time.monotonic() < until:  # it is in the middle of its calls
                assert runner.poll() is None, "the runner ended before its calls"
                time.sleep(0.02)
            runner.send_signal(signal.SIGKILL)
            runner.wait()
        rows, coverage = json.loads(start(server.url, path).communicate(timeout=300)[0])
        calls = len(server.bodies)
    minimum = QUESTIONS * ORDERS
    assert coverage["asked"] == minimum and coverage["judged"] + sum(coverage["invalid"].values()) == minimum
    found = scores(rows)
    assert len(rows) == 4 * coverage["judged"] and all(expected[key] == value for key, value in found.items())
    store = verdicts.Store(path)
    stored = store.db.execute("SELECT question, position_order, COUNT(*) FROM verdicts GROUP BY 1, 2").fetchall()
    assert all(count == 1 for _, _, count in stored) and len(stored) == coverage["judged"]
    asked = Counter(re.search(r"Question \d+", body["messages"][1]["content"])[0] for body in server.bodies)
    assert len(asked) == QUESTIONS
    assert calls <= 1.8 * minimum, f"{calls} calls for {minimum} verdicts"


def test_no_transport_fault_becomes_invalid_before_the_deadline_and_none_lasts_longer(tmp_path, monkeypatch):
    store, started, ended = verdicts.Store(tmp_path / "v.sqlite"), {}, {}

    def dead(body, number):
        question = re.search(r"Question \d+", body["messages"][1]["content"])[0]
        started.setdefault(question, time.monotonic())
        ended[question] = time.monotonic()
        return [(500, {}, "oops", 0), (429, {"Retry-After": "600"}, "{}", 0), (200, {}, '{"id": ', 0)][number % 3]

    with Endpoint(dead) as server:
        begin = time.monotonic()
        work = panel.tasks(items(4), 1)
        rows, coverage = panel.run(judges.Judge("m", server.url), work, store, timeout_s=1.5, max_usd=9.0)
        lasted = time.monotonic() - begin
    assert rows == [] and sum(coverage["invalid"].values()) == 4 and coverage["incomplete"]
    assert all(cause.startswith("transport") for cause in coverage["invalid"])
    assert 1.3 <= lasted < 25 and coverage["calls"] == 4
    store.close()
