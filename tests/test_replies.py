"""Whatever a judge's server sends ends as a verdict, or as an invalid one that is counted and charged, in its time."""

import itertools
import json
import tempfile
import threading
import time

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import Endpoint, completion
from test_endpoint import Clock
from test_panel import fill, honest, items, shown

from lib.evaluation import endpoint
from lib.judge import asking, judges, panel, verdicts

TIMEOUT_S, PRICE = 10.0, (100.0, 100.0)


def judged(monkeypatch, reply, questions=1, max_usd=99.0, slots=1):
    """(coverage, requests, ledger, fake seconds): a panel over a server that answers reply(body), which may raise."""
    bodies, clock, lock = [], Clock(), threading.Lock()

    def handle(request):
        with lock:
            bodies.append(json.loads(request.read()))
        found = reply(bodies[-1])
        if isinstance(found, Exception):
            clock.sleep(request.extensions["timeout"]["read"] * isinstance(found, httpx2.TimeoutException))
            raise found
        status, text = found
        return httpx2.Response(status, content=text, request=request)

    def client(base_url, api_key):
        http = httpx2.Client(transport=httpx2.MockTransport(handle))
        return openai.OpenAI(base_url="http://host.example/v1", api_key=api_key, max_retries=0, http_client=http)

    monkeypatch.setattr(endpoint, "client", client)
    monkeypatch.setattr(endpoint, "time", clock)
    endpoint.dialect.cache_clear()
    one = judges.Judge("m", "http://host.example", usd_per_mtok=PRICE, slots=slots)
    work = panel.tasks(items(questions))
    with tempfile.TemporaryDirectory() as folder:
        store = verdicts.Store(f"{folder}/verdicts.jsonl")
        rows, coverage = panel.run(one, work, store, timeout_s=TIMEOUT_S, max_usd=max_usd)
    assert coverage["judged"] + sum(coverage["invalid"].values()) == coverage["asked"] == questions
    assert len(rows) == 4 * coverage["judged"]
    ledger = [(outcome, usd) for _, outcome, *_, usd in store.calls]
    assert coverage["calls"] == len(bodies) == len(ledger)
    least = min(task.usd(one) for task in work)
    assert all(usd >= least for outcome, usd in ledger if outcome != "transport")
    assert clock.now <= (asking.CONTENT_TRIES + 1) * TIMEOUT_S * questions
    return coverage, bodies, ledger, clock.now


def changed(**changes):
    """A valid completion of an honest judge with changes: {"a__b": value} sets what stands at choices[0].a.b."""

    def reply(body):
        whole = json.loads(completion(honest(body)))
        for path, value in changes.items():
            *way, last = path.split("__")
            place = whole if way[:1] == ["top"] else whole["choices"][0]
            for step in [step for step in way if step != "top"]:
                place = place[step]
            place[last] = value
        return 200, json.dumps(whole)

    return reply


def content(make):
    return lambda body: (200, completion(make(body)))


