from types import SimpleNamespace

import httpx2
import openai
import pytest
from loopback import Endpoint, completion

from lib.evaluation import endpoint

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


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
        reply, attempts = endpoint.complete(endpoint.client(server.url), REQUEST, 5)
    assert (reply.choices[0].message.content, attempts) == ("ok", 1)


def test_the_sdk_does_not_retry_on_its_own():
    with Endpoint(lambda body, n: (500, {}, "no", 0) if n < 3 else (200, {}, completion("ok"), 0)) as server:
        _, attempts = endpoint.complete(endpoint.client(server.url), REQUEST, 10)
        assert attempts == len(server.bodies) == 3


def test_retry_after_is_read_and_bounded():
    assert [endpoint._seconds(text) for text in ("2", "600", "Fri, 20 Nov 2026", None)] == [2.0, 30.0, 0.0, 0.0]


def test_a_server_that_dribbles_is_left_at_the_deadline():
    with Endpoint(lambda body, n: (200, {}, list(completion("late")), 0)) as server:  # a whole answer, were it awaited
        with pytest.raises(openai.APITimeoutError):
            endpoint.complete(endpoint.client(server.url), REQUEST, 0.8)
        with pytest.raises(openai.OpenAIError):
            endpoint.stream(endpoint.client(server.url), REQUEST, 0.8)


def test_a_hung_connection_is_tried_again_before_the_deadline():
    def reply(body, number):
        return 200, {}, completion("ok"), 60 if number == 1 else 0

    with Endpoint(reply) as server:
        got, attempts = endpoint.complete(endpoint.client(server.url), REQUEST, 4)
    assert (got.choices[0].message.content, attempts) == ("ok", 2)


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

    def once(timeout_s):
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
