import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import httpcore2
import httpx2
import openai
import pytest
from loopback import Endpoint, Loopback, completion

from lib.evaluation import connection, endpoint

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def complete(api, deadline_s):
    return endpoint.persist(lambda timeout_s, fit: endpoint.post(api, fit(REQUEST), timeout_s), deadline_s)


class Clock:
    """A clock that only sleep moves."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1/"),
        ("https://host.example/openai", "https://host.example/openai/"),
    ],
)
def test_a_bare_host_gets_the_usual_path(given, used):
    assert str(endpoint.client(given).base_url) == used


def test_a_local_server_is_reached_past_a_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Endpoint(lambda body, n: (200, {}, completion("ok"), 0)) as server:
        reply = complete(endpoint.client(server.url), 5)
    assert reply == endpoint.Reply("ok", None, (5, 7)) and len(server.bodies) == 1


def test_the_proxy_of_the_environment_is_used_and_given_the_question(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Endpoint(lambda body, n: (200, {}, completion("through"), 0)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert complete(endpoint.client("http://host.example"), 5).text == "through"
    assert len(proxy.bodies) == 1


def test_the_sdk_does_not_retry_on_its_own():
    with Endpoint(lambda body, n: (500, {}, "no", 0) if n < 3 else (200, {}, completion("ok"), 0)) as server:
        assert complete(endpoint.client(server.url), 10).text == "ok"
        assert len(server.bodies) == 3


def test_retry_after_is_read_and_bounded():
    given = ("2", "600", "inf", "Fri, 20 Nov 2026", None, "nan", "-1e308")
    assert [endpoint._seconds(text) for text in given] == [2.0, 30.0, 30.0, 0.0, 0.0, 0.0, 0.0]


def test_a_server_that_dribbles_is_left_at_the_deadline():
    with Endpoint(lambda body, n: (200, {}, list(completion("late")), 0)) as server:  # a whole answer, were it awaited
        with pytest.raises(openai.APITimeoutError):
            complete(endpoint.client(server.url), 0.8)
        with pytest.raises(openai.OpenAIError):
            endpoint.stream(endpoint.client(server.url), REQUEST, 0.8)


def test_a_hung_connection_is_tried_again_before_the_deadline():
    def reply(body, number):
        return 200, {}, completion("ok"), 60 if number == 1 else 0

    with Endpoint(reply) as server:
        assert complete(endpoint.client(server.url), 4).text == "ok"
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("retry_after", "waits"),
    [
        ("600", [30, 30, 20, 10, 5]),  # 30 s at most, and never more than half of what is left
        (None, [0.5, 1, 2, 4, 8, 8, 8, 8]),
    ],
)
def test_faults_are_retried_until_the_deadline_whatever_the_server_asks_for(monkeypatch, retry_after, waits):
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(endpoint, "PAUSE_S", (0.5, 8.0))

    def once(timeout_s, fit):
        assert timeout_s == max((100 - now[0]) / 2, endpoint.SHORTEST_S)
        headers = {"retry-after": retry_after} if retry_after else {}
        response = httpx2.Response(429, headers=headers, request=httpx2.Request("POST", "http://127.0.0.1"))
        raise openai.RateLimitError("slow down", response=response, body=None)

    with pytest.raises(openai.RateLimitError):
        endpoint.persist(once, 100)
    assert slept[: len(waits)] == waits
    assert 100 - 2 * endpoint.SHORTEST_S <= now[0] <= 100


def test_a_stream_gives_the_text_the_count_and_the_first_token():
    with Endpoint(lambda body, n: (200, {}, completion("one two", reasoning_content="why"), 0.1)) as server:
        got = endpoint.stream(endpoint.client(server.url), REQUEST, 5)
    assert (got["content"], got["reasoning"], got["tokens"], got["finish"]) == ("one two", "why", 7, "stop")
    assert 0 < got["first_s"] <= got["seconds"]


class Dripping:
    """A connection on which a byte comes each second of a clock."""

    def __init__(self, clock):
        self.clock, self.close, self.get_extra_info = clock, None, None

    def read(self, max_bytes, timeout):
        self.clock.sleep(min(1.0, timeout))
        return b"x"

    def write(self, buffer, timeout):
        self.clock.sleep(min(1.0, timeout))


def test_whatever_drips_ends_at_the_deadline(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(connection, "time", clock)
    bounds = connection._Bounds()
    bounds.start(10)
    stream = connection._Stream(Dripping(clock), bounds)
    stream.write(b"question")
    for _ in range(9):
        assert stream.read(100) == b"x"
    with pytest.raises(httpcore2.ReadTimeout, match="deadline"):
        stream.read(100)
    assert clock.now == 10


def test_headers_without_end_are_left_at_the_deadline():
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n")
            try:
                while not ended.wait(0.05):
                    self.wfile.write(b"X-More: 1\r\n")
            except OSError:
                ended.set()

    with Loopback(Handler) as server:
        try:
            with pytest.raises(openai.APITimeoutError):
                endpoint.post(endpoint.client(server.url), REQUEST, 0.5)
        finally:
            ended.set()


def test_a_reply_of_too_many_bytes_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(connection, "MOST_BYTES", 10_000)
    blanks = {None: " " * 100_000 + completion("late"), True: ": blank\n" * 20_000}
    with Endpoint(lambda body, n: (200, {}, blanks[body.get("stream")], 0)) as server:
        with pytest.raises(connection.TooLong, match="more than 10000 bytes"):
            endpoint.post(endpoint.client(server.url), REQUEST, 20)
        with pytest.raises(connection.TooLong, match="more than 10000 bytes"):
            endpoint.stream(endpoint.client(server.url), REQUEST, 0.3)


@pytest.mark.parametrize("status", [302, 307, 308])
def test_no_redirect_takes_the_question_and_the_key_elsewhere(status):
    with Endpoint(lambda body, n: (200, {}, completion("stolen"), 0)) as other:
        with Endpoint(lambda body, n: (status, {"Location": other.url}, "", 0)) as server:
            with pytest.raises(openai.APIStatusError) as error:
                complete(endpoint.client(server.url, "secret"), 5)
    assert not other.bodies and len(server.bodies) == 1 and endpoint.final(error.value)


def refusing(**rules):
    """A server that answers once a request keeps all rules; it says what it refuses: {what: (test, status, text)}."""

    def reply(body, number):
        for test, status, said in rules.values():
            if test(body):
                return status, {}, json.dumps({"error": {"message": said}}), 0
        return 200, {}, completion("ok"), 0

    return reply


def test_what_a_server_refuses_is_found_once_whatever_it_is():
    reply = refusing(
        sampling=(lambda body: "temperature" in body, 400, "Unsupported value: 'temperature' is not supported"),
        limit=(lambda body: "max_tokens" in body, 400, "Use 'max_completion_tokens' instead."),
        schema=(lambda body: "response_format" in body, 500, "cannot compile the schema"),
        system=(lambda body: body["messages"][0]["role"] == "system", 422, "System role not supported"),
    )
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    request = {
        "model": "m",
        "messages": turns,
        "temperature": 0.0,
        "max_tokens": 9,
        "response_format": {"type": "text"},
    }
    dialect, gate = endpoint.Dialect(), threading.Barrier(4)
    with Endpoint(reply) as server:
        api = endpoint.client(server.url)

        def ask(_):
            gate.wait()  # all four are under way when the first refusal comes
            return endpoint.persist(lambda s, fit: endpoint.post(api, fit(request), s), 20, dialect).text

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(4))) == ["ok"] * 4
        asked = len(server.bodies)
        assert endpoint.persist(lambda s, fit: endpoint.post(api, fit(request), s), 20, dialect).text == "ok"
        assert len(server.bodies) == asked + 1
    plain = {"model": "m", "messages": [{"role": "user", "content": "Be brief.\n\nhello"}], "max_completion_tokens": 9}
    assert server.bodies[-1] == plain and dialect.refused == set(endpoint.REFUSALS)


@pytest.mark.parametrize(
    ("status", "said", "code", "requests"),
    [
        (401, "Incorrect API key", None, 1),
        (404, "The model does not exist", None, 1),
        (429, "You exceeded your current quota", "insufficient_quota", 1),
        (400, "no", None, 1),
    ],
)
def test_what_no_retry_mends_is_not_retried(status, said, code, requests):
    body = json.dumps({"error": {"message": said, "code": code}})
    with Endpoint(lambda *call: (status, {}, body, 0)) as server:
        with pytest.raises(openai.APIStatusError) as error:
            complete(endpoint.client(server.url), 20)
    assert len(server.bodies) == requests and endpoint.sentence(error.value) == said


def test_a_refusal_that_stays_the_same_is_met_once():
    with Endpoint(refusing(limit=(lambda body: True, 400, "max_tokens is too large"))) as server:
        api, request = endpoint.client(server.url), REQUEST | {"max_tokens": 9}
        with pytest.raises(openai.BadRequestError):
            endpoint.persist(lambda s, fit: endpoint.post(api, fit(request), s), 20)
    assert len(server.bodies) == 2


def test_pieces_that_are_none_become_no_answer():
    with Endpoint(lambda body, n: (200, {}, 'data: {"choices": [null]}\n\ndata: [DONE]\n\n', 0)) as server:
        with pytest.raises(ValueError, match="no piece of a chat completion"):
            endpoint.stream(endpoint.client(server.url), REQUEST, 0.3)


@pytest.mark.parametrize(("said", "finish"), [("eos", "stop"), ("end", "stop"), ("max_tokens", "length")])
def test_a_finish_in_other_words_is_understood(said, finish):
    with Endpoint(lambda body, n: (200, {}, completion("one", said), 0)) as server:
        assert endpoint.stream(endpoint.client(server.url), REQUEST, 5)["finish"] == finish


def test_no_password_of_an_address_is_shown():
    with Endpoint(lambda body, n: (200, {}, "data: [DONE]\n\n", 0)) as server:
        api = endpoint.client(server.url.replace("//", "//user:hunter22@"))
        with pytest.raises(ValueError, match="ended its stream without a finish_reason") as error:
            endpoint.stream(api, REQUEST, 0.3)
    assert server.url in str(error.value) and "hunter22" not in str(error.value)