DEEP = "[" * 500 + "]" * 500
SCORE = '"score": 8'
INVALID = {  # replies that are no verdict, however often they come
    "choices null": changed(top__choices=None),
    "choices empty": changed(top__choices=[]),
    "choices of null": changed(top__choices=[None]),
    "an empty choice": changed(top__choices=[{}]),
    "choices a string": changed(top__choices="none"),
    "message null": changed(message=None),
    "message a list": changed(message=[1]),
    "content null": changed(message__content=None),
    "content of parts": changed(message__content=[{"type": "text", "text": "{}"}]),
    "content an object": changed(message__content={"verdicts": {}}),
    "reasoning only": changed(message__content="", message__reasoning_content="long"),
    "a refusal": changed(message__refusal="no"),
    "cut": changed(finish_reason="length"),
    "a list": lambda body: (200, "[1, 2]"),
    "a number": lambda body: (200, "17"),
    "NaN": lambda body: (200, "NaN"),
    "no bytes": lambda body: (200, ""),
    "no text": lambda body: (200, b"\xff\xfe\x00"),
    "a page": lambda body: (200, "<!doctype html><p>Bad gateway</p>"),
    "an event stream": lambda body: (200, 'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n'),
    "deep": lambda body: (200, DEEP),
    "very deep": lambda body: (200, "[" * 100_000),
    "deep content": content(lambda body: DEEP),
    "deep verdicts": content(lambda body: f'{{"verdicts": {"[" * 900}{"]" * 900}}}'),
    "5,000 digits outside": lambda body: (200, f'{{"choices": {"9" * 5000}}}'),
    "5,000 digits": content(lambda body: honest(body).replace(SCORE, f'"score": {"9" * 5000}')),
    "4,000 digits": content(lambda body: honest(body).replace(SCORE, f'"score": {"9" * 4000}')),
    "NaN score": content(lambda body: honest(body).replace(SCORE, '"score": NaN')),
    "1e309": content(lambda body: honest(body).replace(SCORE, '"score": 1e309')),
    "half characters": content(lambda body: "\ud800 no"),
    "unknown codes": content(lambda body: fill({code + "X": 5 for code, _ in shown(body)})),
    "a code missing": content(lambda body: fill({code: 5 for code, _ in shown(body)[1:]})),
    "two objects": content(lambda body: honest(body) + honest(body)),
    "reasoning without end": content(lambda body: f"<think>{honest(body)}"),
    "a fence of blanks": content(lambda body: "```" + " " * 150_000),
}
VALID = {
    "usage absent": changed(top__usage=None),
    "usage empty": changed(top__usage={}),
    "usage a list": changed(top__usage=[1]),
    "tokens null": changed(top__usage={"prompt_tokens": None, "completion_tokens": None}),
    "tokens below 0": changed(top__usage={"prompt_tokens": -(10**9), "completion_tokens": -5}),
    "tokens without end": changed(top__usage={"prompt_tokens": 10**400, "completion_tokens": 10**4000}),
    "another model": changed(top__model="other"),
    "finish null": changed(finish_reason=None),
    "finish eos": changed(finish_reason="eos"),
    "a fence": content(lambda body: f"```json\n{honest(body)}\n```"),
    "prose and a fence": content(lambda body: f"Here is my verdict.\n\n```json\n{honest(body)}\n```\nI hope it helps."),
    "reasoning in tags": content(lambda body: f'<think>first {{"verdicts": 1}}</think>\n{honest(body)}'),
    "8.0": content(lambda body: honest(body).replace(SCORE, '"score": 8.0')),
    "a quoted 8": content(lambda body: honest(body).replace(SCORE, '"score": "8"')),
    "Partial": content(lambda body: honest(body).replace('"partial"', '"Partial "')),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_is_no_verdict_is_invalid_counted_and_charged(monkeypatch, name):
    coverage, bodies, ledger, _ = judged(monkeypatch, INVALID[name])
    assert coverage["invalid"] == {"content": 1}
    assert [outcome for outcome, _ in ledger] == ["content"] * (asking.CONTENT_TRIES + 1)


@pytest.mark.parametrize("name", VALID)
def test_what_can_be_read_is_read_at_once(monkeypatch, name):
    coverage, bodies, ledger, _ = judged(monkeypatch, VALID[name])
    assert (coverage["judged"], coverage["calls"]) == (1, 1) and coverage["usd"] == ledger[0][1]


def test_what_a_reply_states_is_charged_where_it_is_more_than_was_expected(monkeypatch):
    reply = changed(top__usage={"prompt_tokens": 5000, "completion_tokens": 90_000})
    assert judged(monkeypatch, reply)[0]["usd"] == pytest.approx(95_000 * 100 / 1e6)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -(10**9), "completion_tokens": -1}])
def test_the_cap_holds_whatever_usage_says(monkeypatch, usage):
    one = judges.Judge("m", usd_per_mtok=PRICE)
    price = max(panel.estimate(one, [task]) for task in panel.tasks(items(300)))
    coverage, bodies, *_ = judged(monkeypatch, changed(top__usage=usage), questions=300, max_usd=94.5 * price)
    assert len(bodies) == coverage["judged"] == 94 and coverage["invalid"] == {"budget": 206}


def test_every_retry_is_counted_and_within_the_cap(monkeypatch):
    one = judges.Judge("m", usd_per_mtok=PRICE)
    price = panel.estimate(one, panel.tasks(items(1)))
    coverage, bodies, *_ = judged(monkeypatch, lambda body: httpx2.ReadTimeout("slow"), max_usd=3.5 * price)
    assert len(bodies) == coverage["calls"] == 3 and coverage["invalid"] == {"budget": 1}
    assert coverage["usd"] == pytest.approx(3 * price)


@pytest.mark.parametrize(
    "fault", [httpx2.ReadTimeout("slow"), httpx2.ConnectError("refused"), httpx2.ReadError("gone")]
)
def test_a_dead_endpoint_costs_one_time_out(monkeypatch, fault):
    coverage, *_, seconds = judged(monkeypatch, lambda body: fault, questions=60)
    assert coverage["invalid"]["not asked"] == 59 and seconds <= TIMEOUT_S and coverage["fault"]


def test_a_question_that_hangs_does_not_end_the_others(monkeypatch):
    def reply(body):
        hangs = "Question 3?" in body["messages"][1]["content"]
        return httpx2.ReadTimeout("slow") if hangs else (200, completion(honest(body)))

    coverage, *_ = judged(monkeypatch, reply, questions=9)
    assert coverage["judged"] == 8 and coverage["invalid"] == {"transport: APITimeoutError": 1}


def test_a_judge_that_falls_silent_is_given_up(monkeypatch):
    heard = []

    def reply(body):
        heard.append(body)
        return (200, completion(honest(body))) if len(heard) <= 5 else httpx2.ReadTimeout("slow")

    coverage, *_ = judged(monkeypatch, reply, questions=50)
    assert coverage["judged"] == 5
    assert coverage["invalid"] == {"not asked": 45 - asking.PATIENCE, "transport: APITimeoutError": asking.PATIENCE}


@pytest.mark.parametrize(
    ("status", "code", "asked"), [(401, None, 1), (403, None, 1), (404, None, 1), (429, "insufficient_quota", 1),
                                  (302, None, 1), (400, None, 6)]
)  # fmt: skip
def test_a_refusal_of_all_is_said_once_in_the_servers_words(monkeypatch, status, code, asked):
    said = json.dumps({"error": {"message": "Not with secret.", "code": code}})
    coverage, bodies, ledger, _ = judged(monkeypatch, lambda body: (status, said), questions=20)
    assert len(bodies) == asked and coverage["fault"] == "Not with secret." and coverage["usd"] == 0.0
    assert coverage["invalid"]["not asked"] == 20 - (1 if asked == 1 else asking.PATIENCE)


def test_50_mb_of_blanks_are_one_question_that_is_counted_and_charged_and_the_others_are_asked(store):
    def reply(body, number):
        endless = "Question 0?" in body["messages"][1]["content"]
        return 200, {}, " " * 50_000_000 * endless + completion(honest(body)), 0

    with Endpoint(reply) as server:
        one, work = judges.Judge("m", server.url, usd_per_mtok=PRICE, slots=1), panel.tasks(items(3))
        start = time.monotonic()
        _, coverage = panel.run(one, work, store, timeout_s=60.0, max_usd=99.0)
        seconds = time.monotonic() - start
    assert (coverage["judged"], coverage["invalid"]) == (2, {"content": 1}) and "fault" not in coverage
    tries = asking.CONTENT_TRIES + 1
    assert coverage["calls"] == len(server.bodies) == tries + 2 and seconds < tries * 60.0
    assert [row[1] for row in store.calls].count("content") == tries
    assert coverage["usd"] >= tries * work[0].usd(one) + work[1].usd(one) + work[2].usd(one)


def test_a_key_in_the_servers_words_is_not_repeated():
    session = asking.Session(judges.Judge("m", "http://127.0.0.1:9", "sk-secret"), None, 1.0, 1.0)
    request = httpx2.Request("POST", "http://127.0.0.1:9")
    response = httpx2.Response(401, request=request)
    session.lose(openai.AuthenticationError("no", response=response, body={"message": "bad key sk-secret"}))
    assert session.closed == "bad key ***"


NUMBERS = st.one_of(st.integers(), st.floats(), st.just(10**400))
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def paths(value, at=()):
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in pairs:
        yield from paths(inner, (*at, step))


def mutated(value, where, removed, other):
    """The JSON value with something else at one of its places, or with that place left out."""
    whole = {"value": value}
    places = [path for path in paths(whole) if path]
    *way, last = places[where % len(places)]
    place = whole
    for step in way:
        place = place[step]
    if removed and way:
        del place[last]
    else:
        place[last] = other
    return whole["value"]


KINDS = ("envelope", "verdict", "text", "bytes", "cut", "status", "fault")
STATUS = (204, 302, 400, 401, 404, 408, 409, 418, 422, 429, 500, 503, 599)
FAULTS = (httpx2.ReadTimeout, httpx2.ConnectTimeout, httpx2.ReadError, httpx2.RemoteProtocolError)
PLAN = st.tuples(st.sampled_from(KINDS), st.integers(0, 10**4), st.booleans(), ANY, st.text(max_size=20), st.binary())


def hostile(plan, body):
    """(status, bytes) or an exception: a reply that may be wrong in any of its layers."""
    kind, where, removed, other, text, raw = plan
    whole = completion(honest(body))
    return {
        "envelope": lambda: (200, json.dumps(mutated(json.loads(whole), where, removed, other))),
        "verdict": lambda: (200, completion(json.dumps(mutated(json.loads(honest(body)), where, removed, other)))),
        "text": lambda: (200, completion(text + ("", honest(body), "{", "<think>")[where % 4])),
        "bytes": lambda: (200, raw),
        "cut": lambda: (200, whole[: where % len(whole)]),
        "status": lambda: (STATUS[where % len(STATUS)], json.dumps({"error": other})),
        "fault": lambda: FAULTS[where % len(FAULTS)]("fault"),
    }[kind]()


def fuzz(plans):
    """Two questions to a judge whose replies follow the plans in turn; `judged` says what must hold."""
    turn = itertools.cycle(plans)
    with pytest.MonkeyPatch.context() as patch:
        coverage, *_ = judged(patch, lambda body: hostile(next(turn), body), questions=2)
    assert coverage["usd"] >= 0


ODD = given(plans=st.lists(PLAN, min_size=1, max_size=5))
HOW = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=200, **HOW)
@ODD
def test_any_reply_is_a_verdict_or_counted(plans):
    fuzz(plans)


@pytest.mark.slow
@settings(max_examples=2000, **HOW)
@ODD
def test_any_of_many_replies_is_a_verdict_or_counted(plans):
    fuzz(plans)
